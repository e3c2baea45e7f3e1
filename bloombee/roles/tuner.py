"""Keeps the number of microbatches and the chunk of prompts where the cost model, fed with live figures, wants them.

Every half second, while there is something to tune: ask the stages what their devices have done, take what the links have
shown, let ``plan/tune.py`` choose, and tell the scheduler if the choice is worth it. Nothing pauses for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from bloombee.errors import BloomBeeError
from bloombee.pipeline.events import Tune
from bloombee.plan.candidate import Candidate, ModelShape
from bloombee.plan.card import ModelCard
from bloombee.plan.cost import evaluate
from bloombee.plan.live import LiveCosts
from bloombee.plan.plan import Plan
from bloombee.plan.topology import Link
from bloombee.plan.tune import Tuning, tune
from bloombee.types import StageUse

log = logging.getLogger(__name__)
LOOK_EVERY_S = 0.5
WORTH = 0.03
"""A change must promise this much of the step."""


class Tuner:
    """Of one plan.

    Args:
        measure: sums of every stage's forwards.
        links: leaving each stage, as measured; the last one leads to the head. None while nothing is known of them.
        quickest_loop: seconds and rows of the microbatch that came home quickest of late.
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
        links: Callable[[], Sequence[Link] | None],
        quickest_loop: Callable[[], tuple[float, int] | None],
        num_sequences: Callable[[], int],
        apply: Callable[[Tune], None],
        target_s: float | None = None,
    ) -> None:
        self.chosen: Tuning | None = None
        self._live = LiveCosts(tuple(stage.name for stage in plan.stages))
        self._model = ModelShape(hidden=card.hidden_size, num_layers=plan.num_layers, activation_bytes=plan.dtype.num_bytes)
        self._base = Candidate(tuple(range(1, len(plan.stages) + 1)), tuple(len(stage.span) for stage in plan.stages))
        self._most = plan.num_microbatches
        self._max_rows = max_rows
        self._measure = measure
        self._links = links
        self._num_sequences = num_sequences
        self._quickest_loop = quickest_loop
        self._apply = apply
        self._target_s = target_s

    async def run(self) -> None:
        """Until cancelled, or the pipeline is gone."""
        seen = 0
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            count = self._num_sequences()
            if count == 0 and seen == 0:
                continue
            seen = count
            try:
                self._live.report(await self._measure())
            except BloomBeeError as error:
                log.debug("tuning ends: %s", error)
                return
            if count and self._live.is_known:
                self._choose(count)

    def _choose(self, sequences: int) -> None:
        topology = self._live.topology(self._links() or self._links_by_loop())
        base = replace(self._base, ratios=self._live.ratios)
        best = tune(
            base,
            topology,
            self._model,
            sequences=sequences,
            most_microbatches=self._most,
            most_rows=self._max_rows,
            target_s=self._target_s,
        )
        old = self.chosen
        if old is not None and (best.chunk_rows, best.max_sequences) == (old.chunk_rows, old.max_sequences):
            running = min(sequences, best.max_sequences or sequences)
            count = min(old.num_microbatches, running)
            now = replace(base, num_microbatches=count, microbatch_sequences=-(-running // count))
            if best.cost.step_s >= evaluate(now, topology, self._model).step_s * (1 - WORTH):
                return
        self.chosen = best
        log.debug("%d microbatches of %d for %d sequences", best.num_microbatches, best.microbatch_sequences, sequences)
        self._apply(Tune(best.num_microbatches, best.chunk_rows, best.num_chunks, best.max_sequences, time.monotonic()))

    def _links_by_loop(self) -> list[Link]:
        """What no device accounts for of the quickest loop, in equal parts."""
        stages = len(self._base.workers)
        free = [Link(math.inf, 0.0)] * stages
        quickest = self._quickest_loop()
        if quickest is None:
            return free
        seconds, rows = quickest
        devices = self._live.topology(free).devices.values()
        rest = seconds - sum(device.stage.decode_s(rows) for device in devices)
        return [Link(math.inf, max(0.0, rest) / stages)] * stages
