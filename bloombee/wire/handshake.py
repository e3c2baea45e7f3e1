"""How a link opens: pure state machines, events in, commands out.

Theory of operation. A link is dialled by one side, on two lanes. On each lane the dialler says Hello
until it hears Welcome or Refused, because the listener may not yet know the key (its Hello is then
lost) and because a wrong key is silence: only a deadline tells. The listener answers every Hello, however
often it comes, and says nothing of its own before the first. Both have the link open when both lanes
have been greeted::

    Dialler   IDLE --Started--> GREETING --Welcome on every lane--> OPEN --Again--> OPEN
                                    |---Refused, other version, deadline--> FAILED
    Listener  GREETING --Hello on every lane--> OPEN
                  |---other version, swarm or worker, anything before Hello--> FAILED

An open link's dialler says Hello again (``Again``) when a lane's connection was replaced, so that the listener hears of it and
answers on it, and now and then, so that both know that the other is there and how long the way is.

Before a worker may greet the head it joins: ``wire/join.py``.

An event that a state does not expect leaves the state as it was. Time arrives in events, in
nanoseconds of the side's own monotonic clock.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from msgspec.structs import replace

from bloombee.errors import (
    BloomBeeError,
    DeadlineExceeded,
    ProtocolError,
    RemoteProtocolError,
    VersionMismatch,
    from_wire,
    to_wire,
)
from bloombee.types import Lane, WorkerId
from bloombee.wire.messages import PROTOCOL_VERSION, AnyMessage, Hello, Refused, Welcome

LANES = (Lane.CONTROL, Lane.BULK)

# -- events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    now_ns: int


@dataclass(frozen=True, slots=True)
class Received:
    lane: Lane
    message: AnyMessage
    now_ns: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; due at the machine's ``next_tick_ns``, harmless at any other time."""

    now_ns: int


@dataclass(frozen=True, slots=True)
class Again:
    """Say Hello on ``lane`` of an open link once more."""

    lane: Lane
    now_ns: int


Event = Started | Received | Tick | Again

# -- commands ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Say:
    lane: Lane
    message: AnyMessage


@dataclass(frozen=True, slots=True)
class Opened:
    """The link may be used. ``codecs``: what both sides have, in this side's order."""

    codecs: tuple[int, ...]
    clock: ClockEstimate | None
    """None on the listener: only the dialler has all four stamps."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A Hello that was said again has been answered."""

    clock: ClockEstimate


@dataclass(frozen=True, slots=True)
class Failed:
    """Give the link up; ``error`` says why and what to do."""

    error: BloomBeeError


Command = Say | Opened | Timed | Failed


class State(enum.Enum):
    IDLE = "idle"
    GREETING = "greeting"
    OPEN = "open"
    FAILED = "failed"


# -- the clock ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClockEstimate:
    """``peer's clock = own clock + offset_ns``, right to ``+- error_ns``."""

    offset_ns: int
    round_trip_ns: int

    @property
    def error_ns(self) -> int:
        return (self.round_trip_ns + 1) // 2


def estimate_clock(hello_sent_ns: int, received_ns: int, sent_ns: int, welcome_received_ns: int) -> ClockEstimate:
    """Clock offset and round trip from the four stamps of Hello and Welcome.

    Args:
        hello_sent_ns, welcome_received_ns: by the dialler's clock.
        received_ns, sent_ns: by the listener's clock.

    Raises:
        RemoteProtocolError: the stamps say that the answer took longer than the round trip, or that time ran backwards.

    Source: RFC 5905 section 8 (offset and delay); the error is at most half the round trip.
    """
    round_trip = (welcome_received_ns - hello_sent_ns) - (sent_ns - received_ns)
    if sent_ns < received_ns or round_trip < 0:
        raise RemoteProtocolError(
            f"Welcome.sent_ns = {sent_ns}: must be within the round trip that began with Hello", path="Welcome.sent_ns"
        )
    return ClockEstimate(((received_ns - hello_sent_ns) + (sent_ns - welcome_received_ns)) // 2, round_trip)


# -- the link ----------------------------------------------------------------------------------


def check_protocol(theirs: int, path: str) -> None:
    """Raises VersionMismatch unless ``theirs`` is our protocol version."""
    if theirs != PROTOCOL_VERSION:
        raise VersionMismatch(
            f"the peer speaks protocol {theirs}, this side {PROTOCOL_VERSION}: run the same release on both",
            theirs=theirs,
            ours=PROTOCOL_VERSION,
            path=path,
        )


class Dialler:
    """The side that dialled.

    Args:
        hello: what to say; ``sent_ns`` is filled in each time.
        peer: whom to name in errors.
        retry_ns: how long to wait for Welcome before Hello is repeated.
        deadline_ns: from Started until the link has failed.
    """

    def __init__(self, hello: Hello, *, peer: str, retry_ns: int = 250_000_000, deadline_ns: int = 10_000_000_000) -> None:
        self.state = State.IDLE
        self.next_tick_ns: int | None = None
        self._hello = hello
        self._peer = peer
        self._retry_ns = retry_ns
        self._deadline_ns = deadline_ns
        self._give_up_ns = 0
        self._waiting: set[Lane] = set()
        self._best: ClockEstimate | None = None

    def handle(self, event: Event) -> list[Command]:
        if isinstance(event, Started):
            return self._start(event.now_ns) if self.state is State.IDLE else []
        if self.state is State.OPEN:
            return self._when_open(event)
        if self.state is not State.GREETING or isinstance(event, Again):
            return []
        if isinstance(event, Tick):
            return self._tick(event.now_ns)
        try:
            return self._receive(event)
        except ProtocolError as error:
            return self._fail(error)

    def _start(self, now_ns: int) -> list[Command]:
        self.state = State.GREETING
        self._give_up_ns = now_ns + self._deadline_ns
        self._waiting = set(LANES)
        return self._greet(now_ns)

    def _greet(self, now_ns: int) -> list[Command]:
        self.next_tick_ns = min(now_ns + self._retry_ns, self._give_up_ns)
        return [self._say_hello(lane, now_ns) for lane in LANES if lane in self._waiting]

    def _say_hello(self, lane: Lane, now_ns: int) -> Say:
        return Say(lane, replace(self._hello, sent_ns=now_ns))

    def _when_open(self, event: Event) -> list[Command]:
        """What an answer does not fit is not believed: one that was lost with its connection may come with the next."""
        if isinstance(event, Again):
            return [self._say_hello(event.lane, event.now_ns)]
        if not isinstance(event, Received) or not isinstance(event.message, Welcome):
            return []
        welcome = event.message
        try:
            return [Timed(estimate_clock(welcome.hello_sent_ns, welcome.received_ns, welcome.sent_ns, event.now_ns))]
        except RemoteProtocolError:
            return []

    def _tick(self, now_ns: int) -> list[Command]:
        assert self.next_tick_ns is not None
        if now_ns < self.next_tick_ns:
            return []
        if now_ns < self._give_up_ns:
            return self._greet(now_ns)
        lanes = ", ".join(lane.name.lower() for lane in sorted(self._waiting))
        return self._fail(
            DeadlineExceeded(
                f"{self._peer} did not answer on its {lanes} lane for {self._deadline_ns / 1e9:g} s: is it running, "
                "is the address right, does a firewall drop the port, is the key its own?",
                peer=self._peer,
                waited_s=self._deadline_ns / 1e9,
            )
        )

    def _receive(self, event: Received) -> list[Command]:
        message = event.message
        if isinstance(message, Refused):
            return self._fail(from_wire(message.code, message.fields))
        if not isinstance(message, Welcome) or event.lane not in self._waiting:
            return []
        check_protocol(message.protocol, "Welcome.protocol")
        clock = estimate_clock(message.hello_sent_ns, message.received_ns, message.sent_ns, event.now_ns)
        if self._best is None or clock.round_trip_ns < self._best.round_trip_ns:
            self._best = clock
        self._waiting.discard(event.lane)
        if self._waiting:
            return []
        self.state = State.OPEN
        self.next_tick_ns = None
        return [Opened(_common(self._hello.codecs, message.codecs), self._best)]

    def _fail(self, error: BloomBeeError) -> list[Command]:
        self.state = State.FAILED
        self.next_tick_ns = None
        return [Failed(error)]


class Listener:
    """The side that was dialled. It has no timer: who dials and stays silent is the transport's business.

    Args:
        worker: who must be at the other end (the head told us, with its key).
    """

    def __init__(self, *, swarm: int, worker: WorkerId, codecs: tuple[int, ...]) -> None:
        self.state = State.GREETING
        self._swarm = swarm
        self._worker = worker
        self._codecs = codecs
        self._waiting = set(LANES)

    def handle(self, event: Event) -> list[Command]:
        if not isinstance(event, Received) or self.state is State.FAILED:
            return []
        message, lane = event.message, event.lane
        try:
            if isinstance(message, Hello):
                return self._greeted(lane, message, event.now_ns)
            if lane in self._waiting:
                raise RemoteProtocolError(
                    f"{type(message).__name__} before Hello on the {lane.name.lower()} lane", path="message.tag"
                )
        except ProtocolError as error:
            self.state = State.FAILED
            return [Say(lane, Refused(*to_wire(error))), Failed(error)]
        return []

    def _greeted(self, lane: Lane, hello: Hello, now_ns: int) -> list[Command]:
        check_protocol(hello.protocol, "Hello.protocol")
        if hello.swarm != self._swarm:
            raise RemoteProtocolError("Hello.swarm: another swarm; this address belongs to someone else now", path="Hello.swarm")
        if hello.worker != self._worker:
            raise RemoteProtocolError(
                f"Hello.worker = {hello.worker}: this link was made for worker {self._worker}", path="Hello.worker"
            )
        welcome = Welcome(
            protocol=PROTOCOL_VERSION, codecs=self._codecs, hello_sent_ns=hello.sent_ns, received_ns=now_ns, sent_ns=now_ns
        )
        self._waiting.discard(lane)
        commands: list[Command] = [Say(lane, welcome)]
        if not self._waiting and self.state is State.GREETING:
            self.state = State.OPEN
            commands.append(Opened(_common(self._codecs, hello.codecs), None))
        return commands


def _common(ours: tuple[int, ...], theirs: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(codec for codec in ours if codec in theirs)
