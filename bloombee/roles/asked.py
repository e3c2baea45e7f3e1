"""A request as the scheduler and the last stage take it: the caller's word, filled up with the checkpoint's and with defaults."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TypeVar

from bloombee.config import DEFAULT_NEW_TOKENS
from bloombee.errors import ConfigError
from bloombee.models.card import ModelCard
from bloombee.types import SamplingParams
from bloombee.wire.messages import Sampling

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """Everything about a request but its prompt."""

    sampling: Sampling
    max_new_tokens: int
    end_tokens: frozenset[int]
    stop: tuple[str, ...]
    max_time_s: float | None


def ask(params: SamplingParams, card: ModelCard, num_prompt_tokens: int, default_new_tokens: int = DEFAULT_NEW_TOKENS) -> Asked:
    """``params`` for a prompt of ``num_prompt_tokens``, with what they leave open.

    Args:
        default_new_tokens: where neither they nor the checkpoint say; fewer where the model has no positions for so many.

    Raises:
        ConfigError: the prompt is as long as the checkpoint lets a whole sequence be.
    """
    return Asked(
        sampling=_sampling(params, card),
        max_new_tokens=_new_tokens(params, card, num_prompt_tokens, default_new_tokens),
        end_tokens=frozenset() if params.ignore_eos else frozenset(card.eos_token_ids),
        stop=_or(params.stop, card.defaults.stop),
        max_time_s=card.defaults.max_time_s,
    )


def _new_tokens(params: SamplingParams, card: ModelCard, num_prompt_tokens: int, default: int) -> int:
    defaults = card.defaults
    named = params.max_new_tokens or defaults.max_new_tokens
    if named is not None:
        return named
    if defaults.max_length is None:
        return _some_tokens(card, num_prompt_tokens, default)
    if num_prompt_tokens < defaults.max_length:
        return defaults.max_length - num_prompt_tokens
    raise ConfigError(
        f"the prompt has {num_prompt_tokens} tokens and the checkpoint's generation_config.json max_length ="
        f" {defaults.max_length}: give max_new_tokens, or shorten the prompt",
        field="max_new_tokens",
        prompt_tokens=num_prompt_tokens,
    )


def _some_tokens(card: ModelCard, num_prompt_tokens: int, default: int) -> int:
    """As far as the model has positions; a prompt that leaves none is refused elsewhere."""
    is_short = num_prompt_tokens <= card.restart_at
    most = card.restart_at + 1 if is_short else card.max_positions
    return min(default, most - num_prompt_tokens) if num_prompt_tokens < most else default


def _sampling(params: SamplingParams, card: ModelCard) -> Sampling:
    defaults = card.defaults
    seed = params.seed if params.seed is not None else int.from_bytes(secrets.token_bytes(8), "little")
    return Sampling(
        temperature=float(params.temperature),
        top_k=_or(params.top_k, defaults.top_k),
        top_p=float(_or(params.top_p, defaults.top_p)),
        min_p=float(_or(params.min_p, defaults.min_p)),
        repetition_penalty=float(_or(params.repetition_penalty, defaults.repetition_penalty)),
        presence_penalty=float(params.presence_penalty),
        frequency_penalty=float(params.frequency_penalty),
        seed=seed,
        logprobs=-1 if params.logprobs is None else params.logprobs,
    )


def _or(given: T | None, default: T) -> T:
    return default if given is None else given
