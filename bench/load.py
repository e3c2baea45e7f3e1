"""One run of one cell: prefill and decode measured apart, by the times at which tokens reach the application."""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from bench.profiles import LinkProfile, Profile
from bench.program import BenchError
from bench.usage import CpuUse, measure_cpu
from bench.window import Window, find_window
from bloombee.runtime import Runtime
from bloombee.types import StageUse

SLACK_TOKENS = 256
"""Tokens that a sequence may decode before the window begins, besides three times those asked for."""
LEAST_LOOP_S = 0.03
"""Behind links that change over time no token takes less."""
SETTLE_S, SETTLE_LOOPS, SETTLE_TOKENS = 1.5, 6, 64
"""What is tuned while it runs gets this long and so many loops of the links, or this many tokens of each sequence, before the
window begins."""
MOST_SETTLE_S = 15.0
"""What is tuned decodes for at most this long before its first run, until it has measured what it chose."""
FIXED_TOKENS = 4
"""What is not tuned: so many tokens of each sequence, for microbatches that prompts have left uneven to even out."""


class RunError(BenchError):
    """A run that gave no measurement."""


class Swarm(Protocol):
    """What is measured: a runtime whose links are emulated.

    Args:
        profile: of what its links do over time; is_reshaped: they have changed since anything was measured on it.
        is_tuned: it adapts to what it meets, and needs some time to; tunes_microbatches: how many of them as well.
    """

    runtime: Runtime
    profile: Profile
    is_reshaped: bool

    @property
    def is_tuned(self) -> bool: ...
    @property
    def tunes_microbatches(self) -> bool: ...
    @property
    def relay_pid(self) -> int | None: ...
    def links(self) -> list[LinkProfile]:
        """In ring order."""

    def begin_schedule(self) -> None:
        """What changes over time starts again."""

    async def link_bytes(self) -> list[int]:
        """Sent forwards on each link so far."""

    async def until_idle(self) -> None:
        """Until no request runs and every page is free."""


def most_tokens(tokens: int, profile: Profile | None = None) -> int:
    """That a sequence may generate in a run whose window is to hold ``tokens``, and the schedule of ``profile``."""
    during_schedule = math.ceil(profile.lasts_s / LEAST_LOOP_S) if profile else 0
    return 4 * tokens + SLACK_TOKENS + during_schedule


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counters at one moment."""

    cpu: CpuUse
    stages: tuple[StageUse, ...]
    link_bytes: list[int]


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a run. JSON-able by :meth:`to_json`; ``tokens`` are the emitted ids of each sequence."""

    prefill_tokens_per_s: float | None
    time_to_first_token_s: float | None
    """Of the prefill by itself, if that was run."""
    decode_tokens_per_s: float
    gaps_s: tuple[float, ...]
    window_s: float
    computes_s: tuple[float, ...]
    """Mean time of a decode forward, of each stage."""
    microbatch_rows: float
    """Mean rows of a decode forward."""
    codec_ratios: tuple[float, ...]
    """Sent over raw bytes of the activations that left each stage but the last; 1 without a codec."""
    link_bytes_per_token: tuple[float, ...]
    cpu_share: float
    others_cpu_share: float
    cpu_s_per_token: float
    tokens: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Without the token ids."""
        return {name: value for name, value in asdict(self).items() if name != "tokens"}


async def measure(ring: Swarm, prompts: list[list[int]], tokens: int, *, prefill: bool = True, limit: int | None = None) -> Run:
    """Run ``prompts`` through an idle ring, first (``prefill``) to their first token only, then decoding ``tokens`` and more.

    Args:
        limit: tokens that a sequence may generate in all; by default :func:`most_tokens`.

    Cancelled: the requests end; the ring may be used again once idle.

    Raises:
        RunError: a sequence reached its end before all had decoded together for ``tokens``.
    """
    await _meet_links(ring)
    prefill_tokens_per_s, first_s = None, None
    if prefill:
        prefill_s, first_s = await _prefill(ring, prompts)
        prefill_tokens_per_s = sum(map(len, prompts)) / prefill_s
        await ring.until_idle()
    streams = _Streams(ring, prompts, tokens, limit)
    window = await streams.run()
    await ring.until_idle()
    return _report(streams, window, prefill_tokens_per_s, first_s)


async def warm_up(ring: Swarm) -> None:
    """Both lanes of every link have carried something, and code has run once."""
    for _ in range(2):
        await ring.runtime.generate([1, 2, 3, 4] * 8, max_new_tokens=8, ignore_eos=True, seed=0)
    await ring.until_idle()


async def settle(ring: Swarm, prompts: list[list[int]], tokens: int, *, limit: int | None = None) -> None:
    """Let a ring that tunes itself find out how it runs so many sequences on these links best; nothing for other rings."""
    if not ring.tunes_microbatches or len(prompts) == 1:
        return
    await _meet_links(ring)
    streams = _Streams(ring, prompts, tokens, limit)
    await streams.settle()
    await ring.until_idle()


async def _meet_links(ring: Swarm) -> None:
    """Show a ring whose links have just changed a few small frames: large ones tell no longer link from a narrower one."""
    if ring.is_reshaped:
        await ring.runtime.generate([1, 2, 3, 4], max_new_tokens=6, ignore_eos=True, seed=0)
        ring.is_reshaped = False
    await ring.until_idle()


async def _prefill(ring: Swarm, prompts: list[list[int]]) -> tuple[float, float]:
    """Seconds until all have their first token, and the median of when each had it."""
    started = time.monotonic()

    async def first(number: int, prompt: list[int]) -> float:
        await ring.runtime.generate(prompt, max_new_tokens=1, ignore_eos=True, seed=number)
        return time.monotonic() - started

    times = await asyncio.gather(*(first(number, prompt) for number, prompt in enumerate(prompts)))
    return max(times), statistics.median(times)


class _Streams:
    """All sequences of a run while they decode."""

    def __init__(self, ring: Swarm, prompts: list[list[int]], tokens: int, limit: int | None) -> None:
        self._ring = ring
        self._limit = limit or most_tokens(tokens, ring.profile)
        self._prompts = prompts
        self._wanted = tokens
        self.times: list[list[float]] = [[] for _ in prompts]
        self.ids: list[list[int]] = [[] for _ in prompts]
        delays_s = sum(link.forward.delay_s for link in ring.links())
        self._settle_s = SETTLE_S + SETTLE_LOOPS * delays_s if ring.is_tuned else None
        self._settle_tokens = SETTLE_TOKENS if ring.is_tuned else FIXED_TOKENS
        self._since_s = float("-inf")
        self._all_started = asyncio.Event()
        self._settled = asyncio.Event()
        self._num_started = 0
        self._enough = asyncio.Event()
        self._num_enough = 0
        self._goals: list[int] | None = None
        self.before: Snapshot
        self.after: Snapshot

    async def run(self) -> Window:
        tasks = [asyncio.create_task(self._stream(number, prompt)) for number, prompt in enumerate(self._prompts)]
        lasts_s = self._ring.profile.lasts_s
        try:
            await self._until(self._all_started, tasks)
            await self._settle(tasks)
            if lasts_s:
                self._ring.begin_schedule()
                self._since_s = time.monotonic()
            self._goals = [len(ids) + self._wanted for ids in self.ids]
            self.before = await self._snapshot()
            await self._until(self._enough, tasks)
            await self._until_later(self._since_s + lasts_s, tasks)
            self.after = await self._snapshot()
        finally:
            await _end(tasks)
        window = find_window(self.times, self._wanted, self._since_s, least_s=lasts_s)
        if window is None:
            raise RunError("the sequences did not decode together long enough: fewer sequences, or more --tokens")
        return window

    async def settle(self) -> None:
        """Until the ring has settled, a sequence comes to its end, or it takes too long."""
        tasks = [asyncio.create_task(self._stream(number, prompt)) for number, prompt in enumerate(self._prompts)]
        try:
            await self._until(self._all_started, tasks)
            stop = time.monotonic() + MOST_SETTLE_S
            await asyncio.sleep(1.0)  # it looks twice a second; before, it speaks of the last load
            runtime = self._ring.runtime
            while time.monotonic() < stop and not runtime.is_settled and not any(map(asyncio.Task.done, tasks)):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        finally:
            await _end(tasks)

    async def _stream(self, number: int, prompt: list[int]) -> None:
        stream = self._ring.runtime.stream(prompt, max_new_tokens=self._limit, ignore_eos=True, seed=number)
        async with contextlib.aclosing(stream) as tokens:
            async for token in tokens:
                self.times[number].append(time.monotonic())
                self.ids[number].append(token.token_id)
                self._count(number)

    def _count(self, number: int) -> None:
        done = len(self.ids[number])
        if done == 1:
            self._num_started += 1
            if self._num_started == len(self._prompts):
                self._all_started.set()
        elif self._goals is None:
            if done >= self._settle_tokens and all(len(ids) >= self._settle_tokens for ids in self.ids):
                self._settled.set()
        elif done == self._goals[number]:
            self._num_enough += 1
            if self._num_enough == len(self._prompts):
                self._enough.set()

    async def _settle(self, tasks: list[asyncio.Task[None]]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settle_s):
                await self._until(self._settled, tasks)
        self._since_s = time.monotonic()

    async def _until_later(self, moment: float, tasks: list[asyncio.Task[None]]) -> None:
        """``moment`` of the monotonic clock; a stream that ends before raises RunError."""
        left_s = moment - time.monotonic()
        if left_s <= 0:
            return
        done, _ = await asyncio.wait(tasks, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
            raise RunError("a sequence came to its end before the schedule of its links did")

    async def _until(self, event: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
        """``event``, or the first stream that ends (which none should before)."""
        waiting = asyncio.create_task(event.wait())
        try:
            done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        for task in done - {waiting}:
            task.result()

    async def _snapshot(self) -> Snapshot:
        stages = await self._ring.runtime.stage_use()
        cpu = await asyncio.to_thread(measure_cpu, self._ring.relay_pid)
        return Snapshot(cpu, stages, await self._ring.link_bytes())


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _report(streams: _Streams, window: Window, prefill_tokens_per_s: float | None, first_s: float | None) -> Run:
    before, after = streams.before, streams.after
    decode = [(late - early).decode for early, late in zip(before.stages, after.stages, strict=True)]
    tokens = max(1, decode[-1].num_rows)
    sent = [late - early for early, late in zip(before.stages, after.stages, strict=True)][:-1]
    own, others = after.cpu.share_since(before.cpu)
    return Run(
        prefill_tokens_per_s=prefill_tokens_per_s,
        time_to_first_token_s=first_s,
        decode_tokens_per_s=window.tokens_per_s,
        gaps_s=window.gaps_s,
        window_s=window.stop_s - window.start_s,
        microbatch_rows=decode[-1].num_rows / max(1, decode[-1].num_works),
        computes_s=tuple(use.mean_s for use in decode),
        codec_ratios=tuple(use.sent_bytes / use.raw_bytes if use.raw_bytes else 1.0 for use in sent),
        link_bytes_per_token=tuple((b - a) / tokens for a, b in zip(before.link_bytes, after.link_bytes, strict=True)),
        cpu_share=own,
        others_cpu_share=others,
        cpu_s_per_token=(after.cpu.own_s - before.cpu.own_s) / tokens,
        tokens=tuple(tuple(ids) for ids in streams.ids),
    )
