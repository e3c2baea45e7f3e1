"""Fits a table to a boundary's own traffic. A few milliseconds a megabyte; never on an event loop.

Channels are sorted inside tiles of 256 by the fraction of their scale (in octaves), so that groups of 64 share a
quarter octave; whole octaves become per-channel shifts. Groups then share 16 tables: 4 clusters by shape, 4 phases of
group position + row offset. Source: docs/codec.md section 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bloombee.codec.table import GROUP, MAX_WINDOW, TILE, Symbols, Table
from bloombee.types import Dtype

MAX_CLUSTERS = 4
SPAN = 96
"""Relative exponents -32 .. 63 are counted; what is outside is an escape."""
BELOW = 32

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def fit(samples: Any, dtype: Dtype, *, channels: int | None = None) -> Table:
    """A table for data like ``samples``.

    Args:
        samples: [rows, d] values as a buffer of unsigned integers of the dtype's size (2-D), or, with ``channels``, as
            any contiguous bytes. A few hundred rows are enough; 64 is the least that pays.
        dtype: of the values.
        channels: d, if ``samples`` has no shape of its own.

    Raises:
        ValueError: no rows, or a size that ``channels`` does not divide.

    Time: about 40 ns a value. Most of it without the GIL (numpy).
    """
    exponents = exponents_of(samples, dtype, channels)
    best: tuple[float, Table] | None = None
    for row_bits in (0, 4, 8):
        bits, table = fit_rows(exponents, dtype, row_bits)
        if best is None or bits < best[0] - 1e-4:
            best = bits, table
    assert best is not None
    return best[1]


def exponents_of(samples: Any, dtype: Dtype, channels: int | None = None) -> Bytes:
    """[rows, d] uint8 biased exponents of the values in a buffer; arguments as for :func:`fit`."""
    word = np.dtype("<u4") if dtype is Dtype.FLOAT32 else np.dtype("<u2")
    view = memoryview(samples)
    flat: Any = np.frombuffer(view if view.contiguous else view.tobytes(), word)
    d = channels if channels is not None else view.shape[1] if view.ndim == 2 and view.shape else 0
    if d < 1 or flat.size == 0 or flat.size % d:
        raise ValueError(f"{flat.size} values, {d} channels: must be [rows >= 1, d]")
    shift, mask = {Dtype.BFLOAT16: (7, 255), Dtype.FLOAT16: (10, 31), Dtype.FLOAT32: (23, 255)}[dtype]
    exponents: Bytes = ((flat >> shift) & mask).astype(np.uint8).reshape(-1, d)
    return exponents


def fit_rows(exponents: Bytes, dtype: Dtype, row_bits: int) -> tuple[float, Table]:
    """(bits a value that it would take on the samples, table) for one width of the row offsets, 0, 4 or 8 bits."""
    d = exponents.shape[1]
    row_base = int(np.clip(np.median(_row_means(exponents)), 0, 65535))
    order, shifts, phases = _place_channels(_channel_means(exponents))
    position = phases[None, :] + _row_offsets(exponents, row_base, row_bits)[:, None]
    counts = _count(exponents, order, shifts, position)
    clusters = _cluster(counts)
    num_clusters = int(clusters.max()) + 1
    symbols = []
    bits = 0.0
    for cluster in range(num_clusters):
        for phase in range(4):
            histogram = counts[clusters == cluster, phase].sum(0)
            # A cluster's other phases fill in for one that the samples hardly show.
            frequencies, cost = normalise(histogram + 1e-3 * counts[clusters == cluster].sum((0, 1)) + 1e-6)
            symbols.append(frequencies)
            bits += cost
    groups = bytes(int(p) | int(c) << 2 for p, c in zip(phases, clusters, strict=True))
    gathered_shift = np.zeros(d, np.int64)
    gathered_shift[_channels(order)] = shifts
    table_bytes = bytes(int(s) & 255 for s in gathered_shift)
    table = Table(dtype, d, row_bits, row_base, groups, table_bytes, order.astype(np.uint8).tobytes(), tuple(symbols))
    return bits / exponents.size + row_bits / d, table


def context_counts(exponents: Bytes, table: Table) -> Floats:
    """[tables, SPAN + 2] how often each exponent, relative to its place, occurs where each table is used (see _count)."""
    order = np.frombuffer(table.order, np.uint8).astype(np.int64) if table.order else np.arange(table.channels) % TILE
    shifts = np.frombuffer(table.shifts, np.uint8).astype(np.int64)[_channels(order)]
    groups = np.frombuffer(table.groups, np.uint8).astype(np.int64)
    position = (groups & 3)[None, :] + _row_offsets(exponents, table.row_base, table.row_bits)[:, None]
    counts = _count(exponents, order, shifts, position)
    clusters = groups >> 2
    totals: Floats = np.concatenate([counts[clusters == c].sum(0) for c in range(len(table.symbols) // 4)])
    return totals


def _row_means(exponents: Bytes) -> Ints:
    """[rows] mean exponent in quarter octaves, rounded."""
    d = exponents.shape[1]
    means: Ints = (8 * exponents.sum(1, dtype=np.int64) + d) // (2 * d)
    return means


def _row_offsets(exponents: Bytes, row_base: int, row_bits: int) -> Ints:
    if row_bits == 0:
        return np.zeros(len(exponents), np.int64)
    most = 127 if row_bits == 8 else 7
    offsets: Ints = np.clip(_row_means(exponents) - row_base, -most - 1, most)
    return offsets


def _channel_means(exponents: Bytes) -> Floats:
    """[d] mean exponent of the values that are not 0."""
    present = (exponents > 0).sum(0)
    total = exponents.sum(0, dtype=np.int64)
    means: Floats = total / np.maximum(present, 1)
    return means


def _channels(order: Ints) -> Ints:
    """Gathered position -> channel, both counted over the whole row."""
    return order + np.arange(len(order)) // TILE * TILE


def _place_channels(mean: Floats) -> tuple[Ints, Ints, Ints]:
    """(order in tiles [d], shifts in gathered order [d], phases [groups])."""
    d = len(mean)
    fraction = mean - np.floor(mean)
    order = np.concatenate([np.argsort(fraction[t : t + TILE], kind="stable") for t in range(0, d, TILE)])
    channels = _channels(order)
    shifts = np.floor(mean).astype(np.int64)[channels]
    phases = np.empty(-(-d // GROUP), np.int64)
    for g in range(len(phases)):
        at = slice(g * GROUP, (g + 1) * GROUP)
        phase = round(4 * float(fraction[channels[at]].mean()))
        shifts[at] += phase // 4
        phases[g] = phase % 4
    return order, shifts, phases


def _count(exponents: Bytes, order: Ints, shifts: Ints, position: Ints) -> Floats:
    """[groups, 4, SPAN + 2] how often each relative exponent occurs; the last two: exponent 0, and out of range."""
    groups = position.shape[1]
    channels = _channels(order)
    counts = np.zeros((groups, 4, SPAN + 2))
    for g in range(groups):
        at = slice(g * GROUP, (g + 1) * GROUP)
        e = exponents[:, channels[at]].astype(np.int64)
        relative = e - shifts[at] - (position[:, g] >> 2)[:, None] + BELOW
        relative[(relative < 0) | (relative >= SPAN)] = SPAN + 1
        relative[e == 0] = SPAN
        index = (position[:, g] & 3)[:, None] * (SPAN + 2) + relative
        counts[g] = np.bincount(index.ravel(), minlength=4 * (SPAN + 2)).reshape(4, SPAN + 2)
    return counts


def _cluster(counts: Floats) -> Ints:
    """[groups] cluster of each group: k-means under cross-entropy, started from the groups' own entropies."""
    groups = len(counts)
    k = min(MAX_CLUSTERS, groups)
    shape = counts.sum(1) + 0.05
    own = -(shape * np.log2(shape / shape.sum(1, keepdims=True))).sum(1) / shape.sum(1)
    clusters = np.empty(groups, np.int64)
    clusters[np.argsort(own, kind="stable")] = np.arange(groups) * k // groups
    flat = counts.reshape(groups, -1)
    for _ in range(8):
        cost = np.full((groups, k), np.inf)
        for c in range(k):
            members = clusters == c
            if members.any():
                centre = counts[members].sum(0) + 0.05
                cost[:, c] = -flat @ np.log2(centre / centre.sum(1, keepdims=True)).ravel()
        nearest = cost.argmin(1)
        if (nearest == clusters).all():
            break
        clusters = nearest
    _, dense = np.unique(clusters, return_inverse=True)
    return np.asarray(dense, np.int64)


def normalise(histogram: Floats) -> tuple[Symbols, float]:
    """Integer frequencies for counts [SPAN + 2] (see :func:`_count`), and the bits that coding them takes.

    Which exponents get a symbol: the run that is cheapest, at most 30 long; each end is dropped while an escape (its
    own code and 8 bits) costs less than a 256th of the rest.
    """
    total = float(histogram.sum())
    window, zeros, outside = histogram[:SPAN], float(histogram[SPAN]), float(histogram[SPAN + 1])
    has_zero = zeros > total / 256
    escaped = outside + (0.0 if has_zero else zeros)
    start, stop = _window(window)
    least = 0.45 * total / 256
    while stop - start > 1 and min(window[start], window[stop - 1]) < least:
        if window[start] <= window[stop - 1]:
            start += 1
        else:
            stop -= 1
    escaped += float(window[:start].sum() + window[stop:].sum())
    weights = [escaped, *([zeros] if has_zero else []), *map(float, window[start:stop])]
    frequencies = _round(weights)
    bits = sum(w * (8 - np.log2(f)) for w, f in zip(weights, frequencies, strict=True)) + 8 * escaped
    zero = frequencies.pop(1) if has_zero else 0
    return Symbols((start - BELOW) & 255, frequencies[0], zero, tuple(frequencies[1:])), float(bits)


def _window(counts: Floats) -> tuple[int, int]:
    """The run of at most 30 exponents that holds the most values."""
    sums = np.convolve(counts, np.ones(MAX_WINDOW), "valid")
    start = int(sums.argmax())
    return start, start + MAX_WINDOW


def _round(weights: list[float]) -> list[int]:
    """Frequencies >= 1 that add up to 256 and give the shortest code: repeatedly moves the step that gains most."""
    w = np.array(weights)
    f = np.maximum(1, np.floor(256 * w / max(w.sum(), 1e-300))).astype(np.int64)
    while f.sum() != 256:
        if f.sum() < 256:
            f[np.argmax(w * np.log2((f + 1) / f))] += 1
        else:
            loss = np.where(f > 1, w * np.log2(f / np.maximum(f - 1, 1)), np.inf)
            f[np.argmin(loss)] -= 1
    return [int(x) for x in f]
