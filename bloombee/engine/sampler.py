"""From the last stage's logits to tokens: biases and penalties here, a checkpoint's rules in ``processors.py``, the rest in the
kernel.

One rule for every request: biases, rules and penalties, what its grammar allows, temperature, top-k, top-p, min-p, then the
survivor with the largest logit / temperature + Gumbel noise, the noise being a function of (seed, position, token id) alone. So
a token does not depend on what else is in the batch, nor on how the model is cut. docs/adr/0002 has why.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bloombee import _native
from bloombee.engine.processors import Processors
from bloombee.wire.messages import Sampling

log = logging.getLogger(__name__)
F32 = NDArray[np.float32]

LEAST_LOGPROB = -1e18
"""Stands for log(0): the least number that a message carries."""


@dataclass(frozen=True, slots=True, eq=False)
class SamplerRow:
    """What one row of logits needs besides itself.

    Args:
        sampling: of the request.
        position: absolute position that the new token takes.
        history: [num_tokens] little-endian uint32, all tokens so far, as bytes or an array; may be empty without penalties.
        num_prompt_tokens: ``history`` before this index is prompt, from it on output.
        max_new_tokens, end_tokens: of the request, for rules that speak of them.
        biases: (token, what is added to its logit). Ids beyond the vocabulary are ignored.
        mask: [ceil(v / 64)] uint64: bit i % 64 of word i // 64 is whether token i may be picked; None: all may.
    """

    sampling: Sampling
    position: int
    history: bytes | NDArray[np.uint32] = b""
    num_prompt_tokens: int = 0
    max_new_tokens: int = 0
    end_tokens: tuple[int, ...] = ()
    biases: tuple[tuple[int, float], ...] = ()
    mask: NDArray[np.uint64] | None = None


@dataclass(frozen=True, slots=True)
class Sampled:
    """A picked token; log-probabilities are the model's own, before penalties and filters.

    Args:
        token: id.
        logprob: of ``token``; None if none were asked for.
        top: (id, logprob) of the most likely tokens, best first (lower id first on a tie); as many as asked for.
        is_finite: what it was picked from has a number for it; False only where nothing that the mask allows has, or where
            picking failed.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    is_finite: bool = True


def sample(logits: F32, requests: Sequence[SamplerRow], processors: Processors | None = None) -> list[Sampled]:
    """Pick one token per row.

    Args:
        logits: [b, v] float32, C-contiguous, 1 <= v <= 2^23; not written. NaN counts as -inf, +inf as the largest
            float; a row of nothing but -inf and NaN gives token 0.
        requests: b rows.
        processors: of the checkpoint's rules, if it has any.

    Returns:
        b results, each a function of its own row and request only: the same in any batch, on any machine.

    Raises:
        ValueError: shapes, dtype or a sampling field out of range.

    Time, 32 rows of 128k tokens on one core with AVX-512: 2 ms unfiltered, 1 to 4 ms with small filters; log-probabilities
    and penalties come on top for the rows that ask for them.
    Source: ARCHITECTURE section 6; docs/adr/0021; csrc/sampler/row.h; the oracle is engine/sampler_reference.py.
    """
    if len(logits) != len(requests):
        raise ValueError(f"{len(logits)} rows of logits for {len(requests)} requests")
    tokens = np.empty(len(requests), np.uint32)
    if processors is not None or any(_changes_logits(request) for request in requests):
        is_finite = [_sample_alone(logits[i], request, tokens[i : i + 1], processors) for i, request in enumerate(requests)]
    else:
        _native.sample_rows(logits, tokens, **_columns(requests, logits.shape[1]))
        is_finite = [_is_sound(row, request, token) for row, request, token in zip(logits, requests, tokens, strict=True)]
    return [
        _report(row, token, request.sampling.logprobs, is_sound)
        for row, token, request, is_sound in zip(logits, tokens.tolist(), requests, is_finite, strict=True)
    ]


def _sample_alone(row: F32, request: SamplerRow, out: NDArray[np.uint32], processors: Processors | None) -> bool:
    """As :func:`_sample_one`; False too if a rule of the checkpoint or a penalty fails on this row, which costs no other row."""
    try:
        return _sample_one(row, request, out, processors)
    except Exception:
        log.exception("no token could be picked for position %d", request.position)
        out[0] = 0
        return False


def _sample_one(row: F32, request: SamplerRow, out: NDArray[np.uint32], processors: Processors | None) -> bool:
    """The token of one row into ``out`` [1]; whether its logit is finite."""
    if processors is not None:
        row, request = _ruled(row, request, processors)
    else:
        row = penalised(biased(row, request), request)
    _native.sample_rows(row[None], out, **_columns([request], len(row)))
    return _is_sound(row, request, out[0])


def _is_sound(row: F32, request: SamplerRow, token: np.uint32) -> bool:
    """The kernel never picks -inf, NaN or what the mask forbids while there is anything else, so one look a row is enough."""
    is_allowed = request.mask is None or bool(request.mask[token // 64] >> np.uint64(token % 64) & np.uint64(1))
    return is_allowed and bool(np.isfinite(row[token]))


def _ruled(row: F32, request: SamplerRow, processors: Processors) -> tuple[F32, SamplerRow]:
    """The row after rules and penalties, and what is left to do to it."""
    history = np.frombuffer(request.history, "<u4").astype(np.int64)
    row = penalised(processors.biased(biased(row, request), history), request)
    row = processors.constrained(
        row,
        history,
        num_prompt_tokens=request.num_prompt_tokens,
        max_new_tokens=request.max_new_tokens,
        end_tokens=request.end_tokens,
    )
    if request.mask is not None and processors.has_filters:  # they are to keep some of what is allowed
        row = masked(row, request.mask)
    row, sampling = processors.warped(row, history, request.sampling)
    return row, replace(request, sampling=sampling)


def biased(row: F32, request: SamplerRow) -> F32:
    """A row of logits with the request's biases added, in float32; not written."""
    if not request.biases:
        return row
    row = row.copy()
    for token, bias in request.biases:
        if token < len(row):
            row[token] += np.float32(bias)
    return row


def masked(row: F32, mask: NDArray[np.uint64]) -> F32:
    """A row of logits, of which only those that ``mask`` allows are more than -inf; not written."""
    allowed = np.unpackbits(mask.astype("<u8").view(np.uint8), count=len(row), bitorder="little").astype(bool)
    return np.where(allowed, row, np.float32(-np.inf))


def penalised(row: F32, request: SamplerRow) -> F32:
    """A row of logits with the request's penalties applied; not written.

    Repetition: logits of every token of the history, once, divided by the penalty if positive, else multiplied
    (arXiv 1909.05858, as transformers does it). Then of every token of the output: minus presence, minus
    frequency x occurrences. In float32, in that order. Ids beyond the vocabulary are ignored.
    """
    sampling = request.sampling
    if not _has_penalty(sampling):
        return row
    history = np.frombuffer(request.history, "<u4")
    row = row.copy()
    if sampling.repetition_penalty != 1.0:
        seen = np.unique(history)
        seen = seen[seen < len(row)]
        penalty = np.float32(sampling.repetition_penalty)
        row[seen] = np.where(row[seen] < 0, row[seen] * penalty, row[seen] / penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        output, counts = np.unique(history[request.num_prompt_tokens :], return_counts=True)
        output, counts = output[output < len(row)], counts[output < len(row)]
        row[output] -= np.float32(sampling.presence_penalty)
        row[output] -= np.float32(sampling.frequency_penalty) * counts.astype(np.float32)
    return row


def _has_penalty(sampling: Sampling) -> bool:
    return sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


def _changes_logits(request: SamplerRow) -> bool:
    return bool(request.biases) or _has_penalty(request.sampling)


def _masks(requests: Sequence[SamplerRow], vocab_size: int) -> NDArray[np.uint64]:
    """[b, ceil(v / 64)]."""
    masks = np.full((len(requests), -(-vocab_size // 64)), np.uint64(2**64 - 1))
    for row, request in zip(masks, requests, strict=True):
        if request.mask is not None:
            row[:] = request.mask
    return masks


def _columns(requests: Sequence[SamplerRow], vocab_size: int) -> dict[str, NDArray[Any]]:
    samplings = [request.sampling for request in requests]
    columns: dict[str, NDArray[Any]] = {
        "temperature": np.array([s.temperature for s in samplings], np.float64),
        "top_k": np.array([s.top_k for s in samplings], np.uint32),
        "top_p": np.array([s.top_p for s in samplings], np.float64),
        "min_p": np.array([s.min_p for s in samplings], np.float64),
        "seed": np.array([s.seed for s in samplings], np.uint64),
        "position": np.array([request.position for request in requests], np.uint64),
    }
    if any(request.mask is not None for request in requests):
        columns["masks"] = _masks(requests, vocab_size)
    return columns


def _report(row: F32, token: int, logprobs: int, is_finite: bool) -> Sampled:
    if logprobs < 0:
        return Sampled(token, None, (), is_finite)
    ids = np.empty(logprobs + 1, np.uint32)
    ids[0] = token
    ids = ids[: 1 + _native.top_tokens(row, ids[1:])]
    values = np.empty(len(ids), np.float64)
    _native.log_softmax(row, ids, values)
    own, *others = np.maximum(values, LEAST_LOGPROB).tolist()
    return Sampled(token, own, tuple(zip(ids[1:].tolist(), others, strict=True)), is_finite)
