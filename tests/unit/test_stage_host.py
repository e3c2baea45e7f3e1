"""What a worker's stage does when something of a list of commands cannot be done, and when its neighbour's link breaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bloombee.codec.checksum import crc32c
from bloombee.codec.choice import CodecMode
from bloombee.codec.fit import fit
from bloombee.codec.table import Table
from bloombee.config import WorkerConfig
from bloombee.errors import (
    BloomBeeError,
    ConfigError,
    CorruptPayload,
    DeviceError,
    LinkDown,
    LocalProtocolError,
    NotSpoken,
    QueueFull,
    RemoteProtocolError,
)
from bloombee.links.estimator import LinkEstimator
from bloombee.links.window import BulkWindow
from bloombee.pipeline.work import Outcome, Work
from bloombee.roles.coding import Payload, Receiver, Sender
from bloombee.roles.log_file import LogFile
from bloombee.roles.neighbours import GREETINGS, MOST_DAMAGED, Neighbours
from bloombee.roles.stage_host import StageHost
from bloombee.roles.stages import Stages
from bloombee.roles.watching import LOADING_SILENCE_S
from bloombee.roles.work_thread import WorkThread
from bloombee.roles.worker import WorkerRole
from bloombee.transport.link_events import Counters, LinkEvent, LinkEventKind
from bloombee.types import Dtype, Kind, Lane, Priority
from bloombee.wire.envelope import Envelope, TensorHeader
from bloombee.wire.liveness import LoopClock, grace_s
from bloombee.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Close,
    CodecTable,
    Forward,
    Gap,
    Group,
    Heartbeat,
    Hello,
    Introduce,
    Introduced,
    Item,
    Joined,
    KvHeld,
    KvPages,
    LinkReport,
    Load,
    Lost,
    MeasureLink,
    Opening,
    Peer,
    Refused,
    Resume,
    Retire,
    Retired,
    Sampling,
    StageFailed,
    TableHeld,
    TableUnknown,
    Welcome,
    Wire,
    Wired,
)
from bloombee.wire.token import JoinToken, encode_token

SAMPLING = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, -1)
HEAD_LINK, HOP = b"h" * 16, b"n" * 16
SILENCE_S = 0.675


class _Endpoint:
    """Keeps what is sent; raises what it is told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Lane, Any]] = []
        self.refuse: Callable[[Any], Exception | None] = lambda _: None
        self.expelled: list[tuple[bytes, BloomBeeError]] = []
        self.window = BulkWindow()
        self.lanes = {lane: Counters() for lane in Lane}
        self.sent_bytes = 1

    def send(self, link: bytes, lane: Lane, message: Any, tensors: Any = (), payloads: Any = ()) -> int:
        error = self.refuse(message)
        if error is not None:
            raise error
        self.sent.append((link, lane, message))
        if link == HOP:
            self.lanes[lane].bytes_out += self.sent_bytes
        return self.sent_bytes

    def counters(self, _: bytes, lane: Lane) -> Counters:
        return self.lanes[lane]

    def pending_bytes(self, *_: Any) -> int:
        return 0

    def dial(self, *_: Any) -> None: ...
    def hang_up(self, _: bytes) -> None: ...
    def allow(self, *_: Any) -> None: ...
    def expel(self, link: bytes, error: BloomBeeError) -> None:
        self.expelled.append((link, error))

    def estimator(self, _: bytes) -> LinkEstimator:
        return LinkEstimator()

    def bulk_window(self, _: bytes) -> BulkWindow:
        return self.window

    def of(self, kind: type) -> list[Any]:
        return [message for _, _, message in self.sent if isinstance(message, kind)]


class _Device:
    sender: Sender | None = None
    receiver: Receiver | None = None
    trace = None
    pager = None

    def __init__(self) -> None:
        self.works: list[tuple[Work, Callable[[Outcome], None]]] = []
        self.asked: list[tuple[Any, Callable[[Any], None], Callable[[BloomBeeError], None]]] = []
        """Tables to unpack and frames to code anew."""

    def load(self, *_: Any, on_done: Callable[[int, int], None], **__: Any) -> None:
        self.loaded = on_done

    def forgo_codec(self) -> None: ...
    def next_stage_changed(self) -> None: ...
    def profile(self, _: Any) -> None: ...
    def run(self, work: Work, *, on_done: Callable[[Outcome], None], on_error: Any) -> None:
        self.works.append((work, on_done))

    def recode(self, payload: Payload, *, on_done: Callable[[Any], None], on_error: Callable[[BloomBeeError], None]) -> None:
        self.asked.append((payload, on_done, on_error))

    def unpack(self, body: bytes, *, on_done: Callable[[Any], None], on_error: Callable[[BloomBeeError], None]) -> None:
        self.asked.append((body, on_done, on_error))


class _Stage:
    """The first of two, greeted by the next, with a clock that stands."""

    def __init__(self, *, is_loaded: bool = True) -> None:
        self._open(0, 1, is_loaded=is_loaded)
        peer = Peer(2, "tcp://127.0.0.1:1", bytes(32), HOP, True, None)
        self.host.wire(Wire(1, 1, 1, 0, 2, 8, 64, None, peer, None, (), None, False, 1))
        for lane in Lane:
            self.welcome(lane)
        self.said(Lane.CONTROL, Resume(1, 1, ()))

    def _open(self, start: int, stop: int, *, is_loaded: bool = True, worker: int = 1) -> None:
        self.now = 100.0
        self.clock = LoopClock(0.025)
        self.clock.tick(self.now)
        self.endpoint, self.device = _Endpoint(), _Device()
        self.neighbours = Neighbours(
            self.endpoint,  # type: ignore[arg-type]
            swarm=1,
            worker=worker,
            clock=self.clock,
            heartbeat_s=0.1,
            silence_s=SILENCE_S,
            now=lambda: self.now,
        )
        self.host = StageHost(
            Load(1, 1, start, stop, 2, "m", bytes(16), (), "float32", (Group(0, 64),), 4, 0, None, (), ()),
            endpoint=self.endpoint,  # type: ignore[arg-type]
            head_link=HEAD_LINK,
            device=self.device,  # type: ignore[arg-type]
            neighbours=self.neighbours,
            log_file=LogFile(WorkThread(asyncio.get_running_loop(), "log"), None),
            now=lambda: self.now,
        )
        if is_loaded:
            self.device.loaded(0, 0)

    def welcome(self, lane: Lane) -> None:
        sent = [message for _, on, message in self.endpoint.sent if isinstance(message, Hello) and on is lane][-1].sent_ns
        self.said(lane, Welcome(PROTOCOL_VERSION, (0,), sent, 0, 0))

    def said(self, lane: Lane, message: Any) -> None:
        """By the next stage."""
        self.neighbours.heard(HOP)
        if isinstance(message, GREETINGS):
            self.neighbours.greeted(HOP, lane, message)
        elif isinstance(message, Heartbeat):
            self.neighbours.beat(HOP, message)
        else:
            self.neighbours.serves(HOP)
            self.host.received(HOP, message, None)

    def forward(self, sequence: int) -> None:
        item = Item(sequence, 0, Kind.PROMPT, 0, bytes(4), 1, Opening(1, SAMPLING, 8, (), (), None, None), None)
        message = Forward(1, 1, sequence, sequence, Lane.CONTROL, Priority.NOW, (item,))
        self.host.received(HEAD_LINK, message, None)

    def compute(self, payload: Payload | None = None) -> None:
        """The oldest work comes back with one hidden row."""
        work, on_done = self.device.works.pop(0)
        payload = payload or (TensorHeader("hidden", "float32", (1, 1), 0, 4, 4, 0), bytes(4))
        on_done(Outcome(work.number, hidden=payload))

    def pass_s(self, seconds: float, *, answered: bool = True) -> None:
        """The next worker gives every heartbeat back at once, or says nothing."""
        for count in range(round(seconds / 0.025)):
            self.now += 0.025
            self.clock.tick(self.now)
            if count % 4 == 3:
                self.tick()
            before = len(self.endpoint.sent)
            self.neighbours.look(self.now)
            for _, lane, message in self.endpoint.sent[before:]:
                if answered and isinstance(message, Heartbeat):
                    self.said(lane, message)

    def tick(self) -> None:
        self.neighbours.tick(self.now)
        self.host.tick()

    def event(self, kind: LinkEventKind, lane: Lane) -> None:
        self.neighbours.event(HOP, LinkEvent(kind, HOP, lane, LinkDown("x")))  # type: ignore[arg-type]


class _Last(_Stage):
    """The last of two, greeted by the first."""

    def __init__(self) -> None:
        self._open(1, 2, worker=2)
        self.device.receiver = Receiver(Dtype.FLOAT32, 1)
        self.host.wire(Wire(1, 1, 1, 1, 2, 8, 64, Peer(1, "", bytes(32), HOP, False, None), None, None, (), None, False, 1))
        for lane in Lane:
            self.said(lane, Hello(PROTOCOL_VERSION, 1, 1, "s", (0,), 0))
        self.host.received(HEAD_LINK, Resume(1, 1, ()), None)

    def rows(self, frame: int, *, checksum: int) -> None:
        item = Item(frame, 0, Kind.PROMPT, 0, bytes(4), 1, Opening(1, SAMPLING, 8, (), (), None, None), None)
        payload = TensorHeader("hidden", Dtype.FLOAT32, (1, 1), 0, 4, 4, checksum), b"rows"
        self.host.received(HOP, Forward(1, 1, frame, frame, Lane.CONTROL, Priority.NOW, (item,)), payload)


def _run(use: Callable[[Any], None], kind: type[_Stage] = _Stage) -> None:
    async def inside() -> None:
        use(kind())

    asyncio.run(inside())


@pytest.mark.parametrize(
    "error", [LocalProtocolError("too large"), QueueFull("full"), ValueError("a bug")], ids=["illegal", "no room", "bug"]
)
def test_a_command_that_cannot_be_carried_out_costs_none_of_the_others(error: Exception) -> None:
    def use(stage: _Stage) -> None:
        for sequence in range(3):
            stage.forward(sequence)
        stage.endpoint.refuse = lambda message: error if isinstance(message, Forward) and message.items else None
        if isinstance(error, BloomBeeError):
            stage.compute()
        else:
            with pytest.raises(ValueError, match="a bug"):  # goes to the loop's handler
                stage.compute()
        assert [work.microbatch for work, _ in stage.device.works] == [1, 2]  # two were given to the device, the third is now
        assert [ack.upto for ack in stage.endpoint.of(Ack)] == [3]
        assert not stage.endpoint.of(StageFailed)

    _run(use)


def test_of_a_frame_that_breaks_a_rule_of_the_wire_the_microbatch_goes_on_empty_and_its_requests_end() -> None:
    def use(stage: _Stage) -> None:
        for sequence in range(2):
            stage.forward(sequence)
        stage.endpoint.refuse = lambda m: (
            LocalProtocolError("no") if isinstance(m, Forward) and m.microbatch == 0 and m.items else None
        )
        stage.compute()
        stage.compute()
        assert [(f.frame, f.microbatch, len(f.items)) for f in stage.endpoint.of(Forward)] == [(0, 0, 0), (1, 1, 1)]
        assert [([h.sequence for h in lost.holdings], lost.is_final) for lost in stage.endpoint.of(Lost)] == [([0], True)]

    _run(use)


def test_a_link_that_comes_back_in_time_loses_nothing_and_is_greeted_anew() -> None:
    def use(stage: _Stage) -> None:
        stage.forward(0)
        stage.compute()
        for lane in Lane:
            stage.event(LinkEventKind.DISCONNECTED, lane)
        stage.endpoint.sent.clear()
        stage.event(LinkEventKind.CONNECTED, Lane.CONTROL)
        assert [lane for _, lane, message in stage.endpoint.sent if isinstance(message, Hello)] == [Lane.CONTROL]
        assert not stage.endpoint.of(Forward)  # bulk is still away
        stage.event(LinkEventKind.CONNECTED, Lane.BULK)
        assert [lane for _, lane, message in stage.endpoint.sent if isinstance(message, Hello)] == [Lane.CONTROL, Lane.BULK]
        assert len(stage.endpoint.of(Forward)) == 1
        stage.pass_s(10.0)
        assert stage.host.reporter.error is None

    _run(use)


def test_a_link_that_stays_away_is_lost_after_its_grace_and_the_peer_is_named() -> None:
    def use(stage: _Stage) -> None:
        stage.event(LinkEventKind.DISCONNECTED, Lane.BULK)
        stage.pass_s(grace_s(0.0) - 0.1)
        assert stage.host.reporter.error is None
        stage.pass_s(0.3)
        (failed,) = stage.endpoint.of(StageFailed)
        assert failed.fields["peer"] == 2

    _run(use)


def test_a_port_that_refuses_is_proof_at_once() -> None:
    def use(stage: _Stage) -> None:
        stage.event(LinkEventKind.PORT_REFUSES, Lane.CONTROL)
        assert isinstance(stage.host.reporter.error, LinkDown)
        assert stage.host.reporter.error.fields["peer"] == 2

    _run(use)


def test_a_hop_over_which_nothing_is_answered_is_lost_though_its_connections_stand() -> None:
    def use(stage: _Stage) -> None:
        stage.pass_s(0.5, answered=False)
        stage.pass_s(1.0)
        stage.pass_s(0.5, answered=False)
        stage.now += 60.0  # this process stood still
        stage.clock.tick(stage.now)
        stage.neighbours.look(stage.now)
        assert stage.host.reporter.error is None
        stage.pass_s(0.3, answered=False)
        (failed,) = stage.endpoint.of(StageFailed)
        assert failed.fields["peer"] == 2

    _run(use)


def test_a_next_worker_that_still_loads_may_be_silent_for_longer() -> None:
    def use(stage: _Stage) -> None:
        stage.neighbours.get(HOP).serves = False
        stage.pass_s(LOADING_SILENCE_S - 1.0, answered=False)
        assert stage.host.reporter.error is None
        stage.said(Lane.CONTROL, Resume(1, 1, ()))
        stage.pass_s(SILENCE_S + 0.1, answered=False)
        assert isinstance(stage.host.reporter.error, LinkDown)

    _run(use)


def test_a_large_frame_that_crosses_a_slow_wire_excuses_the_silence_behind_it() -> None:
    def use(stage: _Stage) -> None:
        stage.pass_s(1.0)
        stage.endpoint.sent_bytes = 1_000_000
        stage.forward(0)
        stage.compute()
        stage.endpoint.sent_bytes = 1
        stage.pass_s(16.0, answered=False)  # nothing is known of the bandwidth: it may take as long
        assert stage.host.reporter.error is None
        stage.pass_s(0.3)
        stage.pass_s(SILENCE_S + 0.1, answered=False)
        assert isinstance(stage.host.reporter.error, LinkDown)

    _run(use)


def test_who_is_asked_whether_it_is_there_gives_the_question_back() -> None:
    def use(stage: _Stage) -> None:
        stage.said(Lane.CONTROL, Heartbeat(7))
        assert stage.endpoint.sent[-1] == (HOP, Lane.CONTROL, Heartbeat(7))

    _run(use, _Last)


def test_a_damaged_frame_is_not_taken_and_its_rows_are_asked_for_again() -> None:
    def use(stage: _Last) -> None:
        right = crc32c(b"rows")
        stage.rows(0, checksum=right ^ 1)
        assert not stage.device.works
        assert stage.endpoint.sent[-1] == (HOP, Lane.CONTROL, Gap(1, 1, 0, 0, 0))
        stage.rows(0, checksum=right)
        assert [work.microbatch for work, _ in stage.device.works] == [0]
        assert stage.host.reporter.error is None

    _run(use, _Last)


def test_who_sends_nothing_but_damaged_frames_is_charged_with_them() -> None:
    def use(stage: _Last) -> None:
        for _ in range(MOST_DAMAGED):
            stage.rows(0, checksum=1)
        with pytest.raises(RemoteProtocolError):
            stage.rows(0, checksum=1)
        assert stage.host.reporter.error is None

    _run(use, _Last)


def test_activations_of_another_boundary_are_their_senders_fault() -> None:
    def use(stage: _Last) -> None:
        stage.device.receiver = Receiver(Dtype.BFLOAT16, 1)
        with pytest.raises(RemoteProtocolError):
            stage.rows(0, checksum=crc32c(b"rows"))
        assert not stage.device.works

    _run(use, _Last)


@pytest.mark.parametrize("kind", [_Stage, _Last])
def test_a_neighbour_that_breaks_a_rule_is_told_to_the_head_as_its_own_fault_once(kind: type[_Stage]) -> None:
    def use(stage: _Stage) -> None:
        for _ in range(2):
            refused = LinkEvent(LinkEventKind.REFUSED, HOP, Lane.CONTROL, RemoteProtocolError("a lie"))
            stage.neighbours.event(HOP, refused)

        def gone(*_: Any) -> Any:
            raise LinkDown("no such link")

        stage.endpoint.bulk_window = stage.endpoint.counters = stage.endpoint.estimator = gone  # type: ignore[method-assign]
        stage.pass_s(5.0)
        (failed,) = stage.endpoint.of(StageFailed)
        assert failed.fields["peer"] == (2 if kind is _Stage else 1)
        assert "it broke the protocol: a lie" in failed.fields["message"]
        stage.host.restored(HEAD_LINK)
        stage.host.reporter.say_failed()
        assert stage.endpoint.of(StageFailed) == [failed, failed]  # the first may have been lost with the connection

    _run(use, kind)


@pytest.mark.parametrize(("peer", "epoch"), [(2, 1), (9, 2)])
def test_a_neighbour_is_complained_of_in_the_oldest_epoch_that_has_it(peer: int, epoch: int) -> None:
    """Beside the epoch that runs another is made ready, in which somebody else is next."""

    def use(stage: _Stage) -> None:
        other = Peer(9, "tcp://127.0.0.1:2", bytes(32), b"x" * 16, True, None)
        stage.host.wire(Wire(1, 2, 1, 0, 2, 8, 64, None, other, None, (), None, False, 1))
        stage.host.complain(LinkDown("it has ended", peer=peer))
        (failed,) = stage.endpoint.of(StageFailed)
        assert (failed.epoch, failed.fields["peer"]) == (epoch, peer)

    _run(use)


def test_who_was_missing_once_is_never_told_of_a_later_epoch() -> None:
    """In which nobody knows them: it would be this stage's own fault."""

    def use(stage: _Stage) -> None:
        stage.host.complain(LinkDown("it has ended", peer=2))
        other = Peer(9, "tcp://127.0.0.1:2", bytes(32), b"x" * 16, True, None)
        stage.host.wire(Wire(1, 2, 2, 0, 2, 8, 64, None, other, None, (), None, False, 1))
        stage.host.reporter.say_failed()  # the head's connection was away
        assert [failed.epoch for failed in stage.endpoint.of(StageFailed)] == [1, 1]

    _run(use)


def test_a_stage_that_cannot_go_on_says_so_in_every_epoch_that_counts_on_it() -> None:
    def use(stage: _Stage) -> None:
        stage.host.fail(DeviceError("out of memory"))
        other = Peer(9, "tcp://127.0.0.1:2", bytes(32), b"x" * 16, True, None)
        stage.host.wire(Wire(1, 2, 2, 0, 2, 8, 64, None, other, None, (), None, False, 1))
        assert [failed.epoch for failed in stage.endpoint.of(StageFailed)] == [1, 2]
        assert not any(wired.epoch == 2 for wired in stage.endpoint.of(Wired))

    _run(use)


def test_an_address_that_nobody_can_dial_is_charged_to_who_told_it() -> None:
    def use(stage: _Stage) -> None:
        def dial(*_: Any) -> None:
            raise ConfigError("cannot dial")

        stage.endpoint.dial = dial  # type: ignore[method-assign]
        stage.host.wire(
            Wire(1, 2, 2, 0, 2, 8, 64, None, Peer(9, "tcp://x", bytes(32), b"x" * 16, True, None), None, (), None, False, 1)
        )
        (failed,) = stage.endpoint.of(StageFailed)
        assert (failed.epoch, failed.fields["peer"]) == (2, 9)
        assert not stage.host.reporter.is_over

    _run(use)


def _worker(stage: _Stage) -> WorkerRole:
    token = encode_token(JoinToken(key=bytes(32), secret=bytes(24), endpoints=("tcp://127.0.0.1:1",)))
    worker = WorkerRole(WorkerConfig(join=token))
    worker._endpoint = stage.endpoint  # type: ignore[assignment]
    worker._stages = Stages(worker._config, stage.endpoint, clock=stage.clock, memory_bytes=0)  # type: ignore[arg-type]
    worker._stages.joined(Joined(1, 1, 0.1, SILENCE_S, False), HEAD_LINK, lambda *_: None)
    worker._stages._neighbours = stage.neighbours
    worker._stages._hosts[1] = [stage.host]
    return worker


def test_what_the_next_worker_refuses_again_and_again_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def use(stage: _Stage) -> None:
        for _ in range(5):
            stage.said(Lane.CONTROL, Refused("AuthenticationError", {"message": "no such link here"}))
        stage.said(Lane.CONTROL, Refused("StalePlan", {"message": "epoch 1"}))
        stage.said(Lane.CONTROL, Refused("RemoteProtocolError", {"message": "what?"}))

    with caplog.at_level(logging.WARNING, logger="bloombee"):
        _run(use)
    said = [record.getMessage().rpartition(": ")[2] for record in caplog.records]
    assert said == ["AuthenticationError no such link here", "RemoteProtocolError what?"]


@pytest.mark.parametrize(
    ("message", "is_expelled"),
    [
        (Forward(1, 1, 99, 99, Lane.CONTROL, Priority.NOW, ()), True),
        (Ack(1, 1, Lane.CONTROL, 7, (), 7, 9, 0), True),
        (Close(1, 1, (1,), 0), True),
        (Introduce(Peer(3, "tcp://127.0.0.1:2", bytes(32), b"x" * 16, True, None)), True),
        (MeasureLink(1, 0, True), True),
        (Introduced(HOP, "", {}), True),
        (Resume(1, 0, ()), False),
    ],
    ids=[
        "beyond its credit",
        "of frames never sent",
        "over a link that may not",
        "as if it were the head",
        "measure as if it were the head",
        "as if this were the head",
        "of an earlier epoch",
    ],
)
def test_what_a_neighbour_says_wrongly_costs_its_link_and_nothing_else(message: Any, is_expelled: bool) -> None:
    def use(stage: _Last) -> None:
        worker = _worker(stage)
        stage.endpoint.sent.clear()
        worker._received(HOP, Lane.CONTROL, Envelope(1, message, ()), [])
        assert [link for link, _ in stage.endpoint.expelled] == [HOP] * is_expelled
        assert bool(stage.endpoint.of(Refused)) is not is_expelled
        assert stage.host.reporter.error is None

    _run(use, _Last)


def test_a_bug_in_a_worker_is_told_to_the_head() -> None:
    async def inside() -> None:
        stage = _Stage()
        worker = _worker(stage)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(worker._bug)
        done = asyncio.Event()

        def bug() -> None:
            loop.call_soon(done.set)
            raise ValueError("what nobody thought of")

        loop.call_soon(bug)
        await done.wait()
        (failed,) = stage.endpoint.of(StageFailed)
        assert "what nobody thought of" in str(failed.fields["message"])

    asyncio.run(inside())


def test_pieces_that_arrive_are_a_sign_of_life_and_probes_are_none() -> None:
    def use(stage: _Stage) -> None:
        window = stage.endpoint.window
        stage.pass_s(1.0)
        window.sent(1000, stage.now)
        stage.pass_s(1.0)
        assert not stage.endpoint.of(LinkReport)
        window.acked(1, stage.now)
        stage.pass_s(1.0)
        assert len(stage.endpoint.of(LinkReport)) == 1
        window.acked(window.skip() + 1, stage.now)
        stage.pass_s(1.0)
        assert len(stage.endpoint.of(LinkReport)) == 1

    _run(use)


CHANNELS = 1024


def _fitted() -> tuple[Sender, Table, Payload]:
    """A sender that codes with a table of its own, which the receiver has said to hold, and a row so coded."""
    sender = Sender(Dtype.FLOAT32, CHANNELS, CodecMode.ON, lambda _: None)
    rows = (np.random.default_rng(0).standard_normal((64, CHANNELS)) * np.exp2(np.arange(CHANNELS) % 7)).astype(np.float32)
    table = fit(rows.tobytes(), Dtype.FLOAT32, channels=CHANNELS)
    sender._made[table.key] = table
    sender.held(table.key)
    return sender, table, sender.encode(memoryview(rows[:1].tobytes()), 1)


def test_a_flood_of_unknown_tables_has_each_frame_coded_anew_once() -> None:
    def use(stage: _Stage) -> None:
        sender, table, payload = _fitted()
        stage.device.sender = sender
        stage.forward(0)
        stage.compute(payload)
        stage.endpoint.sent.clear()
        unknown = TableUnknown(1, 1, Lane.CONTROL, 0, table.key)
        for _ in range(1000):
            stage.said(Lane.CONTROL, unknown)
        ((coded, on_done, _),) = stage.device.asked
        assert coded is payload
        on_done(sender.recode(payload))
        assert [forward.frame for forward in stage.endpoint.of(Forward)] == [0]
        for _ in range(1000):
            stage.said(Lane.CONTROL, unknown)
        assert len(stage.device.asked) == 1, "it needs no table any more"
        with pytest.raises(RemoteProtocolError, match="the default codec table is unknown to nobody"):
            stage.said(Lane.CONTROL, TableUnknown(1, 1, Lane.CONTROL, 0, sender.default_key))

    _run(use)


def test_a_flood_of_tables_is_unpacked_one_at_a_time_and_not_on_the_loop() -> None:
    def use(stage: _Stage) -> None:
        stage.device.receiver = Receiver(Dtype.FLOAT32, CHANNELS)
        bodies = [number.to_bytes(4, "little") for number in range(1000)]
        for body in bodies:
            stage.host.received(HEAD_LINK, CodecTable(1, 1, body), None)
        ((body, on_done, _),) = stage.device.asked
        assert body == bodies[0]
        on_done(b"key!")
        assert [held.key for held in stage.endpoint.of(TableHeld)] == [b"key!"]
        _, (body, _, on_error) = stage.device.asked
        assert body == bodies[-1], "the newest; those between are of no use any more"
        on_error(CorruptPayload("no table"))
        assert [refused.code for refused in stage.endpoint.of(Refused)] == ["CorruptPayload"]
        assert len(stage.device.asked) == 2

    _run(use)


def test_a_stage_that_still_loads_greets_its_neighbours_and_is_wired_once_it_has_its_span() -> None:
    async def main() -> None:
        stage = _Stage(is_loaded=False)
        assert stage.endpoint.of(Hello)
        await asyncio.sleep(0)  # what a greeting leads to comes a turn of the loop later
        assert not stage.endpoint.of(Wired)
        stage.device.loaded(0, 0)
        assert [wired.epoch for wired in stage.endpoint.of(Wired)] == [1]

    asyncio.run(main())


def test_a_retire_is_answered_however_often_it_comes() -> None:
    def use(stage: _Stage) -> None:
        for _ in range(2):
            stage.host.received(HEAD_LINK, Retire(1, 1), None)
        assert stage.endpoint.of(Retired) == [Retired(1, 1), Retired(1, 1)]
        assert stage.host.seatings.get(1) is None

    _run(use)


def test_what_is_not_spoken_yet_is_refused_by_name() -> None:
    def use(stage: _Stage) -> None:
        for message in (KvPages(1, 1, 7, 0, 0, 1, 0, 4), KvHeld(1, 1, 7, 0, 0, 1, 5)):
            with pytest.raises(NotSpoken):
                stage.host.received(HOP, message, None)

    _run(use)
