"""What the tests of paged attention share, on the CPU and on a GPU: sequences with keys in odd places, and the plain formula."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch

from bloombee.engine.cache import LayerCache, SlotCache
from bloombee.engine.paged import PagedStep, StepTables
from bloombee.pipeline.work import Pages, Segment
from bloombee.types import PageGroup

LAYER = 3
PAGE = 16


@dataclass(frozen=True)
class Shape:
    """Of one layer's attention."""

    heads: int = 4
    kv_heads: int = 2
    key_dim: int = 64
    value_dim: int = 64
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    dtype: torch.dtype = torch.float32
    page: int = PAGE


@dataclass
class Case:
    """A cache with sequences of ``lengths``, of which all but the last rows are stored already. All else in it is NaN.

    Args:
        lengths: of the sequences, with the rows of the step at hand. They may not change afterwards.
    """

    shape: Shape
    lengths: list[int]
    seed: int = 0
    device: str = "cpu"
    values: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, rng = self.shape, random.Random(self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        counts = [-(-length // shape.page) for length in self.lengths]
        pages = list(range(sum(counts) + 3))
        rng.shuffle(pages)
        self.pages = [tuple(pages.pop() for _ in range(count)) for count in counts]
        one = LayerCache(
            LAYER, (shape.kv_heads, shape.key_dim), (shape.kv_heads, shape.value_dim), shape.window or 0, heads=shape.heads
        )
        group = PageGroup(shape.window or 0, sum(counts) + 3)
        self.cache = SlotCache([one], [group], shape.page, shape.dtype, torch.device(self.device))
        for held in self.cache.rows(LAYER):
            held.fill_(float("nan"))
        for name, count, dim in (
            ("q", shape.heads, shape.key_dim),
            ("k", shape.kv_heads, shape.key_dim),
            ("v", shape.kv_heads, shape.value_dim),
        ):
            made = [torch.randn(count, length, dim, generator=generator) for length in self.lengths]
            self.values[name] = [x.to(shape.dtype).to(self.device) for x in made]
        sinks = torch.randn(shape.heads, generator=generator).to(shape.dtype).to(self.device)
        self.options: dict[str, Any] = {
            "scaling": 0.3 if shape.softcap else None,
            "sliding_window": shape.window,
            "softcap": shape.softcap,
            "s_aux": sinks if shape.sinks else None,
        }
        self.tables = StepTables(self.cache)

    def store(self, number: int, stop: int) -> None:
        """The first ``stop`` keys and values of a sequence, by hand."""
        for held, name in zip(self.cache.rows(LAYER), ("k", "v"), strict=True):
            for position in range(0, stop, self.shape.page):
                page, count = self.pages[number][position // self.shape.page], min(self.shape.page, stop - position)
                at = page * self.shape.page
                held[:, at : at + count] = self.values[name][number][:, position : position + count]

    def segment(self, number: int, position: int, rows: int) -> Segment:
        """Rows of a sequence; of a window its pages begin where they may."""
        window, page = self.shape.window or 0, self.shape.page
        first = max(0, position + 1 - window) // page if window else 0
        ids = self.pages[number][first : -(-(position + rows) // page)]
        return Segment(number, 0, position, bytes(4 * rows), 0, (Pages(ids, first * page),))

    def run(self, segments: list[Segment], *, num_rows: int | None = None, captured: bool = False) -> torch.Tensor:
        """[rows, h, e'] of a step, its keys stored by the step itself."""
        packed = []
        for name in ("q", "k", "v"):
            parts = [self.values[name][one.sequence][:, one.position : one.position + one.num_rows] for one in segments]
            rows = torch.cat(parts, dim=1)
            padding = rows.new_full((rows.shape[0], (num_rows or rows.shape[1]) - rows.shape[1], rows.shape[2]), float("nan"))
            packed.append(torch.cat([rows, padding], dim=1)[None])
        self.tables.fill(segments, num_rows=num_rows, captured=captured)
        step = PagedStep(self.tables)
        out, _ = step.attend(packed[0], *step.update(packed[1], packed[2], LAYER), **self.options)
        return out[0]

    def expected(self, number: int, position: int, rows: int) -> torch.Tensor:
        """[rows, h, e'] by the formula, in float64."""
        q, k, v = (self.values[name][number].double() for name in ("q", "k", "v"))
        grouped, at = (
            self.shape.heads // self.shape.kv_heads,
            torch.arange(position, position + rows, device=self.device)[:, None],
        )
        q, k, v = q[:, position : position + rows], k[:, : position + rows], v[:, : position + rows]
        scaling = self.options["scaling"]
        scores = q @ k.repeat_interleave(grouped, 0).transpose(1, 2) * (q.shape[2] ** -0.5 if scaling is None else scaling)
        if self.shape.softcap is not None:
            scores = self.shape.softcap * torch.tanh(scores / self.shape.softcap)
        keys = torch.arange(position + rows, device=self.device)[None]
        seen = keys <= at
        if self.shape.window is not None:
            seen &= keys > at - self.shape.window
        scores = scores.masked_fill(~seen, float("-inf"))
        if self.options["s_aux"] is not None:
            column = self.options["s_aux"].double()[:, None, None].expand(-1, rows, 1)
            scores = torch.cat([scores, column], dim=-1)
        weights = scores.softmax(-1)[..., : position + rows]
        return (weights @ v.repeat_interleave(grouped, 0)).transpose(0, 1)


TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
"""Of values of about 1, as the weights are rounded to the type before they are multiplied."""


def require_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    error = (got.double() - expected).abs() / (1 + expected.abs())
    assert not got.isnan().any()
    assert float(error.max()) < TOLERANCE[got.dtype], f"{float(error.max())} at {tuple(error.shape)}"
