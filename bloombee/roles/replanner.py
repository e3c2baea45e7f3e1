"""Another plan for a swarm that runs: made on a thread of its own, taken over while requests go on; and who follows stages."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from functools import partial

from bloombee.control.events import ShadowSeen
from bloombee.errors import BloomBeeError, PlanError
from bloombee.pipeline.commands import Command, FindPlan, HandoverBegan, HandoverEnded, ShadowChanged
from bloombee.pipeline.events import EpochBegan, EpochOver, HandOver, PlanFound
from bloombee.pipeline.swarm import SwarmCore, surveyed
from bloombee.pipeline.swarm.replanning import NextPlan, is_same
from bloombee.plan.plan import Plan
from bloombee.roles.bulletin import Bulletin
from bloombee.types import Epoch, SwarmEventKind, WorkerId

log = logging.getLogger(__name__)


class Replanner:
    """Of one head; belongs to its loop.

    Args:
        tell: the control core. core: the swarm's.
        do: acts on what it asks for.
    """

    def __init__(
        self,
        bulletin: Bulletin,
        tell: Callable[[ShadowSeen], None],
        core: Callable[[], SwarmCore],
        do: Callable[[list[Command]], None],
    ) -> None:
        self._bulletin = bulletin
        self._tell = tell
        self._core = core
        self._do = do
        self._turn = asyncio.Lock()
        self._ended: asyncio.Future[Plan] | None = None
        self._is_closed = False

    async def replan(self, workers: Collection[WorkerId] | None, reason: str) -> Plan:
        """Have the best plan of ``workers`` run (None: of all that are there and are to stay). Waits for its turn, and until
        nothing is left of the plan before.

        Returns:
            The plan that runs: the same as before if that is the best.

        Raises:
            PlanError, Infeasible: there is none, or it cannot be taken over now.
            BloomBeeError: what kept it from being taken over; the plan that ran goes on, unless it lost a worker itself.

        Cancelled: what has begun goes on.
        """
        async with self._turn:
            if self._ended is not None:  # whoever asked for that has gone
                await asyncio.wait([self._ended])
            core = self._core()
            running = core.plan
            if running is None or not core.is_up:
                raise PlanError("no plan runs")
            wanted = NextPlan.of(core.request, running, core.members, workers, surveyed(core))
            plan = await asyncio.get_running_loop().run_in_executor(None, wanted.best)
            return running if is_same(plan, running) else await self._hand_over(plan, reason)

    async def take_over(self, plan: Plan, reason: str) -> Plan:
        """Have ``plan`` run, unless somebody is about to have another one; as :meth:`replan`."""
        if self._turn.locked():
            raise PlanError("another plan is being made")
        async with self._turn:
            return await self._hand_over(plan, reason)

    async def _hand_over(self, plan: Plan, reason: str) -> Plan:
        """Have ``plan`` run, of workers that are in; as :meth:`replan`."""
        core = self._core()
        if self._ended is not None:
            raise PlanError("another plan is being taken over")
        ended = self._ended = asyncio.get_running_loop().create_future()
        ended.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, so that nothing warns of it
        self._do(core.handle(HandOver(plan, reason, time.monotonic())))
        return await asyncio.shield(ended)

    def plan_of(self, epoch: Epoch) -> Plan | None:
        """Of one that is wired, or is being."""
        return self._core().plan_of(epoch)

    def moved(self, event: EpochBegan | EpochOver) -> None:
        """The scheduler, from one epoch to another."""
        self._do(self._core().handle(event))

    def told(self, command: FindPlan | HandoverBegan | HandoverEnded | ShadowChanged) -> None:
        """By the swarm's core."""
        if isinstance(command, FindPlan):
            found = asyncio.get_running_loop().run_in_executor(None, command.find)
            found.add_done_callback(partial(self._found, command.number))
            return
        if isinstance(command, ShadowChanged):
            self._shadow(command)
            return
        if isinstance(command, HandoverBegan):
            log.info("another plan is made ready: %s", command.reason)
            self._bulletin.tell(SwarmEventKind.REPLANNING, epoch=command.plan.epoch, reason=command.reason)
            return
        error, plan = command.error, command.plan
        if error is not None:
            log.warning("another plan could not be taken over: %s", error.message)
        self._bulletin.tell(SwarmEventKind.REPLANNED, epoch=plan.epoch, reason="" if error is None else error.message)
        ended, self._ended = self._ended, None
        if ended is not None and not ended.done():
            ended.set_result(plan) if error is None else ended.set_exception(error)

    def _found(self, number: int, found: asyncio.Future[Plan | None]) -> None:
        if self._is_closed or found.cancelled():
            return
        if (error := found.exception()) is not None:
            log.error("no other plan can be made: %s", error, exc_info=error)
        plan = None if error is not None else found.result()
        self._do(self._core().handle(PlanFound(number, plan, time.monotonic())))

    def _shadow(self, changed: ShadowChanged) -> None:
        worker = changed.plan.stages[changed.stage]
        what = changed.over or ("follows it" if changed.is_fed else "loads its layers to follow it")
        log.info("stage %d: worker %s %s", changed.stage, worker.name, what)
        self._bulletin.tell(
            SwarmEventKind.SHADOW,
            epoch=changed.plan.epoch,
            worker=worker.worker,
            name=worker.name,
            stage=changed.stage,
            reason=what,
        )
        self._tell(ShadowSeen(changed.stage, worker.name, what, changed.loss_s, time.monotonic()))

    def close(self, error: BloomBeeError) -> None:
        """Whoever waits is told ``error``; what is looked for counts no more."""
        self._is_closed = True
        ended, self._ended = self._ended, None
        if ended is not None and not ended.done():
            ended.set_exception(error)
