"""What a checkpoint says of how to generate from it, as plain data. Read by ``engine/generation.py``; docs/checkpoints.md has
what becomes of every field. Names and meanings are those of transformers' ``GenerationConfig``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for a request whose caller says nothing of it.

    Args:
        max_new_tokens, max_length: tokens of the output, and of prompt and output together; the first counts if both are there.
        top_k, top_p, min_p: of requests that sample.
        stop: strings that end a text.
        max_time_s: after which a request gets no more tokens.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    max_time_s: float | None = None


@dataclass(frozen=True, slots=True)
class Watermark:
    """A bias on part of the vocabulary, which part being a hash of the last tokens."""

    greenlist_ratio: float
    bias: float
    hashing_key: int
    is_selfhash: bool
    context_width: int


@dataclass(frozen=True, slots=True)
class LogitsRules:
    """What the last stage does to the logits of every request, whatever its caller says.

    Args:
        sequence_bias: (tokens, what is added to the last of them where the others come before it).
        bad_words_ids: tokens of which the last is never picked where the others come before it.
        min_length, min_new_tokens: no end token in a shorter sequence, in a shorter output.
        forced_bos_token_id: the token at position 1. forced_eos_token_id: those allowed as the last that a request may have.
        exponential_decay_length_penalty: (output tokens from which, factor by which) end tokens become likelier.
        top_h, typical_p, epsilon_cutoff, eta_cutoff: filters of requests that sample.
    """

    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    no_repeat_ngram_size: int = 0
    min_length: int = 0
    min_new_tokens: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    top_h: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    watermark: Watermark | None = None
