"""What it costs that more sequences are open than KV memory holds: they make way for each other and come back.

    python bench/kv.py                                   64 sequences of 2,048 tokens where 8 fit; minutes
    python bench/kv.py --sequences 16 --prompt 96 --new 32 --fit 4
    python bench/kv.py --json kv.json

Three swarms, one after the other, each with KV memory for --fit sequences and the same requests at once:

    in turn     sequences are admitted when all that they may need is free: nobody makes way. So fast is the device.
    host        answers have been short of late, so more are admitted than fit, and make way; their rows go to the host's memory
    computed    as that, and nothing is kept beyond the device: their rows are computed again

Bounds: the tokens of all three are equal, and ``host`` takes at most 1/0.9 of the time of ``in turn`` (what copies take is not
counted in its favour). Exit status 1: one was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.arguments import whole
from bench.prefix import Prompts, reported, settings, swarm_parser
from bench.program import program
from bloombee.grammar import Grammar
from bloombee.runtime import Runtime

LEAST_SHARE = 0.9
NUM_SHORT = 24
"""Short answers: what is expected of those to come forgets an eighth with each."""


@dataclass(frozen=True, slots=True)
class Found:
    """``seconds``: until all have ended, of each way."""

    seconds: dict[str, float]
    are_equal: bool

    @property
    def share(self) -> float:
        return self.seconds["in turn"] / self.seconds["host"]

    @property
    def is_good(self) -> bool:
        return self.are_equal and self.share >= LEAST_SHARE


async def measure(options: argparse.Namespace) -> Found:
    """Raises BloomBeeError: a swarm cannot be started or does not answer."""
    drawn = Prompts(options.vocab)
    prompts = [drawn.some(options.prompt) for _ in range(options.sequences)]
    ways = {"in turn": (False, None), "host": (True, options.host_memory), "computed": (True, 0)}
    told = {name: await _serve(options, prompts, *way) for name, way in ways.items()}
    tokens = [one for _, one in told.values()]
    return Found({name: seconds for name, (seconds, _) in told.items()}, all(one == tokens[0] for one in tokens))


async def _serve(
    options: argparse.Namespace, prompts: list[list[int]], is_short: bool, host_memory: str | int | None
) -> tuple[float, list[tuple[int, ...]]]:
    async with Runtime(
        **settings(options),
        silence_s=20.0,
        kv_tokens=options.fit * (options.prompt + options.new),
        host_memory=host_memory,
    ) as swarm:
        grammar = Grammar.regex("[ab]")
        short = (swarm.generate([9, n], max_new_tokens=options.new, grammar=grammar) for n in range(NUM_SHORT if is_short else 0))
        await asyncio.gather(*short)
        began = time.monotonic()
        asked = (swarm.generate(prompt, max_new_tokens=options.new, ignore_eos=True) for prompt in prompts)
        answers = await asyncio.gather(*asked)
        return time.monotonic() - began, [one.token_ids for one in answers]


def show(found: Found, options: argparse.Namespace, console: Console) -> None:
    table = Table("", "seconds", "tokens/s", "of in turn")
    for name, seconds in found.seconds.items():
        rate = options.sequences * options.new / seconds
        table.add_row(name, f"{seconds:.1f}", f"{rate:.0f}", f"{found.seconds['in turn'] / seconds:.3f}")
    console.print(table)
    console.print(f"tokens equal: {found.are_equal}; bound {LEAST_SHARE}")


@program("kv")
def main() -> int:
    parser = swarm_parser(__doc__, workers=2)
    parser.add_argument("--sequences", type=whole(1, 1 << 20), default=64)
    parser.add_argument("--prompt", type=whole(1, 1 << 20), default=1536, help="tokens of each prompt")
    parser.add_argument("--new", type=whole(1, 1 << 20), default=512, help="tokens of each answer")
    parser.add_argument("--fit", type=whole(1, 1 << 20), default=8, help="sequences that KV memory holds")
    parser.add_argument("--host-memory", default="1GiB", help="of each worker")
    options = parser.parse_args()
    found = asyncio.run(measure(options))
    show(found, options, reported(found, options))
    return 0 if found.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
