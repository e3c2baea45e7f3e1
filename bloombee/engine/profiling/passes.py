"""One pass of a loaded span, as it is measured: its rows, the pages they find their context in, and how long the device takes."""

from __future__ import annotations

import torch

from bloombee.engine.buffers import TORCH_DTYPES
from bloombee.engine.cache import everywhere
from bloombee.engine.device_clock import clock_of, seconds_of
from bloombee.engine.model import SpanModel
from bloombee.engine.trial import GREEDY
from bloombee.pipeline.work import Segment, Work
from bloombee.types import Phase


def num_slots(page_size: int, phase: Phase, rows: int, context: int) -> int:
    """Of each pool's first slots, how many a pass writes or reads."""
    sequences, tokens = (1, context + rows) if phase is Phase.PREFILL else (rows, context + 1)
    return sequences * -(-tokens // page_size) * page_size


def make_work(model: SpanModel, phase: Phase, rows: int, context: int, picks: int = 0) -> Work:
    """A chunk of ``rows`` of one sequence, or so many sequences of a row each, after ``context`` cached tokens.

    Args:
        picks: rows of decode that get a token sampled.
    """
    token = (1).to_bytes(4, "little")
    size = model.kv.page_size
    pages = num_slots(size, phase, 1 if phase is Phase.DECODE else rows, context) // size
    if phase is Phase.PREFILL:
        return Work(1, 1, 0, 0, phase, (Segment(1, 0, context, token * rows, 0, everywhere(model.kv, 0, pages, context)),))
    segments = [
        Segment(
            row, 0, context, token, int(row < picks), everywhere(model.kv, row * pages, pages, context),
            GREEDY if picks else None, 1, token * (context + 1),
        )
        for row in range(rows)
    ]  # fmt: skip
    return Work(1, 1, 0, 0, phase, tuple(segments))


def hidden_rows(model: SpanModel, rows: int) -> torch.Tensor | None:
    """What comes in; None where token ids do."""
    return None if model.is_first else torch.randn(rows, model.hidden_size).to(TORCH_DTYPES[model.dtype])


def pass_s(model: SpanModel, work: Work, hidden: torch.Tensor | None) -> float:
    """How long the device takes for one pass; on a GPU without what its processor does with the results."""
    clock = clock_of(model.device)
    if model.device.type == "cpu":
        return seconds_of(clock, lambda: model.run(work, hidden), lambda _: None)
    return seconds_of(clock, lambda: model.launch(work, hidden), lambda pending: pending.result())
