"""Which way of running a pipeline should go on with, by what it has shown so far. Pure.

What is running is left only for a way that promises WORTH of the step: figures that scatter must not make the ring
change its mind. A better chunk is taken by itself. Whether promises come true is for ``control/audit.py`` to see: it may ask for
another number of microbatches than the cost model's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from bloombee.control.audit import Check
from bloombee.control.chunks import Chunks
from bloombee.control.observed import LiveCosts
from bloombee.control.operate import Tuning, step_s, tune
from bloombee.models.shape import ModelShape
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import evaluate
from bloombee.plan.topology import Device, Link, Topology
from bloombee.types import StageUse

WORTH = 0.03
"""A change must promise this much of the step."""
FEW_PROMPTS = 0.05
"""Rows of prompts, of all: a load with more is not one to compare speeds under."""


class Steering:
    """Of one plan.

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
        self._rows = (0, 0)
        """Of decode and of prompts, so far."""
        self._is_steady = False

    def report(self, uses: Sequence[StageUse]) -> None:
        """Sums since each stage was loaded, one a stage."""
        self._live.report(uses)
        before, self._rows = self._rows, (uses[0].decode.num_rows, uses[0].prefill.num_rows)
        self._is_steady = self._rows[1] - before[1] <= FEW_PROMPTS * (self._rows[0] - before[0])

    @property
    def is_known(self) -> bool:
        """What has run tells enough to :meth:`choose`."""
        return self._live.is_known

    def begin(self, devices: Sequence[Device | None], links: Sequence[Link] | None) -> Chunks:
        """How to cut prompts before anything has run, so that the first does not wait for what it is to show itself.

        Args:
            devices: as the workers have measured themselves. Unless all have, chunks are as large as can be.
            links: leaving each stage, as measured. None: as many rows are under way as the longest need.
        """
        stages, rows = len(self._base.workers), self._most_rows
        largest = Chunks(0, rows, rows, 2 * stages * rows)
        known = [device for device in devices if device is not None]
        if len(known) < stages:
            return largest
        topology = Topology.ring(known, links or [Link(math.inf, 0.0)] * stages)
        chunks = self._tune(self._base, topology, stages).chunks[0]
        return chunks if links else replace(chunks, under_way=largest.under_way)

    def choose(
        self,
        sequences: int,
        links: Sequence[Link] | None,
        quickest_loop: tuple[float, int] | None,
        *,
        decoded: tuple[int, float],
        now: float,
    ) -> Tuning | None:
        """For ``sequences`` that decode or are about to.

        Args:
            links: leaving each stage, as measured; the last one leads to the head. None: by the loop.
            quickest_loop: seconds and rows of the microbatch that came home quickest of late.
            decoded: tokens so far, and when the last of them came.

        Returns:
            How to go on, from now on :attr:`chosen`, with :attr:`sizes_apart`; None: as before, or nothing is known yet.
        """
        if not self._live.is_known:
            return None
        was_apart, self.sizes_apart = self.sizes_apart, self._live.wants_spread
        topology = self._live.topology(links or self._links_by_loop(quickest_loop))
        base = replace(self._base, ratios=self._live.ratios)
        pin = self._look(base, topology, sequences, links, decoded, now)
        best = self._tune(base, topology, sequences, pin)
        old = self.chosen
        if old is not None and best.max_sequences == old.max_sequences:
            running = min(sequences, best.max_sequences or sequences)
            if pin is not None:
                is_kept = best.num_microbatches == old.num_microbatches
            else:
                is_kept = best.step_s >= self._step_s(old, base, topology, running) * (1 - WORTH)
            if is_kept:
                if best.chunks == old.chunks and self.sizes_apart == was_apart:
                    return None
                best = replace(old, chunks=best.chunks)
        self.chosen = best
        return best

    def _tune(self, base: Candidate, topology: Topology, sequences: int, pin: int | None = None) -> Tuning:
        return tune(
            base,
            topology,
            self._model,
            sequences=sequences,
            most_microbatches=pin or self._most_microbatches,
            most_rows=self._most_rows,
            target_s=self._target_s,
            least_microbatches=pin or 1,
        )

    @property
    def is_settled(self) -> bool:
        """What is chosen has been measured under the present load, and found right."""
        return self._check.is_settled

    def _look(
        self,
        base: Candidate,
        topology: Topology,
        sequences: int,
        links: Sequence[Link] | None,
        decoded: tuple[int, float],
        now: float,
    ) -> int | None:
        """How many microbatches what was measured asks for; None: as the cost model says."""
        if self.chosen is None or self._target_s is not None:  # time per token is what a target asks for, not speed
            return None
        return self._check.look(
            min(self.chosen.num_microbatches, sequences),
            sequences,
            sum(link.latency_s for link in links) if links else None,
            decoded,
            self._step_s(self.chosen, base, topology, sequences),
            is_steady=self._is_steady,
            now=now,
        )

    def _step_s(self, tuning: Tuning, base: Candidate, topology: Topology, sequences: int) -> float:
        """Of ``sequences`` run as ``tuning`` says, on the ring as it is now."""
        count = min(tuning.num_microbatches, sequences)
        spread = replace(base, num_microbatches=count, microbatch_sequences=-(-sequences // count))
        return step_s(evaluate(spread, topology, self._model), topology, self._model)

    def _links_by_loop(self, quickest_loop: tuple[float, int] | None) -> list[Link]:
        """What no device accounts for of the quickest loop, in equal parts."""
        stages = len(self._base.workers)
        free = [Link(math.inf, 0.0)] * stages
        if quickest_loop is None:
            return free
        seconds, rows = quickest_loop
        devices = self._live.topology(free).devices.values()
        rest = seconds - sum(device.stage.decode_s(rows) for device in devices)
        return [Link(math.inf, max(0.0, rest) / stages)] * stages
