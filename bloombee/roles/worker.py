"""The worker process: joins a head, loads what it is told, serves until the head says goodbye or is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from typing import Any

from bloombee.address import Address, default_listen, reachable_at, read_listen
from bloombee.config import WorkerConfig
from bloombee.errors import (
    AuthenticationError,
    BloomBeeError,
    ConfigError,
    DeadlineExceeded,
    LinkDown,
    LocalProtocolError,
    ProtocolError,
    QueueFull,
    RemoteProtocolError,
    StalePlan,
    to_wire,
)
from bloombee.models.standin import is_standin
from bloombee.roles.event_loop import new_event_loop
from bloombee.roles.greeting import Greeter
from bloombee.roles.head_search import Found, HeadSearch
from bloombee.roles.joining import Joining, hello_of, join_of
from bloombee.roles.leaving import Leaving
from bloombee.roles.log_file import require_directory
from bloombee.roles.pulse import Pulse
from bloombee.roles.returning import Returning
from bloombee.roles.stages import Stages
from bloombee.roles.tracing import StageTraces
from bloombee.transport.endpoint import Endpoint
from bloombee.transport.interfaces import own_address_towards, own_addresses
from bloombee.transport.keys import KeyPair, generate, load
from bloombee.transport.link_events import LinkEvent, LinkEventKind
from bloombee.types import Lane
from bloombee.wire.envelope import Envelope
from bloombee.wire.handshake import ClockEstimate, Dialler
from bloombee.wire.liveness import Liveness
from bloombee.wire.messages import (
    AnyMessage,
    Drain,
    Drained,
    Goodbye,
    Heartbeat,
    Joined,
    Leave,
    Load,
    Profile,
    Refused,
    Unload,
    Unloaded,
    Welcome,
    Wire,
)
from bloombee.wire.token import JoinToken, decode_token

log = logging.getLogger(__name__)
TICK_S = 0.1
HELLO_EVERY_S = 0.5
"""The head's answer tells the round trip and how its clock stands."""
HEAD_SILENCE_S = 20.0
"""The head lives inside an application that may hold the interpreter's lock or stand still: it gets more patience than it has."""
LEAST_TRY_S = 1.0
"""To find a head that has come in another's place, before it is dialled anew: ZeroMQ waits ever longer between its tries."""
HEAD_GRACE_FACTOR = 2
"""It is for the head to say who is lost: a worker is not the first to give up."""


def run(config: WorkerConfig, keys: KeyPair | None = None) -> None:
    """Serve until the head ends the swarm. Blocks.

    Args:
        keys: by which it is known; None: as ``config`` says.

    Raises:
        ConfigError, AuthenticationError, TransportError: it could not join; the message says what to do.
        LinkDown: the head went away.
    """
    logging.getLogger("bloombee").setLevel(config.log_level.upper())
    logging.basicConfig(format=f"bloombee worker {config.name or os.getpid()}: %(message)s")
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(WorkerRole(config, keys)))


async def _serve(role: WorkerRole) -> None:
    """SIGTERM hands over what it serves, and a second one ends it at once."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, lambda: role.leave("it was terminated") or task.cancel())
    await role.serve()


class WorkerRole:
    """All of one worker process."""

    def __init__(self, config: WorkerConfig, keys: KeyPair | None = None) -> None:
        self._config = config
        self._keys = keys
        self._token: JoinToken = decode_token(config.join)
        self._name = config.name or f"{socket.gethostname()}-{os.getpid()}"
        self._search: HeadSearch | None = None
        self._head_link = b""
        self._head_endpoint = ""
        self._stages: Stages | None = None
        self._joined: Joined | None = None
        self._endpoint: Endpoint
        self._greeter: Greeter | None = None
        self._joining: Joining | None = None
        self._head_liveness = Liveness()
        self._pulse = Pulse(self._look)
        self._heard_at = 0.0
        """By the clock of the time that this process was awake."""
        self._hello_at = 0.0
        self._told = ""
        """Where others dial this worker."""
        self._memory_bytes = config.memory_bytes or 0
        """That it offers."""
        self._traces: StageTraces | None = None
        self._returning = Returning(config.head_wait_s)
        self._leaving = Leaving(lambda drain: self._endpoint.send(self._head_link, Lane.CONTROL, drain))

    def leave(self, reason: str) -> bool:
        """Once what is served here has been taken over; False: that was asked for before, or there is no head yet."""
        return self._joined is not None and self._leaving.ask(reason)

    async def serve(self) -> None:
        """As :func:`run`. Cancelled: everything is closed, the head sees the connection end."""
        loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = loop.create_future()
        loop.set_exception_handler(self._bug)
        keys = self._keys or (load(self._config.key) if self._config.key else generate())
        if self._config.log_dir is not None:
            require_directory(self._config.log_dir)
        self._endpoint = Endpoint(
            keys,
            swarm=0,
            on_message=self._received,
            on_event=self._link_event,
            curve=_curve(self._token),
            source=self._config.source,
        )
        try:
            bound = await self._endpoint.bind(self._config.listen) if self._config.listen else None
            head = await self._find_head(self._config.join_deadline_s)
            bound = bound or await self._endpoint.bind(str(default_listen(head.address)))
            self._told = self._config.advertise or _own_endpoint(read_listen(bound), head.address)
            try:
                await self._join(head)
            except LinkDown as ended:  # before it has let this worker in
                await self._await_head(ended)
            self._pulse.start()
            while (gone := await self._serve_head()) is not None:
                await self._await_head(gone)
        except asyncio.CancelledError:
            self._leave("interrupted")
            raise
        finally:
            self._pulse.stop()
            if self._stages is not None:
                self._stages.close()
            await self._endpoint.close(linger_s=0.2)

    async def _serve_head(self) -> LinkDown | None:
        """Until the head ends the swarm; or is lost: why.

        Raises:
            BloomBeeError: why this worker can serve no longer.
        """
        ticker = asyncio.get_running_loop().create_task(self._tick(), name="bloombee-worker-tick")
        try:
            await asyncio.wait([ticker, self._over], return_when=asyncio.FIRST_COMPLETED)
            await (ticker if ticker.done() else self._over)
        except LinkDown as gone:
            return gone
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
        return None

    async def _await_head(self, gone: LinkDown) -> None:
        """Keep what is loaded until the head, or another of the same key and at the same address, has let this worker in.

        Raises:
            LinkDown: none has in time, or that is not worth trying. AuthenticationError: it does not.
        """
        if not self._returning.begins(gone, has_state=self._joined is None or self._joined.returns):  # None: it has not said yet
            raise gone
        until = time.monotonic() + self._returning.wait_s
        self._joined, try_s = None, max(LEAST_TRY_S, HEAD_GRACE_FACTOR * self._head_liveness.grace_s)
        if self._stages is not None:
            await self._stages.let_go()
        while (left_s := until - time.monotonic()) > 0:
            self._endpoint.hang_up(self._head_link)
            self._greeter, self._head_liveness = None, Liveness()
            self._over = asyncio.get_running_loop().create_future()
            try:
                await self._join(await self._find_head(min(left_s, try_s)))
                self._heard_at = self._awake_s()
                return
            except (LinkDown, DeadlineExceeded) as error:
                log.debug("not let in again yet: %s", error)
                await asyncio.sleep(TICK_S)
        raise LinkDown(f"{gone.message}, and no other has come in its place in {self._returning.wait_s:g} s")

    def _leave(self, reason: str) -> None:
        """The head need not find out by itself. It may be gone too."""
        if self._joined is not None:
            with contextlib.suppress(BloomBeeError):
                self._endpoint.send(self._head_link, Lane.CONTROL, Leave(reason=reason))

    # -- joining ---------------------------------------------------------------------------

    async def _find_head(self, deadline_s: float) -> Found:
        self._search = HeadSearch(self._endpoint, self._token)
        try:
            found = await self._search.run(deadline_s)
        except BloomBeeError:
            self._search.close()
            raise
        finally:
            self._search = None
        self._head_link, self._head_endpoint = found.link, found.endpoint
        return found

    async def _join(self, head: Found) -> None:
        config = self._config
        if self._stages is None:
            self._memory_bytes = await asyncio.to_thread(_offer, config, head.endpoint)
        join = join_of(config, secret=self._token.secret, name=self._name, endpoint=self._told, memory_bytes=self._memory_bytes)
        self._joining = Joining(self._endpoint, head, join, config.join_deadline_s)
        self._joined = joined = await self._joining.run(self._over)
        self._endpoint.swarm = joined.swarm
        self._traces = StageTraces(self._endpoint, config.trace, self._name, joined.worker)
        if self._stages is None:
            self._stages = Stages(config, self._endpoint, clock=self._pulse.clock, memory_bytes=self._memory_bytes)
        self._stages.joined(joined, head.link, self._traces.open)
        log.info("joined the head at %s as worker %d, and waits for layers", head.endpoint, joined.worker)
        machine = Dialler(hello_of(joined), peer=f"the head at {head.endpoint}")
        self._greeter = Greeter(
            self._endpoint, self._head_link, machine, on_open=self._timed, on_error=self._end, on_timed=self._timed
        )

    def _timed(self, clock: ClockEstimate | None) -> None:
        """Hello was answered."""
        if clock is not None and self._traces is not None:
            self._head_liveness.timed(clock.round_trip_ns / 1e9)
            self._traces.timed(clock)

    def _end(self, error: BloomBeeError | None) -> None:
        if not self._over.done():
            if error is None:
                self._over.set_result(None)
            else:
                self._over.set_exception(error)

    # -- messages --------------------------------------------------------------------------

    def _received(self, link: bytes, lane: Lane, envelope: Envelope, payloads: list[memoryview]) -> None:
        message = envelope.message
        payload = (envelope.tensors[0], payloads[0]) if payloads else None
        try:
            if link == self._head_link:
                self._from_head(lane, message, payload)
            else:
                self._joined_stages().received(link, lane, message, payload)
        except BloomBeeError as error:
            self._wrong(link, message, error)

    def _wrong(self, link: bytes, message: AnyMessage, error: BloomBeeError) -> None:
        """What a neighbour says wrongly costs its link, and never this process; late words cost nothing, the head's neither."""
        log.debug("refused %s: %s", type(message).__name__, error)
        is_remote = isinstance(error, ProtocolError) and not isinstance(error, LocalProtocolError)
        if isinstance(error, LinkDown | QueueFull):
            log.warning("no answer to %s: %s", type(message).__name__, error.message)
        elif isinstance(error, StalePlan) or (link == self._head_link and is_remote):
            self._endpoint.send(link, Lane.CONTROL, Refused(*to_wire(error)))
        elif is_remote:
            self._endpoint.expel(link, error)
        else:
            raise error

    def _from_head(self, lane: Lane, message: AnyMessage, payload: Any) -> None:
        self._heard_at = self._awake_s()
        match message:
            case Joined() | Refused() if self._joined is None and self._joining is not None:
                self._joining.received(lane, message)
            case Refused() if self._greeter is not None and not self._greeter.is_open:
                self._greeter.received(lane, message)
            case Welcome() if self._greeter is not None:
                self._greeter.received(lane, message)
            case Heartbeat():
                self._endpoint.send(self._head_link, Lane.CONTROL, message)
            case Joined():
                pass
            case Goodbye():
                errors = [stage.reporter.error for stage in self._stages or ()]
                # A neighbour that ended sooner, perhaps on the same word of the head's, is no failure of this one.
                failed = next((error for error in errors if error is not None and not isinstance(error, LinkDown)), None)
                log.info("the head says goodbye: %s", message.reason)
                self._end(failed if not self._leaving.is_asked else None)
            case Drained():
                self._end(None)
            case Refused(code=AuthenticationError.code, fields=fields):  # it has forgotten this link
                gone = self._returning.given_up(fields.get("message", ""))
                self._end(gone if not self._leaving.is_asked else None)
            case Refused(fields=fields) if fields.get("refused") == Drain.__name__:
                self._leaving.refused(fields)
            case Refused(code=code, fields=fields):
                level = logging.DEBUG if code == StalePlan.code else logging.WARNING  # of an epoch that has just ended
                log.log(level, "the head refused a message: %s %s", code, fields.get("message", ""))
            case Load():
                self._joined_stages().load(message)
            case Unload():
                if self._stages is not None:
                    self._stages.unload(message.pipeline)
                self._endpoint.send(self._head_link, Lane.CONTROL, Unloaded(number=message.number, pipeline=message.pipeline))
            case Wire():
                self._joined_stages().wire(message)
            case Profile():
                self._joined_stages().profile(message)
            case _:
                self._joined_stages().received(self._head_link, lane, message, payload)

    def _joined_stages(self) -> Stages:
        if self._stages is None:
            raise RemoteProtocolError("this worker has not joined yet")
        return self._stages

    def _link_event(self, event: LinkEvent) -> None:
        if self._search is not None:
            self._search.event(event)
        elif event.link == self._head_link:
            self._head_link_event(event)
        elif self._stages is not None:
            self._stages.link_event(event)

    def _head_link_event(self, event: LinkEvent) -> None:
        assert event.lane is not None
        match event.kind:
            case LinkEventKind.HANDSHAKE_FAILED if self._joined is None:
                self._end(event.error)
            case LinkEventKind.CONNECTED:
                if self._greeter is not None:
                    self._greeter.say_again(event.lane)
                if self._head_liveness.back(event.lane) and self._stages is not None:
                    self._stages.head_restored()
            case LinkEventKind.DISCONNECTED:
                self._head_liveness.broke(event.lane, self._awake_s())
            case LinkEventKind.PORT_REFUSES:
                self._end(self._returning.ended(self._head_endpoint))

    def _bug(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something of ours raised what it must not: the head is told, so that its requests end and do not wait."""
        error = context.get("exception")
        log.error("internal error: %s", context.get("message", error), exc_info=error)
        if error is None:
            return
        told = LocalProtocolError(f"internal error, please report it: {type(error).__name__}: {error}")
        if self._stages is not None and any(self._stages):
            self._stages.fail(told)
        else:
            self._end(told)

    # -- time ------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            now = time.monotonic()
            if self._greeter is not None:
                self._greeter.tick()
                if now - self._hello_at >= HELLO_EVERY_S:
                    self._hello_at = now
                    self._greeter.say_again(Lane.CONTROL)
            if self._stages is not None:
                self._stages.tick(now)
            self._leaving.tick(now)
            self._judge_head(self._awake_s())
            await asyncio.sleep(TICK_S)

    def _judge_head(self, awake_s: float) -> None:
        if self._head_liveness.away_s(awake_s) > HEAD_GRACE_FACTOR * self._head_liveness.grace_s:
            self._end(LinkDown(f"the head at {self._head_endpoint} has closed the connection"))
        elif (silent_s := awake_s - self._heard_at) > HEAD_SILENCE_S:
            self._end(LinkDown(f"the head at {self._head_endpoint} has been silent for {silent_s:.1f} s"))

    def _look(self, now: float) -> None:
        if self._stages is not None:
            self._stages.look(now)

    def _awake_s(self) -> float:
        return self._pulse.clock.awake_s(time.monotonic())


def _offer(config: WorkerConfig, head: str) -> int:
    """The memory that it offers, of a worker that has the model of its own that it was told of.

    Raises:
        ConfigError, ModelUnsupported: it has not. If it joined, its swarm would end with it once it cannot load.
    """
    log.info("reached the head at %s; starting torch, to see what this machine has", head)
    if config.model is not None and not is_standin(config.model):
        from bloombee.engine.checkpoint import resolve

        resolve(config.model)
    return _offered_bytes(config.device, config.log_memory_bytes) if config.memory_bytes is None else config.memory_bytes


def _offered_bytes(device: str, log_bytes: int | None = None) -> int:
    """What this worker can hold of a model. Imports torch, which knows the device."""
    from bloombee.engine.memory import offered_bytes
    from bloombee.engine.model import pick_device

    return offered_bytes(pick_device(device), log_bytes=log_bytes)


def _curve(token: JoinToken) -> bool:
    """A head without encryption says so with a key of zeros."""
    return token.key != bytes(32)


def _own_endpoint(bound: Address, head: Address) -> str:
    """Where others dial a worker that listens on ``bound`` and has reached the head at ``head``.

    Of a wildcard that is the address from which this machine reaches the head; if the head is on this machine, or behind a
    tunnel that ends here, the one from which it reaches the world.

    Raises:
        ConfigError: the worker does not listen on that address' family.
    """
    if not bound.is_wildcard:
        if bound.is_loopback and not head.is_loopback:
            log.warning("%s can be dialled on this machine only; --listen 'tcp://*:PORT' lets other workers in", bound)
        return str(bound)
    if head.is_loopback:
        return str(reachable_at(bound, own_addresses())[0])
    own = own_address_towards(head)
    if own is None or head.family not in bound.families:
        raise ConfigError(
            f"listening on {bound}, which has no IPv{head.family}, but the head is reached over it; listen on tcp://*:PORT,"
            " which has both, or say with --advertise how other workers dial this one",
            field="advertise",
        )
    return str(bound.at(own))
