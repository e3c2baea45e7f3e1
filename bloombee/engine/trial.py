"""Own kernels are tried out before a span serves: a prompt and the tokens after it, by torch and by them, side by side.

A kernel that a driver, a compiler or a new generation of GPUs breaks is found out where it would otherwise answer nonsense.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from bloombee.engine.buffers import TORCH_DTYPES
from bloombee.engine.cache import SlotCache, everywhere
from bloombee.engine.picks import picked_rows
from bloombee.pipeline.work import Segment
from bloombee.types import Dtype
from bloombee.wire.messages import Sampling

if TYPE_CHECKING:
    from bloombee.engine.steps import Steps

log = logging.getLogger(__name__)
GREEDY = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, -1)
SEQUENCES, PROMPT = 2, 20
STEPS = 2
MOST_OFF = {Dtype.FLOAT32: 1e-3, Dtype.FLOAT16: 0.1, Dtype.BFLOAT16: 0.1}
"""Of the mean size of what comes out, the mean that the two may differ by: roundings come to far less, a fault to about 1."""

Work = tuple[list[Segment], torch.Tensor | None]


def try_out(steps: Steps) -> None:
    """Leave of a span's own kernels what does as torch does, and say so of the rest. Writes to the first pages of its cache, so
    before anything else runs.

    Raises:
        DeviceError: the device failed, which no other kernels mend.
    """
    works = list(_works(steps))
    tables, graphs = steps.tables, steps.graphs
    with _only(steps, tables=False):
        right = _outcome(steps, works)
    with _only(steps, tables=True):
        own = _outcome(steps, works)
    if not _alike(right, own, steps.dtype):
        log.warning("attention by the extension's kernels differs from torch's on this device, whose attention is used instead")
        steps.tables = steps.graphs = None
        return
    steps.tables, steps.graphs = tables, graphs
    if graphs is not None and not _alike(right, _outcome(steps, works), steps.dtype):
        log.warning("recorded steps differ from those that were launched kernel by kernel, as they all are from now on")
        steps.graphs = None


@contextmanager
def _only(steps: Steps, *, tables: bool) -> Iterator[None]:
    """Meanwhile nothing is recorded, and attention is torch's or, with ``tables``, our own."""
    kept, steps.tables, steps.graphs = (steps.tables, steps.graphs), steps.tables if tables else None, None
    try:
        yield
    finally:
        steps.tables, steps.graphs = kept


def _works(steps: Steps) -> Iterator[Work]:
    """A prompt for each sequence, then some tokens, one at a time."""
    cache, noise = steps.cache, torch.Generator().manual_seed(0)
    room = min(group.num_pages for group in cache.groups) // SEQUENCES
    rows = min(PROMPT, room * cache.page_size - STEPS)
    if rows < 1:
        return
    for position, count in [(0, rows), *((rows + step, 1) for step in range(STEPS))]:
        segments = [_segment(steps, cache, number, position, count, noise) for number in range(SEQUENCES)]
        shape = (SEQUENCES * count, steps.hidden_size)
        hidden = None if steps.is_first else torch.randn(shape, generator=noise).to(TORCH_DTYPES[steps.dtype])
        yield segments, hidden


def _segment(steps: Steps, cache: SlotCache, number: int, position: int, rows: int, noise: torch.Generator) -> Segment:
    tokens = torch.randint(steps.vocab_size, (rows,), generator=noise, dtype=torch.int32).numpy().astype("<u4").tobytes()
    pages = -(-(position + rows) // cache.page_size)
    first = number * (min(group.num_pages for group in cache.groups) // SEQUENCES)
    held = everywhere(cache, first, pages, position)
    return Segment(number, 0, position, tokens, int(steps.is_last), held, GREEDY if steps.is_last else None, 1)


def _outcome(steps: Steps, works: Sequence[Work]) -> list[torch.Tensor] | None:
    """Activations, or logits of each sequence's last row; None: it failed."""
    try:
        return [steps.rows(segments, hidden, picked_rows(segments)).float().cpu() for segments, hidden in works]
    except (RuntimeError, ValueError):
        log.debug("a try failed", exc_info=True)
        return None


def _alike(right: list[torch.Tensor] | None, own: list[torch.Tensor] | None, dtype: Dtype) -> bool:
    if right is None or own is None:
        return own is not None
    return all(_off(a, b) <= MOST_OFF[dtype] for a, b in zip(right, own, strict=True) if bool(torch.isfinite(a).all()))


def _off(right: torch.Tensor, own: torch.Tensor) -> float:
    """The mean difference, of the mean size; infinite or not a number: not <= anything."""
    return float((right - own).abs().mean() / right.abs().mean().clamp_min(1e-30))
