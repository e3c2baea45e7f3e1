"""Keeps the number of microbatches and the chunk of prompts where the cost model, fed with live figures, wants them.

Every half second, while there is something to tune: ask the stages what their devices have done, take what the links have
shown, let ``control/steering.py`` choose, and tell the scheduler. Nothing pauses for it. Before anything has run prompts are cut
by what the workers have measured of themselves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from bloombee.control.steering import Steering
from bloombee.errors import BloomBeeError
from bloombee.models.card import ModelCard
from bloombee.models.shape import ModelShape
from bloombee.pipeline.events import Tune, tune_event
from bloombee.plan.plan import Plan
from bloombee.plan.topology import Device, Link
from bloombee.types import StageUse

log = logging.getLogger(__name__)
LOOK_EVERY_S = 0.5


class Tuner:
    """Of one plan.

    Args:
        measure: sums of every stage's forwards.
        devices: every stage's, as it has measured itself; None while it has not.
        links: leaving each stage, as measured; the last one leads to the head. None while nothing is known of them.
        quickest_loop: seconds and rows of the microbatch that came home quickest of late.
        decoded: tokens so far, and when (monotonic) the last of them came.
        num_sequences: that want to run now.
        apply: hand the choice to the scheduler.
        target_s: time per token to keep; None: most tokens a second.
    """

    def __init__(
        self,
        card: ModelCard,
        plan: Plan,
        *,
        max_rows: int,
        measure: Callable[[], Awaitable[Sequence[StageUse]]],
        devices: Callable[[], Sequence[Device | None]],
        links: Callable[[], Sequence[Link] | None],
        quickest_loop: Callable[[], tuple[float, int] | None],
        decoded: Callable[[], tuple[int, float]],
        num_sequences: Callable[[], int],
        apply: Callable[[Tune], None],
        target_s: float | None = None,
    ) -> None:
        self._steering = Steering(
            [stage.name for stage in plan.stages],
            [len(stage.span) for stage in plan.stages],
            ModelShape(hidden=card.hidden_size, num_layers=plan.num_layers, activation_bytes=plan.dtype.num_bytes),
            most_microbatches=plan.num_microbatches,
            most_rows=max_rows,
            target_s=target_s,
        )
        self._num_stages = len(plan.stages)
        self._known_first: tuple[Sequence[Device | None], Sequence[Link] | None] | None = None
        self._measure = measure
        self._devices = devices
        self._links = links
        self._num_sequences = num_sequences
        self._quickest_loop = quickest_loop
        self._decoded = decoded
        self._apply = apply

    @property
    def is_settled(self) -> bool:
        """How the present load is run has been measured and found right; nothing is being tried."""
        return self._steering.is_settled

    async def run(self) -> None:
        """Until cancelled, or the pipeline is gone."""
        seen = 0
        while True:
            if not self._steering.is_known:
                self._begin()
            await asyncio.sleep(LOOK_EVERY_S)
            count = self._num_sequences()
            if count == 0 and seen == 0:
                continue
            seen = count
            try:
                self._steering.report(await self._measure())
            except BloomBeeError as error:
                log.debug("tuning ends: %s", error)
                return
            if count:
                self._choose(count)

    def _begin(self) -> None:
        known = (self._devices(), self._links())
        if known != self._known_first:
            self._known_first = known
            self._apply(Tune(self._num_stages, (self._steering.begin(*known),), None, time.monotonic(), sizes_apart=True))

    def _choose(self, sequences: int) -> None:
        best = self._steering.choose(
            sequences, self._links(), self._quickest_loop(), decoded=self._decoded(), now=time.monotonic()
        )
        if best is None:
            return
        log.debug("%d microbatches of %d for %d sequences", best.num_microbatches, best.microbatch_sequences, sequences)
        self._apply(tune_event(best, sizes_apart=self._steering.sizes_apart, now=time.monotonic()))
