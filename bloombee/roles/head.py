"""The head's process: a shell around its cores, and what brings them together with the network and the application.

Everything here lives on one event loop (the Runtime's own). Nothing of torch or transformers is imported. The parts: the
front door (join tokens), members (who is in, and the links to them), the desk (requests), the observatory (what is known of the
ring), the helm (what is chosen); this file passes messages, events and commands between them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bloombee.config import LocalWorker, RuntimeConfig
from bloombee.control.events import CodecSeen, PlanEnded, StageBack
from bloombee.control.seen import stage_measured
from bloombee.errors import (
    BloomBeeError,
    LinkDown,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    RuntimeClosed,
    StalePlan,
    from_wire,
)
from bloombee.models.card import ModelCard
from bloombee.pipeline.acting import each
from bloombee.pipeline.commands import (
    Command,
    Conclude,
    Deliver,
    Dismiss,
    FindPlan,
    HandoverBegan,
    HandoverEnded,
    MeasureHere,
    PipelineBroken,
    PipelineDown,
    PipelineUp,
    PlanMade,
    ReportLeft,
    ReportMeasured,
    ReportProgress,
    Send,
    ShadowChanged,
    StageLoaded,
    TellScheduler,
)
from bloombee.pipeline.events import (
    MeasuredHere,
    Moved,
    PlanWired,
    StageRestored,
    Tick,
    WorkerAway,
    WorkerGone,
    WorkerJoined,
    WorkerRestored,
    WorkerSaid,
    WorkersEnded,
)
from bloombee.pipeline.swarm import Drains, SwarmCore, SwarmLimits, may_be_silent
from bloombee.plan.plan import Plan
from bloombee.plan.profile import Profile
from bloombee.quote import printable
from bloombee.roles.bulletin import Bulletin
from bloombee.roles.desk import Desk
from bloombee.roles.dispatch import Dispatch, OfTheRing
from bloombee.roles.front_door import FrontDoor
from bloombee.roles.head_state import HeadState
from bloombee.roles.helm import Helm
from bloombee.roles.local_swarm import LocalSwarm
from bloombee.roles.lookout import Lookout
from bloombee.roles.members import Members
from bloombee.roles.observatory import Observatory
from bloombee.roles.plan_wishes import plan_request
from bloombee.roles.progress import Progress
from bloombee.roles.replanner import Replanner
from bloombee.roles.ticker import Ticker
from bloombee.roles.tracing import HeadTrace
from bloombee.transport.endpoint import Endpoint
from bloombee.types import Lane, LoadProgress, SwarmEventKind, WorkerId
from bloombee.wire.envelope import Envelope
from bloombee.wire.join import Admitted, Door
from bloombee.wire.messages import (
    AnyMessage,
    Drain,
    Goodbye,
    Join,
    Leave,
    Measure,
    Measured,
    Refused,
)

log = logging.getLogger(__name__)
TRACE_END_S = 2.0
"""Workers that trace may take this long to write the rest when the swarm ends."""


class HeadRole:
    """events of the network, the spawner and the application -> cores -> the same, back."""

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        local_workers: Sequence[LocalWorker] = (),
        on_progress: Callable[[LoadProgress], None] | None = None,
    ) -> None:
        self.config = config
        self.bulletin = Bulletin()
        self.local = LocalSwarm(config, local_workers, self.bulletin, on_end=self._process_ended, on_failed=self._no_workers)
        self.card: ModelCard
        self.plan: Plan | None = None
        self.front_door: FrontDoor
        self.join_tokens: tuple[str, ...] = ()
        self.profile: Profile | None = None
        self.observatory = Observatory()
        self.state = HeadState(config)
        self.desk = Desk(config.max_waiting, self._do, self.state.put, config.answer_tokens)
        tune, served = lambda tune: self.dispatch.handle(tune), self.desk.served
        self.helm = Helm(config, ask=self._ask, tune=tune, decided=self.bulletin.decided, active_s=served.active_s)
        self._progress = Progress(on_progress, self.bulletin)
        self.replanner = Replanner(self.bulletin, self.helm.tell, lambda: self._core, lambda commands: self._do(commands))
        self._endpoint = Endpoint(
            self.state.keys,
            swarm=int.from_bytes(secrets.token_bytes(8), "little"),
            on_message=self._received,
            on_event=lambda event: self.members.link_event(event),
            on_join=self._knocked,
            curve=config.curve,
        )
        self._door = Door(self._endpoint.swarm, config.heartbeat_s, config.longest_silence_s, returns=self.state.returns)
        self.members = Members(
            self._endpoint, self._door, on_in=self._worker_in, on_away=self._away, on_gone=self._gone, on_restored=self._restored
        )
        self._lookout = Lookout(config, self.helm, self.replanner, self.observatory, self.members)
        self._core: SwarmCore
        self.dispatch: Dispatch
        self._ticker: Ticker | None = None
        self._trace: HeadTrace | None = None
        self._closed = False

    # -- life ------------------------------------------------------------------------------

    async def listen(self) -> None:
        """Bind and make the join tokens; the spawner starts to import what takes seconds. Then :meth:`describe`.

        Raises:
            ConfigError: an option; AddressInUse: the port.
        """
        loop = asyncio.get_running_loop()
        self._up: asyncio.Future[Plan] = loop.create_future()
        self._up.add_done_callback(lambda up: up.cancelled() or up.exception())  # seen, so that nothing warns of it
        config = self.config
        if config.trace is not None:
            self._trace = HeadTrace.open(config.trace, config.num_stages)
            self._endpoint.stamps = True
        bound = await self._endpoint.bind(self.state.listen)
        self.state.listens(bound, lambda what: loop.call_soon_threadsafe(self.bulletin.state, what))
        self.local.start()
        self.front_door = FrontDoor(self._door, config, self.state, bound=bound)
        self.join_tokens = tuple(self.front_door.issue(self.local.head_endpoint(i)) for i in range(config.num_workers))
        loop.set_exception_handler(self._bug)

    async def describe(self) -> None:
        """Look at the model; from now on workers are let in. Then :meth:`start_workers`.

        Raises:
            ConfigError, ModelUnsupported: it cannot be served.
        """
        config = self.config
        self.card = await self.state.describe(self.local.describe, self._no_workers)
        request = plan_request(config, self.card, self.local.names[: config.num_stages], self.local.machine(self.card))
        request = self.state.serves(request)
        self.desk.open(self.card, request.max_rows)
        self.dispatch = Dispatch(
            request,
            meter=self.observatory.meter,
            trace=self._trace,
            send=self.members.send,
            desk=self.desk,
            replanner=self.replanner,
        )
        links, figures = iter(partial(secrets.token_bytes, 16), b""), self.observatory.remember(request)
        self._core = SwarmCore(request, SwarmLimits(config.load_deadline_s), links, figures=figures)
        self.drains = Drains(self._core)
        acts = [
            lambda now: self._do(self._core.handle(Tick(now))),
            lambda now: self._do(self.drains.step(now)),
            lambda now: self.dispatch.handle(Tick(now)),
            lambda now: self.helm.look(self.dispatch.scheduler, self.observatory.links_seen, now),
            lambda now: self._lookout.look(self._core, self.dispatch.scheduler, now),
        ]
        self.members.watch(partial(may_be_silent, self._core))
        self._ticker = Ticker(acts, on_error=self._failed)
        await self.desk.restore(self.state.journal.requests)

    async def start_workers(self) -> None:
        """Start the local workers, unless remote ones are awaited, and wait until the pipeline is up.

        Raises:
            BloomBeeError: whatever keeps it from coming up.
        """
        if not self.config.remote_workers:
            if self.config.profile or self._core.request.wants_profile:
                self.profile = await self.local.profile(self._core.request.dtype)
                self._core.request = self._core.request.measured(self.profile)
            await self.local.spawn(self.join_tokens)
        await asyncio.shield(self._up)

    @property
    def core(self) -> SwarmCore:
        """Once the model has been looked at."""
        return self._core

    async def close(self) -> None:
        """End the swarm: requests fail with RuntimeClosed, workers and spawner are gone when this returns."""
        if self._closed:
            return
        self._closed = True
        for part in (self.helm, self.replanner, self.desk):
            part.close(RuntimeClosed("the Runtime was closed"))
        self.bulletin.close()
        if self._ticker is not None:
            await self._ticker.stop()
            await self.dispatch.close()
        self.members.close("the head closes")
        await self._endpoint.close(linger_s=0.5)
        await self.state.close()
        # Workers that are killed before they have written their traces lose what is missing.
        await self.local.close(wait_s=TRACE_END_S if self._trace is not None else 0.0)
        if self._trace is not None:
            self._trace.tracer.close()

    # -- the network -----------------------------------------------------------------------

    def _received(self, link: bytes, lane: Lane, envelope: Envelope, _: list[memoryview]) -> None:
        message = envelope.message
        try:
            worker = self.members.hears(link, lane, message)
            if worker is None:
                return
            if isinstance(message, Refused):
                refused = from_wire(message.code, message.fields)
                log.warning("worker %s refused a message: %s %s", self.members.name(worker), refused.code, refused.message)
            self._from_worker(worker, message)
        except (ProtocolError, StalePlan) as error:
            log.debug("refused %s: %s", type(message).__name__, error)
            self.members.wrong(link, error)

    def _knocked(self, link: bytes, key: bytes, join: Join) -> None:
        if hasattr(self, "_core"):  # else the model is still being looked at; a worker knocks until there is an answer
            self.members.knocked(link, key, join)

    def _worker_in(self, admitted: Admitted) -> None:
        join = admitted.join
        event = WorkerJoined(admitted.worker, join.name, join.endpoint, admitted.key, join.memory_bytes, time.monotonic())
        self.local.joined(join.name)
        self._progress.joined(admitted, max(0, self._core.num_missing - 1))
        self._do(self._core.handle(event))

    def _from_worker(self, worker: WorkerId, message: AnyMessage) -> None:
        now = time.monotonic()
        if isinstance(message, OfTheRing):
            stage = self._core.stage_of(worker, message.epoch)
            if stage is None:
                raise _without_stage(message, self.plan)
            self.dispatch.heard(stage, message, self._endpoint.taken_ns, now)
        elif isinstance(message, Measured):
            if (stage := self._core.stage_of(worker)) is not None:
                self.helm.tell(stage_measured(stage, message, now))
        elif isinstance(message, Leave):
            self.members.send(worker, Lane.CONTROL, Goodbye(reason="as it wished"))
            self._gone(worker, f"it leaves: {printable(message.reason)}")
        elif isinstance(message, Drain):
            self.drains.said(worker, message)
        else:
            if (seen := self.observatory.heard(worker, message, self.card.config_digest)) is not None:
                if isinstance(seen, CodecSeen):
                    self.dispatch.handle(Moved(now))
                self.helm.tell(seen)
            self._do(self._core.handle(WorkerSaid(worker, message, now)))

    def _ask(self, stage: int, number: int) -> None:
        """For the helm."""
        if (plan := self.plan) is not None:
            self.members.send(plan.stages[stage].worker, Lane.CONTROL, Measure(number, plan.pipeline, plan.epoch))

    def _away(self, worker: WorkerId) -> None:
        self._do(self._core.handle(WorkerAway(worker, time.monotonic())))

    def _restored(self, worker: WorkerId) -> None:
        """What was under way on the worker's connections may be lost, what was asked of it among that."""
        now, stage = time.monotonic(), self._core.stage_of(worker)
        self._do(self._core.handle(WorkerRestored(worker, now)))
        if stage is None:
            return
        if stage == 0:
            self.observatory.meter.restart()
        self.dispatch.handle(StageRestored(stage, now))
        self.helm.tell(StageBack(stage, now))

    def _process_ended(self, name: str, reason: str) -> bool:
        worker = self.members.named(name)
        if worker is not None and not self._closed:  # else it has been found lost already
            self._gone(worker, reason)
        return self._core.error is None

    def _no_workers(self, error: BloomBeeError) -> None:
        if not self._closed and hasattr(self, "_core"):
            self._do(self._core.handle(WorkersEnded(error, time.monotonic())))

    def _gone(self, worker: WorkerId, reason: str) -> None:
        if worker in self.members:
            self.bulletin.lost(worker, self.members.name(worker), self._core.stage_of(worker), reason)
        self.members.hang_up(worker)
        self._do(self._core.handle(WorkerGone(worker, reason, time.monotonic())))

    # -- commands --------------------------------------------------------------------------

    def _do(self, commands: list[Command]) -> None:
        each(self._do_one, commands)

    def _do_one(self, command: Command) -> None:
        match command:
            case Deliver():
                self.desk.deliver(command)
            case Conclude(request=number, error=error):
                self.desk.conclude(number, error)
            case TellScheduler(message=message):
                if isinstance(message, PlanWired):
                    self.bulletin.tell(SwarmEventKind.WIRING, epoch=message.ring.epoch)
                self.dispatch.handle(message)
            case Send(to=int(worker), lane=lane, message=message):
                self.members.send(worker, lane, message)
            case MeasureHere(order=order):
                self.members.measure(order, lambda said: self._do(self._core.handle(MeasuredHere(said, time.monotonic()))))
            case PlanMade(plan=plan):
                self.plan = plan
                self.state.planned(plan, self.members.keys, self._core.request)
                self.desk.planned(plan)
                self.observatory.planned(plan)
                self.dispatch.planned(plan)
                self.bulletin.tell(SwarmEventKind.PLANNED, epoch=plan.epoch, reason=str(plan.prediction or ""))
            case PipelineUp(plan=plan):
                self._pipeline_up(plan)
            case PipelineBroken():
                self._broken(command)
            case PipelineDown(error=error):
                self.members.shut()
                self.bulletin.tell(SwarmEventKind.DOWN, reason=error.message)
                self.helm.tell(PlanEnded(None, time.monotonic()))
                self.desk.lost(error)
                self._fail(error)
            case Dismiss(worker=worker, stage=stage, error=error):
                self.bulletin.dismissed(worker, self.members.name(worker), stage, error)
                self.members.dismiss(worker, error)
            case FindPlan() | HandoverBegan() | HandoverEnded() | ShadowChanged():
                self.replanner.told(command)
            case ReportLeft() | StageLoaded() | ReportMeasured() | ReportProgress():
                self._progress.told(command, self.members.name)
            case _:
                raise AssertionError(f"no core of the head asks for {command!r}")

    def _pipeline_up(self, plan: Plan) -> None:
        self._progress.ready(plan)
        self.helm.runs(plan, self._core.request)
        self.bulletin.tell(SwarmEventKind.UP, epoch=plan.epoch)
        if not self._up.done():
            self._up.set_result(plan)

    def _broken(self, broken: PipelineBroken) -> None:
        """A stage is lost; what was measured of the ring that had it is of no use."""
        log.warning("worker %s is lost (%s): %s takes its place", broken.lost_name, broken.reason, broken.name)
        self.helm.tell(PlanEnded(broken.lost, time.monotonic()))
        self.helm.give_up(LinkDown(f"worker {broken.lost_name!r} is gone ({broken.reason})", worker=broken.lost_name))
        self.observatory.lost(broken.lost)

    def _fail(self, error: BloomBeeError) -> None:
        if self._closed:
            return
        self.helm.give_up(error)
        if not self._up.done():
            self._up.set_exception(error)
        self.desk.end_all(error)

    def _bug(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's own handler."""
        error = context.get("exception")
        if isinstance(error, Exception):
            self._failed(error)
        else:
            log.error("internal error: %s", context.get("message"))

    def _failed(self, error: Exception) -> None:
        """Something of ours raised what it must not: better an error at every caller than silence. The swarm serves on."""
        log.error("internal error: %s", error, exc_info=error)
        self._fail(LocalProtocolError(f"internal error, please report it: {type(error).__name__}: {error}"))


def _without_stage(message: Any, plan: Plan | None) -> BloomBeeError:
    """Why a worker without a stage may not say it: it had one a moment ago, or never did."""
    what = f"{type(message).__name__} from a worker without a stage"
    if plan is not None and message.epoch < plan.epoch:
        return StalePlan(what, pipeline=message.pipeline, epoch=message.epoch)
    return RemoteProtocolError(what, path="message.tag")
