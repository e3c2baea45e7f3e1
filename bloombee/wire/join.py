"""How a worker joins: pure, events in, commands out.

The worker says Join (with the secret of its token) on the control lane until it hears Joined or Refused
(:class:`Joiner`); the head decides at its :class:`Door`. Join is the only message that a head reads from
a key it does not know. Then the worker greets the head as any link is greeted (``wire/handshake.py``).
"""

from __future__ import annotations

import hmac
from collections.abc import Container
from dataclasses import dataclass, field

from bloombee.errors import AuthenticationError, BloomBeeError, DeadlineExceeded, ProtocolError, from_wire, to_wire
from bloombee.types import Lane, WorkerId
from bloombee.wire.handshake import Command, Event, Failed, Received, Say, Started, State, check_protocol
from bloombee.wire.messages import AnyMessage, Join, Joined, Refused


@dataclass(slots=True)
class _Secret:
    value: bytes
    uses_left: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """``join`` is let in as ``worker``; ``again``: it asked before, on the same link, and gets the same number."""

    key: bytes
    worker: WorkerId
    join: Join
    joined: Joined
    again: bool


@dataclass(frozen=True, slots=True)
class _Guest:
    worker: WorkerId
    name: str
    link: bytes
    secret: _Secret = field(repr=False)


@dataclass(slots=True)
class Door:
    """The head's side of Join: who comes in and under which number.

    A Join repeated on the link that is in (its answer was lost) is answered as before and costs no use of the secret. On another
    link it is another worker with the same key, and is refused while the one inside is there. Whoever is not let in changes
    nothing but ``num_refused``.

    Args:
        swarm, heartbeat_s, silence_s, returns: for :class:`~bloombee.wire.messages.Joined`.
        max_workers: how many keys may be in at once.
    """

    swarm: int
    heartbeat_s: float
    silence_s: float
    max_workers: int = 4096
    returns: bool = False
    is_shut: bool = False
    """Nobody new comes in, whatever he knows."""
    num_refused: int = 0
    _secrets: list[_Secret] = field(default_factory=list, repr=False)
    _inside: dict[bytes, _Guest] = field(default_factory=dict)
    _next_worker: WorkerId = 1

    def issue(self, secret: bytes, *, uses: int = 1) -> None:
        """Let ``uses`` workers in that know ``secret`` (16 to 64 random bytes)."""
        if not 16 <= len(secret) <= 64:
            raise ValueError(f"a secret of {len(secret)} bytes: must be 16 to 64")
        self._secrets.append(_Secret(secret, uses))

    def knock(
        self, key: bytes, link: bytes, message: AnyMessage, *, in_doubt: Container[WorkerId] = ()
    ) -> Admitted | Refused | None:
        """Decide about the first message of ``key`` on ``link``. The answer goes back on the lane the message came on.

        Args:
            in_doubt: workers whose connection is broken: whoever asks for a place of theirs may be the same one, come back.

        Returns:
            None: not to be decided yet; no answer, it will ask again.
        """
        try:
            return self._admit(key, link, message, in_doubt)
        except ProtocolError as error:
            self.num_refused += 1
            return Refused(*to_wire(error))

    def remove(self, key: bytes) -> None:
        """A worker is gone: its secret lets one more in. An unknown key changes nothing."""
        guest = self._inside.pop(key, None)
        if guest is not None:
            guest.secret.uses_left += 1

    def _admit(self, key: bytes, link: bytes, message: AnyMessage, in_doubt: Container[WorkerId]) -> Admitted | None:
        if not isinstance(message, Join):
            raise AuthenticationError(
                f"{type(message).__name__} from a key that has not joined: say Join first", path="message.tag"
            )
        check_protocol(message.protocol, "Join.protocol")
        secret = self._find(message.secret)
        if secret is None:
            raise AuthenticationError("the join token's secret is wrong: ask the head for its current token")
        guest = self._inside.get(key)
        again = guest is not None and guest.link == link
        if guest is None or not again:
            if self._must_wait(guest, secret, in_doubt):
                return None
            guest = self._let_in(key, link, message, guest, secret)
        joined = Joined(guest.worker, self.swarm, self.heartbeat_s, self.silence_s, self.returns)
        return Admitted(key, guest.worker, message, joined, again)

    def _must_wait(self, guest: _Guest | None, secret: _Secret, in_doubt: Container[WorkerId]) -> bool:
        """Whether the place that is asked for is that of a worker in doubt."""
        if guest is not None:
            return guest.worker in in_doubt
        return secret.uses_left < 1 and any(one.secret is secret and one.worker in in_doubt for one in self._inside.values())

    def _let_in(self, key: bytes, link: bytes, join: Join, guest: _Guest | None, secret: _Secret) -> _Guest:
        if guest is not None:
            raise AuthenticationError(
                f"this key is in use by worker {guest.name!r}: give each worker a key of its own", worker=guest.name
            )
        if secret.uses_left < 1:
            raise AuthenticationError("the join token is spent: it lets in one worker; ask the head for a new one")
        if self.is_shut:
            raise AuthenticationError("the swarm is complete or has ended: ask for the token of its next start")
        if len(self._inside) >= self.max_workers:
            raise AuthenticationError(f"the swarm has its {self.max_workers} workers", max_workers=self.max_workers)
        secret.uses_left -= 1
        guest = self._inside[key] = _Guest(self._next_worker, join.name, link, secret)
        self._next_worker += 1
        return guest

    def _find(self, value: bytes) -> _Secret | None:
        """Every known secret is compared, each in constant time: the time says nothing about which was close."""
        found: _Secret | None = None
        for secret in self._secrets:
            if hmac.compare_digest(secret.value, value) and (found is None or found.uses_left < 1):
                found = secret
        return found


class Joiner:
    """The worker's side of Join, on the control lane: say it until there is an answer."""

    def __init__(self, join: Join, *, peer: str, retry_ns: int = 500_000_000, deadline_ns: int = 10_000_000_000) -> None:
        self.state = State.IDLE
        self.next_tick_ns: int | None = None
        self.joined: Joined | None = None
        self._join = join
        self._peer = peer
        self._retry_ns = retry_ns
        self._deadline_ns = deadline_ns
        self._give_up_ns = 0

    def handle(self, event: Event) -> list[Command]:
        """Say(Join) ..., then Failed, or nothing with :attr:`joined` set and the state OPEN."""
        if isinstance(event, Started):
            if self.state is not State.IDLE:
                return []
            self.state = State.GREETING
            self._give_up_ns = event.now_ns + self._deadline_ns
            return self._knock(event.now_ns)
        if self.state is not State.GREETING:
            return []
        if isinstance(event, Received):
            if isinstance(event.message, Joined):
                self.state, self.joined, self.next_tick_ns = State.OPEN, event.message, None
            elif isinstance(event.message, Refused):
                return self._fail(from_wire(event.message.code, event.message.fields))
            return []
        if self.next_tick_ns is None or event.now_ns < self.next_tick_ns:
            return []
        if event.now_ns < self._give_up_ns:
            return self._knock(event.now_ns)
        return self._fail(
            DeadlineExceeded(
                f"the head at {self._peer} did not answer for {self._deadline_ns / 1e9:g} s: is it running, is the address "
                "reachable from here, is the token the one it printed?",
                peer=self._peer,
                waited_s=self._deadline_ns / 1e9,
            )
        )

    def _knock(self, now_ns: int) -> list[Command]:
        self.next_tick_ns = min(now_ns + self._retry_ns, self._give_up_ns)
        return [Say(Lane.CONTROL, self._join)]

    def _fail(self, error: BloomBeeError) -> list[Command]:
        self.state, self.next_tick_ns = State.FAILED, None
        return [Failed(error)]
