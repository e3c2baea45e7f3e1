"""Which requests the application has, how far each has come, and which sequence is whose. Pure.

Requests may be submitted at any time; until a pipeline runs they wait in the scheduler. All that a scheduler has to know of a
sequence is here, so that another one can take over (:class:`SchedulerBegan`): each request goes on as a new sequence, of its
prompt and the tokens that it has been given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from bloombee.errors import BloomBeeError, LocalProtocolError, QueueFull
from bloombee.pipeline.commands import Command, Conclude, Deliver, TellScheduler
from bloombee.pipeline.events import (
    Cancel,
    CancelRequest,
    Emitted,
    Ended,
    Open,
    SchedulerBegan,
    SchedulerSaid,
    Submit,
    SwarmLost,
)
from bloombee.pipeline.turnover import Turnover
from bloombee.types import SequenceId

Event = Submit | CancelRequest | SchedulerSaid | SchedulerBegan | SwarmLost


@dataclass(slots=True)
class Request:
    """One that has not ended."""

    asked: Submit
    sequence: SequenceId
    output: bytearray
    """[num_tokens] little-endian uint32, delivered."""
    first_at: float | None = None
    """When its first token came."""
    is_cancelled: bool = False

    @property
    def num_tokens(self) -> int:
        return (len(self.asked.prompt) + len(self.output)) // 4

    def tokens_per_s(self, now: float) -> float | None:
        """Since its first token, of those that no head before this one has given; None: there are not two of them."""
        count = (len(self.output) - len(self.asked.output or b"")) // 4
        return (count - 1) / (now - self.first_at) if self.first_at is not None and count > 1 and now > self.first_at else None

    def opened(self, now: float) -> Open:
        """As a scheduler is told of it."""
        asked = self.asked
        limit = asked.max_time_s
        return Open(
            self.sequence,
            asked.prompt,
            asked.sampling,
            asked.max_new_tokens,
            asked.end_tokens,
            now,
            asked.client,
            asked.priority,
            None if limit is None else max(0.0, limit - (now - asked.now)),
            bytes(self.output),
            asked.biases,
            asked.grammar,
        )


@dataclass(slots=True)
class RequestCore:
    """events: see ``Event``. commands: TellScheduler, Deliver, Conclude.

    Args:
        max_waiting: requests that may be open or waiting at once. A client that has none may have one beyond, up to twice as
            many in all: no crowd of another's keeps it out.
    """

    max_waiting: int
    error: BloomBeeError | None = None
    """Why no request can be served any more."""
    _requests: dict[int, Request] = field(default_factory=dict)
    _sequences: dict[SequenceId, int] = field(default_factory=dict)
    _next_sequence: SequenceId = 1
    _num_of: Counter[str] = field(default_factory=Counter)
    """Requests by client."""
    _turnover: Turnover = field(default_factory=Turnover)

    def handle(self, event: Event) -> list[Command]:
        match event:
            case Submit():
                return self._submit(event)
            case CancelRequest(request=number, now=now, is_finished=is_finished):
                request = self._requests.get(number)
                if request is None:
                    return []
                request.is_cancelled = True
                return [TellScheduler(Cancel(request.sequence, now, is_finished))]
            case SchedulerSaid(message=Emitted() as emitted, now=now):
                return self._emitted(emitted, now)
            case SchedulerSaid(message=Ended(sequence=sequence, error=error), now=now):
                ended = self._forget(sequence, now)
                return [] if ended is None else [Conclude(ended, error)]
            case SchedulerBegan(now=now):
                return self._begin_again(now)
            case SwarmLost(error=error):
                self.error = error
                return []
        raise LocalProtocolError(f"{event!r} is not an event of the requests")

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    @property
    def running(self) -> Iterator[tuple[int, Request]]:
        """Those that are waiting or running, by number."""
        return iter(self._requests.items())

    def _submit(self, event: Submit) -> list[Command]:
        if self.error is not None:
            return [Conclude(event.request, self.error)]
        if event.output is None and self._is_full_for(event.client):
            error = QueueFull(
                f"{len(self._requests)} requests are open or waiting (max_waiting = {self.max_waiting}): try again later",
                waiting=len(self._requests),
                retry_after_s=self._turnover.refused(event.now),
            )
            return [Conclude(event.request, error)]
        self._requests[event.request] = request = Request(event, self._number(event.request), bytearray(event.output or b""))
        self._num_of[event.client] += 1
        self._turnover.began(event.now)
        return [TellScheduler(request.opened(event.now))]

    def _is_full_for(self, client: str) -> bool:
        return len(self._requests) >= self.max_waiting * (1 if self._num_of[client] else 2)

    def _number(self, request: int) -> SequenceId:
        """A new one, for this request."""
        sequence = self._next_sequence
        self._next_sequence += 1
        self._sequences[sequence] = request
        return sequence

    def _begin_again(self, now: float) -> list[Command]:
        """Of requests that were cancelled the one that is gone may not have known."""
        cancelled = [number for number, request in self._requests.items() if request.is_cancelled]
        for number in cancelled:
            self._forget(self._requests[number].sequence, now)
        self._sequences.clear()
        for number, request in self._requests.items():
            request.sequence = self._number(number)
        return [
            *(Conclude(number, None) for number in cancelled),
            *(TellScheduler(request.opened(now)) for request in self._requests.values()),
        ]

    def _emitted(self, emitted: Emitted, now: float) -> list[Command]:
        pick = emitted.pick
        number = self._sequences.get(pick.sequence)
        if number is None or pick.position != self._requests[number].num_tokens:
            return []
        if emitted.finish is not None:
            self._forget(pick.sequence, now, had_tokens=True)
        else:
            request = self._requests[number]
            request.first_at = now if request.first_at is None else request.first_at
            request.output += pick.token.to_bytes(4, "little")
        return [Deliver(number, pick, emitted.finish, emitted.drafted, emitted.was_drafted, emitted.num_cached)]

    def _forget(self, sequence: SequenceId, now: float, *, had_tokens: bool = False) -> int | None:
        number = self._sequences.pop(sequence, None)
        if number is not None:
            request = self._requests.pop(number)
            self._num_of[request.asked.client] -= 1
            if not self._num_of[request.asked.client]:
                del self._num_of[request.asked.client]
            self._turnover.ended(now, had_tokens=had_tokens or request.first_at is not None)
        return number
