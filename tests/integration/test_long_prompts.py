"""Prompts of thousands of tokens through real processes: every split, in chunks of several sizes, compressed or not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import bloombee
from bench.long_model import LAYERS, NEW, prompt, reference, write

SPLITS = [(3,), (1, 2), (2, 1), (1, 1, 1)]
RUNS = list(zip(SPLITS, (512, 2048, 500, 1000), ("off", "on", "off", "on"), strict=True))
"""(layers of each stage, most rows of a microbatch, codec); all of them together: bench/long_prompts.py."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """A checkpoint and what transformers makes of it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("long")
    yield directory, write(directory)
    torch.set_num_threads(before)


def _tokens(directory: Path, asked: list[int], split: tuple[int, ...], rows: int, codec: str) -> list[int]:
    async def use() -> list[int]:
        async with bloombee.Runtime(
            str(directory), split=split, max_microbatch_rows=rows, codec=codec, dtype="float32", threads=1
        ) as runtime:
            return list((await runtime.generate(asked, max_new_tokens=NEW)).token_ids)

    return asyncio.run(asyncio.wait_for(use(), 120))


@pytest.mark.parametrize(("split", "rows", "codec"), RUNS)
def test_a_prompt_of_8192_tokens_gives_what_transformers_gives(
    split: tuple[int, ...], rows: int, codec: str, model: tuple[Path, Any]
) -> None:
    directory, alone = model
    assert sum(split) == LAYERS
    assert _tokens(directory, prompt(8192), split, rows, codec) == reference(alone, prompt(8192))


def test_a_prompt_of_32000_tokens_gives_what_transformers_gives(model: tuple[Path, Any]) -> None:
    directory, alone = model
    assert _tokens(directory, prompt(32_000), (2, 1), 2048, "on") == reference(alone, prompt(32_000))


@pytest.mark.parametrize("at", [0, 4096])
def test_what_stands_far_back_changes_the_tokens(at: int, model: tuple[Path, Any]) -> None:
    """Else the comparison would prove nothing."""
    _, alone = model
    other = prompt(8192)
    other[at : at + 256] = prompt(256)
    assert reference(alone, other) != reference(alone, prompt(8192))
