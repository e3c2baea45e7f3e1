from __future__ import annotations

from typing import Any

from bloombee.errors import DeviceError, LinkDown, QueueFull
from bloombee.pipeline.commands import Conclude, Deliver, TellScheduler
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
from bloombee.pipeline.requests import RequestCore
from bloombee.types import FinishReason
from bloombee.wire.messages import Grammar, Pick, Sampling

SAMPLING = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, -1)


def _submit(number: int, now: float = 0.0) -> Submit:
    return Submit(number, bytes(8), SAMPLING, 4, frozenset(), now)


def test_requests_go_to_the_scheduler_and_tokens_back() -> None:
    core = RequestCore(max_waiting=2)
    (tell,) = core.handle(_submit(7))
    assert isinstance(tell, TellScheduler)
    assert isinstance(tell.message, Open)
    sequence = tell.message.sequence
    pick = Pick(sequence, 0, 2, 5, None, ())
    assert core.handle(SchedulerSaid(Emitted(pick, None), 0.0)) == [Deliver(7, pick, None)]
    assert core.handle(CancelRequest(7, 0.0)) == [TellScheduler(Cancel(sequence, 0.0))]
    assert core.handle(SchedulerSaid(Emitted(pick, FinishReason.LENGTH), 0.0)) == []  # it has that position
    last = Pick(sequence, 0, 3, 5, None, ())
    assert core.handle(SchedulerSaid(Emitted(last, FinishReason.LENGTH), 0.0)) == [Deliver(7, last, FinishReason.LENGTH)]
    assert core.num_requests == 0
    assert core.handle(SchedulerSaid(Emitted(pick, None), 0.0)) == []
    assert core.handle(CancelRequest(7, 0.0)) == []


def test_an_ended_sequence_concludes_its_request() -> None:
    core = RequestCore(max_waiting=2)
    core.handle(_submit(7))
    error = DeviceError("x")
    assert core.handle(SchedulerSaid(Ended(1, error), 0.0)) == [Conclude(7, error)]


def test_the_queue_is_bounded() -> None:
    core = RequestCore(max_waiting=2)
    core.handle(_submit(1))
    core.handle(_submit(2))
    (refused,) = core.handle(_submit(3))
    assert isinstance(refused, Conclude)
    assert isinstance(refused.error, QueueFull)
    assert refused.error.fields["retry_after_s"] == 0.0  # none has ended, and they are new


def test_a_crowd_of_one_clients_keeps_no_other_out() -> None:
    core = RequestCore(max_waiting=2)

    def is_taken(number: int, client: str) -> bool:
        (command,) = core.handle(Submit(number, bytes(8), SAMPLING, 4, frozenset(), 0.0, client))
        return isinstance(command, TellScheduler)

    asked = [(1, "crowd"), (2, "crowd"), (3, "crowd"), (4, "ada"), (5, "ada"), (6, ""), (7, "late")]
    assert [is_taken(*one) for one in asked] == [True, True, False, True, False, True, False]
    core.handle(SchedulerSaid(Ended(3, None), 0.0))
    assert [is_taken(*one) for one in [(8, "crowd"), (9, "ada"), (10, "ada")]] == [False, True, False]


def test_whoever_is_refused_is_told_how_fast_requests_have_ended() -> None:
    core = RequestCore(max_waiting=1)
    for number in range(5):
        core.handle(_submit(number, 2.0 * number))
        last = Pick(number + 1, 0, 2, 5, None, ())
        core.handle(SchedulerSaid(Emitted(last, FinishReason.LENGTH), 2.0 * number + 1.5))
    core.handle(_submit(5, 100.0))
    refused = [command for n in range(3) for command in core.handle(_submit(6 + n, 100.0))]
    assert [isinstance(one, Conclude) and one.error and one.error.fields["retry_after_s"] for one in refused] == [1.5, 3.0, 4.5]


def test_nothing_is_served_once_the_swarm_is_lost() -> None:
    core = RequestCore(max_waiting=2)
    error = LinkDown("gone")
    core.handle(SwarmLost(error))
    assert core.handle(_submit(1)) == [Conclude(1, error)]


def test_another_scheduler_is_told_of_all_requests_as_new_sequences_and_how_far_they_have_come() -> None:
    core = RequestCore(max_waiting=9)
    wanted: dict[str, Any] = {"biases": ((5, 1.0),), "grammar": Grammar("regex", "a*")}
    core.handle(Submit(7, bytes(8), SAMPLING, 4, frozenset({3}), 0.0, "somebody", 2, 10.0, **wanted))
    core.handle(_submit(8))
    core.handle(_submit(9))
    core.handle(SchedulerSaid(Emitted(Pick(1, 0, 2, 5, None, ()), None), 1.0))
    assert core.handle(CancelRequest(8, 1.0)) == [TellScheduler(Cancel(2, 1.0))]
    packed = (5).to_bytes(4, "little")
    assert core.handle(SchedulerBegan(4.0)) == [
        Conclude(8, None),
        TellScheduler(Open(4, bytes(8), SAMPLING, 4, frozenset({3}), 4.0, "somebody", 2, 6.0, packed, **wanted)),
        TellScheduler(Open(5, bytes(8), SAMPLING, 4, frozenset(), 4.0)),
    ]
    late = Pick(1, 0, 3, 6, None, ())
    assert core.handle(SchedulerSaid(Emitted(late, None), 4.0)) == []
    pick = Pick(4, 0, 3, 6, None, ())
    assert core.handle(SchedulerSaid(Emitted(pick, None), 4.0)) == [Deliver(7, pick, None)]
    assert core.handle(CancelRequest(7, 5.0)) == [TellScheduler(Cancel(4, 5.0))]
    assert core.handle(SchedulerSaid(Ended(4, None), 5.0)) == [Conclude(7, None)]
    assert core.num_requests == 1


def test_tokens_that_do_not_follow_are_none() -> None:
    core = RequestCore(max_waiting=2)
    core.handle(_submit(7))
    for position in (0, 1, 3, 2**32 - 1):
        assert core.handle(SchedulerSaid(Emitted(Pick(1, 0, position, 5, None, ()), FinishReason.STOP), 0.0)) == []
    assert core.num_requests == 1


def test_a_request_of_a_head_before_goes_on_whatever_the_queue_holds() -> None:
    core = RequestCore(max_waiting=1)
    core.handle(_submit(1))
    packed = (5).to_bytes(4, "little")
    again = Submit(7, bytes(8), SAMPLING, 4, frozenset(), 3.0, output=packed)
    assert core.handle(again) == [TellScheduler(Open(2, bytes(8), SAMPLING, 4, frozenset(), 3.0, output=packed))]
    assert core.handle(SchedulerSaid(Emitted(Pick(2, 0, 2, 6, None, ()), None), 4.0)) == []  # it has that position
    pick = Pick(2, 0, 3, 6, None, ())
    assert core.handle(SchedulerSaid(Emitted(pick, None), 4.0)) == [Deliver(7, pick, None)]


def test_the_speed_of_a_request_is_of_the_tokens_that_came_here() -> None:
    core = RequestCore(max_waiting=1)
    core.handle(Submit(7, bytes(8), SAMPLING, 400, frozenset(), 0.0, output=bytes(4 * 100)))
    (_, request), *_ = core.running
    speeds = []
    for at in range(3):
        core.handle(SchedulerSaid(Emitted(Pick(1, 0, 102 + at, 6, None, ()), None), float(at)))
        speeds.append(request.tokens_per_s(float(at)))
    assert speeds == [None, 1.0, 1.0]
