"""Who is in the swarm, as the head's process sees it: the door, each worker's link, and whether it is there."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bloombee.errors import BloomBeeError, LinkDown, LocalProtocolError, ProtocolError, from_wire, to_wire
from bloombee.links.gauge import link_report
from bloombee.roles.greeting import Greeter
from bloombee.roles.neighbours import CODECS
from bloombee.roles.pulse import Pulse
from bloombee.roles.watching import LOADING_SILENCE_S, look
from bloombee.transport.endpoint import Endpoint
from bloombee.transport.link_events import LinkEvent, LinkEventKind
from bloombee.types import Lane, WorkerId
from bloombee.wire.handshake import Listener
from bloombee.wire.join import Admitted, Door
from bloombee.wire.liveness import LinkWatch, LoopClock
from bloombee.wire.messages import AnyMessage, Goodbye, Heartbeat, Hello, Join, LinkReport, MeasureLink, Refused

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Member:
    """A worker that was let in; it is in the swarm once its link is greeted.

    Args:
        joined_at: when it was told that it may come in.
    """

    worker: WorkerId
    name: str
    key: bytes
    link: bytes
    joined_at: float
    watch: LinkWatch
    greeter: Greeter | None = None


class Members:
    """Belongs to one event loop.

    Args:
        on_in: a worker has been let in and greeted.
        on_away: its connection broke; it may come back.
        on_gone: it must be taken for gone, and why; the owner hangs up.
        on_restored: its connections broke and are back: what was under way on them may be lost.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        door: Door,
        *,
        on_in: Callable[[Admitted], None],
        on_away: Callable[[WorkerId], None],
        on_gone: Callable[[WorkerId, str], None],
        on_restored: Callable[[WorkerId], None],
    ) -> None:
        self._endpoint = endpoint
        self._door = door
        self._pulse = Pulse(self.look)
        self._may_be_silent: Callable[[WorkerId], bool] = lambda _: False
        self._on_in = on_in
        self._on_away = on_away
        self._on_gone = on_gone
        self._on_restored = on_restored
        self._of: dict[WorkerId, Member] = {}
        self._by_link: dict[bytes, Member] = {}

    def __iter__(self) -> Iterator[WorkerId]:
        return iter(list(self._of))

    def __contains__(self, worker: WorkerId) -> bool:
        return worker in self._of

    def link(self, worker: WorkerId) -> bytes | None:
        """None for one that is not in."""
        member = self._of.get(worker)
        return member.link if member is not None else None

    def name(self, worker: WorkerId) -> str:
        return self._of[worker].name

    def silent_s(self, worker: WorkerId) -> float:
        """Since its last word; 0 of one that is not in."""
        member = self._of.get(worker)
        return 0.0 if member is None else member.watch.silent_s(time.monotonic())

    def rtt_s(self, worker: WorkerId) -> float | None:
        """Of the link to a worker, the least of late; None: none was measured, or it is not in."""
        member = self._of.get(worker)
        return None if member is None else member.watch.liveness.rtt_s

    @property
    def keys(self) -> dict[WorkerId, bytes]:
        """Of those that are in."""
        return {worker: member.key for worker, member in self._of.items()}

    def named(self, name: str) -> WorkerId | None:
        """Whoever calls itself so."""
        return next((member.worker for member in self._of.values() if member.name == name), None)

    # -- coming in -------------------------------------------------------------------------

    def knocked(self, link: bytes, key: bytes, join: Join) -> None:
        """Somebody said Join: let in, refused, or left to ask again."""
        in_doubt = {worker for worker, member in self._of.items() if not member.watch.liveness.is_whole}
        answer = self._door.knock(key, link, join, in_doubt=in_doubt)
        if isinstance(answer, Refused):
            self._endpoint.refuse(link, from_wire(answer.code, answer.fields))
        elif answer is not None:
            if answer.worker not in self._of:
                self._let_in(link, answer)
            self._endpoint.send(link, Lane.CONTROL, answer.joined)

    def _let_in(self, link: bytes, answer: Admitted) -> None:
        self._endpoint.allow(link, answer.key, answer.worker)
        now = time.monotonic()
        member = Member(answer.worker, answer.join.name, answer.key, link, now, self._new_watch(now))
        self._of[answer.worker] = self._by_link[link] = member
        member.greeter = Greeter(
            self._endpoint,
            link,
            Listener(swarm=self._endpoint.swarm, worker=answer.worker, codecs=CODECS),
            on_open=lambda _: self._on_in(answer),
            on_error=lambda error: self._on_gone(answer.worker, str(error)),
        )

    def _new_watch(self, now: float) -> LinkWatch:
        return LinkWatch(self.clock, heartbeat_s=self._door.heartbeat_s, silence_s=self._door.silence_s, now=now)

    def shut(self) -> None:
        """Nobody new comes in any more."""
        self._door.is_shut = True

    def dismiss(self, worker: WorkerId, error: BloomBeeError | None) -> None:
        """Forget a worker, and tell it to end; not if it could only not be reached: should it live, it may come back."""
        if not isinstance(error, LinkDown):
            self.send(worker, Lane.CONTROL, Goodbye(reason="as it wished" if error is None else "dismissed"))
        self.hang_up(worker)

    def hang_up(self, worker: WorkerId) -> None:
        """Forget a worker; its token lets another in. One that is not in changes nothing."""
        member = self._of.pop(worker, None)
        if member is not None:
            del self._by_link[member.link]
            self._endpoint.forbid(member.link)
            self._door.remove(member.key)

    # -- messages --------------------------------------------------------------------------

    def send(self, worker: WorkerId, lane: Lane, message: AnyMessage) -> int:
        """Its bytes; 0 if the worker is not in."""
        member = self._of.get(worker)
        if member is None:
            return 0
        return self._endpoint.send(member.link, lane, message)

    def measure(self, order: MeasureLink, done: Callable[[LinkReport], None]) -> None:
        """The head's own link to the order's target; of one that is not in nothing is known, and ``done`` is not called."""
        link = self.link(order.target)
        if link is None:
            return

        def report() -> None:
            with contextlib.suppress(LinkDown):  # it may be gone meanwhile
                done(link_report(order, self._endpoint.estimator(link).facts()))

        self._endpoint.measure(link, fills=order.fills, done=report)

    def wrong(self, link: bytes, error: BloomBeeError) -> None:
        """A message must not be: who says it is told so and is in no longer, unless it only came too late."""
        if isinstance(error, ProtocolError) and not isinstance(error, LocalProtocolError):
            log.warning("a worker breaks the protocol, and its link is dropped: %s", error)
            self._endpoint.expel(link, error)
            return
        with contextlib.suppress(LinkDown):  # it may have been dropped meanwhile
            self._endpoint.send(link, Lane.CONTROL, Refused(*to_wire(error)))

    def hears(self, link: bytes, lane: Lane, message: AnyMessage) -> WorkerId | None:
        """Who said it; None: a stranger did, or it was about the link itself and needs no more."""
        member = self._by_link.get(link)
        if member is None or member.greeter is None:
            return None
        now = time.monotonic()
        member.watch.heard(now)
        if isinstance(message, Hello) or not member.greeter.is_open:
            if lane is Lane.CONTROL and not member.greeter.is_open:
                member.watch.liveness.timed(now - member.joined_at)  # at most: it has said Hello since it was told
            member.greeter.received(lane, message)
            return None
        if isinstance(message, Heartbeat):
            member.watch.answered(message.count, now)
            return None
        return member.worker

    def link_event(self, event: LinkEvent) -> None:
        member = self._by_link.get(event.link) if event.link else None
        if member is None:
            if event.error is not None:
                log.debug("%s: %s", event.kind, event.error)
        elif event.kind is LinkEventKind.REFUSED:
            self._on_gone(member.worker, f"it broke the protocol: {event.error}")
        elif event.kind is not LinkEventKind.CONNECTED:
            if event.lane is not None:
                member.watch.broke(event.lane, time.monotonic())
                self._on_away(member.worker)
        elif event.lane is not None and member.watch.back(event.lane, time.monotonic()):
            self._on_restored(member.worker)

    @property
    def clock(self) -> LoopClock:
        """Of the time that this process was awake."""
        return self._pulse.clock

    def watch(self, may_be_silent: Callable[[WorkerId], bool]) -> None:
        """Look at everybody from now on; ``may_be_silent``: whether a worker may hold its interpreter's lock."""
        self._may_be_silent = may_be_silent
        self._pulse.start()

    def close(self, reason: str) -> None:
        """Say goodbye to everybody, and look at nobody any more."""
        self._pulse.stop()
        for worker in self._of:
            self.send(worker, Lane.CONTROL, Goodbye(reason=reason))

    def look(self, now: float) -> None:
        """Ask whoever is due, and judge; to be called often."""
        for member in list(self._of.values()):
            is_greeted = member.greeter is not None and member.greeter.is_open
            if not is_greeted:
                member.watch.heard(now)
            if member.worker in self._of:  # else one looked at before has taken it along
                patience_s = LOADING_SILENCE_S if self._may_be_silent(member.worker) else 0.0
                why = look(self._endpoint, member.link, member.watch, now, asks=is_greeted, patience_s=patience_s)
                if why is not None:
                    self._on_gone(member.worker, why)
