"""Both ends of a scheduler that is not with the head: each request and each token counts once, and what is wrong is refused."""

from __future__ import annotations

import math
import random

import pytest

from bloombee.control.chunks import Chunks
from bloombee.errors import DeviceError, LinkDown, RemoteProtocolError, StalePlan
from bloombee.pipeline.commands import Command, Conclude, Deliver, Send, TellHead, TellScheduler
from bloombee.pipeline.events import (
    Cancel,
    Emitted,
    Ended,
    FromHead,
    FromStage,
    HeadRestored,
    Moved,
    Open,
    PipelineLost,
    PlanBroken,
    PlanWired,
    Port,
    SchedulerSaid,
    StageRestored,
    Submit,
    Tick,
    Tune,
)
from bloombee.pipeline.frames import OrderedReceiver
from bloombee.pipeline.requests import RequestCore
from bloombee.pipeline.scheduler import SchedulerProxy, SchedulerService, ring_of
from bloombee.pipeline.scheduler.proxy import STREAM_WINDOW, TOKENS_PER_ASK
from bloombee.plan.plan import Ring
from bloombee.types import FinishReason, Lane, PageGroup
from bloombee.wire import messages as m
from bloombee.wire.schema import decode_message, encode_message

SAMPLING = m.Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, -1)
BIASES, GRAMMAR = ((5, -2.5), (9, 100.0)), m.Grammar("regex", "[a-z]+")
RING = Ring(1, 1, 2, 2, (PageGroup(0, 64),), 4)


def _proxy(since: int = 1) -> SchedulerProxy:
    """Of a scheduler that is there."""
    proxy = SchedulerProxy(1, since, resend_after_s=1.0)
    proxy.handle(PlanWired(RING, 0.0))
    return proxy


def _service(since: int = 1) -> SchedulerService:
    """In an epoch that both stages have resumed."""
    service = SchedulerService(1, since, max_rows=8, resend_after_s=1.0, step_deadline_s=10.0)
    service.handle(PlanWired(RING, 0.0))
    service.handle(FromStage(1, m.Resumed(1, 1), 0.0))
    service.handle(FromStage(0, m.Resume(1, 1, ()), 0.0))
    return service


def _open(sequence: int, prompt: bytes = bytes(8), output: bytes = b"") -> Open:
    return Open(sequence, prompt, SAMPLING, 4, frozenset({3}), 0.0, "somebody", -2, 7.5, output, BIASES, GRAMMAR)


def _to_head(commands: list[Command]) -> list[object]:
    return [command.message for command in commands if isinstance(command, Send) and command.to is Port.HEAD]


def _asks(commands: list[Command]) -> list[m.Ask]:
    return [command.message for command in commands if isinstance(command, Send) and isinstance(command.message, m.Ask)]


def _pick(sequence: int, position: int, token: int = 5) -> m.Pick:
    return m.Pick(sequence, 0, position, token, None, ())


def _told(frame: int, *given: m.Given, over: tuple[m.Over, ...] = (), since: int = 1) -> FromStage:
    return FromStage(0, m.Told(1, since, frame, given, over), 0.0)


# -- the head's end ----------------------------------------------------------------------------


def test_a_request_goes_there_as_messages_of_bounded_size_that_make_it_again() -> None:
    prompt, output = b"".join(n.to_bytes(4, "little") for n in range(TOKENS_PER_ASK + 5)), (9).to_bytes(4, "little") * 2
    asks = _asks(_proxy().handle(_open(7, prompt, output)))
    assert [ask.frame for ask in asks] == [0, 1]
    assert [decode_message(encode_message(ask)) for ask in asks] == asks
    service = SchedulerService(1, 1, max_rows=8, resend_after_s=1.0, step_deadline_s=10.0)
    for ask in asks:
        assert [type(message) for message in _to_head(service.handle(FromHead(ask, 1.0)))] == [m.Ack]
    (sequence,) = service.core._admission
    assert bytes(sequence.tokens) == prompt + output
    assert sequence.num_prompt_tokens == TOKENS_PER_ASK + 5
    assert (sequence.client, sequence.priority, sequence.late_at, sequence.end_tokens) == ("somebody", -2, 8.5, {3})
    assert sequence.opening == m.Opening(TOKENS_PER_ASK + 5, SAMPLING, 4, (3,), BIASES, GRAMMAR, None)


def test_how_it_is_run_survives_the_way() -> None:
    tune = Tune(3, (Chunks(0, 512, 64, math.inf), Chunks(100, 256, 32, 900.0)), 5, 2.0, True)
    (ask,) = _asks(_proxy().handle(tune))
    assert decode_message(encode_message(ask)) == ask
    service = _service()
    handled = []
    service.core.handle = lambda event: handled.append(event) or []  # type: ignore[method-assign, func-returns-value]
    service.handle(FromHead(ask, 2.0))
    assert handled == [tune]


def test_what_is_asked_before_the_worker_is_told_waits_and_goes_in_order() -> None:
    proxy = SchedulerProxy(1, 1, resend_after_s=1.0)
    assert proxy.handle(_open(1)) == []
    assert proxy.handle(_open(2)) == []
    assert proxy.handle(Cancel(1, 0.0)) == []
    assert not proxy.is_idle
    asks = _asks(proxy.handle(PlanWired(RING, 0.0)))
    assert [ask.frame for ask in asks] == [0, 1, 2]
    assert [request.sequence for ask in asks for request in ask.requests] == [1, 2]
    assert asks[2].cancelled == (1,)


def test_asks_are_kept_until_they_are_acknowledged() -> None:
    proxy = _proxy()
    (ask,) = _asks(proxy.handle(_open(1)))
    assert _asks(proxy.handle(StageRestored(0, 0.1))) == [ask]
    assert proxy.handle(StageRestored(1, 0.1)) == []
    assert proxy.handle(Tick(0.5)) == []
    assert _asks(proxy.handle(Tick(9.0))) == [ask]
    assert proxy.handle(FromStage(0, m.Ack(1, 1, 0, 1, (), 1, 9, 0), 9.0)) == []
    assert proxy.handle(StageRestored(0, 9.1)) == []
    with pytest.raises(RemoteProtocolError):
        proxy.handle(FromStage(0, m.Ack(1, 1, 0, 5, (), 1, 9, 0), 9.0))


def test_tokens_count_once_and_in_order_however_they_come() -> None:
    proxy = _proxy()
    proxy.handle(_open(1))
    first, last = m.Given(_pick(1, 2), None, 0, False, 0), m.Given(_pick(1, 3), "length", 0, False, 0)
    early = proxy.handle(_told(1, last))
    (ack,) = early
    assert isinstance(ack, Send)
    assert ack.message == m.Ack(1, 1, Lane.CONTROL, 0, (1,), 0, STREAM_WINDOW, 0)
    assert proxy.num_sequences == 1
    *told, _ = proxy.handle(_told(0, first))
    assert told == [TellHead(Emitted(_pick(1, 2), None)), TellHead(Emitted(_pick(1, 3), FinishReason.LENGTH))]
    for again in (_told(0, first), _told(1, last)):
        assert not any(isinstance(command, TellHead) for command in proxy.handle(again))
    assert proxy.num_sequences == 0


def test_an_end_without_a_last_token_is_told_with_its_error() -> None:
    proxy = _proxy()
    for sequence in (1, 2):
        proxy.handle(_open(sequence))
    proxy.handle(Cancel(1, 0.0))
    over = (m.Over(1, "", {}), m.Over(2, "DeviceError", {"message": "broken", "position": 4}))
    *told, _ = proxy.handle(_told(0, over=over))
    assert told[0] == TellHead(Ended(1, None))
    assert isinstance(told[1], TellHead)
    assert isinstance(told[1].message, Ended)
    assert isinstance(told[1].message.error, DeviceError)
    assert told[1].message.error.fields["position"] == 4
    assert proxy.handle(Cancel(1, 0.0)) == []


@pytest.mark.parametrize(
    ("told", "path"),
    [
        (_told(0, m.Given(_pick(1, 3), None, 0, False, 0)), "Told.given"),
        (_told(0, m.Given(_pick(1, 2), None, 0, False, 0), m.Given(_pick(1, 2), None, 0, False, 0)), "Told.given"),
        (_told(0, *(m.Given(_pick(1, position), None, 0, False, 0) for position in range(2, 7))), "Told.given"),
        (_told(0, m.Given(_pick(1, 2**32 - 1), "stop", 0, False, 0)), "Told.given"),
        (_told(0, over=(m.Over(1, "", {}),)), "Told.over"),
    ],
    ids=["a gap", "twice", "more than asked for", "far away", "ended by nobody"],
)
def test_what_no_scheduler_comes_to_is_refused(told: FromStage, path: str) -> None:
    proxy = _proxy()
    proxy.handle(_open(1))
    with pytest.raises(RemoteProtocolError) as refused:
        proxy.handle(told)
    assert refused.value.fields["path"] == path


def test_of_a_sequence_that_is_over_nothing_more_is_told() -> None:
    proxy = _proxy()
    proxy.handle(_open(1))
    proxy.handle(_told(0, m.Given(_pick(1, 2), "stop", 0, False, 0)))
    late = proxy.handle(_told(1, m.Given(_pick(1, 3), None, 0, False, 0), over=(m.Over(1, "", {}), m.Over(9, "", {}))))
    assert not any(isinstance(command, TellHead) for command in late)


def test_when_the_pipeline_is_lost_all_that_is_open_ends_here() -> None:
    proxy = _proxy()
    for sequence in (1, 2):
        proxy.handle(_open(sequence))
    error = LinkDown("gone")
    assert proxy.handle(PlanBroken(1.0)) == []
    assert proxy.handle(PipelineLost(error, 1.0)) == [TellHead(Ended(1, error)), TellHead(Ended(2, error))]
    assert proxy.num_sequences == 0


def test_movement_on_other_links_is_passed_on_now_and_then() -> None:
    proxy = _proxy()
    assert proxy.handle(Moved(0.0)) == []  # nobody waits
    proxy.handle(_open(1))
    (ask,) = _asks(proxy.handle(Moved(1.0)))
    assert (ask.requests, ask.cancelled, ask.finished, ask.tuning) == ((), (), (), None)
    assert proxy.handle(Moved(1.1)) == []
    assert len(_asks(proxy.handle(Moved(1.6)))) == 1


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (FromStage(0, m.Told(1, 2, 0, (), ()), 0.0), StalePlan),
        (FromStage(0, m.Told(2, 1, 0, (), ()), 0.0), StalePlan),
        (FromStage(0, m.Standing(1, 2, 1, 1, None, 0, 0, 0.0), 0.0), StalePlan),
        (FromStage(1, m.Told(1, 1, 0, (), ()), 0.0), RemoteProtocolError),
        (FromStage(0, m.Verdict(1, 1, 0, 0, (), None), 0.0), RemoteProtocolError),
        (FromStage(0, m.Told(1, 1, STREAM_WINDOW, (), ()), 0.0), RemoteProtocolError),
        (FromStage(0, m.Told(1, 1, 2**63 - 1, (), ()), 0.0), RemoteProtocolError),
    ],
)
def test_what_a_worker_must_not_say_is_refused_and_changes_nothing(event: FromStage, error: type[Exception]) -> None:
    proxy = _proxy()
    proxy.handle(_open(1))
    with pytest.raises(error):
        proxy.handle(event)
    *told, _ = proxy.handle(_told(0, m.Given(_pick(1, 2), None, 0, False, 0)))
    assert told == [TellHead(Emitted(_pick(1, 2), None))]


# -- the scheduler's end -----------------------------------------------------------------------


def test_tokens_go_to_the_head_as_messages_and_are_kept() -> None:
    service = _service()
    (ask,) = _asks(_proxy().handle(_open(1)))
    commands = service.handle(FromHead(ask, 0.0))
    assert _to_head(commands) == [m.Ack(1, 1, Lane.CONTROL, 1, (), 1, STREAM_WINDOW + 1, 0)]
    (forward,) = [command.message for command in commands if isinstance(command, Send) and isinstance(command.message, m.Forward)]
    assert not any(isinstance(command.message, m.Forward) for command in service.handle(FromHead(ask, 0.1)))  # type: ignore[union-attr]
    verdict = m.Verdict(1, 1, 0, forward.microbatch, (_pick(1, 2, token=3),), None)
    (told,) = _to_head(service.handle(FromStage(1, verdict, 0.2)))
    assert told == m.Told(1, 1, 0, (m.Given(_pick(1, 2, token=3), "stop", 0, False, 0),), ())
    assert _to_head(service.handle(HeadRestored(0.3))) == [told]
    assert not service.is_idle
    assert service.handle(FromHead(m.Ack(1, 1, 0, 1, (), 1, 9, 0), 0.4)) == []
    assert service.handle(HeadRestored(0.5)) == []


@pytest.mark.parametrize("is_finished", [False, True])
def test_a_cancel_is_confirmed_and_so_is_what_can_never_fit(is_finished: bool) -> None:
    service, proxy = _service(), _proxy()
    (ask,) = _asks(proxy.handle(_open(1)))
    (cancel,) = _asks(proxy.handle(Cancel(1, 0.0, is_finished)))
    assert (cancel.cancelled, cancel.finished) == (((), (1,)) if is_finished else ((1,), ()))
    service.handle(FromHead(ask, 0.0))
    said = _to_head(service.handle(FromHead(cancel, 0.0)))
    assert m.Told(1, 1, 0, (), (m.Over(1, "", {}),)) in said
    (large,) = _asks(proxy.handle(_open(2, bytes(4 * 300))))
    (over,) = [message for message in _to_head(service.handle(FromHead(large, 0.0))) if isinstance(message, m.Told)]
    assert (over.over[0].sequence, over.over[0].code) == (2, "Infeasible")


@pytest.mark.parametrize("is_finished", [False, True])
def test_whether_a_text_is_whole_reaches_the_scheduler(is_finished: bool) -> None:
    service, proxy = _service(), _proxy()
    for ask in [*_asks(proxy.handle(_open(1))), *_asks(proxy.handle(_open(2)))]:
        service.handle(FromHead(ask, 0.0))
    handled: list[object] = []
    service.core.handle = lambda event: handled.append(event) or []  # type: ignore[method-assign, func-returns-value]
    (cancel,) = _asks(proxy.handle(Cancel(2, 0.0, is_finished)))
    service.handle(FromHead(cancel, 3.0))
    assert handled == [Cancel(2, 3.0, is_finished)]


def test_many_ends_at_once_fit_their_messages() -> None:
    service = _service()
    requests = tuple(_request(sequence).requests[0] for sequence in range(1, 1500))
    service.handle(FromHead(m.Ask(1, 1, 0, requests, (), (), None), 0.0))
    assert service.core.num_sequences == 1499
    said = _to_head(service.handle(FromHead(m.Ask(1, 1, 1, (), tuple(range(1, 1500)), (), None), 0.0)))
    told = [message for message in said if isinstance(message, m.Told)]
    assert [over.sequence for one in told for over in one.over] == list(range(1, 1500))
    assert len(told) > 1
    assert [decode_message(encode_message(one)) for one in told] == told


def test_it_says_how_it_stands_twice_a_second() -> None:
    service = _service()
    (first,) = _to_head(service.handle(Tick(1.0)))
    assert first == m.Standing(1, 1, 0, 0, None, 0, 0, 0.0)
    assert _to_head(service.handle(Tick(1.4))) == []
    (ask,) = _asks(_proxy().handle(_open(1)))
    service.handle(FromHead(ask, 1.45))
    (second,) = _to_head(service.handle(Tick(1.5)))
    assert second == m.Standing(1, 1, 1, 0, None, 0, 0, 0.0)
    proxy = _proxy()
    proxy.handle(_open(1))
    proxy.handle(FromStage(0, m.Standing(1, 1, 1, 0, 0.25, 3, 40, 0.5), 9.0))
    assert (proxy.num_open, proxy.quickest_loop, proxy.decoded) == (1, (0.25, 3), (40, 8.5))


def _request(sequence: int, position: int = 0, tokens: int = 2, total: int = 2) -> m.Ask:
    opening = m.Opening(total, SAMPLING, 4, (), (), None, None)
    return m.Ask(1, 1, 0, (m.Request(sequence, total, position, bytes(4 * tokens), opening, "", 0, None),), (), (), None)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (m.Ask(1, 2, 0, (), (), (), None), StalePlan),
        (m.Ask(2, 1, 0, (), (), (), None), StalePlan),
        (m.Ack(1, 2, 0, 0, (), 0, 9, 0), StalePlan),
        (m.Ack(1, 1, 0, 1, (), 1, 9, 0), RemoteProtocolError),
        (m.Ask(1, 1, STREAM_WINDOW + 1, (), (), (), None), RemoteProtocolError),
        (m.Told(1, 1, 0, (), ()), RemoteProtocolError),
        (m.Close(1, 1, (), 0), RemoteProtocolError),
        (_request(4), RemoteProtocolError),
        (_request(5), RemoteProtocolError),
        (_request(7, position=1, tokens=1), RemoteProtocolError),
    ],
    ids=[
        "another scheduler's",
        "another pipeline's",
        "stale ack",
        "ack of nothing",
        "far ahead",
        "told",
        "close",
        "old",
        "again",
        "gap",
    ],
)
def test_what_the_head_must_not_say_is_refused(message: m.AnyMessage, error: type[Exception]) -> None:
    service = _service()
    service.handle(FromHead(_request(5), 0.0))
    if isinstance(message, m.Ask) and message.requests:
        message = m.Ask(1, 1, 1, message.requests, (), (), None)
    with pytest.raises(error):
        service.handle(FromHead(message, 0.0))
    assert service.core.num_sequences == 1
    service.handle(
        FromHead(
            m.Ask(1, 1, 2 if isinstance(message, m.Ask) and message.requests else 1, _request(9).requests, (), (), None), 0.0
        )
    )
    assert service.core.num_sequences == 2


def test_parts_of_one_sequence_have_nothing_between_them() -> None:
    service = _service()
    service.handle(FromHead(_request(5, tokens=1), 0.0))
    for number, wrong in enumerate((_request(6), _request(5), _request(5, position=2, tokens=1, total=4)), 1):
        with pytest.raises(RemoteProtocolError):
            service.handle(FromHead(m.Ask(1, 1, number, wrong.requests, (), (), None), 0.0))
    service.handle(FromHead(m.Ask(1, 1, 4, _request(5, position=1, tokens=1).requests, (), (), None), 0.0))
    assert service.core.num_sequences == 1


def test_its_ring_is_what_the_first_stages_wire_says() -> None:
    peer = m.Peer(2, "tcp://h:1", bytes(32), bytes(16), True, None)
    schedule = m.Schedule(1, (m.Group(0, 64),), 4, 600.0, False, (peer,), True)
    wire = m.Wire(1, 1, 1, 0, 2, 2, 8, None, peer, None, (), schedule, False, 1, False)
    assert ring_of(wire, schedule) == RING


# -- order -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_lost_doubled_and_late_comes_out_once_and_in_order(seed: int) -> None:
    rng = random.Random(seed)
    receiver: OrderedReceiver[int] = OrderedReceiver(8)
    out: list[int] = []
    while len(out) < 100:
        number = rng.randrange(max(0, len(out) - 3), min(100, len(out) + 8))
        out += receiver.take(number, number, 0.0)
        assert receiver.acknowledgement(1, 1, 0.0).upto == len(out)
    assert out == list(range(100))


# -- who lies ----------------------------------------------------------------------------------


def _anything(rng: random.Random) -> m.AnyMessage:
    """That the worker with the scheduler may say, about what there is and what there is not."""
    number, position = rng.choice([0, 1, 2, 3, 4, 1 << 40]), rng.choice([0, 1, 2, 3, 4, 5, 2**32 - 1])
    pick = m.Pick(number, rng.choice([0, 7]), position, rng.choice([5, 2**32 - 1]), None, ())
    given = tuple(m.Given(pick, rng.choice([None, None, "stop", "cancelled"]), 0, False, 0) for _ in range(rng.randrange(3)))
    over = (m.Over(number, rng.choice(["", "LinkDown", "moon"]), {"self": 1, "code": "x"}),) * rng.randrange(2)
    return rng.choice(
        [
            m.Told(1, rng.choice([1, 1, 1, 2]), rng.randrange(6), given, over),
            m.Ack(1, 1, rng.randrange(2), rng.randrange(4), (rng.randrange(9),), 0, rng.choice([0, 5, 1 << 40]), 0),
            m.Standing(1, 1, 2**32 - 1, 2**32 - 1, 0.0, 0, 2**63 - 1, 1e18),
            m.Verdict(1, 1, 0, 0, (pick,), None),
            m.Closed(1, 1, (number,), number, 0),
        ]
    )


@pytest.mark.parametrize("seed", range(40))
def test_whatever_its_worker_says_requests_get_tokens_in_order_and_an_end_at_most(seed: int) -> None:
    rng = random.Random(seed)
    proxy, requests = _proxy(), RequestCore(max_waiting=9)
    tokens: dict[int, list[int]] = {}
    ended: list[int] = []

    def do(commands: list[Command]) -> None:
        for command in commands:
            match command:
                case TellScheduler(message=message):
                    do(proxy.handle(message))
                case TellHead(message=message):
                    do(requests.handle(SchedulerSaid(message, 0.0)))
                case Deliver(request=number, pick=pick, finish=finish):
                    tokens[number].append(pick.position)
                    ended.extend([number] * (finish is not None))
                case Conclude(request=number):
                    ended.append(number)

    for number in range(3):
        tokens[number] = []
        do(requests.handle(Submit(number, bytes(8), SAMPLING, 4, frozenset(), 0.0)))
    for now in range(300):
        try:
            do(proxy.handle(FromStage(rng.choice([0, 0, 0, 1]), _anything(rng), now)))
        except (RemoteProtocolError, StalePlan):
            continue
        assert 0 <= proxy.num_open <= proxy.num_sequences
    assert all(positions == list(range(2, 2 + len(positions))) for positions in tokens.values())
    assert len(ended) == len(set(ended))
