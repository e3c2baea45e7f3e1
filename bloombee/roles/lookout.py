"""Looks whether another plan would be better by now, and has it taken over when that is worth it: the shell of
``pipeline/swarm/outlook.py``."""

from __future__ import annotations

import asyncio
import logging

from bloombee.config import RuntimeConfig
from bloombee.errors import BloomBeeError
from bloombee.pipeline.scheduler import SchedulerCore, SchedulerProxy
from bloombee.pipeline.swarm import SwarmCore
from bloombee.pipeline.swarm.outlook import LOOK_EVERY_S, Found, Outlook, as_shown, may_replan
from bloombee.plan.plan import Plan
from bloombee.roles.helm import Helm
from bloombee.roles.members import Members
from bloombee.roles.observatory import Observatory
from bloombee.roles.replanner import Replanner

log = logging.getLogger(__name__)


class Lookout:
    """Of one head; belongs to its loop. What goes wrong in here costs a better plan, never a request."""

    def __init__(
        self, config: RuntimeConfig, helm: Helm, replanner: Replanner, observatory: Observatory, members: Members
    ) -> None:
        self._is_wanted = config.replan
        self._helm = helm
        self._replanner = replanner
        self._observatory = observatory
        self._members = members
        self._outlook = Outlook()
        self._core: SwarmCore
        self._look_at = 0.0
        self._is_asking = False
        self._taking: asyncio.Task[None] | None = None
        helm.on_replan = self._replan

    def look(self, core: SwarmCore, scheduler: SchedulerCore | SchedulerProxy, now: float) -> None:
        """Time goes on."""
        self._core = core
        if now < self._look_at or self._is_asking or self._taking is not None or not self._is_wanted:
            return
        self._look_at = now + LOOK_EVERY_S
        if not isinstance(scheduler, SchedulerCore) or not scheduler.num_open or not may_replan(core):
            return
        known, _ = self._observatory.known(core, self._members)
        question = self._outlook.look(core, as_shown(known, self._helm.core.shown), scheduler.num_rows, now)
        if question is not None:
            self._is_asking = True
            asyncio.get_running_loop().run_in_executor(None, question.answer).add_done_callback(self._answered)
        elif (compared := self._outlook.compared(core, now)) is not None:
            self._helm.tell(compared)

    def _answered(self, answer: asyncio.Future[Found | None]) -> None:
        self._is_asking = False
        if answer.cancelled():
            return
        if (error := answer.exception()) is not None:
            log.error("whether another plan is better cannot be said: %s", error, exc_info=error)
        self._outlook.answered(None if error is not None else answer.result())

    def _replan(self, why: str) -> None:
        if (plan := self._outlook.taken(self._core)) is not None:
            self._taking = asyncio.get_running_loop().create_task(self._take_over(plan, why), name="bloombee-replan")

    async def _take_over(self, plan: Plan, why: str) -> None:
        try:
            await self._replanner.take_over(plan, why)
        except BloomBeeError as error:
            log.info("the plan stays as it was: %s", error.message)
        finally:
            self._taking = None
