"""The plan that a swarm is to run: what the search finds, put as who runs what and how, with what is expected of it. Pure.

What the search is told of memory is what a plan is held to when it is made (``plan/memory.py``), so what it calls feasible can
be loaded. Where not even the wished KV memory fits, half of it is tried, and half of that: the plan then takes what fits.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from bloombee.codec.choice import CodecMode
from bloombee.errors import PlanError
from bloombee.models.card import ModelCard
from bloombee.models.shape import ModelShape
from bloombee.objective import Goal, Objective
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import Cost
from bloombee.plan.explain import spare_reasons
from bloombee.plan.memory import model_shape, stage_memory
from bloombee.plan.plan import Prediction
from bloombee.plan.solve import Solution, Space, alone, coded, solve_places
from bloombee.plan.topology import Device, RowTime, Topology
from bloombee.types import Dtype, SchedulerPlace, WorkerId

LEAST_STEPS, STEPS_A_WORKER = 4_000_000, 250_000
"""Of a search: a third of a second or so for 64 workers, as a head answers nobody meanwhile. Steps and not seconds, so that the
same figures give the same plan anywhere."""
SEQUENCE_TOKENS = 512
"""That a sequence has cached on average, where nothing is known of what will be asked."""
CODED = {Dtype.BFLOAT16: 1 / 1.5, Dtype.FLOAT16: 1 / 1.18, Dtype.FLOAT32: 1 / 1.2}
"""What the codec leaves of activations, by the medians of docs/codec.md."""
CLOSE = 0.01
"""Ways to run a plan within this share of the most tokens are as good."""
LEAST_TOKENS = 2048
"""Of KV memory, if that many are wished: where there is no room for them weights stream, where that is asked for."""
STREAMED = tuple(part / 8 for part in range(9))
"""Parts of a stage's weights."""
LEAST_S = 1e-9
"""Nothing takes less."""
ORDINARY_BYTES_PER_S, ORDINARY_FLOPS_PER_S = 2e10, 2e11
"""Of an ordinary computer (two channels of memory, eight cores): what workers are taken for while nobody has measured any."""


ORDINARY_DISK_BYTES_PER_S = 5e8


@dataclass(frozen=True, slots=True)
class Wish:
    """What a plan is to have besides layers.

    Args:
        num_pages: of KV memory of the layers that see furthest; ``pages_fixed``: so many, else as many as there is room for.
        max_rows: of one microbatch. microbatches: under way, as asked for; None: as is best, up to ``most_microbatches``.
        codec: of all links. scheduler: where it is; None: where it is best.
        streams: weights may come from a worker's disk on every pass, where that is better than other workers, or than none.
    """

    dtype: Dtype
    num_pages: int
    page_size: int
    max_rows: int
    most_microbatches: int
    microbatches: int | None = None
    pages_fixed: bool = False
    codec: CodecMode = CodecMode.OFF
    scheduler: SchedulerPlace | None = SchedulerPlace.HEAD
    streams: bool = False

    @property
    def least_pages(self) -> int:
        """With which nothing streams for the sake of more."""
        return self.num_pages if self.pages_fixed else min(self.num_pages, -(-LEAST_TOKENS // self.page_size))

    def shape(self, card: ModelCard, num_pages: int) -> ModelShape:
        """Of the model, where stages hold so many pages."""
        return model_shape(card, self.dtype, rows=self.max_rows, tokens=num_pages * self.page_size)

    def space(self, card: ModelCard, num_pages: int, *, streams: bool = False) -> Space:
        """What there is to choose from: one pipeline, and as many sequences as have room."""
        tokens = num_pages * self.page_size
        context = min(SEQUENCE_TOKENS, card.max_positions or SEQUENCE_TOKENS, tokens)
        space = Space(
            ratios={CodecMode.OFF: (None,), CodecMode.ON: (CODED[self.dtype],)}.get(self.codec, (None, CODED[self.dtype])),
            streamed=STREAMED if streams else (0.0,),
            context=context,
            kv_tokens=tokens,
            page_size=self.page_size,
            max_rows=self.max_rows,
        )
        counts = (self.microbatches,) if self.microbatches else _up_to(self.most_microbatches, space.microbatches)
        most = max(tokens // context, counts[0])
        return dataclasses.replace(
            space, sequences=_up_to(self.max_rows, space.sequences), microbatches=counts, most_sequences=most
        )


@dataclass(frozen=True, slots=True)
class Chosen:
    """Who runs what, and what that is expected to come to."""

    candidate: Candidate
    prediction: Prediction


def choose(topology: Topology, card: ModelCard, wish: Wish, objective: Objective) -> Chosen:
    """The best plan of ``topology``'s workers for ``objective``.

    A worker that has told nothing of its speed counts as the slowest of those that have, or all as ordinary computers.

    Raises:
        Infeasible: there is none; ``fields`` say which constraint, on which worker, and what is missing.
        PlanError: none was found within the search's budget.
        ConfigError: a figure that nothing could have; names the worker or the link.
    """
    topology, guessed = with_guesses(topology, wish.shape(card, wish.num_pages), streams=wish.streams)
    solution, num_pages = _most_pages(topology, card, wish, objective)
    model, space = wish.shape(card, num_pages), wish.space(card, num_pages)
    cost = solution.pipelines[0]
    if objective.goal is Goal.LATENCY:
        cost = _busiest(cost.candidate, topology, model, space)
    reasons = spare_reasons(solution, topology, model)
    prediction = Prediction(
        objective=str(objective),
        num_microbatches=cost.candidate.num_microbatches,
        microbatch_sequences=cost.candidate.microbatch_sequences,
        ratios=cost.candidate.ratios,
        tokens_per_s=cost.tokens_per_s,
        time_per_token_s=cost.time_per_token_s,
        alone_s=alone(cost.candidate, topology, model, space.ratios).time_per_token_s,
        bottleneck=cost.bottleneck,
        gap=solution.gap,
        spares=tuple(
            (topology.name(worker), f"{why}, if a guess of its speed is right" if worker in guessed else why)
            for worker, why in reasons.items()
        ),
        guessed=tuple(topology.name(worker) for worker in cost.candidate.workers if worker in guessed),
    )
    return Chosen(cost.candidate, prediction)


def _most_pages(topology: Topology, card: ModelCard, wish: Wish, objective: Objective) -> tuple[Solution, int]:
    """The plan with the wished pages, or with half as many, and so on; the last error where none is there with one.

    Weights stream where that is better with as many pages, or where there is no room for the least pages without."""
    steps = max(LEAST_STEPS, STEPS_A_WORKER * len(topology.devices))
    can_stream = wish.streams and _is_tight(topology, wish.shape(card, wish.least_pages))
    num_pages = wish.num_pages
    while True:
        best, error = _attempt(topology, card, wish, objective, steps, num_pages, streams=False)
        if can_stream and (best is not None or num_pages <= wish.least_pages):
            other, error = _attempt(topology, card, wish, objective, steps, num_pages, streams=True)
            best = other if best is None or (other is not None and _is_better(other, best)) else best
        if best is not None:
            return best, num_pages
        if error is not None and (wish.pages_fixed or num_pages == 1):
            raise error
        least = wish.least_pages if can_stream and num_pages > wish.least_pages else 1
        num_pages = max(num_pages // 2, least)


def _is_tight(topology: Topology, model: ModelShape) -> bool:
    """Whether there is a worker that could not have all layers: nowhere else is anything to be gained by streaming."""
    whole = stage_memory(model, 0, model.num_layers, (0,) * len(model.layer_kinds)).total
    return any(device.memory_bytes is not None and device.memory_bytes < whole for device in topology.devices.values())


def _attempt(
    topology: Topology, card: ModelCard, wish: Wish, objective: Objective, steps: int, num_pages: int, *, streams: bool
) -> tuple[Solution | None, PlanError | None]:
    """Where memory is tight a search may end with nothing, and it is as good as none."""
    model, space = wish.shape(card, num_pages), wish.space(card, num_pages, streams=streams)
    try:
        place = wish.scheduler
        return solve_places(topology, model, space, objective, place=place, budget_s=math.inf, max_steps=steps), None
    except PlanError as error:
        return None, error


def _is_better(one: Solution, other: Solution) -> bool:
    """By enough that it pays to read a disk all the time."""
    if one.objective.goal in (Goal.LATENCY, Goal.BALANCE):
        return other.value > one.value * (1 + CLOSE)
    return one.value > other.value * (1 + CLOSE)


def worth(candidate: Candidate, topology: Topology, model: ModelShape, space: Space, objective: Objective) -> float:
    """Of its layers, however they are run best: tokens a second, or for latency one over the seconds of a token alone.

    What misses a target counts as much less as it misses it. Raises PlanError: a link that there is not.
    """
    if objective.goal is Goal.LATENCY:
        return 1 / max(alone(candidate, topology, model, space.ratios).time_per_token_s, LEAST_S)
    limit_s = objective.target_s or math.inf
    return max(
        cost.tokens_per_s * min(1.0, limit_s / max(cost.time_per_token_s, LEAST_S))
        for cost in _ways(candidate, topology, model, space)
        if cost.step_s > 0
    )


def _busiest(candidate: Candidate, topology: Topology, model: ModelShape, space: Space) -> Cost:
    """The same layers, run with as few sequences as make the most tokens, nearly."""
    ways = _ways(candidate, topology, model, space)
    most = max(cost.tokens_per_s for cost in ways)
    return next(cost for cost in ways if cost.tokens_per_s >= most * (1 - CLOSE))


def _ways(candidate: Candidate, topology: Topology, model: ModelShape, space: Space) -> list[Cost]:
    """To run the same layers, fewest sequences first."""
    return [
        coded(
            dataclasses.replace(candidate, num_microbatches=count, microbatch_sequences=sequences), topology, model, space.ratios
        )
        for sequences, count in sorted(space.points(), key=lambda point: point[0] * point[1])
    ]


def with_guesses(topology: Topology, model: ModelShape, *, streams: bool = False) -> tuple[Topology, frozenset[WorkerId]]:
    """With workers of whose speed nothing is known as slow as the slowest of those that are known, or all as ordinary computers;
    and who they are. Where weights may stream, disks of which nothing is known are ordinary ones, which nobody is told."""
    unknown = frozenset(worker for worker, device in topology.devices.items() if not device.is_known)
    known = [device for worker, device in topology.devices.items() if worker not in unknown]
    like = max(known, key=lambda device: _alone_s(device, model)) if known else _ordinary(model)
    guesses = {
        worker: dataclasses.replace(like, name=device.name, memory_bytes=device.memory_bytes)
        for worker, device in topology.devices.items()
        if worker in unknown
    }
    devices = {**topology.devices, **guesses}
    if streams:
        devices = {
            worker: device
            if device.stream_bytes_per_s
            else dataclasses.replace(device, stream_bytes_per_s=ORDINARY_DISK_BYTES_PER_S)
            for worker, device in devices.items()
        }
    return dataclasses.replace(topology, devices=devices), unknown


def _alone_s(device: Device, model: ModelShape) -> float:
    """All layers of the model for one row."""
    counts = enumerate(model.counts(0, model.num_layers))
    return device.stage.decode_s(1) + sum(count * device.layer_of(kind).decode_s(1) for kind, count in counts)


def _ordinary(model: ModelShape) -> Device:
    """Reads its weights once a pass, and computes with all of them for each row."""

    def time(num_bytes: int) -> RowTime:
        row_s = 2 * num_bytes / model.activation_bytes / ORDINARY_FLOPS_PER_S
        return RowTime(num_bytes / ORDINARY_BYTES_PER_S, row_s, row_s)

    kinds = tuple(time(kind.layer_bytes) for kind in model.layer_kinds)
    return Device("ordinary", output=time(model.output_bytes), kinds=kinds)


def _up_to(most: int, numbers: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(number for number in numbers if number <= most)
