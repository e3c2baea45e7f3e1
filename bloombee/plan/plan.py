"""Who runs what: the plan that a head assigns and every frame's epoch refers to. Pure data."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from bloombee.errors import ConfigError, Infeasible
from bloombee.types import HEAD, Dtype, Epoch, PageGroup, PipelineId, SchedulerPlace, Span, WorkerId


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One position of a plan."""

    index: int
    worker: WorkerId
    name: str
    span: Span
    weight_bytes: int
    kv_bytes: int
    groups: tuple[PageGroup, ...]
    """Those of the plan's that have layers here."""
    scratch_bytes: int = 0
    """What a forward may need besides."""
    load: int = 0
    """The order to load it, which counts all that the head gives; 0: none has been given."""
    streamed: tuple[int, ...] = ()
    """Layers whose weights come from the worker's disk on every pass; ``weight_bytes`` counts the slots that they come into."""

    @property
    def num_pages(self) -> int:
        """Of all groups together: what it has free when no sequence is open."""
        return sum(group.num_pages for group in self.groups)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a plan that was chosen is expected to do, and what it was chosen for.

    Args:
        objective: as :class:`~bloombee.objective.Objective` reads it.
        num_microbatches, microbatch_sequences: M under way, of b sequences, with which it makes ``tokens_per_s``, one a sequence
            every ``time_per_token_s``. alone_s: time per token of a sequence by itself.
        ratios: encoded over raw bytes of each activation link; None: not coded; empty: none is.
        bottleneck: what is busy longest. gap: by how much another plan could be better at most; 0: proven best.
        spares: (name, why it has no stage) of workers that were there. guessed: of those with a stage whose speed nobody knew.
    """

    objective: str
    num_microbatches: int
    microbatch_sequences: int
    tokens_per_s: float
    time_per_token_s: float
    alone_s: float
    bottleneck: str
    gap: float
    ratios: tuple[float | None, ...] = ()
    spares: tuple[tuple[str, str], ...] = ()
    guessed: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for people."""
        sizes = f"M = {self.num_microbatches} microbatches of b = {self.microbatch_sequences} sequences"
        how = f"at most {self.gap:.2%} from the best" if self.gap > 0 else "proven best"
        parts = [
            f"{self.objective}: {self.tokens_per_s:.1f} tokens/s with {sizes}, {1e3 * self.time_per_token_s:.1f} ms a token",
            f"{1e3 * self.alone_s:.1f} ms alone",
            f"{self.bottleneck} is busy longest",
            how,
            *([f"nobody knows how fast {', '.join(self.guessed)} are, so this is a guess"] if self.guessed else []),
            *(f"{', '.join(names)} left as spare ({why})" for why, names in self._names_by_reason().items()),
        ]
        return "; ".join(parts)

    def _names_by_reason(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for name, why in self.spares:
            names.setdefault(why, []).append(name)
        return names

    def summary(self) -> dict[str, object]:
        """JSON-able."""
        fields = dataclasses.asdict(self)
        return {**fields, "spares": [{"name": name, "why": why} for name, why in self.spares]}


@dataclass(frozen=True, slots=True)
class Ring:
    """What the scheduler needs of a plan."""

    pipeline: PipelineId
    epoch: Epoch
    num_stages: int
    num_microbatches: int
    groups: tuple[PageGroup, ...]
    """Of all layers, widest window first."""
    page_size: int

    @property
    def num_tokens(self) -> int:
        """KV slots of the layers that see furthest: the longest sequence, and all open ones together, have no more."""
        return self.groups[0].num_pages * self.page_size


@dataclass(frozen=True, slots=True)
class Plan:
    """A pipeline: its stages in ring order and what they share."""

    pipeline: PipelineId
    epoch: Epoch
    model: str
    dtype: Dtype
    num_layers: int
    groups: tuple[PageGroup, ...]
    """Of all layers, widest window first."""
    page_size: int
    num_microbatches: int
    stages: tuple[StagePlan, ...]
    prediction: Prediction | None = None
    """Of a plan that was chosen; None: of one that was asked for, or that a spare has changed."""
    scheduler: SchedulerPlace = SchedulerPlace.HEAD
    scheduler_since: Epoch = 1
    """The epoch in which it began there, knowing of no sequence."""

    @property
    def ring(self) -> Ring:
        """As the scheduler has it."""
        return Ring(self.pipeline, self.epoch, len(self.stages), self.num_microbatches, self.groups, self.page_size)

    def stage_of(self, worker: WorkerId) -> StagePlan | None:
        """What a worker holds; None: a spare, or a stranger."""
        return next((stage for stage in self.stages if stage.worker == worker), None)

    @property
    def num_tokens(self) -> int:
        """As :attr:`Ring.num_tokens`."""
        return self.ring.num_tokens

    @property
    def scheduler_worker(self) -> WorkerId:
        """In whose process the scheduler is; HEAD: the head's."""
        return self.stages[0].worker if self.scheduler is SchedulerPlace.STAGE0 else HEAD

    @property
    def hops(self) -> frozenset[tuple[WorkerId, WorkerId]]:
        """(from, to) of every link of the ring, the scheduler's two included; inside one process there is none."""
        ring = [self.scheduler_worker, *(stage.worker for stage in self.stages), self.scheduler_worker]
        return frozenset(ends for ends in itertools.pairwise(ring) if ends[0] != ends[1])

    def summary(self) -> dict[str, object]:
        """JSON-able facts for people and for ``--json``."""
        return {
            "epoch": self.epoch,
            "model": self.model,
            "dtype": str(self.dtype),
            "max_microbatches": self.num_microbatches,
            "kv_tokens": self.num_tokens,
            "scheduler": str(self.scheduler),
            "kv_groups": [{"window": g.window, "tokens": g.num_pages * self.page_size} for g in self.groups],
            "stages": [
                {
                    "worker": s.worker,
                    "name": s.name,
                    "layers": [s.span.start, s.span.stop],
                    "weight_bytes": s.weight_bytes,
                    "kv_bytes": s.kv_bytes,
                    "scratch_bytes": s.scratch_bytes,
                    "streamed_layers": list(s.streamed),
                }
                for s in self.stages
            ],
            **({} if self.prediction is None else {"predicted": self.prediction.summary()}),
        }


def split_layers(num_layers: int, num_stages: int, asked: Sequence[int] | None = None) -> list[Span]:
    """Spans of ``num_stages`` stages: as ``asked`` (layers of each), else as even as can be.

    When it does not come out even the first stages get one more, except that the last never gets more
    than another: it has the LM head to run as well.

    Raises:
        ConfigError: more stages than layers, or ``asked`` does not add up; says what would.
    """
    if num_stages > num_layers:
        raise ConfigError(
            f"{num_stages} workers for {num_layers} layers: at most one worker a layer, so ask for {num_layers} or fewer",
            workers=num_stages,
            num_layers=num_layers,
        )
    if asked is not None:
        if len(asked) != num_stages or sum(asked) != num_layers or min(asked) < 1:
            raise ConfigError(
                f"split {','.join(map(str, asked))}: must be {num_stages} numbers >= 1 (one a worker)"
                f" that add up to the model's {num_layers} layers",
                split=",".join(map(str, asked)),
                num_layers=num_layers,
            )
        counts = list(asked)
    else:
        least, extra = divmod(num_layers, num_stages)
        counts = [least + (index < extra) for index in range(num_stages)]
    spans, start = [], 0
    for count in counts:
        spans.append(Span(start, start + count))
        start += count
    return spans


def check_memory(stage: StagePlan, memory_bytes: int) -> None:
    """Raises Infeasible unless the span's weights, KV and scratch fit ``memory_bytes``; says short by how much."""
    check_fits(stage.name, stage.span, stage.weight_bytes, stage.kv_bytes, memory_bytes, scratch_bytes=stage.scratch_bytes)


def check_fits(worker: str, span: Span, weight_bytes: int, kv_bytes: int, memory_bytes: int, *, scratch_bytes: int = 0) -> None:
    """As :func:`check_memory`, for whoever knows the bytes."""
    need = weight_bytes + kv_bytes + scratch_bytes
    if need > memory_bytes:
        raise Infeasible(
            f"layers {span} need {need / 1e6:.0f} MB on worker {worker!r} (weights {weight_bytes / 1e6:.0f},"
            f" KV {kv_bytes / 1e6:.0f}, scratch {scratch_bytes / 1e6:.0f}) and it offers {memory_bytes / 1e6:.0f} MB:"
            f" short by {(need - memory_bytes) / 1e6:.0f} MB; use more workers, another split, or fewer KV tokens",
            constraint="memory",
            worker=worker,
            short_bytes=need - memory_bytes,
        )
