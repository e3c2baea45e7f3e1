"""A checkpoint's rules for logits, applied by transformers' own processors in transformers' own order.

They are asked rather than repeated, so a greedy text is, token for token, what ``generate`` gives; only what does no more than
take tokens away is done here. A model without rules never comes here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    WatermarkLogitsProcessor,
)

from bloombee.wire.messages import Rules, Sampling

F32 = NDArray[np.float32]


class Processors:
    """What ``rules`` do to a row, in three steps; the request's own penalties come between the first and the second.

    Args:
        vocab_size: of the logits.

    Each method takes [v] float32, which it does not write, and a history [position] of token ids, and returns such a row.
    """

    def __init__(self, rules: Rules, vocab_size: int) -> None:
        self._rules = rules
        self._vocab_size = vocab_size
        biases = [[list(tokens), bias] for tokens, bias in rules.sequence_bias]
        self._bias = [SequenceBiasLogitsProcessor(biases)] if biases else []
        self._bad_words = lru_cache(maxsize=8)(self._make_bad_words)
        self._suppress = [_Suppress(rules.suppress_tokens, vocab_size)] if rules.suppress_tokens else []
        self._suppress_first = [_Suppress(rules.begin_suppress_tokens, vocab_size)] if rules.begin_suppress_tokens else []
        self._watermark = [self._make_watermark()] if rules.watermark is not None else []

    def biased(self, row: F32, history: NDArray[np.int64]) -> F32:
        """With the biases on sequences."""
        return _run(self._bias, row, history)

    def constrained(
        self, row: F32, history: NDArray[np.int64], *, num_prompt_tokens: int, max_new_tokens: int, end_tokens: tuple[int, ...]
    ) -> F32:
        """With what must not come, and what must, at this place of a request."""
        ends = [token for token in end_tokens if token < self._vocab_size]
        return _run(self._constraints(len(history), num_prompt_tokens, max_new_tokens, ends), row, history)

    def warped(self, row: F32, history: NDArray[np.int64], sampling: Sampling) -> tuple[F32, Sampling]:
        """With all filters of a request that samples, if the rules have one that the kernel has not; and what is left to do."""
        if sampling.temperature == 0 or not self.has_filters:
            return _run(self._watermark, row, history), sampling
        done = msgspec.structs.replace(sampling, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
        return _run([*self._filters(sampling), *self._watermark], row, history), done

    @property
    def has_filters(self) -> bool:
        """Whether :meth:`warped` does more than to mark tokens."""
        rules = self._rules
        return bool(rules.top_h or rules.typical_p < 1 or rules.epsilon_cutoff or rules.eta_cutoff or self._watermark)

    def _constraints(
        self, position: int, num_prompt_tokens: int, max_new_tokens: int, ends: list[int]
    ) -> Iterator[LogitsProcessor]:
        rules = self._rules
        if rules.no_repeat_ngram_size:
            yield NoRepeatNGramLogitsProcessor(rules.no_repeat_ngram_size)
        if rules.bad_words_ids:
            yield self._bad_words(tuple(ends))
        if position < max(rules.min_length, num_prompt_tokens + rules.min_new_tokens):
            yield _Suppress(ends, self._vocab_size)
        if rules.forced_bos_token_id is not None:
            yield ForcedBOSTokenLogitsProcessor(rules.forced_bos_token_id)
        if rules.forced_eos_token_id:
            yield ForcedEOSTokenLogitsProcessor(num_prompt_tokens + max_new_tokens, list(rules.forced_eos_token_id))
        if rules.remove_invalid_values:
            yield InfNanRemoveLogitsProcessor()
        if rules.exponential_decay_length_penalty is not None and ends:
            yield ExponentialDecayLengthPenalty(rules.exponential_decay_length_penalty, ends, num_prompt_tokens)
        yield from self._suppress
        if self._suppress_first:
            is_forced = num_prompt_tokens == 1 and rules.forced_bos_token_id is not None
            yield from (self._suppress_first if position == num_prompt_tokens + is_forced else ())

    def _filters(self, sampling: Sampling) -> Iterator[LogitsProcessor]:
        rules = self._rules
        if sampling.temperature != 1.0:
            yield TemperatureLogitsWarper(sampling.temperature)
        if rules.top_h:
            yield TopHLogitsWarper(rules.top_h)
        if sampling.top_k:
            yield TopKLogitsWarper(sampling.top_k)
        if sampling.top_p < 1:
            yield TopPLogitsWarper(sampling.top_p)
        if sampling.min_p:
            yield MinPLogitsWarper(sampling.min_p)
        if rules.typical_p < 1:
            yield TypicalLogitsWarper(rules.typical_p)
        if rules.epsilon_cutoff:
            yield EpsilonLogitsWarper(rules.epsilon_cutoff)
        if rules.eta_cutoff:
            yield EtaLogitsWarper(rules.eta_cutoff)

    def _make_bad_words(self, ends: tuple[int, ...]) -> LogitsProcessor:
        return NoBadWordsLogitsProcessor([list(word) for word in self._rules.bad_words_ids], list(ends) or None)

    def _make_watermark(self) -> LogitsProcessor:
        mark = self._rules.watermark
        assert mark is not None
        scheme = "selfhash" if mark.is_selfhash else "lefthash"
        return WatermarkLogitsProcessor(
            self._vocab_size, "cpu", mark.greenlist_ratio, mark.bias, mark.hashing_key, scheme, mark.context_width
        )


class _Suppress(LogitsProcessor):  # type: ignore[misc]
    """Tokens that are not picked. transformers' own look for all of the vocabulary in the list: 50 ms for 128k and 90 tokens."""

    def __init__(self, tokens: Iterable[int], vocab_size: int) -> None:
        self._tokens = torch.tensor([token for token in tokens if token < vocab_size], dtype=torch.long)

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(-1, self._tokens, -torch.inf)


def _run(processors: Iterable[LogitsProcessor], row: F32, history: NDArray[np.int64]) -> F32:
    ids, scores = torch.from_numpy(history)[None], torch.from_numpy(row)[None]
    for processor in processors:
        scores = processor(ids, scores)
    return np.ascontiguousarray(scores[0].numpy())
