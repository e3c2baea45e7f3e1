"""What a planner may choose from. Pure data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bloombee.errors import ConfigError
from bloombee.types import WorkerId


@dataclass(frozen=True, slots=True)
class Space:
    """The choices of a search besides workers, order and layers, and what is given.

    Args:
        sequences: b, of one microbatch, to choose from.
        microbatches: M, under way at once, to choose from.
        ratios: what the codec makes of activations, encoded over raw bytes, to choose from on each link; None is no codec.
        streamed: parts of a stage's layer weights that may come from outside the device on each pass; 0 must be there.
        pipelines: how many there may be.
        most_sequences: M * b of a pipeline is no more; None: no limit.
        context, kv_tokens, page_size, max_rows, rows_per_sequence, tokens_per_round: as in
            :class:`~bloombee.plan.candidate.Candidate`.
        order: the only order in which workers may stand, those that are not named left out; None: any order.

    Raises:
        ConfigError: nothing to choose from, or a value out of range.
    """

    sequences: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    microbatches: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16)
    ratios: tuple[float | None, ...] = (None,)
    streamed: tuple[float, ...] = (0.0,)
    pipelines: int = 1
    most_sequences: int | None = None
    context: int = 0
    kv_tokens: int | None = None
    page_size: int = 1
    max_rows: int = 1
    rows_per_sequence: int = 1
    tokens_per_round: float = 1.0
    order: tuple[WorkerId, ...] | None = None

    def __post_init__(self) -> None:
        for ok, name, allowed in (
            (_whole(self.sequences), "sequences", "numbers from 1 to 2^20"),
            (_whole(self.microbatches), "microbatches", "numbers from 1 to 2^20"),
            (bool(self.ratios) and all(r is None or 0 < r < 1e6 for r in self.ratios), "ratios", "None or > 0"),
            (
                0 in self.streamed and all(0 <= part <= 1 for part in self.streamed),
                "streamed",
                "parts from 0 to 1, 0 among them",
            ),
            (self.pipelines >= 1, "pipelines", ">= 1"),
            (self.context >= 0, "context", ">= 0"),
            (self.kv_tokens is None or self.kv_tokens >= 0, "kv_tokens", ">= 0, or None"),
            (self.page_size >= 1, "page_size", ">= 1"),
            (self.max_rows >= 1, "max_rows", ">= 1"),
            (self.rows_per_sequence >= 1, "rows_per_sequence", ">= 1"),
            (0 < self.tokens_per_round <= self.rows_per_sequence, "tokens_per_round", f"> 0 and <= {self.rows_per_sequence}"),
            (self.order is None or 0 < len(self.order) == len(set(self.order)), "order", "different workers"),
            (any(True for _ in self.points()), "most_sequences", "at least the least M * b"),
        ):
            if not ok:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: must be {allowed}", field=name)

    def points(self) -> Iterator[tuple[int, int]]:
        """(b, M) to choose from."""
        for sequences in sorted(set(self.sequences)):
            for count in sorted(set(self.microbatches)):
                if self.most_sequences is None or sequences * count <= self.most_sequences:
                    yield sequences, count


def _whole(numbers: tuple[int, ...]) -> bool:
    return bool(numbers) and all(1 <= number <= 1 << 20 for number in numbers)
