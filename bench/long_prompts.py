"""Prompts of 8,192 and 32,000 tokens through every split, chunk and codec: tokens equal to those of transformers alone.

    python bench/long_prompts.py                              all 24 ways for each length, some minutes
    python bench/long_prompts.py --lengths 8192 --chunks 500

The model is a tiny random one of 32k positions whose tokens depend on what stands far back (bench/long_model.py), in float32.
Exit status 1: a way gave other tokens, or none.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bloombee
from bench.arguments import Parser, wholes
from bench.long_model import LAYERS, NEW, POSITIONS, prompt
from bench.program import BenchError, program
from bloombee.errors import BloomBeeError
from bloombee.roles.child import start_child

SPLITS = [(LAYERS,), (1, 2), (2, 1), (1, 1, 1)]
CODECS = ("off", "on")


@contextmanager
def model(lengths: list[int]) -> Iterator[tuple[str, list[list[int]]]]:
    """A directory with the model for the length of the block, and transformers' tokens after a prompt of each length.

    Raises:
        BenchError: they could not be made.
    """
    with tempfile.TemporaryDirectory() as directory:
        child = start_child("bench.long_model", directory, *map(str, lengths), stdout=subprocess.PIPE, text=True)
        answer, _ = child.communicate()
        if child.returncode:
            raise BenchError("the model and its reference could not be made")
        yield directory, json.loads(answer)


async def tokens_of(directory: str, lengths: list[int], split: tuple[int, ...], rows: int, codec: str) -> list[list[int]]:
    """After the prompt of each length, one after the other.

    Raises:
        BloomBeeError: the swarm cannot be started or does not answer.
    """
    async with bloombee.Runtime(
        directory, split=split, max_microbatch_rows=rows, codec=codec, dtype="float32", threads=1
    ) as runtime:
        return [list((await runtime.generate(prompt(length), max_new_tokens=NEW)).token_ids) for length in lengths]


@program("long_prompts")
def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    most = POSITIONS - NEW
    parser.add_argument("--lengths", type=wholes(1, most), default="8192,32000", help="tokens of prompts; default 8192,32000")
    parser.add_argument("--chunks", type=wholes(1, 2**16), default="500,512,2048", help="most rows of a microbatch; 500,512,2048")
    options = parser.parse_args()
    ways = list(itertools.product(SPLITS, options.chunks, CODECS))
    table = Table(title=f"tokens after prompts of {', '.join(map(str, options.lengths))}, against transformers'")
    for column in ("layers", "chunk", "codec", "equal"):
        table.add_column(column, justify="right")
    is_right = True
    with model(options.lengths) as (directory, expected):
        for split, rows, codec in track(ways, "ways", console=Console(stderr=True)):
            try:
                found = asyncio.run(tokens_of(directory, options.lengths, split, rows, codec))
                equal = str(sum(one == other for one, other in zip(found, expected, strict=True)))
            except BloomBeeError as error:
                equal = str(error)
            is_right = is_right and equal == str(len(expected))
            table.add_row("+".join(map(str, split)), str(rows), codec, f"{equal} of {len(expected)}")
    Console().print(table)
    return int(not is_right)


if __name__ == "__main__":
    sys.exit(main())
