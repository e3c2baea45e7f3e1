"""What it saves that prompts which begin alike are computed once: time to first token with and without, in one run.

    python bench/prefix.py                                   about a minute
    python bench/prefix.py --model DIR --shared 4000 --rounds 20
    python bench/prefix.py --json prefix.json

Two swarms stand side by side, one that keeps prefixes and one that does not. Each round asks both, the order alternates: a prompt
of --shared tokens that all rounds have, and --own tokens that none has had. Then --burst such prompts are asked for at once, with
another shared part, which nobody has computed yet.

Bounds: the median over rounds of (time with) / (time without) <= 0.2; every token equal; all but one of the burst begin on the
rows that the first has computed. Exit status 1: one was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.arguments import Parser, whole, writable
from bench.program import machine, program
from bench.spread import interval
from bloombee.runtime import Runtime
from bloombee.types import Generation

MOST_RATIO = 0.2
NEW = 8


@dataclass(frozen=True, slots=True)
class Found:
    """``with_s``, ``without_s``: time to first token of each round; ``burst_*``: until all of the burst have ended."""

    with_s: tuple[float, ...]
    without_s: tuple[float, ...]
    burst_with_s: float
    burst_without_s: float
    burst_cached: tuple[int, ...]
    """Tokens that each prompt of the burst began on."""
    are_equal: bool

    @property
    def ratios(self) -> list[float]:
        return [one / other for one, other in zip(self.with_s, self.without_s, strict=True)]

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    def is_good(self, page_size: int, shared: int) -> bool:
        begun_on = sum(cached >= shared // page_size * page_size for cached in self.burst_cached)
        return self.are_equal and self.median <= MOST_RATIO and begun_on == len(self.burst_cached) - 1


class Prompts:
    """Token ids of a vocabulary, the same ones each time."""

    def __init__(self, vocab_size: int) -> None:
        self._rng = random.Random(1)
        self._most = vocab_size

    def some(self, count: int) -> list[int]:
        return [self._rng.randrange(self._most) for _ in range(count)]


async def measure(options: argparse.Namespace) -> Found:
    """Raises BloomBeeError: a swarm cannot be started or does not answer."""
    async with contextlib.AsyncExitStack() as stack:
        swarms = [
            await stack.enter_async_context(Runtime(**settings(options), page_size=options.page_size, prefix_cache=keeps))
            for keeps in (True, False)
        ]
        prompts = Prompts(options.vocab)
        shared = prompts.some(options.shared)
        for swarm in swarms:  # the first computes the shared part for all rounds; the second turn sees it kept on every stage
            for _ in range(2):
                await _answer(swarm, shared + prompts.some(options.own))
        rounds: list[tuple[Generation, ...]] = []
        for turn in range(options.rounds):
            prompt = shared + prompts.some(options.own)
            got = {index: await _answer(swarms[index], prompt) for index in ((0, 1) if turn % 2 else (1, 0))}
            rounds.append((got[0], got[1]))
        shared = prompts.some(options.shared)
        burst = [shared + prompts.some(options.own) for _ in range(options.burst)]
        took, answers = zip(*[await _all(swarm, burst) for swarm in swarms], strict=True)
    pairs = [*rounds, *zip(*answers, strict=True)]
    return Found(
        with_s=tuple(one.time_to_first_token_s for one, _ in rounds),
        without_s=tuple(other.time_to_first_token_s for _, other in rounds),
        burst_with_s=took[0],
        burst_without_s=took[1],
        burst_cached=tuple(one.num_cached_tokens for one in answers[0]),
        are_equal=all(one.token_ids == other.token_ids for one, other in pairs),
    )


async def _answer(swarm: Runtime, prompt: list[int]) -> Generation:
    return await swarm.generate(prompt, max_new_tokens=NEW, ignore_eos=True)


async def _all(swarm: Runtime, prompts: list[list[int]]) -> tuple[float, list[Generation]]:
    began = time.monotonic()
    answers = await asyncio.gather(*(_answer(swarm, prompt) for prompt in prompts))
    return time.monotonic() - began, answers


def show(found: Found, console: Console) -> None:
    low, high = interval([[ratio] for ratio in found.ratios])
    table = Table("", "with", "without", "ratio")
    table.add_row(
        "time to first token, median (s)",
        f"{statistics.median(found.with_s):.3f}",
        f"{statistics.median(found.without_s):.3f}",
        f"{found.median:.3f} (90 %: {low:.3f} to {high:.3f}; bound {MOST_RATIO})",
    )
    burst = found.burst_with_s / found.burst_without_s
    table.add_row("all of the burst (s)", f"{found.burst_with_s:.2f}", f"{found.burst_without_s:.2f}", f"{burst:.3f}")
    console.print(table)
    begun_on = sum(cached > 0 for cached in found.burst_cached)
    console.print(f"{begun_on} of {len(found.burst_cached)} of the burst began on kept rows; tokens equal: {found.are_equal}")


def swarm_parser(text: str | None, *, workers: int) -> Parser:
    """Of what is asked of a swarm of the demo, or of any model."""
    parser = Parser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a checkpoint's directory or hub id")
    parser.add_argument("--vocab", type=whole(2, 1 << 20), default=256, help="token ids are drawn below this")
    parser.add_argument("--workers", type=whole(1, 1 << 20), default=workers)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=writable, help="write what was found there")
    return parser


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Of the Runtime, as :func:`swarm_parser` was told."""
    return {name: getattr(options, name) for name in ("model", "workers", "dtype", "device")} | {"threads": 1}


def reported(found: Any, options: argparse.Namespace) -> Console:
    """Write ``found`` where ``--json`` says. Returns where to show it, headed by the machine."""
    if options.json:
        told = machine() | {"options": vars(options) | {"json": None}, "found": asdict(found)}
        options.json.write_text(json.dumps(told, default=str))
    console = Console(width=120)
    console.print(", ".join(machine().values()), highlight=False)
    return console


@program("prefix")
def main() -> int:
    parser = swarm_parser(__doc__, workers=3)
    parser.add_argument("--page-size", type=whole(1, 1 << 20), default=16)
    parser.add_argument("--shared", type=whole(1, 1 << 20), default=1000, help="tokens that all prompts have")
    parser.add_argument("--own", type=whole(1, 1 << 20), default=9, help="tokens that no other has")
    parser.add_argument("--rounds", type=whole(1, 1 << 20), default=12)
    parser.add_argument("--burst", type=whole(2, 1 << 20), default=16)
    options = parser.parse_args()
    found = asyncio.run(measure(options))
    show(found, reported(found, options))
    return 0 if found.is_good(options.page_size, options.shared) else 1


if __name__ == "__main__":
    sys.exit(main())
