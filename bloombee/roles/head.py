"""The head's process: admits workers, runs the head and scheduler cores, turns tokens into text.

Everything here lives on one event loop (the Runtime's own). Nothing of torch or transformers is imported.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bloombee.address import Address, loopback_of, reachable_at, read_listen, read_told
from bloombee.codec.choice import CodecMode
from bloombee.config import LocalWorker, RuntimeConfig
from bloombee.errors import (
    BloomBeeError,
    ConfigError,
    DeviceError,
    Infeasible,
    LinkDown,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    RuntimeClosed,
    StalePlan,
    to_wire,
)
from bloombee.kv.pool import most_pages, pages_for
from bloombee.links.estimator import LinkFacts
from bloombee.links.frames import LinkMeter
from bloombee.models.card import ModelCard
from bloombee.pipeline.commands import (
    Command,
    Conclude,
    Deliver,
    Dismiss,
    PipelineBroken,
    PipelineDown,
    PipelineUp,
    PlanMade,
    ReportLeft,
    ReportProgress,
    Send,
    TellHead,
    TellScheduler,
)
from bloombee.pipeline.events import (
    CancelRequest,
    FromStage,
    Moved,
    PlanWired,
    SchedulerSaid,
    StageRestored,
    Submit,
    SwarmLost,
    Tick,
    WorkerAway,
    WorkerGone,
    WorkerJoined,
    WorkerRestored,
    WorkerSaid,
)
from bloombee.pipeline.requests import RequestCore
from bloombee.pipeline.scheduler import Event as SchedulerEvent
from bloombee.pipeline.scheduler import SchedulerCore
from bloombee.pipeline.swarm import PlanRequest, SwarmCore, SwarmLimits
from bloombee.plan.plan import Plan, StagePlan, split_layers
from bloombee.plan.profile import Profile
from bloombee.plan.topology import LOCAL, Device, Link, Topology
from bloombee.roles.asked import ask
from bloombee.roles.bulletin import Bulletin
from bloombee.roles.local_swarm import LocalSwarm
from bloombee.roles.members import Members
from bloombee.roles.profiles import from_message
from bloombee.roles.prompts import Prompt, PromptIds, Prompts
from bloombee.roles.requests import Requests, Sink, typed
from bloombee.roles.stage_host import RESEND_AFTER_S
from bloombee.roles.text import TextCodec
from bloombee.roles.tracing import HeadTrace, open_tracer
from bloombee.roles.tuner import Tuner
from bloombee.transport.endpoint import Endpoint
from bloombee.transport.interfaces import own_addresses
from bloombee.transport.keys import generate
from bloombee.types import (
    HEAD,
    DeviceUse,
    Dtype,
    Lane,
    LoadProgress,
    SamplingParams,
    StageUse,
    SwarmEventKind,
    WorkerId,
)
from bloombee.wire.envelope import MAX_TENSOR_BYTES, Envelope
from bloombee.wire.join import Admitted, Door
from bloombee.wire.messages import (
    Ack,
    AnyMessage,
    Closed,
    Forward,
    Gap,
    Goodbye,
    Join,
    LinkReport,
    Lost,
    Measure,
    Measured,
    Profiled,
    Refused,
    Resume,
    Resumed,
    Tally,
    Verdict,
)
from bloombee.wire.token import MAX_ENDPOINTS, JoinToken, encode_token

log = logging.getLogger(__name__)
TICK_S = 0.1
TRACE_END_S = 2.0
"""Workers that trace may take this long to write the rest when the swarm ends."""
SECRET_BYTES = 24
LINK_FACTS = tuple(fact.name for fact in dataclasses.fields(LinkFacts))
MOST_MICROBATCHES = 128
"""Credit that stages grant where the number is tuned."""
MAX_TOKENS_BY_DEFAULT = 32_768


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
        self._local = LocalSwarm(config, local_workers, on_end=self._process_ended, on_lost=self._spawner_lost)
        self.card: ModelCard
        self.text: TextCodec
        self._prompts: Prompts | None = None
        self.plan: Plan | None = None
        self.join_tokens: tuple[str, ...] = ()
        self._tell_progress = on_progress
        self._keys = generate()
        self._endpoint = Endpoint(
            self._keys,
            swarm=int.from_bytes(secrets.token_bytes(8), "little"),
            on_message=self._received,
            on_event=lambda event: self._members.link_event(event),
            on_join=self._knocked,
            curve=config.curve,
        )
        self._door = Door(self._endpoint.swarm, config.heartbeat_s, config.silence_s)
        self._members = Members(
            self._endpoint, self._door, on_in=self._worker_in, on_away=self._away, on_gone=self._gone, on_restored=self._restored
        )
        self._request_core = RequestCore(config.max_waiting)
        self._core: SwarmCore
        self._scheduler: SchedulerCore
        """Once the model has been looked at."""
        self.max_rows: int
        """Most rows of a microbatch: as many as asked for, and no more than fit a frame."""
        self._requests = Requests(self._free)
        self._asked: defaultdict[int, deque[asyncio.Future[Measured]]] = defaultdict(deque)
        self._ticker: asyncio.Task[None] | None = None
        self._tuner_task: asyncio.Task[None] | None = None
        self.tuner: Tuner | None = None
        self.profile: Profile | None = None
        self.profiles: dict[WorkerId, Profile] = {}
        """What workers with a stage have said of themselves."""
        self._trace: HeadTrace | None = None
        self._meter = LinkMeter()
        self.bulletin = Bulletin()
        self.codec_choices: dict[tuple[WorkerId, WorkerId], str] = {}
        """(from, to) -> whether activations are coded there, and why, as their senders reported last."""
        self._link_facts: dict[tuple[WorkerId, WorkerId], LinkFacts] = {}
        self._closed = False

    # -- life ------------------------------------------------------------------------------

    async def listen(self) -> None:
        """Bind and make the join tokens; the spawner starts to import what takes seconds. Then :meth:`describe`.

        Raises:
            ConfigError: an option; AddressInUse: the port.
        """
        loop = asyncio.get_running_loop()
        self._up: asyncio.Future[Plan] = loop.create_future()
        if self.config.trace is not None:
            process = {"worker": HEAD, "stage": None, "num_stages": self.config.num_stages}
            self._trace = HeadTrace(open_tracer(self.config.trace, "head", process))
            self._endpoint.stamps = True
        bound = read_listen(await self._endpoint.bind(self.config.listen))
        self._local.start()
        told = _told(self.config, bound)
        key = self._keys.public if self.config.curve else bytes(32)
        tokens = []
        for index in range(self.config.num_workers):
            secret = secrets.token_bytes(SECRET_BYTES)
            self._door.issue(secret)
            own = self._local.head_endpoint(index)
            endpoints = told if own is None else (own,)
            tokens.append(encode_token(JoinToken(key=key, secret=secret, endpoints=endpoints)))
        self.join_tokens = tuple(tokens)
        loop.set_exception_handler(self._bug)

    async def describe(self) -> None:
        """Look at the model; from now on workers are let in. Then :meth:`start_workers`.

        Raises:
            ConfigError, ModelUnsupported: it cannot be served.
        """
        self.card = await self._local.describe()
        card = self.card
        for ignored in card.ignored:
            log.warning("%s: %s", card.model, ignored)
        self.text = TextCodec(card.tokenizer_json, cleans_up=card.cleans_up, splits_special=card.splits_special)
        self._prompts = Prompts(card, self.text)
        self.max_rows = self._most_rows()
        self._scheduler = SchedulerCore(
            max_rows=self.max_rows, resend_after_s=RESEND_AFTER_S, step_deadline_s=self.config.step_deadline_s
        )
        request = self._plan_request()
        split_layers(request.card.num_layers, request.num_workers, request.split)  # refused now, not when all workers are here
        limits = SwarmLimits(self.config.heartbeat_s, self.config.silence_s, self.config.load_deadline_s)
        self._core = SwarmCore(request, limits, links=iter(partial(secrets.token_bytes, 16), b""))
        self._ticker = asyncio.get_running_loop().create_task(self._tick(), name="bloombee-head-tick")
        self._ticker.add_done_callback(self._ticker_ended)

    async def start_workers(self) -> None:
        """Start the local workers, unless remote ones are awaited, and wait until the pipeline is up.

        Raises:
            BloomBeeError: whatever keeps it from coming up.
        """
        if not self.config.remote_workers:
            if self.config.profile:
                self.profile = await self._local.profile(self._plan_request().dtype)
            await self._local.spawn(self.join_tokens)
        self.plan = await asyncio.shield(self._up)

    async def close(self) -> None:
        """End the swarm: requests fail with RuntimeClosed, workers and spawner are gone when this returns."""
        if self._closed:
            return
        self._closed = True
        closed = RuntimeClosed("the Runtime was closed")
        self.bulletin.close()
        self._give_up_measuring(closed)
        if self._prompts is not None:
            self._prompts.close()
        self._requests.end_all(closed)
        tasks = [task for task in (self._ticker, self._tuner_task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in self._members:
            self._members.send(worker, Lane.CONTROL, Goodbye(reason="the head closes"))
        await self._endpoint.close(linger_s=0.5)
        # Workers that are killed before they have written their traces lose what is missing.
        await self._local.close(wait_s=TRACE_END_S if self._trace is not None else 0.0)
        if self._trace is not None:
            self._trace.tracer.close()
        if hasattr(self, "_up") and self._up.done() and not self._up.cancelled():
            self._up.exception()  # seen, so that nothing warns of it

    # -- requests --------------------------------------------------------------------------

    async def submit(
        self, number: int, prompt: Prompt, params: SamplingParams, sink: Sink, *, client: str = "", priority: int = 0
    ) -> tuple[int, ...]:
        """Start request ``number`` (of the caller's choice, never used before); tokens and the end go to ``sink``.

        Returns:
            The token ids of ``prompt``.

        Raises:
            ConfigError: as :meth:`Prompts.read`, or a prompt that is empty or over-long.
            Infeasible: it can never fit the KV memory.
            RuntimeClosed: the Runtime was closed.

        Cancelled: the request has not begun, unless this had returned.
        """
        if self._closed or self._prompts is None:
            raise RuntimeClosed("the Runtime was closed" if self._closed else "the model is still being looked at")
        read = await self._prompts.read(prompt, functools.partial(self._check_length, params))
        if self._closed:
            raise RuntimeClosed("the Runtime was closed")
        try:
            with typed():
                self._begin(number, read, params, sink, client, priority)
        except BloomBeeError:
            self.cancel(number)
            raise
        return read.ids

    def _begin(self, number: int, prompt: PromptIds, params: SamplingParams, sink: Sink, client: str, priority: int) -> None:
        self._check_length(params, len(prompt.ids), False)
        asked = ask(params, self.card, len(prompt.ids))
        self._requests.add(number, sink, self.text.stream(asked.stop, prompt.ids))
        event = Submit(
            number,
            prompt.packed,
            asked.sampling,
            asked.max_new_tokens,
            asked.end_tokens,
            time.monotonic(),
            client,
            priority,
            asked.max_time_s,
        )
        self._do(self._request_core.handle(event))

    def cancel(self, number: int) -> None:
        """End a request and free its KV on every stage; nothing more goes to its sink."""
        self._requests.cancel(number)

    def _free(self, number: int) -> None:
        """A request's KV on every stage, where there still is a pipeline."""
        if not self._closed and self._core.error is None:
            self._do(self._request_core.handle(CancelRequest(number, time.monotonic())))

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    @property
    def links(self) -> dict[tuple[WorkerId, WorkerId], LinkFacts]:
        """(from, to) -> what their own frames have told of the ring's links so far; a worker reports twice a second."""
        if self.plan is None:
            return {}
        return {(HEAD, self.plan.stages[0].worker): self._meter.facts(), **self._link_facts}

    @property
    def worker_pids(self) -> dict[WorkerId, int]:
        """Process of each worker that was started here and lives."""
        pids = {name: pid for pid, name in self._local.processes.items()}
        return {worker: pids[name] for worker in self._members if (name := self._members.name(worker)) in pids}

    @property
    def is_settled(self) -> bool:
        """How the present load is run has been measured and found right, or is not the head's to choose."""
        return self.tuner is None or self.tuner.is_settled

    @property
    def topology(self) -> Topology:
        """The ring as its workers' profiles and its links' frames describe it; what has said nothing takes no time."""
        plan = self.plan
        if plan is None:
            return Topology({})
        devices = {stage.worker: self._device(stage) or Device(stage.name) for stage in plan.stages}
        known = {ends: facts.as_link() for ends, facts in self.links.items()}
        return Topology(devices, {ends: known.get(ends) or LOCAL for ends in plan.hops})

    def _device(self, stage: StagePlan) -> Device | None:
        """As it has measured itself."""
        profile = self.profiles.get(stage.worker)
        return None if profile is None else profile.as_device(stage.name)

    async def pages_free(self) -> tuple[int, ...]:
        """Free KV pages of every stage, asked now. Raises as :meth:`_measure`."""
        return tuple(measured.pages_free for measured in await self._measure())

    async def stage_use(self) -> tuple[StageUse, ...]:
        """What every stage's device has done so far, asked now. Raises as :meth:`_measure`."""
        return tuple(
            StageUse(_use(m.decode), _use(m.prefill), m.encoded_frames, m.raw_bytes, m.sent_bytes) for m in await self._measure()
        )

    async def _measure(self) -> list[Measured]:
        """How every stage stands.

        Raises:
            RuntimeClosed: the pipeline is not up, or was closed meanwhile.
            BloomBeeError: whatever took it down meanwhile.
        """
        plan = self.plan
        if plan is None or self._closed or not self._core.is_up:
            raise RuntimeClosed("the pipeline is not up")
        answers: list[asyncio.Future[Measured]] = []
        for stage in plan.stages:
            answer: asyncio.Future[Measured] = asyncio.get_running_loop().create_future()
            self._asked[stage.index].append(answer)
            answers.append(answer)
            self._members.send(stage.worker, Lane.CONTROL, Measure(pipeline=plan.pipeline, epoch=plan.epoch))
        return await asyncio.gather(*answers)

    def _check_length(self, params: SamplingParams, num_tokens: int, at_least: bool) -> None:
        """Raises if a prompt of ``num_tokens``, or of that many at least, cannot be served. Callable from any thread."""
        if not num_tokens:
            raise ConfigError("the prompt is empty: give text, token ids or chat messages", field="prompt")
        card, plan = self.card, self.plan
        max_new_tokens = ask(params, card, num_tokens).max_new_tokens
        total = num_tokens + max_new_tokens
        least = "at least " * at_least
        if card.max_positions and total > card.max_positions:
            raise ConfigError(
                f"the prompt has {least}{num_tokens} tokens and max_new_tokens = {max_new_tokens}:"
                f" {least}{total} positions, but the model has {card.max_positions}; shorten one of them",
                field="max_new_tokens",
                prompt_tokens=num_tokens,
                max_positions=card.max_positions,
            )
        if not at_least and num_tokens <= card.restart_at < total - 1:
            raise ConfigError(
                f"the prompt has {num_tokens} tokens and max_new_tokens = {max_new_tokens}: this model's rotary embeddings"
                f" (longrope) change after {card.restart_at} positions, which a sequence cannot do on its way; shorten one of"
                " them, or give a longer prompt",
                field="max_new_tokens",
                prompt_tokens=num_tokens,
                max_positions=card.restart_at,
            )
        if plan is not None and not self._has_pages(plan, total - 1):
            raise Infeasible(
                f"prompt and max_new_tokens need {least}{total} KV tokens, a stage has {plan.num_tokens}: raise kv_tokens or"
                " use more workers",
                constraint="kv_tokens",
                wanted=total,
                allowed=plan.num_tokens,
            )

    def _has_pages(self, plan: Plan, num_tokens: int) -> bool:
        rows = self.max_rows
        return all(most_pages(num_tokens, plan.page_size, window=g.window, rows=rows) <= g.num_pages for g in plan.groups)

    # -- the plan --------------------------------------------------------------------------

    def _plan_request(self) -> PlanRequest:
        card, config = self.card, self.config
        wish = config.kv_tokens or max(4 * min(card.max_positions or 4096, 8192), 8192)
        wish = min(wish, MAX_TOKENS_BY_DEFAULT) if config.kv_tokens is None else wish
        return PlanRequest(
            card=card,
            dtype=card.dtype if config.dtype == "auto" else Dtype(config.dtype),
            num_workers=config.num_stages,
            split=config.split,
            num_pages=pages_for(wish, config.page_size),
            page_size=config.page_size,
            max_rows=self.max_rows,
            num_microbatches=config.microbatches or MOST_MICROBATCHES,
            order=self._local.names[: config.num_stages],
            pages_fixed=config.kv_tokens is not None,
            codec=CodecMode[config.codec.upper()],
            trace=config.trace is not None,
            takes_others=bool(config.remote_workers),
        )

    def _most_rows(self) -> int:
        """A frame carries [rows, hidden size] in the plan's dtype, and has a bound; longer prompts go in more chunks."""
        config = self.config
        dtype = self.card.dtype if config.dtype == "auto" else Dtype(config.dtype)
        fit = max(1, MAX_TENSOR_BYTES // (self.card.hidden_size * dtype.num_bytes))
        if fit < config.max_microbatch_rows:
            log.info("max_microbatch_rows = %d: at most %d rows of this model fit a frame", config.max_microbatch_rows, fit)
        return min(config.max_microbatch_rows, fit)

    async def _tune(self, plan: Plan) -> None:
        self.tuner = Tuner(
            self.card,
            plan,
            max_rows=self.max_rows,
            measure=self.stage_use,
            devices=lambda: [self._device(stage) for stage in plan.stages],
            links=lambda: self._measured_links(plan),
            quickest_loop=lambda: self._scheduler.quickest_loop,
            decoded=lambda: self._scheduler.decoded,
            num_sequences=lambda: self._scheduler.num_open if self.config.target_s is None else self._scheduler.num_sequences,
            apply=self._schedule,
            target_s=self.config.target_s,
        )
        await self.tuner.run()

    def _measured_links(self, plan: Plan) -> list[Link] | None:
        """Leaving each stage, as expected; None until every one of them has shown its round trip."""
        workers = [stage.worker for stage in plan.stages]
        facts = [self._link_facts.get(pair) for pair in zip(workers, [*workers[1:], HEAD], strict=True)]
        links = [one.as_expected() for one in facts if one is not None]
        known = [link for link in links if link is not None]
        return known if len(known) == len(workers) else None

    # -- the network -----------------------------------------------------------------------

    def _received(self, link: bytes, lane: Lane, envelope: Envelope, _: list[memoryview]) -> None:
        message = envelope.message
        try:
            worker = self._members.hears(link, lane, message)
            if worker is None:
                return
            if isinstance(message, Refused):
                log.warning(
                    "worker %s refused a message: %s %s", self._members.name(worker), message.code, message.fields.get("message")
                )
                return
            self._from_worker(worker, message)
        except (ProtocolError, StalePlan) as error:
            log.debug("refused %s: %s", type(message).__name__, error)
            self._members.refuse(link, Refused(*to_wire(error)))

    def _knocked(self, link: bytes, key: bytes, join: Join) -> None:
        if hasattr(self, "_core"):  # else the model is still being looked at; a worker knocks until there is an answer
            self._members.knocked(link, key, join)

    def _worker_in(self, admitted: Admitted) -> None:
        join = admitted.join
        event = WorkerJoined(admitted.worker, join.name, join.endpoint, admitted.key, join.memory_bytes, time.monotonic())
        missing = max(0, self._core.num_missing - 1)
        self._on_progress(LoadProgress(admitted.worker, join.name, -1, 0, 0, "joined", missing))
        self.bulletin.tell(SwarmEventKind.JOINED, worker=admitted.worker, name=join.name)
        self._do(self._core.handle(event))

    def _on_progress(self, progress: LoadProgress) -> None:
        """The application's callback; one that raises is not called again, and costs nothing else."""
        if self._tell_progress is None:
            return
        try:
            self._tell_progress(progress)
        except Exception:
            log.exception("on_progress raised; it is not called any more")
            self._tell_progress = None

    def _from_worker(self, worker: WorkerId, message: AnyMessage) -> None:
        now = time.monotonic()
        if isinstance(message, Verdict | Ack | Gap | Closed | Resume | Resumed | Lost):
            stage = self._core.stage_of(worker)
            if stage is None:
                raise RemoteProtocolError(f"{type(message).__name__} from a worker without a stage")
            if self._trace is not None and isinstance(message, Verdict):
                taken, took = self._endpoint.taken_ns, self._trace.now()
                self._schedule(FromStage(stage, message, now))
                self._trace.came_home(message.microbatch, taken, took)
            else:
                self._schedule(FromStage(stage, message, now))
                if isinstance(message, Ack):
                    self._meter.acked(message, now)
        elif isinstance(message, LinkReport):
            if self.plan is not None and message.epoch < self.plan.epoch:
                return  # of a ring that is gone
            if self.plan is not None and message.epoch < self.plan.epoch:
                return  # of a ring that is gone
            if self.plan is None or (worker, message.target) not in self.plan.hops:
                raise RemoteProtocolError(f"LinkReport.target = {message.target}: that is no link of this worker's")
            self.codec_choices[worker, message.target] = message.codec
            self._schedule(Moved(now))
            self._link_facts[worker, message.target] = LinkFacts(**{name: getattr(message, name) for name in LINK_FACTS})
        elif isinstance(message, Profiled):
            self._profiled(worker, message)
        elif isinstance(message, Measured):
            self._measured(worker, message)
        elif isinstance(message, Goodbye):
            self._gone(worker, f"it said goodbye: {message.reason}")
        else:
            self._do(self._core.handle(WorkerSaid(worker, message, now)))

    def _profiled(self, worker: WorkerId, said: Profiled) -> None:
        plan = self.plan
        if plan is None or self._core.stage_of(worker) is None:
            raise RemoteProtocolError("Profiled from a worker without a stage", path="message.tag")
        if (said.pipeline, said.epoch) != (plan.pipeline, plan.epoch):
            raise StalePlan(f"a profile of pipeline {said.pipeline} epoch {said.epoch}", pipeline=said.pipeline, epoch=said.epoch)
        self.profiles[worker] = from_message(said, self.card.config_digest, plan.dtype)

    def _measured(self, worker: WorkerId, said: Measured) -> None:
        """Answers come in the order of the questions: one asked earlier knows nothing of what has happened since."""
        stage = self._core.stage_of(worker)
        if stage is None or self.plan is None or said.epoch != self.plan.epoch or not self._asked[stage]:
            return
        answer = self._asked[stage].popleft()
        if not answer.done():
            answer.set_result(said)

    def _give_up_measuring(self, error: BloomBeeError) -> None:
        for answer in [answer for asked in self._asked.values() for answer in asked if not answer.done()]:
            answer.set_exception(error)
        self._asked.clear()

    def _send_ring(self, worker: WorkerId, lane: Lane, message: AnyMessage) -> None:
        if not isinstance(message, Forward) or worker not in self._members:
            self._members.send(worker, lane, message)
            return
        now = time.monotonic()
        sending = self._trace.now() if self._trace is not None else 0
        num_bytes = self._members.send(worker, lane, message)
        self._meter.sent(lane, message.frame, num_bytes, 1, now)
        if self._trace is not None:
            self._trace.sent(message, sending)

    def _away(self, worker: WorkerId) -> None:
        self._do(self._core.handle(WorkerAway(worker, time.monotonic())))

    def _restored(self, worker: WorkerId) -> None:
        """What was under way on the worker's connections may be lost, what was asked of it among that."""
        now, stage, plan = time.monotonic(), self._core.stage_of(worker), self.plan
        self._do(self._core.handle(WorkerRestored(worker, now)))
        if stage is None or plan is None:
            return
        if stage == 0:
            self._meter.restart()
        self._schedule(StageRestored(stage, now))
        for _ in self._asked[stage]:
            self._members.send(worker, Lane.CONTROL, Measure(pipeline=plan.pipeline, epoch=plan.epoch))

    # -- workers that end ------------------------------------------------------------------

    def _process_ended(self, name: str, reason: str) -> None:
        if self._closed:
            return
        worker = self._members.named(name)
        if worker is None:
            self._fail(DeviceError(f"worker {name!r} could not start: {reason}", worker=name))
        else:
            self._gone(worker, reason)

    def _spawner_lost(self) -> None:
        if not self._closed:
            self._fail(DeviceError("the process that starts workers has ended; start the Runtime again"))

    def _gone(self, worker: WorkerId, reason: str) -> None:
        if worker in self._members:
            self.bulletin.tell(SwarmEventKind.LOST, worker=worker, name=self._members.name(worker), reason=reason)
        self._members.hang_up(worker)
        self._do(self._core.handle(WorkerGone(worker, reason, time.monotonic())))

    # -- commands --------------------------------------------------------------------------

    def _do(self, commands: list[Command]) -> None:
        each(self._do_one, commands)

    def _do_one(self, command: Command) -> None:
        match command:
            case TellScheduler(message=message):
                if isinstance(message, PlanWired):
                    self.bulletin.tell(SwarmEventKind.WIRING, epoch=message.plan.epoch)
                self._schedule(message)
            case Send(to=int(worker), lane=lane, message=message):
                self._members.send(worker, lane, message)
            case Deliver(request=number, pick=pick, finish=finish):
                self._requests.deliver(number, pick, finish)
            case Conclude(request=number, error=error):
                self._requests.end(number, error)
            case PlanMade(plan=plan):
                self.plan = plan
                self.bulletin.tell(SwarmEventKind.PLANNED, epoch=plan.epoch)
            case PipelineUp(plan=plan):
                self._pipeline_up(plan)
            case PipelineBroken():
                self._broken(command)
            case PipelineDown(error=error):
                self._members.shut()
                self.bulletin.tell(SwarmEventKind.DOWN, reason=error.message)
                self._do(self._request_core.handle(SwarmLost(error)))
                self._fail(error)
            case Dismiss(worker=worker):
                self._members.send(worker, Lane.CONTROL, Goodbye(reason="dismissed"))
                self._members.hang_up(worker)
            case ReportLeft(worker=worker, name=name, num_missing=missing):
                self._on_progress(LoadProgress(worker, name, -1, 0, 0, "left", missing))
            case ReportProgress(worker=worker, stage=index, loaded_bytes=loaded, total_bytes=total):
                self._on_progress(LoadProgress(worker, self._members.name(worker), index, loaded, total, "loading"))
            case _:
                raise AssertionError(f"no core of the head asks for {command!r}")

    def _pipeline_up(self, plan: Plan) -> None:
        for stage in plan.stages:
            size = stage.weight_bytes
            self._on_progress(LoadProgress(stage.worker, stage.name, stage.index, size, size, "ready"))
        if self.config.microbatches is None:
            self._tuner_task = asyncio.get_running_loop().create_task(self._tune(plan), name="bloombee-head-tune")
        self.bulletin.tell(SwarmEventKind.UP, epoch=plan.epoch)
        if not self._up.done():
            self._up.set_result(plan)

    def _broken(self, broken: PipelineBroken) -> None:
        """A stage is lost; what was measured of the ring that had it is of no use."""
        log.warning("worker %s is lost (%s): %s takes its place", broken.lost_name, broken.reason, broken.name)
        if self._tuner_task is not None:
            self._tuner_task.cancel()
        self._give_up_measuring(LinkDown(f"worker {broken.lost_name!r} is gone ({broken.reason})", worker=broken.lost_name))
        self._link_facts = {ends: facts for ends, facts in self._link_facts.items() if broken.lost not in ends}
        self.codec_choices = {ends: choice for ends, choice in self.codec_choices.items() if broken.lost not in ends}
        self.profiles.pop(broken.lost, None)
        self._meter.restart()

    def _schedule(self, event: SchedulerEvent) -> None:
        """The scheduler's core sends to stages and tells the head."""
        each(self._do_scheduled, self._scheduler.handle(event))

    def _do_scheduled(self, command: Command) -> None:
        match command:
            case Send(to=int(stage), lane=lane, message=message) if self.plan is not None:
                self._send_ring(self.plan.stages[stage].worker, lane, message)
            case TellHead(message=told):
                self._do(self._request_core.handle(SchedulerSaid(told, time.monotonic())))
            case _:
                raise AssertionError(f"the scheduler asks for {command!r}")

    def _fail(self, error: BloomBeeError) -> None:
        self._give_up_measuring(error)
        if not self._up.done():
            self._up.set_exception(error)
        self._requests.end_all(error)

    # -- time ------------------------------------------------------------------------------

    def _ticker_ended(self, ticker: asyncio.Task[None]) -> None:
        if not ticker.cancelled() and (error := ticker.exception()) is not None:
            self._bug(asyncio.get_running_loop(), {"exception": error})

    def _bug(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something of ours raised what it must not: better an error at every caller than silence."""
        error = context.get("exception")
        log.error("internal error: %s", context.get("message", error), exc_info=error)
        if error is not None and not self._closed:
            self._fail(LocalProtocolError(f"internal error, please report it: {type(error).__name__}: {error}"))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            self._do(self._core.handle(Tick(now)))
            self._schedule(Tick(now))
            self._members.tick(now)


def each(act: Callable[[Command], None], commands: Sequence[Command]) -> None:
    """Act on every command, whatever one of them raises; raises that of the first in the end."""
    errors: list[Exception] = []
    for command in commands:
        try:
            act(command)
        except Exception as error:
            errors.append(error)
    for another in errors[1:]:
        log.error("another command failed as well: %s", another, exc_info=another)
    if errors:
        raise errors[0]


def _use(tally: Tally) -> DeviceUse:
    return DeviceUse(tally.works, tally.rows, tally.ns / 1e9, tally.rows_squared, tally.row_ns / 1e9, tally.attended)


def _told(config: RuntimeConfig, bound: Address) -> tuple[str, ...]:
    """Where workers dial a head that listens on ``bound``; best first.

    Raises:
        ConfigError: at an address of one link, for which other machines have other names.
    """
    if config.advertise is not None:
        return (config.advertise,)
    if not config.remote_workers:
        return (str(loopback_of(bound)),)
    endpoints = tuple(str(address) for address in reachable_at(bound, own_addresses()))[:MAX_ENDPOINTS]
    try:
        return tuple(str(read_told(endpoint)) for endpoint in endpoints)
    except ValueError as error:
        raise ConfigError(f"listen = {config.listen!r}: {error}, with --advertise", field="listen") from None
