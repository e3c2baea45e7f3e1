"""The sampling rule in NumPy, with a full sort: the oracle of the native kernel, which gives exactly this.

A row's tokens are ordered by (logit descending, id ascending); every filter keeps a prefix of that order, so
ties are settled by the lower id. NaN counts as minus infinity, plus infinity as the largest float32; minus
infinity is never kept, and a row of nothing else gives token 0. The best token passes every filter.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bloombee.engine import noise

F32 = NDArray[np.float32]

LARGEST = np.finfo(np.float32).max
TINY = np.finfo(np.float64).tiny
_EXP_TERMS = tuple(np.float32(1 / math.factorial(n)) for n in range(7, 0, -1))
_TO_WHOLE = np.float32(1.5 * 2**23)
_LOG2_E = np.float32(float.fromhex("0x1.715476p+0"))
_LN2_HIGH = np.float32(float.fromhex("0x1.62e4p-1"))
_LN2_LOW = np.float32(float.fromhex("0x1.7f7d1cp-20"))


def weights(logits: F32, best: np.float32, temperature: float) -> NDArray[np.uint64]:
    """floor(2^40 e^((logit - best) / temperature)): what top-p counts in.

    Integers, so that a sum does not depend on its order. The exponent is rounded to float32 and cut off at -30.

    Args:
        logits: [n] float32, finite, <= best.
        temperature: > 0.
    """
    inverse = np.float32(min(1.0 / temperature, 1e30) if temperature > 1e-300 else 1e30)
    with np.errstate(over="ignore"):
        y = np.maximum((logits - best) * inverse, np.float32(-30))
    shifted = y * _LOG2_E + _TO_WHOLE
    whole = shifted - _TO_WHOLE
    r = (y - whole * _LN2_HIGH) - whole * _LN2_LOW
    p = np.full_like(r, _EXP_TERMS[0])
    for term in _EXP_TERMS[1:]:
        p = p * r + term
    p = p * r + np.float32(1)
    # p 2^whole <= 1 as a 24-bit significand shifted to 40 fraction bits.
    significand, exponent = np.frexp(p)
    bits = (significand.astype(np.float64) * 2.0**24).astype(np.uint64)
    right = (1 - exponent - whole.astype(np.int64)).astype(np.uint64)
    weight: NDArray[np.uint64] = (bits << np.uint64(17)) >> right
    return weight


def sample_row(
    logits: F32, *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, seed: int = 0, position: int = 0
) -> int:
    """The token of one row.

    Args:
        logits: [v] float32.
        temperature: >= 0; 0 is the best token.
        top_k: keep the k best; 0 keeps all.
        top_p: of those, keep the shortest prefix that has this share of their weight; 1 keeps all.
        min_p: keep what has (logit - best) / temperature >= log(min_p); 0 keeps all.
        seed, position: of the noise; see :mod:`bloombee.engine.noise`.
    """
    ids, score = score_row(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, position=position)
    return int(ids[score == score.max()].min()) if len(ids) else 0


def score_row(
    logits: F32, *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, seed: int = 0, position: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(ids that the filters keep, (logit - best) / temperature + noise of each), by falling logit; arguments as
    :func:`sample_row`. At temperature 0 all are kept, and there is neither division nor noise."""
    clean = np.where(np.isnan(logits), np.float32(-np.inf), np.minimum(logits, LARGEST))
    order = np.argsort(-clean, kind="stable")
    order = order[clean[order] >= -LARGEST]
    if len(order) == 0:
        return order, np.empty(0)
    best = clean[order[0]]
    if temperature == 0:
        return order, clean[order].astype(np.float64) - np.float64(best)
    if top_k:
        order = order[:top_k]
    if top_p < 1:
        mass = weights(clean[order], best, temperature)
        wanted = min(int(mass.sum()), math.ceil(top_p * float(mass.sum())))
        order = order[np.cumsum(mass) - mass < wanted]
    with np.errstate(over="ignore"):
        x = (clean[order].astype(np.float64) - np.float64(best)) / temperature
    if min_p >= TINY:
        kept = x >= noise.log(np.array(min_p))
        order, x = order[kept], x[kept]
    return order, x + noise.gumbel(seed, position, order)


def sample_rows(logits: F32, out: NDArray[np.uint32], **columns: NDArray[Any]) -> None:
    """As ``bloombee._native.sample_rows``: [b, v] logits, one item of every column per row, ids into ``out``."""
    for i, row in enumerate(logits):
        out[i] = sample_row(row, **{name: column[i].item() for name, column in columns.items()})
