"""Many clients at once: who waits for whom, and what becomes of what does not fit.

    python bench/serving.py                                          every mode, about four minutes
    python bench/serving.py --modes fairness --repeats 20            one of them
    python bench/serving.py --modes burst,overlong,full-pool --model demo --pace none --profile lan
    python bench/serving.py --json serving.json

fairness        one client has --requests requests in the system; another sends one. Its time to first token over what it is
                alone, at moments from the burst itself to well into decoding; goal: median <= 2
fairness-full   the same where the other client's sequences fill the KV pool
burst           --burst requests at once in a pool for a few: all end with the right tokens; then, with max_waiting at a third
                of them, the others are refused with QueueFull and nothing else is lost
overlong        a request beyond the KV pool: Infeasible at once, while others run
full-pool       requests of a quarter of the pool each: at most four at a time, all end, no page is lost

Real worker processes behind emulated links (one relay a link), encryption on; the model is a paced stand-in whose tokens are
known beforehand, so a lost, doubled or misplaced one shows. Exit status 1: a goal was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.arguments import Parser, names, whole, writable
from bench.profiles import Profile, load_profile
from bench.program import BenchError, machine, program
from bench.ring import Ring, RingSpec
from bench.spread import quantile
from bloombee.errors import BloomBeeError, ConfigError, Infeasible, QueueFull
from bloombee.models.standin import is_standin, standin_token
from bloombee.pace import parse_pace

HEAVY_PROMPT, HEAVY_NEW = 64, 64
SINGLE_PROMPT, SINGLE_NEW = 32, 8
AFTER = (0, 1, 50, 400, 1600)
"""Tokens that the heavy client has got when the single request comes."""
GOAL = 2.0


@dataclass(frozen=True, slots=True)
class Line:
    """One measured or checked thing. ``ok`` None: no goal."""

    mode: str
    what: str
    value: str
    ok: bool | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settings:
    model: str
    pace: str | None
    profile: Profile
    workers: int
    requests: int
    burst: int
    repeats: int

    @contextlib.asynccontextmanager
    async def ring(self, kv_tokens: int, max_waiting: int = 1024) -> AsyncIterator[Ring]:
        spec = RingSpec(
            self.model, "auto", self.workers, None, "auto", self.pace, kv_tokens, self.profile, max_waiting=max_waiting
        )
        async with Ring(spec) as ring:
            for _ in range(2):
                await ring.runtime.generate(prompt_of(0, SINGLE_PROMPT), max_new_tokens=SINGLE_NEW, ignore_eos=True)
            await ring.until_idle()
            yield ring


def prompt_of(number: int, tokens: int) -> list[int]:
    return [1 + (number * 31 + 7 * index) % 4000 for index in range(tokens)]


async def ask(ring: Ring, number: int, prompt: int, new: int, client: str) -> bool:
    """One request; whether its tokens are those that the stand-in must give (of another model: their number)."""
    got = await ring.runtime.generate(prompt_of(number, prompt), max_new_tokens=new, ignore_eos=True, seed=number, client=client)
    if is_standin(ring.spec.model):
        return got.token_ids == tuple(standin_token(number, prompt + index) for index in range(new))
    return len(got.token_ids) == new


async def pages_lost(ring: Ring) -> int:
    await ring.until_idle()
    return sum(stage.num_pages for stage in ring.runtime.plan.stages) - sum(await ring.runtime.pages_free())


# -- fairness ----------------------------------------------------------------------------------


async def first_token_s(ring: Ring, number: int) -> float:
    started = time.monotonic()
    stream = ring.runtime.stream(
        prompt_of(number, SINGLE_PROMPT), max_new_tokens=SINGLE_NEW, ignore_eos=True, seed=number, client="single"
    )
    first = None
    async for _ in stream:
        first = first or time.monotonic()
    assert first is not None
    return first - started


class Heavy:
    """A client with many requests; :attr:`seen` counts its tokens."""

    def __init__(self, ring: Ring, requests: int) -> None:
        self.seen = 0
        self._more = asyncio.Event()
        self._tasks = [asyncio.create_task(self._one(ring, number)) for number in range(requests)]

    async def _one(self, ring: Ring, number: int) -> None:
        prompt = prompt_of(number, HEAVY_PROMPT)
        async for _ in ring.runtime.stream(prompt, max_new_tokens=HEAVY_NEW, ignore_eos=True, seed=number, client="heavy"):
            self.seen += 1
            self._more.set()

    async def until(self, tokens: int) -> None:
        while self.seen < tokens:
            self._more.clear()
            await self._more.wait()

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


async def fairness(settings: Settings, mode: str, share: float) -> list[Line]:
    """``share``: of the heavy client's requests that the pool holds."""
    kv_tokens = int(share * settings.requests * (HEAVY_PROMPT + HEAVY_NEW)) + 16 * (SINGLE_PROMPT + SINGLE_NEW)
    async with settings.ring(kv_tokens) as ring:
        alone = [await first_token_s(ring, number) for number in range(settings.repeats)]
        base = quantile(alone, 0.5)
        lines = [Line(mode, "first token, alone", _ms(alone), None, {"alone_s": alone})]
        every = []
        ratios: dict[int, list[float]] = {after: [] for after in AFTER}
        for number, after in itertools.product(range(settings.repeats), AFTER):
            heavy = Heavy(ring, settings.requests)
            await asyncio.sleep(0)  # its requests are on their way first
            await heavy.until(after)
            ratios[after].append(await first_token_s(ring, 1000 + number) / base)
            await heavy.end()
            await ring.until_idle()
        for after, some in ratios.items():
            lines.append(Line(mode, f"the same beside {settings.requests}, after {after} of their tokens", _ratio(some)))
            every += some
        facts = {"alone_s": alone, "ratios": {str(after): some for after, some in ratios.items()}}
        lines.append(Line(mode, "all moments", _ratio(every), quantile(every, 0.5) <= GOAL, facts))
        return lines


def _ms(seconds: list[float]) -> str:
    return f"{1e3 * quantile(seconds, 0.5):.1f} ms (p90 {1e3 * quantile(seconds, 0.9):.1f})"


def _ratio(values: list[float]) -> str:
    return f"{quantile(values, 0.5):.2f}x (p90 {quantile(values, 0.9):.2f}x)"


# -- what does not fit -------------------------------------------------------------------------


async def burst(settings: Settings, mode: str) -> list[Line]:
    lines = []
    for max_waiting in (2 * settings.burst, max(1, settings.burst // 3)):
        async with settings.ring(16 * (HEAVY_PROMPT + HEAVY_NEW), max_waiting) as ring:
            started = time.monotonic()
            numbers = range(settings.burst)
            asked = (ask(ring, n, 1 + n % HEAVY_PROMPT, 1 + n % 16, f"client {n % 5}") for n in numbers)
            results = await asyncio.gather(*asked, return_exceptions=True)
            seconds = time.monotonic() - started
            right = sum(result is True for result in results)
            refused = sum(isinstance(result, QueueFull) for result in results)
            lost = await pages_lost(ring)
            expected = max(0, settings.burst - max_waiting)
            # Fewer are refused where some have ended before the last came.
            ok = right + refused == settings.burst and min(1, expected) <= refused <= expected and lost == 0
            what = f"{settings.burst} requests at once, {max_waiting} may wait"
            value = f"{right} right, {refused} QueueFull, {lost} pages lost, {seconds:.1f} s"
            lines.append(Line(mode, what, value, ok, {"right": right, "refused": refused, "lost": lost, "seconds": seconds}))
    return lines


async def overlong(settings: Settings, mode: str) -> list[Line]:
    async with settings.ring(1024) as ring:
        other = asyncio.create_task(ask(ring, 1, 64, 200, "other"))
        times, kinds = [], set()
        for number in range(20):
            started = time.monotonic()
            try:
                await ask(ring, 2 + number, 1000, 200, "long")
            except BloomBeeError as error:
                kinds.add(type(error).__name__)
            times.append(time.monotonic() - started)
        right = await other
        lost = await pages_lost(ring)
        ok = kinds == {Infeasible.__name__} and right and lost == 0 and max(times) < 1.0
        said = ", ".join(sorted(kinds)) or "no error"
        value = f"{said} after {1e3 * max(times):.1f} ms at most; the other request is right: {right}"
        return [Line(mode, "1,200 tokens where 1,024 fit, 20 times beside another", value, ok, {"refused_s": times})]


async def full_pool(settings: Settings, mode: str) -> list[Line]:
    """Every request takes a quarter of the pool and 4 more pages would not fit."""
    async with settings.ring(1024) as ring:
        started = time.monotonic()
        results = await asyncio.gather(*(ask(ring, number, 56, 200, "") for number in range(12)), return_exceptions=True)
        seconds = time.monotonic() - started
        right = sum(result is True for result in results)
        lost = await pages_lost(ring)
        value = f"{right} of 12 right, {lost} pages lost, {seconds:.1f} s"
        return [Line(mode, "12 requests of a quarter of the pool each", value, right == 12 and lost == 0, {"seconds": seconds})]


MODES: dict[str, Callable[[Settings, str], Awaitable[list[Line]]]] = {
    "fairness": lambda settings, mode: fairness(settings, mode, 1.0),
    "fairness-full": lambda settings, mode: fairness(settings, mode, 0.15),
    "burst": burst,
    "overlong": overlong,
    "full-pool": full_pool,
}


def parse(words: list[str] | None) -> tuple[argparse.Namespace, Settings]:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", type=names(*MODES), default=",".join(MODES), help="with commas between them (default: all)")
    parser.add_argument("--model", default="standin:1024x12", help="default %(default)s")
    parser.add_argument("--pace", default="4,0.1,0.1", help="F,R,P of every worker's device, or none (default %(default)s)")
    parser.add_argument("--profile", default="125M-60ms", help="of every link (default %(default)s)")
    parser.add_argument("--workers", type=whole(1, 64), default=3)
    parser.add_argument("--requests", type=whole(1, 10**6), default=200, help="of the heavy client (default %(default)s)")
    parser.add_argument("--burst", type=whole(1, 10**6), default=500, help="requests of a burst (default %(default)s)")
    parser.add_argument("--repeats", type=whole(1, 1000), default=5, help="of each moment (default %(default)s)")
    parser.add_argument("--json", metavar="FILE", type=writable, help="write the lines here too")
    options = parser.parse_args(words)
    pace = None if options.pace == "none" else options.pace
    if pace is not None:
        parse_pace(pace)
    numbers = (options.workers, options.requests, options.burst, options.repeats)
    return options, Settings(options.model, pace, load_profile(options.profile), *numbers)


async def run(settings: Settings, modes: Sequence[str], console: Console, keep: Callable[[list[Line]], None]) -> list[Line]:
    """Mode by mode; one that fails is a line that says why, and the others go on.

    Args:
        keep: given all lines so far after each mode.
    """
    lines: list[Line] = []
    for mode in modes:
        console.print(f"{mode} ...")
        try:
            lines += await MODES[mode](settings, mode)
        except ConfigError:
            raise
        except (BenchError, BloomBeeError) as error:
            lines.append(Line(mode, "failed", str(error), ok=False))
        keep(lines)
    return lines


@program("serving")
def main(words: list[str] | None = None) -> int:
    options, settings = parse(words)
    facts = {"bench": "serving", **machine(), "options": {k: str(v) for k, v in vars(options).items()}}

    def keep(lines: list[Line]) -> None:
        if options.json is not None:
            text = json.dumps({**facts, "lines": [asdict(line) for line in lines]}, indent=1)
            options.json.write_text(text + "\n", encoding="utf-8")

    lines = asyncio.run(run(settings, options.modes, Console(stderr=True), keep))
    stand_in = " (stand-in)" if is_standin(settings.model) else ""
    table = Table(title=f"{settings.model}{stand_in}, pace {options.pace}, {settings.workers} workers, {options.profile}")
    for column in ("mode", "what", "", "goal"):
        table.add_column(column)
    for line in lines:
        table.add_row(line.mode, line.what, line.value, {True: "met", False: "MISSED", None: ""}[line.ok])
    Console(width=max(130, Console().width)).print(table)
    return 0 if all(line.ok is not False for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
