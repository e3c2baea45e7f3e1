"""The head: who is in the swarm, who runs what, which requests the application has. Pure.

Life of a swarm: workers join until the asked number is there; the plan is made and assigned; each stage reports
progress, then Ready; when all are ready the scheduler starts. Until the plan is made a worker that is lost may be replaced, if
workers come from elsewhere; from then on it ends the pipeline and every request with it (recovery comes later; the protocol
allows for it already).
Requests may be submitted at any time; they wait in the scheduler.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from dataclasses import dataclass, field

from bloombee.codec.choice import CodecMode
from bloombee.errors import (
    BloomBeeError,
    ConfigError,
    DeadlineExceeded,
    DeviceError,
    LinkDown,
    LocalProtocolError,
    QueueFull,
    RemoteProtocolError,
    from_wire,
)
from bloombee.kv.pool import make_groups
from bloombee.pipeline.commands import (
    Command,
    Conclude,
    Deliver,
    Dismiss,
    PipelineDown,
    PipelineUp,
    PlanMade,
    ReportLeft,
    ReportProgress,
    Send,
    TellScheduler,
)
from bloombee.pipeline.events import (
    Cancel,
    CancelRequest,
    Emitted,
    Ended,
    Open,
    PipelineLost,
    PlanReady,
    SchedulerSaid,
    Submit,
    Tick,
    WorkerAway,
    WorkerGone,
    WorkerJoined,
    WorkerRestored,
    WorkerSaid,
)
from bloombee.plan.card import ModelCard
from bloombee.plan.plan import Plan, StagePlan, check_memory, split_layers
from bloombee.plan.rules import LogitsRules
from bloombee.plan.scratch import scratch_bytes
from bloombee.types import Dtype, Lane, PageGroup, SequenceId, Span, WorkerId
from bloombee.wire.messages import Assign, Group, Heartbeat, Peer, Progress, Ready, Rules, StageFailed, Watermark

PIPELINE = 1
Event = WorkerJoined | WorkerSaid | WorkerAway | WorkerRestored | WorkerGone | Submit | CancelRequest | SchedulerSaid | Tick


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the head is asked to build."""

    card: ModelCard
    dtype: Dtype
    num_workers: int
    split: tuple[int, ...] | None
    num_pages: int
    """Of the layers that see furthest, as wished; fewer if a worker's memory holds fewer, unless ``pages_fixed``."""
    page_size: int
    max_rows: int
    """Most rows of one sequence in a microbatch."""
    num_microbatches: int
    pages_fixed: bool = True
    codec: CodecMode = CodecMode.OFF
    order: tuple[str, ...] = ()
    """Names of workers in the order of their stages; the others follow as they joined."""
    trace: bool = False
    takes_others: bool = True
    """Workers come from elsewhere: one that leaves before the plan may come back, or another in its place."""


@dataclass(frozen=True, slots=True)
class HeadLimits:
    max_waiting: int
    """Requests that may be open or waiting at once."""
    heartbeat_s: float
    silence_s: float
    load_deadline_s: float
    """Without any progress."""


@dataclass(slots=True)
class _Worker:
    id: WorkerId
    name: str
    endpoint: str
    key: bytes
    memory_bytes: int
    heard_at: float
    spoke_at: float = 0.0
    stage: int | None = None
    ready: bool = False
    is_away: bool = False
    progress_at: float = 0.0
    """When it was told to load, or said last that more of the span is there."""

    @property
    def is_loading(self) -> bool:
        return self.stage is not None and not self.ready


@dataclass(slots=True)
class HeadCore:
    """events: see ``Event``. commands: all but Compute and TellHead; Send goes to a worker id."""

    request: PlanRequest
    limits: HeadLimits
    links: list[bytes]
    """Fresh unguessable link ids for worker -> worker links, one a hop; the core itself has no randomness."""
    plan: Plan | None = None
    error: BloomBeeError | None = None
    """Why the pipeline is down for good."""
    is_up: bool = False
    _workers: dict[WorkerId, _Worker] = field(default_factory=dict)
    _requests: dict[int, SequenceId] = field(default_factory=dict)
    _sequences: dict[SequenceId, int] = field(default_factory=dict)
    _next_sequence: SequenceId = 1
    _beats: int = 0
    _awaited_since: float | None = None
    _ticked_at: float = 0.0

    def handle(self, event: Event) -> list[Command]:
        """Raises RemoteProtocolError for a message that its sender must not send; the state is as it was."""
        match event:
            case WorkerJoined():
                return self._joined(event)
            case WorkerSaid(worker=worker, message=message, now=now):
                return self._said(worker, message, now)
            case WorkerAway(worker=worker):
                if worker in self._workers:
                    self._workers[worker].is_away = True
                return []
            case WorkerRestored(worker=worker, now=now):
                return self._restored(worker, now)
            case WorkerGone(worker=worker, reason=reason):
                return self._gone(worker, reason, event.now)
            case Submit():
                return self._submit(event)
            case CancelRequest(request=request, now=now):
                sequence = self._requests.get(request)
                return [] if sequence is None else [TellScheduler(Cancel(sequence, now))]
            case SchedulerSaid(message=message):
                return self._scheduler_said(message)
            case Tick(now=now):
                return self._tick(now)
        raise LocalProtocolError(f"{event!r} is not an event of the head")

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    @property
    def num_missing(self) -> int:
        """Workers that have yet to join."""
        return max(0, self.request.num_workers - len(self._workers))

    def stage_of(self, worker: WorkerId) -> int | None:
        known = self._workers.get(worker)
        return known.stage if known else None

    # -- workers ---------------------------------------------------------------------------

    def _joined(self, event: WorkerJoined) -> list[Command]:
        if event.worker in self._workers:
            raise LocalProtocolError(f"worker {event.worker} joined twice")
        self._workers[event.worker] = _Worker(
            event.worker, event.name, event.endpoint, event.key, event.memory_bytes, heard_at=event.now
        )
        return self._plan_if_complete(event.now)

    def _plan_if_complete(self, now: float) -> list[Command]:
        """Nobody who may not come back is planned with: until then another could take the place."""
        is_complete = len(self._workers) == self.request.num_workers and not any(w.is_away for w in self._workers.values())
        return self._make_plan(now) if is_complete and self.plan is None and self.error is None else []

    def _make_plan(self, now: float) -> list[Command]:
        request = self.request
        try:
            workers = self._in_order()
            spans = split_layers(request.card.num_layers, request.num_workers, request.split)
            num_pages = request.num_pages
            if not request.pages_fixed:
                num_pages = max(1, min(num_pages, *(self._pages_that_fit(w, s) for w, s in zip(workers, spans, strict=True))))
            groups = self._groups(num_pages)
            stages = tuple(self._stage(index, workers[index], span, groups) for index, span in enumerate(spans))
            for stage, worker in zip(stages, workers, strict=True):
                check_memory(stage, worker.memory_bytes)
                if stage.index > 0 and not worker.endpoint:
                    raise ConfigError(
                        f"worker {worker.name!r} cannot be reached by its predecessor: start it with --listen and --advertise",
                        worker=worker.name,
                    )
        except BloomBeeError as error:
            return self._down(error, now)
        self.plan = Plan(
            pipeline=PIPELINE,
            epoch=1,
            model=request.card.model,
            dtype=request.dtype,
            num_layers=request.card.num_layers,
            groups=groups,
            page_size=request.page_size,
            num_microbatches=request.num_microbatches,
            stages=stages,
        )
        for stage in stages:
            worker = self._workers[stage.worker]
            worker.stage, worker.progress_at = stage.index, now
        return [PlanMade(self.plan), *(self._assign(self.plan, stage.index) for stage in stages)]

    def _in_order(self) -> list[_Worker]:
        order = self.request.order
        return sorted(self._workers.values(), key=lambda w: order.index(w.name) if w.name in order else len(order))

    def _groups(self, num_pages: int) -> tuple[PageGroup, ...]:
        request = self.request
        return make_groups(request.card.windows(), num_pages, request.page_size, rows=request.max_rows)

    def _kv_bytes(self, span: Span, groups: tuple[PageGroup, ...]) -> int:
        card, dtype = self.request.card, self.request.dtype
        slots = ((group.window, group.num_pages * self.request.page_size) for group in groups)
        return sum(count * card.kv_bytes_per_token(span, dtype, window=window) for window, count in slots)

    def _pages_that_fit(self, worker: _Worker, span: Span) -> int:
        """Of the wished, how many leave room for the others' and the weights."""
        room = worker.memory_bytes - self.request.card.weight_bytes(span, self.request.dtype)

        def need(count: int) -> int:
            groups = self._groups(count)
            return self._kv_bytes(span, groups) + self._scratch_bytes(span, groups)

        return bisect_right(range(1, self.request.num_pages + 1), room, key=need)

    def _scratch_bytes(self, span: Span, groups: tuple[PageGroup, ...]) -> int:
        request = self.request
        tokens = groups[0].num_pages * request.page_size
        return scratch_bytes(request.card, span, request.dtype, rows=request.max_rows, tokens=tokens)

    def _stage(self, index: int, worker: _Worker, span: Span, groups: tuple[PageGroup, ...]) -> StagePlan:
        card, dtype = self.request.card, self.request.dtype
        own = tuple(group for group in groups if group.window in card.windows(span))
        return StagePlan(
            index=index,
            worker=worker.id,
            name=worker.name,
            span=span,
            weight_bytes=card.weight_bytes(span, dtype),
            kv_bytes=self._kv_bytes(span, own),
            groups=own,
            scratch_bytes=self._scratch_bytes(span, own),
        )

    def _assign(self, plan: Plan, index: int) -> Send:
        stage = plan.stages[index]
        message = Assign(
            pipeline=plan.pipeline,
            epoch=plan.epoch,
            stage=index,
            num_stages=len(plan.stages),
            start=stage.span.start,
            stop=stage.span.stop,
            num_layers=plan.num_layers,
            model=plan.model,
            config_digest=bytes.fromhex(self.request.card.config_digest),
            weight_digests=self.request.card.span_digests(stage.span),
            dtype=str(plan.dtype),
            groups=tuple(Group(window=group.window, num_pages=group.num_pages) for group in stage.groups),
            page_size=plan.page_size,
            num_microbatches=plan.num_microbatches,
            codec=self.request.codec,
            predecessor=self._peer(plan, index - 1, index - 1),
            successor=self._peer(plan, index + 1, index),
            trace=self.request.trace,
            rules=rules_message(self.request.card.logits_rules) if index == len(plan.stages) - 1 else None,
        )
        return Send(stage.worker, Lane.CONTROL, message)

    def _peer(self, plan: Plan, index: int, hop: int) -> Peer | None:
        """The worker at ``index`` as its neighbour over hop ``hop`` gets to know it."""
        if not 0 <= index < len(plan.stages):
            return None
        worker = self._workers[plan.stages[index].worker]
        return Peer(worker=worker.id, endpoint=worker.endpoint, key=worker.key, link=self.links[hop])

    def _said(self, worker_id: WorkerId, message: object, now: float) -> list[Command]:
        worker = self._workers.get(worker_id)
        if worker is None:
            raise RemoteProtocolError(f"worker {worker_id} is not in the swarm")
        worker.heard_at = now
        match message:
            case Heartbeat():
                return []
            case Progress(loaded_bytes=loaded, total_bytes=total) if worker.stage is not None:
                worker.progress_at = now
                return [ReportProgress(worker_id, worker.stage, loaded, total)]
            case Ready() if self.plan is not None and worker.stage is not None:
                worker.ready = True
                if self.is_up or self.error or not all(self._workers[s.worker].ready for s in self.plan.stages):
                    return []
                self.is_up = True
                return [PipelineUp(self.plan), TellScheduler(PlanReady(self.plan, now))]
            case StageFailed(code=code, fields=fields):
                return self._down(self._cause(worker, from_wire(code, fields)), now)
        raise RemoteProtocolError(f"{type(message).__name__} from worker {worker.name!r} is not expected now")

    def _cause(self, worker: _Worker, cause: BloomBeeError) -> BloomBeeError:
        """As the worker said, with the names of all whom it is about."""
        peer = self._workers.get(int(cause.fields.get("peer") or 0)) if isinstance(cause, LinkDown) else None
        to = f" cannot reach worker {peer.name!r}" if peer is not None else ""
        return type(cause)(f"worker {worker.name!r}{to}: {cause.message}", **{**cause.fields, "worker": worker.name})

    def _restored(self, worker_id: WorkerId, now: float) -> list[Command]:
        """What was told once and may be lost is told again: a worker that knows its stage changes nothing."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return []
        worker.is_away = False
        if self.plan is None or self.error is not None or worker.stage is None or worker.ready:
            return self._plan_if_complete(now)
        return [self._assign(self.plan, worker.stage)]

    def _gone(self, worker_id: WorkerId, reason: str, now: float) -> list[Command]:
        worker = self._workers.pop(worker_id, None)
        if worker is None or self.error is not None:
            return []
        if self.plan is not None and worker.stage is not None:
            return self._down(
                LinkDown(f"worker {worker.name!r} is gone ({reason}); restart it and the Runtime", worker=worker.name), now
            )
        if self.request.takes_others:
            return [ReportLeft(worker_id, worker.name, self.num_missing)]
        return self._down(DeviceError(f"worker {worker.name!r} is gone before all were there: {reason}", worker=worker.name), now)

    def _down(self, error: BloomBeeError, now: float) -> list[Command]:
        if self.error is not None:
            return []
        self.error = error
        self.is_up = False
        return [PipelineDown(error), TellScheduler(PipelineLost(error, now))]

    def _tick(self, now: float) -> list[Command]:
        commands: list[Command] = []
        if self._ticked_at and now - self._ticked_at > 2 * self.limits.heartbeat_s:
            # It was this process that stood still: what the workers said meanwhile has yet to be read.
            for worker in self._workers.values():
                worker.heard_at = worker.progress_at = now
        self._ticked_at = now
        for worker in list(self._workers.values()):
            # A worker that loads may hold its interpreter's lock for long: only its progress counts then.
            if now - worker.heard_at > self.limits.silence_s and not worker.is_loading:
                error = LinkDown(f"worker {worker.name!r} has been silent for {now - worker.heard_at:.1f} s", worker=worker.name)
                commands += [Dismiss(worker.id, error), *self._gone(worker.id, f"silent for {now - worker.heard_at:.1f} s", now)]
            elif now - worker.spoke_at >= self.limits.heartbeat_s:
                worker.spoke_at = now
                self._beats += 1
                commands.append(Send(worker.id, Lane.CONTROL, Heartbeat(count=self._beats)))
        return commands + self._look_for_stuck(now)

    def _look_for_stuck(self, now: float) -> list[Command]:
        """Loading may take any time while every worker gets on with it. Workers from elsewhere are awaited for ever."""
        limit = self.limits.load_deadline_s
        if self._awaited_since is None:
            self._awaited_since = now
        stuck = [w.name for w in self._workers.values() if w.is_loading and now - w.progress_at > limit]
        if self.plan is None and not self.request.takes_others and now - self._awaited_since > limit:
            here = {worker.name for worker in self._workers.values()}
            stuck = [name for name in self.request.order if name not in here]
        if not stuck or self.error is not None:
            return []
        names = ", ".join(stuck)
        error = DeadlineExceeded(
            f"no progress with loading for load_deadline_s = {limit:g} s on {names}: look at its log, its disk and its network,"
            " or allow more",
            workers=names,
        )
        return self._down(error, now)

    # -- requests --------------------------------------------------------------------------

    def _submit(self, event: Submit) -> list[Command]:
        if self.error is not None:
            return [Conclude(event.request, self.error)]
        if len(self._requests) >= self.limits.max_waiting:
            error = QueueFull(
                f"{len(self._requests)} requests are open or waiting (max_waiting = {self.limits.max_waiting}): try again later",
                waiting=len(self._requests),
            )
            return [Conclude(event.request, error)]
        sequence = self._next_sequence
        self._next_sequence += 1
        self._requests[event.request] = sequence
        self._sequences[sequence] = event.request
        opened = Open(
            sequence,
            event.prompt,
            event.sampling,
            event.max_new_tokens,
            event.end_tokens,
            event.now,
            event.client,
            event.priority,
            event.max_time_s,
        )
        return [TellScheduler(opened)]

    def _scheduler_said(self, message: Emitted | Ended) -> list[Command]:
        match message:
            case Emitted(pick=pick, finish=finish):
                request = self._sequences.get(pick.sequence)
                if request is None:
                    return []
                if finish is not None:
                    self._forget(pick.sequence)
                return [Deliver(request, pick, finish)]
            case Ended(sequence=sequence, error=error):
                request = self._sequences.get(sequence)
                if request is None:
                    return []
                self._forget(sequence)
                return [Conclude(request, error)]

    def _forget(self, sequence: SequenceId) -> None:
        del self._requests[self._sequences.pop(sequence)]


def rules_message(rules: LogitsRules | None) -> Rules | None:
    """``rules`` as a stage is told them."""
    if rules is None:
        return None
    mark = rules.watermark
    fields = {f.name: getattr(rules, f.name) for f in dataclasses.fields(rules)}
    return Rules(**{**fields, "watermark": None if mark is None else Watermark(**dataclasses.asdict(mark))})
