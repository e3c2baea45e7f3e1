"""Long prompts through a ring: how long they take, and what they cost those who decode: python -m bench.prefill [--help]

alone    seconds to the first token of one prompt, in the chunks that the runtime chooses and whole, against the longest that any
         single link (bytes / bandwidth) or stage (one forward of the whole prompt, by the pace) must take.
beside   time between the tokens of sequences that decode, alone and while a long prompt shares the links, in turns.

Without either it is both, five minutes. Real workers behind emulated links, emulated devices (--pace), activations raw.

Exits 1 if a prompt alone, in the chunks that the runtime chooses, takes more than ALONE_GOAL of its bottleneck's time, or if the
time between tokens (99th percentile) grows beside one to more than BESIDE_GOAL of what it is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import uvloop

from bench.arguments import Parser, names, seconds, whole, wholes
from bench.load import warm_up
from bench.preflight import require_positions
from bench.profiles import Profile, load_profile
from bench.program import headline, program
from bench.ring import Ring, RingSpec
from bench.spread import quantile
from bloombee.control.chunks import Chunks
from bloombee.control.events import PlanEnded
from bloombee.models.standin import standin_card
from bloombee.pace import Pace, parse_pace
from bloombee.pipeline.events import Tune
from bloombee.pipeline.scheduler import SchedulerCore
from bloombee.types import Phase

ALONE_GOAL = 1.15
"""As in simulation (tests/sim/test_prompts.py)."""
BESIDE_GOAL = 1.10
"""What chunks beside decode are made for (``bloombee/control/chunks.py``)."""
SETTLE_S = 6.0
"""What is tuned while it runs gets this long."""
SPARE_TOKENS = 100_000
DEFAULTS: dict[str, dict[str, Any]] = {
    "alone": {
        "profiles": ("20M-100ms", "100M-60ms"),
        "model": "standin:llama-30b",
        "pace": "13,0.05,0.5",
        "prompt": 2048,
    },
    "beside": {"profiles": ("20M-100ms",), "model": "standin:1024x16", "pace": "4,0.2,0.2", "prompt": 4096},
}
"""A prompt is bound by what is busiest where that is busy for much longer than the way round; decode meets chunks everywhere."""


@dataclass(slots=True)
class Decoders:
    """Sequences that decode until they are cancelled; ``times[i]``: when sequence i got its tokens."""

    times: list[list[float]]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def gaps_s(self, since: float, until: float) -> list[float]:
        """Between tokens that both came in [since, until], of all sequences, sorted."""
        gaps = []
        for times in self.times:
            within = [moment for moment in times if since <= moment <= until]
            gaps += [after - before for before, after in pairwise(within)]
        return sorted(gaps)


@contextlib.asynccontextmanager
async def decoding(ring: Ring, count: int) -> AsyncIterator[Decoders]:
    """``count`` sequences, all of which have begun."""
    decoders = Decoders([[] for _ in range(count)])

    async def decode(number: int) -> None:
        stream = ring.runtime.stream([number + 1] * 4, max_new_tokens=SPARE_TOKENS // count, ignore_eos=True, seed=number)
        async with contextlib.aclosing(stream) as tokens:
            async for _ in tokens:
                decoders.times[number].append(time.monotonic())

    decoders.tasks = [asyncio.create_task(decode(number)) for number in range(count)]
    try:
        while not all(len(times) > 1 for times in decoders.times):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        yield decoders
    finally:
        for task in decoders.tasks:
            task.cancel()
        await asyncio.gather(*decoders.tasks, return_exceptions=True)


async def first_token_s(ring: Ring, tokens: int, seed: int) -> float:
    """Seconds from handing over a prompt of ``tokens`` to its first token."""
    start = time.monotonic()
    await ring.runtime.generate([1 + seed % 100] * tokens, max_new_tokens=1, ignore_eos=True, seed=seed)
    return time.monotonic() - start


async def alone(ring: Ring, pace: Pace, options: argparse.Namespace) -> bool:
    """Prints a row for the runtime's own chunks, and one with the prompt whole. Returns whether the goal is met."""
    shape = ring.profile.link(0).forward
    row_bytes = 2 * standin_card(options.model).hidden_size
    link_s = 8 * row_bytes * options.prompt / (shape.bandwidth_bits_per_s or float("inf"))
    stage_s = max(pace.seconds(Phase.PREFILL, options.prompt, len(stage.span)) for stage in ring.runtime.plan.stages)
    bound_s = max(link_s, stage_s)
    print(f"  bottleneck: link {link_s:.3f} s, stage {stage_s:.3f} s; one way round {ring.num_links * shape.delay_s:.3f} s")
    await first_token_s(ring, options.prompt, 7)
    own: list[float] = []
    for repeat in range(options.repeats):
        await ring.until_idle()
        own.append(await first_token_s(ring, options.prompt, repeat))
    seconds = statistics.median(own)
    says = f"{seconds / bound_s:>6.2f} x the bottleneck; goal {ALONE_GOAL}"
    print(f"  {'own chunks':<14}{_chunks(ring):>22} {seconds:>8.3f} s {says}", flush=True)
    for chunk in (*options.chunks, options.prompt):
        _fix_chunk(ring, chunk)
        fixed = statistics.median([await first_token_s(ring, options.prompt, 99 + repeat) for repeat in range(options.repeats)])
        name = "whole prompt" if chunk == options.prompt else "fixed chunks"
        print(f"  {name:<14}{chunk:>22} {fixed:>8.3f} s {fixed / bound_s:>6.2f} x the bottleneck", flush=True)
    return bool(seconds <= ALONE_GOAL * bound_s)


async def beside(ring: Ring, options: argparse.Namespace) -> bool:
    """Prints the time between tokens without a prefill and with one, and by how much the one exceeds the other.

    Returns:
        Whether the goal is met.
    """
    spans: dict[str, list[float]] = {"decode alone": [], "beside prefill": []}
    prompts: list[float] = []
    async with decoding(ring, options.decoders) as decoders:
        await asyncio.sleep(SETTLE_S)
        await first_token_s(ring, options.prompt, 7)
        for repeat in range(options.repeats):
            await asyncio.sleep(1.0)
            start = time.monotonic()
            await asyncio.sleep(options.seconds)
            between = time.monotonic()
            prompts.append(await first_token_s(ring, options.prompt, repeat))
            stop = time.monotonic()
            spans["decode alone"] += decoders.gaps_s(start, between)
            spans["beside prefill"] += decoders.gaps_s(between, stop)
        print(f"  chunk rows {_chunks(ring)}; prompts took {statistics.median(prompts):.2f} s")
    p50, p99 = dict[str, float](), dict[str, float]()
    for name, gaps in spans.items():
        p50[name], p99[name] = quantile(gaps, 0.5), quantile(gaps, 0.99)
        print(f"  {name:<16}{len(gaps):>6} tokens  p50 {1e3 * p50[name]:7.1f} ms  p99 {1e3 * p99[name]:7.1f} ms")
    more = [values["beside prefill"] / values["decode alone"] - 1 for values in (p50, p99)]
    print(f"  inflation: p50 {more[0]:+.1%}, p99 {more[1]:+.1%}; goal {BESIDE_GOAL - 1:+.0%}", flush=True)
    return p99["beside prefill"] <= BESIDE_GOAL * p99["decode alone"]


def _chunks(ring: Ring) -> str:
    running = ring.runtime._head.helm.core.running
    return "untuned" if running is None else f"{running.chunks[0].fast} ({running.chunks[0].gentle} beside decode)"


def _fix_chunk(ring: Ring, chunk: int) -> None:
    """Prompts in chunks of ``chunk`` from now on, as many under way as there is credit for; nothing is chosen any more."""
    head = ring.runtime._head
    head.helm.tell(PlanEnded(None, time.monotonic()))
    cast(SchedulerCore, head.dispatch.scheduler)._batcher._max_rows = chunk
    head.dispatch.handle(Tune(1, (Chunks(0, chunk, chunk, SPARE_TOKENS),), None, time.monotonic()))


async def run(part: str, profile: Profile, options: argparse.Namespace) -> bool:
    spec = RingSpec(
        model=options.model,
        dtype="bfloat16",
        workers=options.workers,
        microbatches=None,
        codec="off",
        pace=options.pace,
        kv_tokens=2 * options.prompt + SPARE_TOKENS + 1024,
        profile=profile,
    )
    async with Ring(spec) as ring:
        await warm_up(ring)
        about = f"{part}, {profile.name}, {options.model}, pace {options.pace}, {options.workers} workers"
        print(f"{about}, a prompt of {options.prompt} tokens", flush=True)
        return await (alone(ring, parse_pace(options.pace), options) if part == "alone" else beside(ring, options))


def _checked(part: str, given: argparse.Namespace) -> tuple[argparse.Namespace, list[Profile]]:
    """``given`` with the defaults of ``part``, and its links."""
    options = argparse.Namespace(**vars(given))
    for name, value in DEFAULTS[part].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    parse_pace(options.pace)
    if part == "alone":
        standin_card(options.model)
    longest = max(options.prompt + 1, (SPARE_TOKENS // options.decoders + 4) * (part == "beside"))
    asyncio.run(require_positions(options.model, options.workers, longest))
    return options, [load_profile(name) for name in options.profiles]


@program("prefill")
def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=tuple(DEFAULTS), nargs="?", help="default both")
    parser.add_argument("--profiles", type=names(), help="default 20M-100ms,100M-60ms alone, 20M-100ms beside")
    parser.add_argument("--model", help="default standin:llama-30b alone, standin:1024x16 beside")
    parser.add_argument("--pace", help="of a stage: ms fixed, a decode row, a prefill row; 13,0.05,0.5 alone, 4,0.2,0.2 beside")
    parser.add_argument("--workers", type=whole(2, 64), default=4)
    parser.add_argument("--prompt", type=whole(1, 10**6), help="tokens; default 2048 alone, 4096 beside")
    parser.add_argument("--chunks", type=wholes(1, 10**6), default=(), help="alone: rows of further chunks to try, with commas")
    parser.add_argument("--decoders", type=whole(1, 1024), default=8, help="sequences that decode; default 8")
    parser.add_argument("--seconds", type=seconds(0.1, 3600), default=6.0, help="of decode alone, each time; default 6")
    parser.add_argument("--repeats", type=whole(1, 1000), default=3)
    given = parser.parse_args()
    parts = {part: _checked(part, given) for part in ([given.part] if given.part else DEFAULTS)}
    print(headline())
    met = [uvloop.run(run(part, profile, options)) for part, (options, profiles) in parts.items() for profile in profiles]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
