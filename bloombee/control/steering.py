"""Which way of running a pipeline should go on with, by what it has shown so far. Pure.

What is running is left only for a way that promises WORTH of the step: figures that scatter must not make the ring
change its mind. A better chunk is taken by itself. Whether promises come true is for ``control/audit.py`` to see: it may ask for
another number of microbatches than the cost model's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from bloombee.control.audit import Check
from bloombee.control.chunks import Chunks
from bloombee.control.events import Figures
from bloombee.control.loops import Loops
from bloombee.control.observed import LiveCosts, Shown
from bloombee.control.operate import Tuning, step_s, tune
from bloombee.control.seen import finite
from bloombee.models.shape import ModelShape
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import evaluate
from bloombee.plan.drafting import load_of
from bloombee.plan.topology import LOCAL, Device, Link, Topology
from bloombee.spec.controller import Load
from bloombee.types import HEAD, StageUse

WORTH = 0.03
"""A change must promise this much of the step."""
ROOM = 0.15
"""Of the loop of one row: so much longer may loops be without leaving the bottleneck idle, as long as nothing else is known."""
FEW_PROMPTS = 0.05
"""Rows of prompts, of all: a load with more is not one to compare speeds under."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What the scheduler has to run, and how it gets on.

    Args:
        sequences: that decode or are about to.
        quickest_loop: seconds and rows of the microbatch that came home quickest of late.
        decoded: tokens so far, and when the last of them came.
    """

    sequences: int
    quickest_loop: tuple[float, int] | None
    decoded: tuple[int, float]


@dataclass(frozen=True, slots=True)
class Choice:
    """How to go on, why, and from what figures."""

    tuning: Tuning
    why: str
    figures: Figures


class Steering:
    """Of one plan. Links are in ring order, as expected: from the head to the first stage, then leaving each stage.

    Args:
        names: of the workers, in ring order; layers: of each.
        most_microbatches: credit there is; most_rows: in one microbatch.
        target_s: time per token to keep; None: most tokens a second.
    """

    def __init__(
        self,
        names: Sequence[str],
        layers: Sequence[int],
        model: ModelShape,
        *,
        most_microbatches: int,
        most_rows: int,
        target_s: float | None = None,
    ) -> None:
        self.chosen: Tuning | None = None
        self.sizes_apart = True
        """Whether microbatches of different sizes are wanted, to learn from them."""
        self._live = LiveCosts(tuple(names))
        self._model = model
        self._base = Candidate(tuple(range(1, len(names) + 1)), tuple(layers))
        self._most_microbatches = most_microbatches
        self._most_rows = most_rows
        self._target_s = target_s
        self._check = Check()
        self._loops = Loops()
        self._busy_s: tuple[float, ...] = ()
        """Of each stage, so far."""
        self._rows = (0, 0)
        """Of decode and of prompts, so far."""
        self._is_steady = False

    def report(self, uses: Sequence[StageUse]) -> None:
        """Sums since each stage was loaded, one a stage."""
        self._live.report(uses)
        self._busy_s = tuple(use.decode.busy_s + use.prefill.busy_s for use in uses)
        before, self._rows = self._rows, (uses[0].decode.num_rows, uses[0].prefill.num_rows)
        self._is_steady = self._rows[1] - before[1] <= FEW_PROMPTS * (self._rows[0] - before[0])

    @property
    def is_known(self) -> bool:
        """What has run tells enough to :meth:`choose`."""
        return self._live.is_known

    def shown(self) -> tuple[Shown, ...]:
        """Of each stage, in ring order; none before all are known."""
        return self._live.shown([(count,) for count in self._base.layers]) if self.is_known else ()

    @property
    def is_settled(self) -> bool:
        """What is chosen has been measured under the present load, and found right."""
        return self._check.is_settled

    def begin(self, devices: Sequence[Device | None], links: Sequence[Link] | None) -> Chunks:
        """How to cut prompts before anything has run, so that the first does not wait for what it is to show itself.

        Args:
            devices: as the workers have measured themselves. Unless all have, chunks are as large as can be.
            links: None: as many rows are under way as the longest need.
        """
        stages, rows = len(self._base.workers), self._most_rows
        largest = Chunks(0, rows, rows, 2 * stages * rows)
        known = [device for device in devices if device is not None]
        if len(known) < stages:
            return largest
        first, *others = links or self._spread_evenly(0.0)
        chunks = self._tune(self._base, Topology.ring(known, others, first=first), stages).chunks[0]
        return chunks if links else replace(chunks, under_way=largest.under_way)

    def choose(self, demand: Demand, links: Sequence[Link] | None, now: float) -> Choice | None:
        """For ``demand``.

        Args:
            links: None: by the loop.

        Returns:
            How to go on, from now on :attr:`chosen`, with :attr:`sizes_apart`; None: as before, or nothing is known yet.
        """
        if not self._live.is_known:
            return None
        was_apart, self.sizes_apart = self.sizes_apart, self._live.wants_spread
        known = links or self._links_by_loop(demand.quickest_loop)
        topology = self._live.topology(known[1:], first=known[0])
        base = replace(self._base, ratios=self._live.ratios)
        pin = self._look(base, topology, demand, links, now)
        surplus_s = self._surplus_s(base, topology, demand, now)
        room_s = max(0.0, ROOM * evaluate(base, topology, self._model).loop_s - surplus_s)
        topology = _longer(topology, self._base.workers[-1], surplus_s)
        best = self._tune(base, topology, demand.sequences, pin, room_s)
        old, before_s = self.chosen, None
        why = "the first figures" if pin is None else self._check.why
        if old is not None and best.max_sequences == old.max_sequences:
            running = min(demand.sequences, best.max_sequences or demand.sequences)
            before_s = self._step_of(base, topology, running, old.num_microbatches)
            if pin is None:
                why = f"a step of {best.step_s:.4g} s instead of {before_s:.4g} s, as the figures are now"
            is_kept = best.num_microbatches == old.num_microbatches if pin else best.step_s >= before_s * (1 - WORTH)
            if is_kept:
                if best.chunks == old.chunks and self.sizes_apart == was_apart:
                    return None
                best, why = replace(old, chunks=best.chunks), self._why_kept(was_apart)
        elif old is not None:
            why = f"{best.max_sequences or 'any number of'} sequences at once keep the time per token"
        self.chosen = best
        return Choice(best, why, self._figures(demand, topology, best, before_s))

    def load(self, sequences: int, quickest_loop: tuple[float, int] | None, links: Sequence[Link] | None) -> Load | None:
        """What a round of ``sequences`` costs as they are run; arguments as of :meth:`choose`. None: nothing is known yet."""
        if self.chosen is None:
            return None
        known = links or self._links_by_loop(quickest_loop)
        count = min(self.chosen.num_microbatches, max(1, sequences))
        base = replace(self._base, ratios=self._live.ratios, num_microbatches=count)
        return load_of(base, self._live.topology(known[1:], first=known[0]), self._model)

    def _why_kept(self, was_apart: bool) -> str:
        if self.sizes_apart == was_apart:
            return "chunks fit the figures better"
        return "sizes differ to show what a row costs" if self.sizes_apart else "what a row costs is known"

    def _figures(self, demand: Demand, topology: Topology, best: Tuning, before_s: float | None) -> Figures:
        ring = [(0, self._base.workers[0]), *zip(self._base.workers, [*self._base.workers[1:], 0], strict=True)]
        links = [topology.link(*ends) for ends in ring]
        return Figures(
            sequences=demand.sequences,
            devices=tuple(topology.device(worker).stage for worker in self._base.workers),
            links=tuple((one.latency_s, finite(one.bandwidth_bytes_per_s)) for one in links),
            ratios=self._live.ratios,
            decoded=demand.decoded,
            step_s=best.step_s,
            before_s=before_s,
        )

    def _tune(self, base: Candidate, topology: Topology, sequences: int, pin: int | None = None, room_s: float = 0.0) -> Tuning:
        return tune(
            base,
            topology,
            self._model,
            sequences=sequences,
            most_microbatches=pin or self._most_microbatches,
            most_rows=self._most_rows,
            target_s=self._target_s,
            least_microbatches=pin or 1,
            room_s=room_s,
        )

    def _look(self, base: Candidate, topology: Topology, demand: Demand, links: Sequence[Link] | None, now: float) -> int | None:
        """How many microbatches what was measured asks for; None: as the cost model says."""
        if self.chosen is None or self._target_s is not None:  # time per token is what a target asks for, not speed
            return None
        return self._check.look(
            min(self.chosen.num_microbatches, demand.sequences),
            demand.sequences,
            sum(link.latency_s for link in links) if links else None,
            demand.decoded,
            partial(self._step_of, base, topology, demand.sequences),
            is_steady=self._is_steady,
            now=now,
        )

    def _surplus_s(self, base: Candidate, topology: Topology, demand: Demand, now: float) -> float:
        """That loops take besides what devices and links account for."""
        if self.chosen is None or self._target_s is not None:
            return 0.0
        count = min(self.chosen.num_microbatches, demand.sequences)
        spread = replace(base, num_microbatches=count, microbatch_sequences=-(-demand.sequences // count))
        return self._loops.look(
            count,
            demand.sequences,
            demand.decoded,
            self._busy_s,
            evaluate(spread, topology, self._model),
            is_steady=self._is_steady,
            now=now,
        )

    def _step_of(self, base: Candidate, topology: Topology, sequences: int, count: int, extra_s: float = 0.0) -> float:
        """Of ``sequences`` in ``count`` microbatches, on the ring as it is now; ``extra_s``: that each takes longer there."""
        count = min(count, sequences)
        spread = replace(base, num_microbatches=count, microbatch_sequences=-(-sequences // count))
        ring = _slower(topology, extra_s) if extra_s else topology
        return step_s(evaluate(spread, ring, self._model), ring, self._model, sequences)

    def _links_by_loop(self, quickest_loop: tuple[float, int] | None) -> list[Link]:
        """What no device accounts for of the quickest loop, in equal parts."""
        free = self._spread_evenly(0.0)
        if quickest_loop is None:
            return free
        seconds, rows = quickest_loop
        devices = self._live.topology(free[1:]).devices.values()
        return self._spread_evenly(max(0.0, seconds - sum(device.stage.decode_s(rows) for device in devices)))

    def _spread_evenly(self, delay_s: float) -> list[Link]:
        stages = len(self._base.workers)
        return [LOCAL, *[Link(math.inf, delay_s / stages)] * stages]


def _slower(ring: Topology, extra_s: float) -> Topology:
    """Every pass of a stage takes ``extra_s`` longer."""
    devices = {
        worker: replace(device, stage=replace(device.stage, fixed_s=device.stage.fixed_s + extra_s))
        for worker, device in ring.devices.items()
    }
    return replace(ring, devices=devices)


def _longer(ring: Topology, last: int, surplus_s: float) -> Topology:
    """The way home takes ``surplus_s`` longer."""
    if not surplus_s:
        return ring
    home = ring.link(last, HEAD)
    return replace(ring, links={**ring.links, (last, HEAD): replace(home, latency_s=home.latency_s + surplus_s)})
