"""The answers to one request of a program: several generations side by side, each of them a choice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bloombee.grammar import Grammar
from bloombee.roles.prompts import Prompt
from bloombee.runtime import Runtime
from bloombee.serve.answers import CompletionDetails, PromptDetails, Usage
from bloombee.serve.bodies import MOST_CHOICES, Sampled
from bloombee.serve.intake import refuse_if
from bloombee.types import SamplingParams, Token

Batch = list[tuple[int, Token]]
"""Tokens that have come together, each with the index of its choice."""


def sampling(body: Sampled, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
    """How ``body`` wants its answers; what it leaves open is OpenAI's default, or the checkpoint's."""
    return SamplingParams(
        max_new_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=None if body.top_k is None else max(body.top_k, 0),
        top_p=None if body.top_p is None else max(body.top_p, 1e-9),  # 0: the best one alone
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        seed=None if body.seed is None else body.seed % 2**64,
        stop=(body.stop,) if isinstance(body.stop, str) else (None if body.stop is None else tuple(body.stop)),
        logprobs=logprobs,
        ignore_eos=bool(body.ignore_eos),
    )


@dataclass(slots=True)
class Generations:
    """``n`` choices for each of ``prompts``, those of the first one first.

    Args:
        client: whose they are.
        grammar, biases: as of :meth:`Runtime.generate`.
        num_output: tokens that have come, of all.
        prompt_ids: of each prompt, once it has been read.
        num_cached: tokens of each prompt that other requests had computed, whichever of its choices came first.
    """

    runtime: Runtime
    prompts: Sequence[Prompt]
    params: SamplingParams
    n: int
    client: str
    grammar: Grammar | None = None
    biases: Mapping[int, float] | None = None
    num_output: int = 0
    prompt_ids: list[tuple[int, ...]] = field(default_factory=list)
    num_cached: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        most = min(MOST_CHOICES, self.runtime.config.max_waiting)
        refuse_if(len(self) > most, "n", self.n, f"with {len(self.prompts)} prompts: at most {most} answers at once")
        self.prompt_ids = [()] * len(self.prompts)

    def __len__(self) -> int:
        return self.n * len(self.prompts)

    def usage(self, num_reasoning: int = 0) -> Usage:
        """Of what has come so far, ``num_reasoning`` tokens of it reasoning."""
        num_prompt = sum(map(len, self.prompt_ids))
        return Usage(
            prompt_tokens=num_prompt,
            completion_tokens=self.num_output,
            total_tokens=num_prompt + self.num_output,
            prompt_tokens_details=PromptDetails(cached_tokens=sum(self.num_cached.values())),
            completion_tokens_details=CompletionDetails(reasoning_tokens=num_reasoning),
        )

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Every token of every choice, as they come.

        Raises:
            BloomBeeError: one of them failed; the others are ended.

        Cancelled, or left early: all of them end, and their KV is freed.
        """
        arrived = asyncio.Event()
        batch: Batch = []
        tasks = [asyncio.create_task(self._pump(index, batch, arrived)) for index in range(len(self))]
        for task in tasks:
            task.add_done_callback(lambda _: arrived.set())
        try:
            while batch or not all(task.done() for task in tasks):
                await arrived.wait()
                arrived.clear()
                for task in tasks:
                    if task.done():
                        task.result()
                if batch:
                    come = batch[:]
                    batch.clear()
                    self.num_output += len(come)
                    yield come
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, index: int, batch: Batch, arrived: asyncio.Event) -> None:
        number = index // self.n
        tokens = self.runtime.stream(
            self.prompts[number],
            self._seeded(index),
            client=self.client,
            on_prompt=lambda ids: self._opened(number, ids),
            grammar=self.grammar,
            logit_bias=self.biases,
        )
        async with contextlib.aclosing(tokens):
            async for token in tokens:
                self.num_cached.setdefault(number, token.num_cached_tokens)
                batch.append((index, token))
                arrived.set()

    def _seeded(self, index: int) -> SamplingParams:
        """Choices of one prompt differ in their noise."""
        seed, number = self.params.seed, index % self.n
        return self.params if seed is None or not number else replace(self.params, seed=(seed + number) % 2**64)

    def _opened(self, number: int, prompt_ids: tuple[int, ...]) -> None:
        self.prompt_ids[number] = prompt_ids
