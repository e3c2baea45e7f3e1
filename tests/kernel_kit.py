"""Spans on the CPU that run as those on a GPU do: our own kernels lane by lane, products joined, steps through fixed memory."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from engine_kit import GREEDY, PAGE, VOCABULARY

from bloombee.engine import fused, model
from bloombee.engine.checkpoint import resolve
from bloombee.kv.pool import PagePool, PageTable
from bloombee.pipeline.work import Pages, Segment, Work
from bloombee.types import PageGroup, Phase, Span

WINDOWS = (0, 6)
NUM_PAGES = 128


class Recordings:
    """A recorder whose recordings are the forward itself, counted.

    Attributes:
        made: recordings. replays: of all of them.
    """

    def __init__(self) -> None:
        self.made = self.replays = 0

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self.made += 1

        def replay() -> torch.Tensor:
            self.replays += 1
            return run()

        return replay


@contextmanager
def on_kernels() -> Iterator[Recordings]:
    """Spans that are loaded in the block are such; what that changes in transformers' files is undone at its end."""
    recordings = Recordings()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "has_kernels", lambda _: True)
        patch.setattr(model, "recorder_of", lambda _: recordings)
        yield recordings
    restore_rotary()


def restore_rotary() -> None:
    """Put transformers' own functions back into its files."""
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.models.") and isinstance(found := vars(module).get(fused.ROTARY), fused.FusedRotary):
            setattr(module, fused.ROTARY, found.original)


def load_windowed(directory: Path, device: str = "cpu") -> model.SpanModel:
    """The whole of a tiny model whose layers see everything or ``WINDOWS[1]`` positions."""
    groups = [PageGroup(window, NUM_PAGES) for window in WINDOWS]
    return model.SpanModel.load(resolve(str(directory)), Span(0, 4), device=device, groups=groups, page_size=PAGE)


def random_steps(count: int = 60, windows: Sequence[int] = WINDOWS) -> Iterator[Work]:
    """Sequences that come, go, fork and are rolled back, with one to sixteen rows in each step."""
    rng = random.Random(7)
    pools = [PagePool(NUM_PAGES, PAGE) for _ in windows]
    lengths: dict[int, int] = {}
    tables: dict[int, list[PageTable]] = {}

    def end(sequence: int) -> None:
        del lengths[sequence]
        for table in tables.pop(sequence):
            table.truncate(0)

    for number in range(count):
        for sequence in [sequence for sequence, length in lengths.items() if length > 60]:
            end(sequence)
        if len(lengths) < 6 and (not lengths or rng.random() < 0.5):
            lengths[number], tables[number] = 0, [PageTable(pool, window) for pool, window in zip(pools, windows, strict=True)]
        chosen = rng.choice(sorted(lengths))
        if len(lengths) > 1 and rng.random() < 0.15:
            end(chosen)
        elif len(lengths) < 6 and lengths[chosen] and rng.random() < 0.2:
            lengths[1000 + number] = lengths[chosen]
            tables[1000 + number] = [table.fork(lengths[chosen]) for table in tables[chosen]]
        segments = []
        for sequence in sorted(lengths):
            position = lengths[sequence]
            if position > 2 and rng.random() < 0.2:
                position -= rng.randrange(1, 3)  # what is written now takes the place of the last rows
            stop = lengths[sequence] = position + rng.choice((1, 1, 1, 2, 5, 16))
            sources = [table.place(position, stop) for table in tables[sequence]]
            pages = tuple(
                Pages(table.pages, table.start, source) for table, source in zip(tables[sequence], sources, strict=True)
            )
            tokens = b"".join(rng.randrange(VOCABULARY).to_bytes(4, "little") for _ in range(stop - position))
            segments.append(Segment(sequence, 0, position, tokens, 1, pages, GREEDY, 1))
        yield Work(0, 0, number, number, Phase.DECODE, tuple(segments))
        for sequence, held in tables.items():
            for table in held:
                table.slide(lengths[sequence])
