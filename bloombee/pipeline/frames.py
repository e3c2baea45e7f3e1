"""Frames of one lane of a directed link in one epoch: numbering, credit, keeping until acknowledged, resending.

The two ends are pure and symmetric: :class:`FrameSender` on one side, :class:`FrameReceiver` on the other. What an
acknowledgement says is absolute (everything below a number, and a limit), so it may be lost, doubled or
late without harm. Every kept frame is sent again when the receiver has been silent for long, ever less often. One that is known
to be missing - frames after it are held, or a Gap has asked for its rows - is sent again at once, and then once a round trip
until it is held: so it costs no more than that however often it is asked for. The lanes share nothing: a prefill frame that
crosses a slow wire for seconds must not withhold the credit of decode frames that overtake it. Source: docs/wire.md, "Frames,
acknowledgements, credit".
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from msgspec.structs import replace

from bloombee.errors import RemoteProtocolError
from bloombee.pipeline.commands import Send
from bloombee.types import Lane, Phase, SequenceId
from bloombee.wire.messages import Ack, Forward, Verdict

MAX_EXTRA = 256
MAX_RESEND_FACTOR = 4
CREDIT_MICROBATCHES = 16
"""Rows of so many of the largest frames may be with a receiver on one lane: what it has to keep memory for."""
MOST_AGAIN = 4
"""Of the frames that are missing, the first ones, that are sent a third time and more in one round trip."""
ROUND_FORGETS = 0.9
"""By how much the slowest round trip is doubted with each quicker one."""
T = TypeVar("T")


def lane_of(phase: int) -> Lane:
    """The lane that Forwards of ``phase`` take and are numbered on."""
    return Lane.BULK if phase == Phase.PREFILL else Lane.CONTROL


@dataclass(slots=True)
class _Kept:
    send: Send
    sent_at: float
    tries: int = 1


@dataclass(slots=True)
class FrameSender:
    """Sends at most up to the receiver's limit; the rest waits here in order.

    Args:
        limit: frames < limit may be sent before the first acknowledgement arrives; so many may be with the receiver at once.
        resend_after_s: silence of the receiver after which a kept frame is sent again; doubles with every try.
    """

    limit: int
    resend_after_s: float
    max_rows: float = math.inf
    """Of a frame."""
    _next: int = 0
    _upto: int = 0
    _moved_at: float = -math.inf
    """When the receiver last showed that something came."""
    _round_s: float = 0.0
    """How long it took of late from the last time that a frame was sent until it was acknowledged, at most; until one was, how
    long it took until one was refused."""
    _missing: set[int] = field(default_factory=set)
    """Kept frames that did not come, or that were refused, as the receiver has shown."""
    _kept: dict[int, _Kept] = field(default_factory=dict)
    _backlog: deque[tuple[Callable[[int], Send], int]] = field(default_factory=deque)
    """With the rows of each."""
    _with_receiver: deque[tuple[int, int]] = field(default_factory=deque)
    """Number and rows of each frame that the receiver is not known to be done with, in order."""
    _num_rows: int = 0
    """Of those."""
    _window: int = field(init=False)
    """Frames that may be with the receiver."""

    def __post_init__(self) -> None:
        self._window = self.limit

    @property
    def num_backlog(self) -> int:
        """Frames made but not allowed out yet."""
        return len(self._backlog)

    @property
    def num_kept(self) -> int:
        """Frames sent and not acknowledged."""
        return len(self._kept)

    def is_kept(self, number: int) -> bool:
        """Sent and not acknowledged."""
        return number in self._kept

    def can_send(self) -> bool:
        return self._next < self.limit and not self._backlog and not self._is_tight

    @property
    def _is_tight(self) -> bool:
        """A frame might have more rows than there is credit for."""
        return self._num_rows > (CREDIT_MICROBATCHES - 1) * self.max_rows

    def push(self, make: Callable[[int], Send], now: float, *, num_rows: int = 0) -> list[Send]:
        """Number and send a frame if credit allows, else keep it back. ``make`` gets its number."""
        self._backlog.append((make, num_rows))
        return self._drain(now)

    def acknowledge(self, ack: Ack, now: float) -> list[Send]:
        """Forget what the receiver holds, take its limit, send what now may go.

        Raises:
            RemoteProtocolError: it acknowledges a frame that was never sent; nothing changed.
        """
        upto, extra = ack.upto, frozenset(ack.extra) if ack.extra else ()
        if upto > self._next or (extra and max(extra) >= self._next):
            raise RemoteProtocolError(f"frames up to {upto} acknowledged, {self._next} were sent", path="$.upto")
        if ack.limit > self.limit:
            self._take_limit(ack.limit)
        if upto > self._upto:  # else one before those that came is missing
            self._upto = upto
            self._moved_at = now
        # Without credit the newest frame stays: sending it again is how a lost limit is asked for.
        probe = self._next - 1 if self.limit == self._next or self._is_tight else -1
        for number in [n for n in self._kept if (n < upto or n in extra) and n != probe]:
            self._round_s = max(now - self._kept.pop(number).sent_at, ROUND_FORGETS * self._round_s)
        if extra:
            newest = max(extra)
            self._missing.update([n for n in self._kept if n < newest and n not in extra])
        if not self._missing:
            return self._drain(now) if self._backlog else []
        self._missing &= self._kept.keys()
        return [*self._hurry(now), *self._drain(now)]

    def _take_limit(self, limit: int) -> None:
        """What the receiver is done with takes none of its memory any more."""
        self.limit = limit
        held, done = self._with_receiver, limit - self._window
        while held and held[0][0] < done:
            self._num_rows -= held.popleft()[1]

    def _hurry(self, now: float) -> list[Send]:
        """Again what is known to be missing, unless that may be on its way."""
        round_s = self._round_s or self.resend_after_s
        first = heapq.nsmallest(MOST_AGAIN, self._missing)  # whoever lacks one frame refuses those that follow on it

        def is_due(number: int, kept: _Kept) -> bool:
            return number in self._missing and (kept.tries == 1 or (number in first and now - kept.sent_at >= round_s))

        return self.resend(now, is_due)

    def moved(self, now: float) -> None:
        """Some of what was sent has come: a frame that crosses a slow wire is not lost."""
        self._moved_at = now

    def resend(self, now: float, wanted: Callable[[int, _Kept], bool]) -> list[Send]:
        """Again every kept frame that ``wanted`` says, in order."""
        again = [kept for number, kept in self._kept.items() if wanted(number, kept)]
        for kept in again:
            kept.sent_at = now
            kept.tries += 1
        return [kept.send for kept in again]

    def payload(self, number: int) -> object | None:
        """Of a kept frame; None if it is not kept any more."""
        kept = self._kept.get(number)
        return kept.send.payload if kept is not None else None

    def replace(self, number: int, payload: object, now: float) -> list[Send]:
        """The same frame again with another payload, from now on."""
        kept = self._kept.get(number)
        if kept is None:
            return []
        kept.send = Send(kept.send.to, kept.send.lane, kept.send.message, payload)
        kept.sent_at = now
        kept.tries += 1
        return [kept.send]

    def sequences(self, number: int) -> list[SequenceId]:
        """Whose rows or picks are in a kept frame."""
        kept = self._kept.get(number)
        message = kept.send.message if kept is not None else None
        if isinstance(message, Verdict):
            return [pick.sequence for pick in message.picks]
        return [item.sequence for item in message.items] if isinstance(message, Forward) else []

    def blank(self, number: int, now: float) -> list[Send]:
        """The same frame without what made it impossible to send: its microbatch comes home, and says nothing."""
        kept = self._kept.get(number)
        if kept is None:
            return []
        message = kept.send.message
        empty = replace(message, items=()) if isinstance(message, Forward) else replace(message, picks=(), nodes=None)
        kept.send = Send(kept.send.to, kept.send.lane, empty)
        kept.sent_at = now
        return [kept.send]

    def tick(self, now: float) -> list[Send]:
        """Again every kept frame that has been silent too long."""
        if not self._kept:
            return []

        def is_overdue(_: int, kept: _Kept) -> bool:
            times: int = min(MAX_RESEND_FACTOR, 1 << kept.tries - 1)
            return now - max(kept.sent_at, self._moved_at) >= self.resend_after_s * times

        return [*(self._hurry(now) if self._missing else ()), *self.resend(now, is_overdue)]

    def resend_rows(self, sequence: int, have: int, now: float) -> list[Send]:
        """Kept frames with rows of ``sequence`` at positions >= ``have`` are missing, and so are those with nodes of a draft, as
        only their path says where these come to lie."""

        def has_rows(send: Send) -> bool:
            message = send.message
            return isinstance(message, Forward) and any(
                item.sequence == sequence and (item.tree is not None or item.position + item.num_rows > have)
                for item in message.items
            )

        lacking = [number for number, kept in self._kept.items() if has_rows(kept.send)]
        if lacking and not self._round_s:  # nothing was acknowledged yet: being refused took a round trip too
            self._round_s = now - min(self._kept[number].sent_at for number in lacking)
        self._missing.update(lacking)
        return self._hurry(now)

    def _drain(self, now: float) -> list[Send]:
        sends = []
        while self._backlog and self._next < self.limit:
            make, num_rows = self._backlog[0]
            if self._num_rows + num_rows > CREDIT_MICROBATCHES * self.max_rows:
                break
            self._backlog.popleft()
            send = make(self._next)
            self._with_receiver.append((self._next, num_rows))
            self._num_rows += num_rows
            self._kept[self._next] = _Kept(send, now)
            self._next += 1
            sends.append(send)
        return sends


class LinkSender:
    """The sender's end of both lanes of a link, each with credit of its own; see :class:`FrameSender`."""

    def __init__(self, *, limit: int, resend_after_s: float, max_rows: float = math.inf) -> None:
        self.lanes = {lane: FrameSender(limit, resend_after_s, max_rows) for lane in Lane}

    @property
    def num_kept(self) -> int:
        return sum(sender.num_kept for sender in self.lanes.values())

    @property
    def num_backlog(self) -> int:
        return sum(sender.num_backlog for sender in self.lanes.values())

    def acknowledge(self, ack: Ack, now: float) -> list[Send]:
        """As :meth:`FrameSender.acknowledge`, for the lane that ``ack`` names."""
        if ack.lane not in self.lanes:
            raise RemoteProtocolError(f"lane {ack.lane} is none", path="$.lane")
        return self.lanes[Lane(ack.lane)].acknowledge(ack, now)

    def resend(self, now: float) -> list[Send]:
        """Again everything that is kept."""
        return [send for sender in self.lanes.values() for send in sender.resend(now, lambda *_: True)]

    def resend_rows(self, sequence: int, have: int, now: float) -> list[Send]:
        return [send for sender in self.lanes.values() for send in sender.resend_rows(sequence, have, now)]

    def tick(self, now: float) -> list[Send]:
        return [send for sender in self.lanes.values() for send in sender.tick(now)]


@dataclass(slots=True)
class FrameReceiver:
    """Knows which frames are held and grants credit for ``window`` frames that are not done yet, with the rows of
    ``CREDIT_MICROBATCHES`` of ``max_rows`` at most."""

    window: int
    max_rows: float = math.inf
    _upto: int = 0
    _extra: set[int] = field(default_factory=set)
    _open: dict[int, int] = field(default_factory=dict)
    """Rows of the frames that are held and not done."""
    _num_rows: int = 0
    """Of those."""
    _newest_at: float = 0.0

    @property
    def logged(self) -> int:
        """Every frame below is done: its work is through and what it gave is in the log. Never falls."""
        return min(self._upto, min(self._open, default=self._upto))

    @property
    def limit(self) -> int:
        """Frames < limit have credit: ``window`` from the lowest that is not done. Never falls."""
        return self.logged + self.window

    def holds(self, number: int) -> bool:
        return number < self._upto or number in self._extra

    def check(self, number: int, num_rows: int = 0) -> None:
        """Raises RemoteProtocolError if the sender has no credit for this frame."""
        if num_rows > self.max_rows:
            raise RemoteProtocolError(f"frame {number} has {num_rows} rows, {self.max_rows} at most", path="$.items")
        most = CREDIT_MICROBATCHES * self.max_rows
        if self._num_rows + num_rows > most:
            raise RemoteProtocolError(
                f"frame {number} of {num_rows} rows sent without credit ({self._num_rows} of {most} are here)", path="$.items"
            )
        if number >= self.limit:
            raise RemoteProtocolError(f"frame {number} sent without credit (limit {self.limit})", path="$.frame")

    def hold(self, number: int, now: float, num_rows: int = 0) -> None:
        """The frame was taken in; its credit stays in use until :meth:`retire`."""
        if self.holds(number):
            return
        self._newest_at = now
        self._extra.add(number)
        self._open[number] = num_rows
        self._num_rows += num_rows
        while self._upto in self._extra:
            self._extra.discard(self._upto)
            self._upto += 1

    def retire(self, numbers: Iterable[int]) -> None:
        """The frames are done with; their credit goes back to the sender with the next acknowledgement."""
        for number in numbers:
            self._num_rows -= self._open.pop(number, 0)

    def acknowledgement(self, pipeline: int, epoch: int, now: float, lane: Lane) -> Ack:
        extra = tuple(sorted(self._extra)[:MAX_EXTRA]) if self._extra else ()
        logged = self.logged
        waited_us = max(0, round(1e6 * (now - self._newest_at)))
        return Ack(
            pipeline=pipeline,
            epoch=epoch,
            lane=lane,
            upto=self._upto,
            extra=extra,
            logged=logged,
            limit=logged + self.window,
            waited_us=waited_us,
        )


class OrderedReceiver(Generic[T]):
    """Gives what came out in the order of its numbers, each once, however it came.

    Args:
        window: how many may be held back because one before them is missing.
    """

    def __init__(self, window: int) -> None:
        self._receiver = FrameReceiver(window)
        self._early: dict[int, T] = {}
        self._next = 0

    def take(self, number: int, message: T, now: float) -> list[T]:
        """Those whose turn it is with this one. Raises RemoteProtocolError if its sender has no credit for it."""
        if not self._receiver.holds(number):
            self._receiver.check(number)
            self._receiver.hold(number, now)
            self._receiver.retire([number])
            self._early[number] = message
        due: list[T] = []
        while self._next in self._early:
            due.append(self._early.pop(self._next))
            self._next += 1
        return due

    def acknowledgement(self, pipeline: int, epoch: int, now: float) -> Ack:
        return self._receiver.acknowledgement(pipeline, epoch, now, Lane.CONTROL)
