"""The shell of the control core: brings it what was seen, carries out what it chooses, and writes down why."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterable

from bloombee.config import RuntimeConfig
from bloombee.control.core import LOOK_EVERY_S, ControlCore
from bloombee.control.events import (
    Answer,
    Asked,
    AskStage,
    Decision,
    Event,
    LinkSeen,
    Looked,
    PlanEnded,
    PlanRuns,
    Price,
    Replan,
    Run,
    StageMeasured,
)
from bloombee.control.log import to_line
from bloombee.control.seen import plan_runs
from bloombee.errors import BloomBeeError, LocalProtocolError, RuntimeClosed
from bloombee.pipeline.acting import each
from bloombee.pipeline.events import Priced, Tune, tune_event
from bloombee.pipeline.scheduler import SchedulerCore, SchedulerProxy
from bloombee.pipeline.swarm import PlanRequest
from bloombee.plan.plan import Plan
from bloombee.roles.decision_file import DecisionFile
from bloombee.roles.speed import Speed
from bloombee.roles.stage_record import StageRecord

log = logging.getLogger(__name__)


class Helm:
    """Of one head; belongs to its loop. What goes wrong in here costs a choice, never a request.

    Args:
        config: ``decisions`` names a file that gets every event and decision as a line of JSON (control/log.py).
        ask: puts the question with this number to the stage.
        tune: hands a choice to the scheduler.
        decided: told each decision, and its line.
        active_s: for how long there have been requests, in all.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        ask: Callable[[int, int], None],
        tune: Callable[[Tune | Priced], None],
        decided: Callable[[Decision, str], None],
        active_s: Callable[[float], float],
    ) -> None:
        self.core = ControlCore()
        self.speed = Speed()
        self.stages: dict[int, StageRecord] = {}
        """What each stage of the plan has done."""
        self.on_replan: Callable[[str], None] = lambda _: None
        """Takes over the plan of the last comparison, for this reason."""
        self._ask = ask
        self._tune = tune
        self._decided = decided
        self._active_s = active_s
        self._config = config
        self._file = None if config.decisions is None else DecisionFile(config.decisions)
        self._look_at = 0.0
        self._is_running = False
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[tuple[StageMeasured, ...]]] = {}

    def tell(self, event: Event) -> None:
        """Something was seen; the core chooses."""
        self._note(event)
        if self._file is not None:
            self._file.write(event)
        try:
            commands = self.core.handle(event)
        except Exception as error:
            log.exception("nothing is chosen by %r", event)
            self.give_up(LocalProtocolError(f"internal error, please report it: {type(error).__name__}: {error}"))
            return
        if self._file is not None:
            for command in commands:  # all of them before any is carried out, which may lead to the next event
                if isinstance(command, Decision):
                    self._file.write(command)
        each(self._do, commands)

    def _note(self, event: Event) -> None:
        """For whoever asks how the plan is doing."""
        match event:
            case StageMeasured(stage=stage):
                self.stages.setdefault(stage, StageRecord()).add(event, self._active_s(event.now))
            case PlanRuns():
                self._is_running, self.stages = True, {}
            case PlanEnded():
                self._is_running, self.stages = False, {}

    def runs(self, plan: Plan, request: PlanRequest) -> None:
        """``plan``, of ``request``, is wired."""
        config = self._config
        runs = plan_runs(
            plan,
            hidden=request.card.hidden_size,
            most_rows=request.max_rows,
            microbatches=config.microbatches,
            target_s=config.kept_s,
            codec=config.codec,
            now=time.monotonic(),
        )
        self.tell(runs)

    def look(self, scheduler: SchedulerCore | SchedulerProxy, links: Callable[[float], Iterable[LinkSeen]], now: float) -> None:
        """Time goes on; if it is time for that, show the core what the scheduler does and what ``links`` says of the ring's."""
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY_S
        for link in links(now):
            self.tell(link)
        self.speed.add(*scheduler.decoded)
        waiting = scheduler.num_sequences - scheduler.num_open
        self.tell(Looked(scheduler.num_open, waiting, scheduler.quickest_loop, scheduler.decoded, now))

    async def measure(self) -> tuple[StageMeasured, ...]:
        """How every stage stands, asked now.

        Raises:
            RuntimeClosed: no plan runs. BloomBeeError: as :meth:`give_up` was called with.
        """
        if not self._is_running:
            raise RuntimeClosed("the pipeline is not up")
        question = next(self._numbers)
        answer: asyncio.Future[tuple[StageMeasured, ...]] = asyncio.get_running_loop().create_future()
        self._asked[question] = answer
        self.tell(Asked(question, time.monotonic()))
        try:
            return await answer
        finally:
            self._asked.pop(question, None)

    def give_up(self, error: BloomBeeError) -> None:
        """Nobody will answer what was asked: it ends with ``error``."""
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            if not answer.done():
                answer.set_exception(error)

    def close(self, error: BloomBeeError) -> None:
        """Nothing is written or answered any more; who has asked is told ``error``."""
        self._is_running = False
        self.give_up(error)
        if self._file is not None:
            self._file.close()

    def _do(self, command: AskStage | Run | Price | Answer | Replan | Decision) -> None:
        match command:
            case AskStage(stage=stage, number=number):
                self._ask(stage, number)
            case Run():
                self._tune(tune_event(command, time.monotonic()))
            case Answer(question=question, measured=measured):
                answer = self._asked.get(question)
                if answer is not None and not answer.done():
                    answer.set_result(measured)
            case Price(load=load):
                self._tune(Priced(load, time.monotonic()))
            case Replan(why=why):
                self.on_replan(why)
            case Decision():
                log.debug("%s: %s (%s)", command.what, command.chosen, command.why)
                self._decided(command, to_line(command).decode())
