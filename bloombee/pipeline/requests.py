"""Which requests the application has, and which sequence is whose. Pure.

Requests may be submitted at any time; until a pipeline runs they wait in the scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bloombee.errors import BloomBeeError, LocalProtocolError, QueueFull
from bloombee.pipeline.commands import Command, Conclude, Deliver, TellScheduler
from bloombee.pipeline.events import Cancel, CancelRequest, Emitted, Ended, Open, SchedulerSaid, Submit, SwarmLost
from bloombee.types import SequenceId

Event = Submit | CancelRequest | SchedulerSaid | SwarmLost


@dataclass(slots=True)
class RequestCore:
    """events: see ``Event``. commands: TellScheduler, Deliver, Conclude.

    Args:
        max_waiting: requests that may be open or waiting at once.
    """

    max_waiting: int
    error: BloomBeeError | None = None
    """Why no request can be served any more."""
    _requests: dict[int, SequenceId] = field(default_factory=dict)
    _sequences: dict[SequenceId, int] = field(default_factory=dict)
    _next_sequence: SequenceId = 1

    def handle(self, event: Event) -> list[Command]:
        match event:
            case Submit():
                return self._submit(event)
            case CancelRequest(request=request, now=now):
                sequence = self._requests.get(request)
                return [] if sequence is None else [TellScheduler(Cancel(sequence, now))]
            case SchedulerSaid(message=Emitted() as emitted):
                return self._emitted(emitted)
            case SchedulerSaid(message=Ended(sequence=sequence, error=error)):
                ended = self._forget(sequence)
                return [] if ended is None else [Conclude(ended, error)]
            case SwarmLost(error=error):
                self.error = error
                return []
        raise LocalProtocolError(f"{event!r} is not an event of the requests")

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    def _submit(self, event: Submit) -> list[Command]:
        if self.error is not None:
            return [Conclude(event.request, self.error)]
        if len(self._requests) >= self.max_waiting:
            error = QueueFull(
                f"{len(self._requests)} requests are open or waiting (max_waiting = {self.max_waiting}): try again later",
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

    def _emitted(self, emitted: Emitted) -> list[Command]:
        sequence = emitted.pick.sequence
        request = self._forget(sequence) if emitted.finish is not None else self._sequences.get(sequence)
        return [] if request is None else [Deliver(request, emitted.pick, emitted.finish)]

    def _forget(self, sequence: SequenceId) -> int | None:
        request = self._sequences.pop(sequence, None)
        if request is not None:
            del self._requests[request]
        return request
