"""What the log of activations costs while nothing is lost: throughput with it over throughput without, and its memory.

Two swarms of the same stand-in, one with the log and one without, stand side by side; loads go to them in turn, the order
within a pair alternates, so that a slow minute of the machine falls on both. Their devices are emulated: each takes as long
as a GPU would, so that what is left is what keeping frames costs. Then as many rows as overfill the log's memory are held
open in each, and the resident memory of the workers tells how much it takes.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from bench.spread import interval
from bloombee.config import LocalWorker
from bloombee.pipeline.log import LOG_BYTES
from bloombee.runtime import Runtime

MODEL, PACE, WORKERS = "standin:llama-30b", "13,0.05,0.05", 3
ROW_BYTES = 2 * 6656
SEQUENCES, PROMPT, NEW = 32, 16, 24
LONG_PROMPT = -(-5 * LOG_BYTES // (4 * ROW_BYTES * SEQUENCES))
"""So long that all sequences together overfill the log by a quarter."""
LEAST_RATIO = 0.98
MEMORY_SLACK = 1.05
"""Of the log's budget: allocators round."""
SETTINGS: dict[str, Any] = {
    "workers": WORKERS,
    "threads": 1,
    "pace": PACE,
    "microbatches": 3,
    "codec": "off",
    "prefix_cache": False,
}
OFF = LocalWorker(log_memory_bytes=0, log_disk_bytes=0)
"""Of a worker without a log."""


@dataclass(frozen=True, slots=True)
class LogCost:
    """Args:
    ratios: throughput with the log over that without, of each pair.
    grown: bytes that a worker before the last took more with the log than without, the most of any.
    """

    ratios: tuple[float, ...]
    grown: int

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """90 % of the median's."""
        return interval([[ratio] for ratio in self.ratios])

    @property
    def is_good(self) -> bool:
        return self.median >= LEAST_RATIO and self.grown <= MEMORY_SLACK * LOG_BYTES


async def measure_log(pairs: int, on_pair: Callable[[], None]) -> LogCost:
    """Args:
        on_pair: called after each.

    Raises:
        BloomBeeError: a swarm cannot be started or does not answer.
    """
    ratios: list[float] = []
    async with (
        Runtime(MODEL, **SETTINGS) as kept,
        Runtime(MODEL, **SETTINGS, local_workers=[OFF] * WORKERS) as bare,
    ):
        for runtime in (kept, bare):
            await tokens_per_s(runtime)
        for pair in range(pairs):
            rates = {}
            for runtime in (kept, bare) if pair % 2 else (bare, kept):
                rates[runtime] = await tokens_per_s(runtime)
            ratios.append(rates[kept] / rates[bare])
            on_pair()
        grown = [with_log - without for with_log, without in zip(await _grown(kept), await _grown(bare), strict=True)]
    return LogCost(tuple(ratios), max(grown[:-1]))


async def tokens_per_s(runtime: Runtime) -> float:
    """Of all sequences together, prompts included in the time."""
    began = time.monotonic()
    await asyncio.gather(*(_answer(runtime, number, PROMPT, NEW) for number in range(SEQUENCES)))
    return SEQUENCES * NEW / (time.monotonic() - began)


async def _grown(runtime: Runtime) -> list[int]:
    """Resident bytes that each stage's worker took while many rows were held open."""
    processes = [psutil.Process(runtime.worker_pids[stage.worker]) for stage in runtime.plan.stages]
    before = [process.memory_info().rss for process in processes]
    started, all_started = 0, asyncio.Event()

    async def held(number: int) -> None:
        nonlocal started
        async for _ in runtime.stream([1] * LONG_PROMPT, max_new_tokens=1000, ignore_eos=True, seed=number):
            started += 1
            if started == SEQUENCES:
                all_started.set()
            await all_started.wait()

    asked = [asyncio.ensure_future(held(number)) for number in range(SEQUENCES)]
    waiting = asyncio.ensure_future(all_started.wait())
    done, _ = await asyncio.wait([waiting, *asked], return_when=asyncio.FIRST_COMPLETED)
    after = [process.memory_info().rss for process in processes]
    for task in (waiting, *asked):
        task.cancel()
    await asyncio.gather(waiting, *asked, return_exceptions=True)
    for task in done - {waiting}:
        task.result()
    return [late - early for late, early in zip(after, before, strict=True)]


async def _answer(runtime: Runtime, seed: int, prompt: int, new: int) -> None:
    await runtime.generate([1 + seed] * prompt, max_new_tokens=new, ignore_eos=True, seed=seed)
