"""What can be said of every row of a pipeline before anything is started: whether it fits, and whether it can be measured.

A row is measured while all of its sequences decode. The first ones decode already while the last ones' prompts are still on
their way, and must not come to their end before: so each may generate so many tokens more, and needs the KV memory for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.arguments import OptionError
from bench.load import SETTLE_TOKENS, most_tokens
from bench.profiles import Profile
from bloombee.kv.pool import pages_for
from bloombee.machine import MEMORY_SHARE, free_memory
from bloombee.models.card import ModelCard
from bloombee.models.standin import default_pace, is_standin, standin_card, standin_memory_bytes
from bloombee.pace import Pace
from bloombee.plan.plan import split_layers
from bloombee.runtime import Runtime
from bloombee.types import Dtype

PAGE_TOKENS = 16
SPARE_TOKENS = 16
"""Of KV memory, for each sequence."""
PROMPT_SHARE = 0.35
"""Of the slowest link or device, that prompts get beside decode: they make way for it once half of a burst decodes. Behind
20 Mbit/s and 100 ms, prompts of 64 tokens, a first sequence was 298 tokens ahead of 128 (this says 316) and 75 of 32 (152)."""
MARGIN = 2.0
"""What is set aside for a head start, over what it is thought to be, where there is memory for it."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What all rows of a model stand on.

    Args:
        dtype: as asked for; ``auto`` is the checkpoint's.
        pace: of every device; None: a stand-in's own, or unknown.
        rings: that are up at the same time, one for each way to run.
    """

    card: ModelCard
    dtype: str
    workers: int
    prompt_tokens: int
    tokens: int
    pace: Pace | None
    rings: int

    @property
    def kv_tokens_that_fit(self) -> int:
        """Beside the weights, in the memory of the worker that has the least room."""
        dtype = self.card.dtype if self.dtype == "auto" else Dtype(self.dtype)
        spans = split_layers(self.card.num_layers, self.workers)
        memory = self._memory_bytes()
        return min(
            math.floor((memory - self.card.weight_bytes(span, dtype)) / max(1, self.card.kv_bytes_per_token(span, dtype)))
            for span in spans
        )

    def _memory_bytes(self) -> float:
        """Of one worker of one ring; as the runtime reckons it, which sees one ring at a time."""
        emulated = standin_memory_bytes(self.card.model)
        return emulated or MEMORY_SHARE * free_memory().amount / self.workers / self.rings

    def head_start(self, profile: Profile, batch: int) -> int:
        """Tokens that the first sequence has before the last one's prompt is through, about.

        Prompts get :data:`PROMPT_SHARE` of the slowest link or device, sequences the rest: each goes round at its own pace while
        there are few, and then they share it.
        """
        share = (1 - PROMPT_SHARE) / PROMPT_SHARE
        row_s, loop_s = self._row_s(profile), self._loop_s(profile)
        if row_s == 0 or loop_s == 0:
            return 0
        filling = max(1.0, (1 - PROMPT_SHARE) * loop_s / row_s)
        alone = min(batch, filling) * self.prompt_tokens * row_s / (PROMPT_SHARE * loop_s)
        return math.ceil(alone + share * self.prompt_tokens * math.log(max(1.0, batch / filling)))

    def _row_s(self, profile: Profile) -> float:
        """A row of a prompt, where it is slowest; 0 where neither links nor devices are known to take any time."""
        wires = [8 * self._row_bytes / rate for rate in self._bandwidths(profile)]
        return max([*wires, *(pace.prefill_row_s for pace in self._paces())], default=0.0)

    def _loop_s(self, profile: Profile) -> float:
        """A token's way round, alone."""
        delays = sum(profile.link(hop).forward.delay_s for hop in range(self._num_links))
        wires = sum(8 * self._row_bytes / rate for rate in self._bandwidths(profile))
        return delays + wires + sum(pace.fixed_s + pace.decode_row_s for pace in self._paces())

    @property
    def _row_bytes(self) -> int:
        return self.card.hidden_size * (self.card.dtype if self.dtype == "auto" else Dtype(self.dtype)).num_bytes

    @property
    def _num_links(self) -> int:
        return self.workers if self.workers > 1 else 0

    def _bandwidths(self, profile: Profile) -> list[float]:
        """Bits a second, of links that carry activations and are bounded."""
        links = [profile.link(hop).forward.bandwidth_bits_per_s for hop in range(self._num_links - 1)]
        return [rate for rate in links if rate is not None]

    def _paces(self) -> list[Pace]:
        if self.pace is not None:
            return [self.pace] * self.workers
        if is_standin(self.card.model):
            return [default_pace(self.card, span) for span in split_layers(self.card.num_layers, self.workers)]
        return []


def tokens_each(ground: Ground, profile: Profile, batch: int) -> int:
    """How many tokens each sequence of a row may generate.

    Raises:
        OptionError: the model has not the positions, the workers not the memory, or too little of it for all sequences to
            decode together. Says what would do.
    """
    needed, has = _needed(ground, profile, batch), _room(ground, batch)
    if has < needed:
        raise OptionError(_refusal(ground, profile, batch, needed, has))
    return min(has, max(needed, most_tokens(ground.tokens, profile) + math.ceil(MARGIN * ground.head_start(profile, batch))))


def kv_tokens(ground: Ground, batch: int, limit: int) -> int:
    """Of every stage, for ``batch`` sequences that may generate ``limit`` tokens each, and one more."""
    return PAGE_TOKENS * pages_for((batch + 1) * (ground.prompt_tokens + limit + SPARE_TOKENS), PAGE_TOKENS)


def _needed(ground: Ground, profile: Profile, batch: int) -> int:
    """Tokens that each sequence must be able to generate."""
    return max(most_tokens(ground.tokens, profile), ground.head_start(profile, batch) + SETTLE_TOKENS + ground.tokens)


def _room(ground: Ground, batch: int) -> int:
    """Tokens that each sequence may generate at most, for positions and memory."""
    by_memory = (ground.kv_tokens_that_fit - PAGE_TOKENS) // (batch + 1) - ground.prompt_tokens - SPARE_TOKENS
    by_positions = ground.card.max_positions - ground.prompt_tokens
    return min(by_memory, by_positions) if ground.card.max_positions else by_memory


def _refusal(ground: Ground, profile: Profile, batch: int, needed: int, has: int) -> str:
    positions = ground.card.max_positions
    if positions and positions - ground.prompt_tokens < needed:
        why = f"the model has {positions} positions"
    else:
        why = f"a worker has KV memory for {max(0, has)} of each sequence"
    best = _largest_batch(ground, profile, batch)
    advice = f"--batches up to {best} would do" if best else "fewer --tokens, shorter --prompt-tokens or more --workers might do"
    return (
        f"{ground.card.model}, {profile.name}, B = {batch}: to decode together for {ground.tokens} tokens each sequence must be"
        f" able to generate {needed} after its prompt of {ground.prompt_tokens}, and {why}; {advice}"
    )


def _largest_batch(ground: Ground, profile: Profile, below: int) -> int:
    """That would do; 0: none."""
    fits = (batch for batch in range(below - 1, 0, -1) if _room(ground, batch) >= _needed(ground, profile, batch))
    return next(fits, 0)


async def require_positions(model: str, workers: int, positions: int) -> None:
    """Raises OptionError if the model has not so many, ConfigError if it cannot be served by so many workers."""
    card = await find_card(model, workers)
    if 0 < card.max_positions < positions:
        raise OptionError(f"{model} has {card.max_positions} positions, {positions} are needed: fewer or shorter requests")


async def find_card(model: str, workers: int) -> ModelCard:
    """Facts of a model, by the process that would serve it; nothing is loaded.

    Raises:
        ConfigError: there is no such model, or it has too few layers for so many workers.
    """
    if is_standin(model):
        card = standin_card(model)
        split_layers(card.num_layers, workers)
        return card
    runtime = Runtime(model, workers=workers)
    try:
        await runtime.prepare()
        return runtime.card
    finally:
        await runtime.close()
