"""What the cost model is asked about: a plan with the way it is run. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from bloombee.errors import ConfigError
from bloombee.types import HEAD, SchedulerPlace, WorkerId


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan and how it is run, as the cost model sees it.

    Args:
        workers: in ring order.
        layers: of each, >= 1.
        num_microbatches: M, under way at once.
        microbatch_sequences: b, in each.
        rows_per_sequence: 1, or 1 + drafted rows when drafts are verified.
        tokens_per_round: expected tokens that a sequence gains a round: 1 without speculation.
        context: tokens already cached, of each sequence, on average.
        ratios: encoded over raw bytes of each activation link (one fewer than workers), None where there is no
            codec; empty: none anywhere. 1.0 is a codec that saves nothing, but takes its time.
        kv_tokens: KV slots of the layers that see furthest; None: what M * b sequences of ``context`` hold.
        page_size: in whole pages of so many. max_rows: most rows of one sequence in a microbatch, which the slots of layers
            that see less depend on.
        streamed_bytes: weights of each stage that come from outside the device on every pass; empty: none.
        scheduler: where it is, and the ring closes.

    Raises:
        ConfigError: a value out of range, or lists of different lengths.
    """

    workers: tuple[WorkerId, ...]
    layers: tuple[int, ...]
    num_microbatches: int = 1
    microbatch_sequences: int = 1
    rows_per_sequence: int = 1
    tokens_per_round: float = 1.0
    context: int = 0
    ratios: tuple[float | None, ...] = ()
    kv_tokens: int | None = None
    page_size: int = 1
    max_rows: int = 1
    streamed_bytes: tuple[int, ...] = ()
    scheduler: SchedulerPlace = SchedulerPlace.HEAD

    def __post_init__(self) -> None:
        stages = len(self.workers)
        for ok, name, allowed in (
            (stages >= 1, "workers", "at least one worker"),
            (len(self.layers) == stages and all(k >= 1 for k in self.layers), "layers", f"{stages} numbers >= 1, one a worker"),
            (self.num_microbatches >= 1, "num_microbatches", ">= 1"),
            (self.microbatch_sequences >= 1, "microbatch_sequences", ">= 1"),
            (self.rows_per_sequence >= 1, "rows_per_sequence", ">= 1"),
            (
                0 < self.tokens_per_round <= self.rows_per_sequence,
                "tokens_per_round",
                f"> 0 and <= {self.rows_per_sequence} (its rows)",
            ),
            (self.context >= 0, "context", ">= 0"),
            (len(self.ratios) in (0, stages - 1), "ratios", f"empty or {stages - 1} numbers, one an activation link"),
            (all(ratio is None or ratio > 0 for ratio in self.ratios), "ratios", "None or > 0"),
            (self.kv_tokens is None or self.kv_tokens >= 0, "kv_tokens", ">= 0, or None"),
            (self.page_size >= 1, "page_size", ">= 1"),
            (self.max_rows >= 1, "max_rows", ">= 1"),
            (len(self.streamed_bytes) in (0, stages), "streamed_bytes", f"empty or {stages} numbers, one a worker"),
            (all(count >= 0 for count in self.streamed_bytes), "streamed_bytes", ">= 0"),
        ):
            if not ok:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: must be {allowed}", field=name)

    @property
    def scheduler_worker(self) -> WorkerId:
        """In whose process the scheduler is; HEAD: the head's."""
        return self.workers[0] if self.scheduler is SchedulerPlace.STAGE0 else HEAD

    @property
    def rows(self) -> int:
        """Of one microbatch."""
        return self.microbatch_sequences * self.rows_per_sequence
