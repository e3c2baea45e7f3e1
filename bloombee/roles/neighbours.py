"""A worker's links to other workers: greeted once, watched by who dialled, kept while somebody here needs them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from bloombee.codec import api
from bloombee.errors import BloomBeeError, ConfigError, LinkDown, LocalProtocolError, RemoteProtocolError, StalePlan
from bloombee.roles.greeting import Greeter
from bloombee.roles.watching import LOADING_SILENCE_S, look
from bloombee.transport.endpoint import Endpoint
from bloombee.transport.link_events import LinkEvent, LinkEventKind
from bloombee.types import VERSION, Lane, WorkerId
from bloombee.wire.handshake import ClockEstimate, Dialler, Listener
from bloombee.wire.liveness import LinkWatch, LoopClock
from bloombee.wire.messages import PROTOCOL_VERSION, AnyMessage, Heartbeat, Hello, Peer, Refused, Welcome

log = logging.getLogger(__name__)
CODECS = (0, api.CODEC_ID)
GREETINGS = (Hello, Welcome, Refused)
MOST_DAMAGED = 8
"""Frames in a row that a way may damage."""


@dataclass(slots=True)
class Neighbour:
    """A link to another worker; which of the two feeds the other is an epoch's affair."""

    peer: Peer
    watch: LinkWatch
    greeter: Greeter | None = None
    clock: ClockEstimate | None = None
    serves: bool = False
    """It has said something of the ring, so it has loaded."""
    is_lost: bool = False
    """The head has been told so; its link may be gone."""
    num_delivered: int = 0
    """Pieces of bulk that have come to it so far."""
    num_damaged: int = 0
    """Frames in a row that came from it with a wrong checksum."""
    refused: str = ""
    """What it said last of a message that it refused."""

    @property
    def is_open(self) -> bool:
        return self.greeter is not None and self.greeter.is_open

    @property
    def lacks_codec(self) -> bool:
        return self.greeter is not None and api.CODEC_ID not in self.greeter.codecs

    def damaged(self) -> None:
        """A frame came from it with another checksum than it left with.

        Raises:
            RemoteProtocolError: one after the other: that is no fault of the way.
        """
        self.num_damaged += 1
        log.warning("a frame from worker %d came damaged (checksum): it is asked for again", self.peer.worker)
        if self.num_damaged > MOST_DAMAGED:
            raise RemoteProtocolError(f"{self.num_damaged} damaged frames in a row", path="tensors[0].checksum")


class User(Protocol):
    """A span that is served over such links, or who has them for another reason."""

    @property
    def links(self) -> Collection[bytes]:
        """Those that it needs."""

    def opened(self, neighbour: Neighbour) -> None:
        """Greeted."""

    def complain(self, error: BloomBeeError) -> None:
        """A neighbour is not what it should be, or not there any more; said to those who need it."""

    def restored(self, link: bytes) -> None:
        """Both connections of a link stand again."""

    def moved(self, now: float) -> None:
        """Pieces of a frame have come on over a link."""


class Neighbours:
    """Of one worker.

    Args:
        swarm, worker: who this worker is.
        clock: of its process.
        heartbeat_s, silence_s: how often one that was dialled is asked whether it is there, and how long it may say nothing.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        swarm: int,
        worker: WorkerId,
        clock: LoopClock,
        heartbeat_s: float,
        silence_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint = endpoint
        self._swarm = swarm
        self._worker = worker
        self._new_watch = partial(LinkWatch, clock, heartbeat_s=heartbeat_s, silence_s=silence_s)
        self._now = now
        self._by_link: dict[bytes, Neighbour] = {}
        self.users: list[User] = []

    def __contains__(self, link: bytes) -> bool:
        return link in self._by_link

    def get(self, link: bytes) -> Neighbour | None:
        return self._by_link.get(link)

    def _users_of(self, link: bytes) -> Iterator[User]:
        return (user for user in list(self.users) if link in user.links)

    # -- coming and going ------------------------------------------------------------------

    def meet(self, peer: Peer) -> Neighbour:
        """Greet another worker, unless that link is here already; whoever needs it says so among its links.

        Raises:
            LinkDown: its address is none; says whose.
            RemoteProtocolError: that link is another's, or leads to this worker.
        """
        known = self._by_link.get(peer.link)
        if peer.worker == self._worker or (known is not None and (known.peer.worker, known.peer.key) != (peer.worker, peer.key)):
            raise RemoteProtocolError(f"a link to worker {peer.worker} that is another's", path="Peer.link")
        if known is not None:
            return known
        try:
            machine = self._dial(peer) if peer.dials else self._await(peer)
        except LocalProtocolError as error:  # the head's own, say
            raise RemoteProtocolError(error.message, path="Peer.link") from None
        return self._greet(peer, machine)

    def _dial(self, peer: Peer) -> Dialler:
        try:
            self._endpoint.dial(peer.link, peer.endpoint, peer.key)
        except ConfigError as error:
            raise _fault_of(peer, error.message) from None
        hello = Hello(
            protocol=PROTOCOL_VERSION, swarm=self._swarm, worker=self._worker, software=VERSION, codecs=CODECS, sent_ns=0
        )
        return Dialler(hello, peer=f"worker {peer.worker} at {peer.endpoint}")

    def _await(self, peer: Peer) -> Listener:
        self._endpoint.allow(peer.link, peer.key, peer.worker)
        return Listener(swarm=self._swarm, worker=peer.worker, codecs=CODECS)

    def leave(self) -> None:
        """Those that nobody needs any more."""
        needed = {link for user in self.users for link in user.links}
        for link in [link for link in self._by_link if link not in needed]:
            neighbour = self._by_link.pop(link)
            self._endpoint.hang_up(link) if neighbour.peer.dials else self._endpoint.forbid(link)

    def _greet(self, peer: Peer, machine: Dialler | Listener) -> Neighbour:
        neighbour = self._by_link[peer.link] = Neighbour(peer, self._new_watch(now=self._now()))

        def timed(clock: ClockEstimate) -> None:
            neighbour.watch.liveness.timed(clock.round_trip_ns / 1e9)

        def opened(clock: ClockEstimate | None) -> None:
            neighbour.clock = clock
            neighbour.watch.heard(self._now())
            if clock is not None:
                timed(clock)
            # The greeter itself is not in the table yet if it opens at once.
            asyncio.get_running_loop().call_soon(self._opened, neighbour)

        def failed(error: BloomBeeError) -> None:
            self._lost(neighbour, error.message)

        neighbour.greeter = Greeter(self._endpoint, peer.link, machine, on_open=opened, on_error=failed, on_timed=timed)
        return neighbour

    def _opened(self, neighbour: Neighbour) -> None:
        for user in self._users_of(neighbour.peer.link):
            user.opened(neighbour)

    def _lost(self, neighbour: Neighbour, why: str) -> None:
        """Said once: the head gives another in its place, or none."""
        if neighbour.is_lost:
            return
        neighbour.is_lost = True
        for user in self._users_of(neighbour.peer.link):
            user.complain(_fault_of(neighbour.peer, why))

    # -- what comes ------------------------------------------------------------------------

    def event(self, link: bytes, event: LinkEvent) -> None:
        """Of a neighbour's connection."""
        neighbour = self._by_link[link]
        greeter = neighbour.greeter
        if event.kind is LinkEventKind.REFUSED:
            self._lost(neighbour, f"it broke the protocol: {event.error}")
        elif event.lane is None or greeter is None or not greeter.is_open:
            return
        elif event.kind is LinkEventKind.CONNECTED:
            greeter.say_again(event.lane)
            if neighbour.watch.back(event.lane, self._now()):
                for user in self._users_of(link):
                    user.restored(link)
        elif event.kind is LinkEventKind.PORT_REFUSES:
            self._lost(neighbour, "nobody listens there any more: it has ended")
        else:
            neighbour.watch.broke(event.lane, self._now())

    def heard(self, link: bytes) -> None:
        """Something came over a link."""
        neighbour = self._by_link.get(link)
        if neighbour is not None:
            neighbour.watch.heard(self._now())

    def serves(self, link: bytes) -> None:
        """Something of the ring came over it."""
        self._by_link[link].serves = True

    def beat(self, link: bytes, beat: Heartbeat) -> None:
        """A question of who dialled, or the answer to one of this side's."""
        neighbour = self._by_link[link]
        if neighbour.peer.dials:
            neighbour.watch.answered(beat.count, self._now())
        else:
            self._endpoint.send(link, Lane.CONTROL, beat)

    def greeted(self, link: bytes, lane: Lane, message: AnyMessage) -> None:
        """A message of a handshake, or a refusal of what was said."""
        neighbour = self._by_link[link]
        assert neighbour.greeter is not None
        if isinstance(message, Refused) and neighbour.is_open:
            said = f"{message.code} {message.fields.get('message', '')}"
            is_news = message.code != StalePlan.__name__ and said != neighbour.refused
            log.log(logging.WARNING if is_news else logging.DEBUG, "worker %d refused a message: %s", neighbour.peer.worker, said)
            neighbour.refused = said
            return
        neighbour.greeter.received(lane, message)

    # -- time ------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        for link, neighbour in list(self._by_link.items()):
            if neighbour.greeter is not None and not neighbour.is_lost:
                neighbour.greeter.tick()
            if not neighbour.is_lost:
                self._look_for_pieces(link, neighbour, now)

    def look(self, now: float) -> None:
        """At those that were dialled from here: ask whose time it is, and judge. To be called often."""
        for link, neighbour in list(self._by_link.items()):
            if neighbour.peer.dials and neighbour.is_open and not neighbour.is_lost:
                patience_s = 0.0 if neighbour.serves else LOADING_SILENCE_S
                why = look(self._endpoint, link, neighbour.watch, now, patience_s=patience_s)
                if why is not None:
                    self._lost(neighbour, why)

    def _look_for_pieces(self, link: bytes, neighbour: Neighbour, now: float) -> None:
        """A frame that crosses a slow wire piece by piece is neither lost nor stuck."""
        delivered = self._endpoint.bulk_window(link).num_delivered
        if delivered > neighbour.num_delivered:
            neighbour.num_delivered = delivered
            for user in self._users_of(link):
                user.moved(now)


def _fault_of(peer: Peer, why: str) -> LinkDown:
    """Whatever is wrong about a neighbour is told as its own fault: that is whom the head replaces."""
    where = f"worker {peer.worker} at {peer.endpoint}" if peer.endpoint else f"worker {peer.worker}"
    return LinkDown(why if why.startswith(where) else f"{where}: {why}", peer=peer.worker, endpoint=peer.endpoint)
