"""The stage's core, event by event: rollback, gaps, closing under work, illegal messages."""

from __future__ import annotations

import copy

import msgspec
import pytest

from bloombee.errors import LocalProtocolError, RemoteProtocolError, StalePlan
from bloombee.kv.pool import most_pages, pages_for
from bloombee.pipeline.commands import Command, Compute, Gather, Send
from bloombee.pipeline.device_queue import DEVICE_DEPTH, MOST_OVERTAKES
from bloombee.pipeline.events import (
    Computed,
    ComputeFailed,
    Gathered,
    GatherFailed,
    Greeted,
    Port,
    StageReceived,
    Tick,
    Unsendable,
)
from bloombee.pipeline.stage import StageCore
from bloombee.pipeline.work import Outcome, Pages, Work
from bloombee.types import Kind, Lane, Phase, Priority
from bloombee.wire.messages import (
    MARK,
    REPLAY,
    Ack,
    Close,
    Closed,
    Commit,
    Cut,
    Forward,
    Gap,
    Group,
    Holding,
    Item,
    Load,
    Lost,
    Opening,
    Pick,
    Resume,
    Resumed,
    Retire,
    Sampling,
    StageFailed,
    Tree,
    Verdict,
    Wire,
    Wired,
)
from tests.work_kit import count_opcodes

SAMPLING = Sampling(0.0, 0, 1.0, 0.0, 1.2, 0.0, 0.0, 5, -1)


def _core(
    *, stage: int = 0, num_stages: int = 2, num_pages: int = 8, credits_: int = 4, windows: tuple[int, ...] = (0,)
) -> StageCore:
    groups = tuple(Group(window, num_pages) for window in windows)
    load = Load(1, 1, stage, stage + 1, num_stages, "m", bytes(16), (), "float32", groups, 4, 0, None, (), ())
    core = StageCore(load, resend_after_s=1.0)
    _seat(core, 1, stage, num_stages, credits_)
    return core


def _seat(
    core: StageCore, epoch: int, stage: int, num_stages: int, credits_: int, holdings: tuple[Holding, ...] = ()
) -> list[Command]:
    """What opening the seat of ``epoch``, whose next stage holds ``holdings``, leads to."""
    core.handle(
        StageReceived(Wire(1, epoch, epoch, stage, num_stages, credits_, 64, None, None, None, (), None, False, 1, False), 0.0)
    )
    wired, resume = core.handle(Greeted(epoch, 0.0))
    assert wired == Send(Port.HEAD, Lane.CONTROL, Wired(1, epoch))
    assert isinstance(resume, Send)
    assert isinstance(resume.message, Resume)
    assert core.handle(StageReceived(Resumed(1, epoch), 0.0)) == []
    answer, *commands = core.handle(StageReceived(Resume(1, epoch, holdings), 0.0))
    assert answer == Send(Port.DOWNSTREAM, Lane.CONTROL, Resumed(1, epoch))
    return commands


def _item(sequence: int, position: int, rows: int, *, generation: int = 0, picks: int = 1, first_token: int = 0) -> Item:
    tokens = b"".join((first_token + position + i).to_bytes(4, "little") for i in range(rows))
    opening = _opening(rows) if position == 0 else None
    return Item(sequence, generation, Kind.DECODE, position, tokens, picks, opening, None)


def _opening(num_prompt_tokens: int) -> Opening:
    return Opening(num_prompt_tokens, SAMPLING, 8, (), (), None, None)


def _forward(frame: int, *items: Item, phase: Phase = Phase.DECODE, epoch: int = 1) -> StageReceived:
    lane, priority = (Lane.BULK, Priority.PROMPT) if phase is Phase.PREFILL else (Lane.CONTROL, Priority.NOW)
    return StageReceived(Forward(1, epoch, frame, 100 + frame, lane, priority, items), now=0.0)


def _works(commands: list[Command]) -> list[Work]:
    return [command.work for command in commands if isinstance(command, Compute)]


def _messages(commands: list[Command], kind: type) -> list[object]:
    return [command.message for command in commands if isinstance(command, Send) and isinstance(command.message, kind)]


def _done(core: StageCore, work: Work) -> list[Command]:
    return core.handle(Computed(Outcome(work.number, hidden=b"rows"), now=0.0))


def test_rows_go_to_the_device_and_on_with_the_same_address() -> None:
    core = _core()
    (work,) = _works(core.handle(_forward(0, _item(7, 0, 5), phase=Phase.PREFILL)))
    assert work.microbatch == 100
    (segment,) = work.segments
    assert (segment.sequence, segment.position, segment.num_rows, segment.num_picks) == (7, 0, 5, 0)
    assert segment.pages == (Pages((0, 1)),)
    commands = _done(core, work)
    send = commands[0]
    assert isinstance(send, Send)
    assert (send.to, send.lane, send.payload) == (Port.DOWNSTREAM, Lane.BULK, b"rows")
    assert send.message == Forward(1, 1, 0, 100, Lane.BULK, Priority.PROMPT, (_item(7, 0, 5),))
    assert _messages(commands, Ack) == [Ack(1, 1, Lane.BULK, 1, (), 1, 5, 0)]


def test_last_stage_sends_verdicts_and_keeps_history_for_penalties() -> None:
    core = _core(stage=1)
    (work,) = _works(core.handle(_forward(0, _item(7, 0, 3), phase=Phase.PREFILL)))
    assert work.segments[0].num_picks == 1
    assert work.segments[0].history == work.segments[0].tokens
    commands = core.handle(Computed(Outcome(work.number), now=0.0))
    assert _messages(commands, Verdict) == [Verdict(1, 1, 0, 100, (), None)]
    (work,) = _works(core.handle(_forward(1, _item(7, 3, 1))))
    assert len(work.segments[0].history) == 16


@pytest.mark.parametrize("stage", [0, 1])
def test_rows_that_could_not_be_computed_end_their_sequences_and_nothing_else(stage: int) -> None:
    core = _core(stage=stage)
    (work,) = _works(core.handle(_forward(0, _item(7, 0, 2), _item(8, 0, 3))))
    commands = core.handle(Computed(Outcome(work.number, failed=True), now=0.0))
    said = _messages(commands, Verdict if stage else Forward)
    assert said == [Verdict(1, 1, 0, 100, (), None) if stage else Forward(1, 1, 0, 100, Lane.CONTROL, Priority.NOW, ())]
    (lost,) = _messages(commands, Lost)
    assert lost == Lost(1, 1, (Holding(7, 0, 2), Holding(8, 0, 3)), is_final=True)
    assert _messages(commands, Ack)
    assert not _messages(commands, StageFailed)
    (work,) = _works(core.handle(_forward(1, _item(9, 0, 2))))
    commands = _done(core, work)
    assert [message.items for message in _messages(commands, Forward)] == ([] if stage else [(_item(9, 0, 2),)])  # type: ignore[attr-defined]


def _draft(sequence: int, position: int) -> Item:
    """Two nodes."""
    return Item(sequence, 0, Kind.DRAFT, position, bytes(8), 2, None, Tree(1, (0, 1), b"\x03"))


def test_nodes_that_could_not_be_computed_end_their_sequences_and_nothing_else() -> None:
    core = _core(stage=1)
    (work,) = _works(core.handle(_forward(0, _item(7, 0, 3))))
    core.handle(Computed(Outcome(work.number), now=0.0))
    (work,) = _works(core.handle(_forward(1, _draft(7, 3))))
    commands = core.handle(Computed(Outcome(work.number, failed=True), now=0.0))
    assert _messages(commands, Verdict) == [Verdict(1, 1, 1, 101, (), None)]
    assert _messages(commands, Lost) == [Lost(1, 1, (Holding(7, 0, 3),), is_final=True)]


def test_accepted_nodes_that_the_log_has_no_more_are_lost_to_a_stage_that_lacks_them() -> None:
    """It would be taken to be level with them otherwise, and to hang more nodes on rows that it does not have."""
    load = Load(1, 1, 0, 1, 2, "m", bytes(16), (), "float32", (Group(0, 8),), 4, 0, None, (), ())
    core = StageCore(load, resend_after_s=1.0, log_bytes=100)
    _seat(core, 1, 0, 2, 4)
    for frame, (item, num_bytes) in enumerate(((_item(7, 0, 3), 40), (_draft(7, 3), 40), (_item(8, 0, 3), 90))):
        (work,) = _works(core.handle(_forward(frame, item)))
        core.handle(Computed(Outcome(work.number, hidden=b"rows", num_bytes=num_bytes), now=0.0))
    core.handle(StageReceived(Commit(1, 1, (Cut(7, 1, 3, (1, 2)),)), 0.0))
    commands = _seat(core, 2, 0, 2, 4, (Holding(7, 1, 3), Holding(8, 0, 3)))
    assert _messages(commands, Lost) == [Lost(1, 2, (Holding(7, 1, 3),), is_final=False)]


def test_a_verdict_on_nodes_that_cannot_be_sent_goes_without_both() -> None:
    core = _core(stage=1)
    (work,) = _works(core.handle(_forward(0, _item(7, 0, 3))))
    core.handle(Computed(Outcome(work.number), now=0.0))
    (work,) = _works(core.handle(_forward(1, _draft(7, 3))))
    picks = tuple(Pick(7, 0, position, 5, None, ()) for position in (4, 5))
    commands = core.handle(Computed(Outcome(work.number, picks=picks), now=0.0))
    assert _messages(commands, Verdict) == [Verdict(1, 1, 1, 101, picks, (1, 2))]
    commands = core.handle(Unsendable(1, Lane.CONTROL, 1, 0.0))
    assert _messages(commands, Verdict) == [Verdict(1, 1, 1, 101, (), None)]


@pytest.mark.parametrize("stage", [0, 1])
def test_rows_that_could_not_be_computed_end_their_sequences_though_their_seat_is_retired(stage: int) -> None:
    """Nobody would say them again: they are in no log."""
    core = _core(stage=stage)
    (work,) = _works(core.handle(_forward(0, _item(7, 0, 2))))
    _seat(core, 2, stage, 2, 4)
    core.handle(StageReceived(Retire(1, 1), 0.0))
    commands = core.handle(Computed(Outcome(work.number, failed=True), now=0.0))
    assert _messages(commands, Lost) == [Lost(1, 2, (Holding(7, 0, 2),), is_final=True)]


def test_doubled_frame_is_only_acknowledged() -> None:
    core = _core()
    (work,) = _works(core.handle(_forward(0, _item(7, 0, 2))))
    commands = core.handle(_forward(0, _item(7, 0, 2)))
    assert _works(commands) == []
    assert _messages(commands, Ack) == [Ack(1, 1, Lane.CONTROL, 1, (), 0, 4, 0)]
    _done(core, work)


def test_rows_beyond_what_is_held_ask_for_the_gap_and_are_taken_after_it() -> None:
    core = _core()
    late = _forward(1, _item(7, 2, 1))
    assert _messages(core.handle(late), Gap) == [Gap(1, 1, 7, 0, 0)]
    assert core.num_sequences == 0
    assert _works(core.handle(_forward(0, _item(7, 0, 2))))
    assert _works(core.handle(late))


def test_overlapping_rows_are_cut_to_the_new_ones() -> None:
    core = _core()
    core.handle(_forward(0, _item(7, 0, 4)))
    (work,) = _works(core.handle(_forward(1, _item(7, 2, 5))))
    assert (work.segments[0].position, work.segments[0].num_rows) == (4, 3)
    assert work.hidden_rows == ((2, 5),)


def test_a_window_holds_a_bounded_number_of_pages_of_a_sequence_of_any_length() -> None:
    core = _core(credits_=999, windows=(0, 6), num_pages=200)
    most = most_pages(700, 4, window=6, rows=3)
    for frame in range(233):
        commands = core.handle(_forward(frame, _item(7, 3 * frame, 3)))
        (work,) = _works(commands)
        full, narrow = work.segments[0].pages
        assert full.start == 0
        assert len(full.ids) == pages_for(3 * frame + 3, 4)
        assert narrow.start <= max(0, 3 * frame - 5)
        assert len(narrow.ids) <= most
        _done(core, work)
        assert core.pages_free <= 400 - len(full.ids)
    assert 200 - core.store.kv.pools[1].num_free <= most < 25
    core.handle(StageReceived(Close(1, 1, (), 8), 0.0))
    assert core.pages_free == 400


def test_pages_that_one_segment_leaves_behind_are_not_reused_within_its_work() -> None:
    core = _core(credits_=999, windows=(6,), num_pages=30)
    for frame in range(25):
        (work,) = _works(core.handle(_forward(frame, _item(7, 4 * frame, 4))))
        _done(core, work)
    (work,) = _works(core.handle(_forward(25, _item(7, 100, 4), _item(8, 0, 30))))
    long, fresh = (segment.pages[0] for segment in work.segments)
    assert not set(long.ids) & set(fresh.ids)
    _done(core, work)
    (work,) = _works(core.handle(_forward(26, _item(9, 0, 4))))
    assert set(work.segments[0].pages[0].ids) & set(long.ids)


def test_pages_that_are_not_there_fail_the_stage() -> None:
    core = _core(num_pages=2)
    (failed,) = _messages(core.handle(_forward(0, _item(7, 0, 9))), StageFailed)
    assert failed.code == "PoolExhausted"  # type: ignore[attr-defined]
    assert _works(core.handle(_forward(1, _item(8, 0, 1)))) == []


def test_closing_frees_at_once_and_what_waits_for_the_device_is_left_out() -> None:
    """What still runs on the device reads pages that are free: whoever gets them writes to them in a later work."""
    core = _core(credits_=9)
    for frame in range(2):
        core.handle(_forward(frame, _item(frame, 0, 5)))
    core.handle(_forward(2, _item(7, 0, 5), _item(8, 0, 1)))
    closed = _messages(core.handle(StageReceived(Close(1, 1, (1, 7), 0), 0.0)), Closed)
    assert closed == [Closed(1, 1, (1, 7), 0, 6)]
    (work,) = _works(core.handle(Computed(Outcome(0, hidden=b""), 0.0)))
    assert [segment.sequence for segment in work.segments] == [8]
    assert work.hidden_rows == ((5, 6),)
    core.handle(Computed(Outcome(1, hidden=b""), 0.0))
    (onward,) = _messages(_done(core, work), Forward)
    assert [item.sequence for item in onward.items] == [8]  # type: ignore[attr-defined]
    core.handle(StageReceived(Close(1, 1, (), 9), 0.0))
    assert core.pages_free == 8


@pytest.mark.parametrize("close", [Close(1, 1, (7,), 0), Close(1, 1, (), 8)])
def test_late_frames_of_closed_sequences_open_nothing(close: Close) -> None:
    core = _core()
    core.handle(StageReceived(close, 0.0))
    (work,) = _works(core.handle(_forward(0, _item(7, 0, 2), _item(9, 0, 1))))
    assert [segment.sequence for segment in work.segments] == [9]
    assert work.hidden_rows == ((2, 3),)
    assert core.num_sequences == 1


def test_decode_overtakes_prefill_but_not_its_own() -> None:
    core = _core(credits_=9)
    for frame in range(2):
        core.handle(_forward(frame, _item(frame, 0, 1)))
    core.handle(_forward(2, _item(10, 0, 2, picks=0), phase=Phase.PREFILL))
    core.handle(_forward(3, _item(10, 2, 1)))
    core.handle(_forward(4, _item(0, 1, 1)))
    order = []
    number = 0
    while not order or len(order) < 5:
        commands = core.handle(Computed(Outcome(number, hidden=b""), now=0.0))
        order += [m.microbatch for m in _messages(commands, Forward)]  # type: ignore[attr-defined]
        _, running = core._device.jobs
        number = running[0].work.number if running else -1
    assert order == [100, 101, 104, 102, 103]


def test_the_next_stage_holds_the_device_back() -> None:
    core = _core(credits_=1)
    core.seats[1].downstream.lanes[Lane.CONTROL].limit = 0
    (work,) = _works(core.handle(_forward(0, _item(7, 0, 1))))
    _done(core, work)
    assert core.seats[1].downstream.num_backlog == 1
    assert _works(core.handle(_forward(1, _item(7, 1, 1)))) == []
    assert _works(core.handle(StageReceived(Ack(1, 1, 0, 0, (), 0, 1, 0), 0.0)))


def _decoding(core: StageCore, sequence: int = 0) -> None:
    """``sequence`` has its prompt of one token here and will decode."""
    (work,) = _works(core.handle(_prompt(0, sequence, 0, 1, of=1)))
    _done(core, work)


def _prompt(frame: int, sequence: int, position: int, rows: int, *, of: int) -> StageReceived:
    """Rows of a prompt of ``of`` tokens, of which no token is sampled."""
    item = _item(sequence, position, rows, picks=0)
    if item.opening is not None:
        item = msgspec.structs.replace(item, opening=_opening(of))
    return _forward(frame, item, phase=Phase.PREFILL)


def test_a_blocked_prefill_lane_does_not_hold_decode_back() -> None:
    core = _core(credits_=9)
    _decoding(core)
    core.seats[1].downstream.lanes[Lane.BULK].limit = 1
    (work,) = _works(core.handle(_prompt(1, 7, 0, 2, of=9)))
    commands = _done(core, work)
    assert _messages(commands, Forward) == []
    assert core.seats[1].downstream.lanes[Lane.BULK].num_backlog == 1
    assert _works(core.handle(_prompt(2, 7, 2, 2, of=9))) == []
    for step in range(5):
        (work,) = _works(core.handle(_forward(step, _item(0, 1 + step, 1))))
        commands = _done(core, work)
        assert [m.frame for m in _messages(commands, Forward)] == [step]  # type: ignore[attr-defined]
        assert _messages(commands, Ack) == [Ack(1, 1, Lane.CONTROL, step + 1, (), step + 1, step + 10, 0)]


def test_decode_waits_for_one_prefill_work_at_most() -> None:
    core = _core(credits_=9)
    _decoding(core)
    (running,) = _works(core.handle(_prompt(1, 7, 0, 2, of=9)))
    assert _works(core.handle(_prompt(2, 7, 2, 2, of=9))) == []
    (decode,) = _works(core.handle(_forward(0, _item(0, 1, 1))))
    assert _works(_done(core, running)) == []
    (chunk,) = _works(_done(core, decode))
    assert (decode.phase, chunk.phase) == (Phase.DECODE, Phase.PREFILL)


def test_the_device_has_the_next_chunk_ready_while_nothing_decodes() -> None:
    core = _core(credits_=9)
    works = [work for frame in range(3) for work in _works(core.handle(_prompt(frame, 7, 2 * frame, 2, of=9)))]
    assert len(works) == DEVICE_DEPTH


def test_decode_without_end_does_not_starve_a_prompt() -> None:
    core = _core(credits_=99)
    _decoding(core)
    works = _works(core.handle(_forward(0, _item(0, 1, 1)))) + _works(core.handle(_prompt(1, 7, 0, 2, of=9)))
    order = []
    for step in range(1, 3 * MOST_OVERTAKES):
        works += _works(core.handle(_forward(step, _item(0, 1 + step, 1))))
        works += _works(_done(core, works[0]))
        order.append(works.pop(0).phase)
    assert order.count(Phase.PREFILL) == 1
    assert order.index(Phase.PREFILL) <= MOST_OVERTAKES + DEVICE_DEPTH


@pytest.mark.parametrize(
    "event",
    [
        _forward(4, _item(7, 0, 1)),
        _forward(0, _item(7, 0, 1), _item(7, 1, 1)),
        StageReceived(Ack(1, 1, 0, 3, (), 0, 9, 0), 0.0),
        StageReceived(Verdict(1, 1, 0, 0, (), None), 0.0),
    ],
    ids=["no credit", "sequence twice", "ack of nothing", "not for a stage"],
)
def test_illegal_messages_are_refused_and_change_nothing(event: StageReceived) -> None:
    core = _core()
    seat = core.seats[1]
    before = copy.deepcopy((seat.upstream, seat.downstream.lanes))
    with pytest.raises(RemoteProtocolError):
        core.handle(event)
    assert before == (seat.upstream, seat.downstream.lanes)
    assert core.num_sequences == 0
    assert core.pages_free == 8


@pytest.mark.parametrize("event", [_forward(0, _item(7, 0, 1), epoch=2), StageReceived(Close(2, 1, (), 0), 0.0)])
def test_other_epochs_and_pipelines_are_stale(event: StageReceived) -> None:
    with pytest.raises(StalePlan):
        _core().handle(event)


def test_a_retired_stage_refuses_everything() -> None:
    core = _core()
    core.handle(StageReceived(Retire(1, 1), 0.0))
    with pytest.raises(StalePlan):
        core.handle(_forward(0, _item(7, 0, 1)))


def test_a_failed_device_is_told_to_the_head_once_and_stops_the_stage() -> None:
    core = _core()
    core.handle(_forward(0, _item(7, 0, 1)))
    (failed,) = _messages(core.handle(ComputeFailed(LocalProtocolError("broken"), 0.0)), StageFailed)
    assert failed.code == "LocalProtocolError"  # type: ignore[attr-defined]
    assert _works(core.handle(_forward(1, _item(8, 0, 1)))) == []


def _hidden(rows: int) -> Outcome:
    return Outcome(0, hidden=[b"row %d" % row for row in range(rows)], num_bytes=8 * rows)


def _ran(core: StageCore, event: StageReceived, rows: int) -> list[Command]:
    """What a frame gives once its only work is done; its rows are a list."""
    (work,) = _works(core.handle(event))
    return core.handle(Computed(msgspec.structs.replace(_hidden(rows), number=work.number), 0.0))


def test_a_new_neighbour_is_told_what_it_lacks_and_nothing_else() -> None:
    core = _core(credits_=9)
    _ran(core, _forward(0, _item(7, 0, 5), phase=Phase.PREFILL), 5)
    _ran(core, _forward(0, _item(7, 5, 1)), 1)
    _ran(core, _forward(1, _item(8, 0, 3)), 3)
    (gather,) = _seat(core, 2, 0, 2, 9, (Holding(7, 0, 2), Holding(8, 0, 3)))
    assert isinstance(gather, Gather)
    assert [(piece.start, piece.stop) for piece in gather.pieces] == [(2, 5), (0, 1)]
    assert gather.num_rows == 4
    (send,) = core.handle(Gathered(gather.number, "the rows", 0.0))
    assert isinstance(send, Send)
    assert (send.to, send.lane, send.payload) == (Port.DOWNSTREAM, Lane.BULK, "the rows")
    (item,) = send.message.items  # type: ignore[union-attr]
    assert (item.sequence, item.position, item.num_rows, item.num_picks, item.opening) == (7, 2, 4, 2, None)
    assert item.tokens == _item(7, 0, 6).tokens[8:]


def test_rows_that_are_said_again_are_not_overtaken_by_newer_ones() -> None:
    core = _core(credits_=9)
    _ran(core, _forward(0, _item(7, 0, 2), phase=Phase.PREFILL), 2)
    (gather,) = _seat(core, 2, 0, 2, 9)
    assert isinstance(gather, Gather)
    commands = _ran(core, _forward(0, _item(7, 2, 1), epoch=2), 1)
    (empty,) = _messages(commands, Forward)
    assert empty.items == ()  # type: ignore[attr-defined]
    (onward,) = [c for c in commands if isinstance(c, Gather)]
    sent = [*core.handle(Gathered(gather.number, "a", 0.0)), *core.handle(Gathered(onward.number, "b", 0.0))]
    assert [(m.items[0].position, m.items[0].num_rows) for m in _messages(sent, Forward)] == [(0, 2), (2, 1)]  # type: ignore[attr-defined]
    core.handle(StageReceived(Ack(1, 2, Lane.BULK, 2, (), 2, 12, 0), 0.0))
    (straight,) = _messages(_ran(core, _forward(1, _item(7, 3, 1), epoch=2), 1), Forward)
    assert [item.position for item in straight.items] == [3]  # type: ignore[attr-defined]


def test_rows_that_are_said_again_go_in_their_order_however_long_each_frame_takes_to_be_made() -> None:
    """The log may have the older ones on disk, and the newer ones in memory. With credit for one frame the newer ones, refused
    for what they follow on, would keep the older ones from ever being sent."""
    core = _core(credits_=9, num_pages=99)
    for frame in range(2):
        _ran(core, _forward(frame, _item(7, 64 * frame, 64), phase=Phase.PREFILL), 64)
    first, second = _seat(core, 2, 0, 2, 1)
    assert isinstance(first, Gather)
    assert isinstance(second, Gather)
    assert core.handle(Gathered(second.number, "newer", 0.0)) == []
    assert _rows_said(core.handle(Gathered(first.number, "older", 0.0))) == [(7, 0, 0, 64)]
    assert _rows_said(core.handle(StageReceived(Ack(1, 2, Lane.BULK, 1, (), 1, 2, 0), 0.0))) == [(7, 0, 64, 64)]


def test_a_frame_that_cannot_be_made_keeps_none_behind_it_waiting() -> None:
    core = _core(credits_=9, num_pages=99)
    _ran(core, _forward(0, _item(7, 0, 64), phase=Phase.PREFILL), 64)
    _ran(core, _forward(1, _item(8, 0, 5), phase=Phase.PREFILL), 5)
    first, second = _seat(core, 2, 0, 2, 9)
    assert isinstance(first, Gather)
    assert isinstance(second, Gather)
    core.handle(Gathered(second.number, "rows of another", 0.0))
    commands = core.handle(GatherFailed(first.number, 0.0))
    assert _rows_said(commands) == [(8, 0, 0, 5)]
    assert _messages(commands, Lost) == [Lost(1, 2, (Holding(7, 0, 0),), False)]


def test_a_mark_goes_on_once_what_was_still_to_be_said_before_it_is_closed() -> None:
    """Nobody may say anything after that, and the hand-over would wait for the mark for ever."""
    core = _core(credits_=9, num_pages=99)
    for frame in range(4):
        _ran(core, _forward(frame, _item(7, 64 * frame, 64), phase=Phase.PREFILL), 64)
    gathers = [one for one in _seat(core, 2, 0, 2, 1) if isinstance(one, Gather)]
    _ran(core, StageReceived(Forward(1, 2, 0, MARK, Lane.BULK, Priority.REPLAY, ()), 0.0), 0)
    for gather in gathers:  # the fourth is not asked for while others wait for credit
        gathers += [one for one in core.handle(Gathered(gather.number, "rows", 0.0)) if isinstance(one, Gather)]
    core.handle(StageReceived(Close(1, 2, (7,), 0), 0.0))
    acks = [Ack(1, 2, Lane.BULK, number, (), number, number + 1, 0) for number in (1, 2, 3)]
    said = [message for ack in acks for message in _messages(core.handle(StageReceived(ack, 0.0)), Forward)]
    assert [message.microbatch for message in said] == [REPLAY, REPLAY, MARK]  # type: ignore[attr-defined]


def test_who_may_not_have_been_wired_yet_is_soon_told_again_what_is_held() -> None:
    load = Load(1, 1, 1, 2, 3, "m", bytes(16), (), "float32", (Group(0, 8),), 4, 0, None, (), ())
    core = StageCore(load, resend_after_s=30.0)
    core.handle(StageReceived(Wire(1, 1, 1, 1, 3, 9, 64, None, None, None, (), None, False, 1, False), 0.0))
    core.handle(Greeted(1, 0.0))
    assert core.handle(Tick(1.0)) == []
    assert _messages(core.handle(Tick(2.0)), Resume) == [Resume(1, 1, ())]
    core.handle(StageReceived(Resumed(1, 1), 2.1))
    assert core.handle(Tick(9.0)) == []


def test_what_waited_in_a_retired_seat_is_computed_and_said_over_the_next() -> None:
    core = _core(credits_=9)
    (work,) = _works(core.handle(_forward(0, _item(7, 0, 4), phase=Phase.PREFILL)))
    assert _seat(core, 2, 0, 2, 9) == []
    commands = core.handle(Computed(msgspec.structs.replace(_hidden(4), number=work.number), 0.0))
    assert _messages(commands, Ack) == []
    (gather,) = [c for c in commands if isinstance(c, Gather)]
    assert gather.num_rows == 4


def test_rows_that_no_log_has_any_more_are_reported_as_lost() -> None:
    core = _core(credits_=9)
    core.log._memory_bytes = 8
    for position in range(3):
        _ran(core, _forward(position, _item(7, position, 1)), 1)
    commands = _seat(core, 2, 0, 2, 9, (Holding(7, 0, 1),))
    assert commands == [Send(Port.SCHEDULER, Lane.CONTROL, Lost(1, 2, (Holding(7, 0, 1),), False))]
    (gather,) = _seat(core, 3, 0, 2, 9, (Holding(7, 0, 2),))
    assert isinstance(gather, Gather)


def test_the_last_stage_says_a_pick_again_that_the_scheduler_lacks() -> None:
    core = _core(stage=1, credits_=9)
    picks = (Pick(7, 0, 3, 42, None, ()),)
    (work,) = _works(core.handle(_forward(0, _item(7, 0, 3), phase=Phase.PREFILL)))
    core.handle(Computed(Outcome(work.number, picks=picks), 0.0))
    (send,) = _seat(core, 2, 1, 2, 9, (Holding(7, 0, 3),))
    assert isinstance(send, Send)
    assert send.message == Verdict(1, 2, 0, REPLAY, picks, None)
    assert _seat(core, 3, 1, 2, 9, (Holding(7, 0, 4),)) == []


def test_the_last_stage_says_again_what_it_has_picked_after_nodes_of_a_draft_until_that_ends() -> None:
    """Of all parts that the draft came in: what was said of any over an epoch that ends may be lost."""
    core = _core(stage=1, credits_=9)
    _ran(core, _forward(0, _item(7, 0, 3), phase=Phase.PREFILL), 3)
    picks = (Pick(7, 0, 4, 41, None, ()), Pick(7, 0, 5, 42, None, ()), Pick(7, 0, 5, 43, None, ()))
    for frame, (first, some) in enumerate([(1, picks[:2]), (3, picks[2:])]):
        tree = Tree(first, (0, 1, 1)[first - 1 : first - 1 + len(some)], bytes([2 ** len(some) - 1]))
        item = Item(7, 0, Kind.DRAFT, 3, bytes(4 * len(some)), len(some), None, tree)
        (work,) = _works(core.handle(_forward(frame, item)))
        core.handle(Computed(Outcome(work.number, picks=some), 0.0))
    (send,) = _seat(core, 2, 1, 2, 9, (Holding(7, 0, 4),))
    assert isinstance(send, Send)
    assert send.message == Verdict(1, 2, 0, REPLAY, picks, (1, 2, 3))
    core.handle(StageReceived(Commit(1, 2, (Cut(7, 1, 3, (1, 3)),)), 0.0))
    assert _seat(core, 3, 1, 2, 9, (Holding(7, 1, 4),)) == []


def test_a_new_last_stage_picks_only_what_the_scheduler_lacks() -> None:
    core = _core(stage=1, credits_=9)
    _seat(core, 2, 1, 2, 9, (Holding(7, 0, 6),))
    (work,) = _works(core.handle(_forward(0, _item(7, 0, 6, picks=4), phase=Phase.PREFILL, epoch=2)))
    assert work.segments[0].num_picks == 1


def test_an_order_that_was_overtaken_is_stale() -> None:
    core = _core()
    _seat(core, 3, 0, 2, 4)
    with pytest.raises(StalePlan):
        core.handle(StageReceived(Wire(1, 2, 2, 0, 2, 4, 64, None, None, None, (), None, False, 1, False), 0.0))
    assert list(core.seats) == [3]


def test_the_next_stage_may_know_of_an_epoch_first() -> None:
    core = _core(credits_=9)
    _ran(core, _forward(0, _item(7, 0, 2), phase=Phase.PREFILL), 2)
    assert core.handle(StageReceived(Resume(1, 2, ()), 0.0)) == []
    commands = core.handle(StageReceived(Wire(1, 2, 2, 0, 2, 9, 64, None, None, None, (), None, False, 1, False), 0.0))
    assert [type(command) for command in commands] == [Send, Gather]


def _serve(core: StageCore, sequence: int, frame: int) -> int:
    """One row of a new sequence comes and goes on. Returns the next frame's number."""
    (work,) = _works(core.handle(_forward(frame, _item(sequence, 0, 1))))
    _done(core, work)
    core.handle(StageReceived(Ack(1, 1, Lane.CONTROL, frame + 1, (), frame + 1, frame + 9, 0), 0.0))
    return frame + 1


def _close_cost(core: StageCore, sequence: int, floor: int) -> int:
    return count_opcodes(lambda: core.handle(StageReceived(Close(1, 1, (sequence,), floor), 0.0)))


def test_the_12000th_close_beside_a_long_stream_costs_what_the_hundredth_does() -> None:
    core = _core(num_pages=8, credits_=9)
    frame, costs = _serve(core, 0, 0), []
    for sequence in range(1, 12_001):
        frame = _serve(core, sequence, frame)
        costs.append(_close_cost(core, sequence, 0))
    assert costs[-1] <= 1.2 * costs[99]
    assert core.num_sequences == 1


def test_what_has_been_closed_above_the_floor_costs_nothing_when_the_floor_moves() -> None:
    """As one long stream after the other ends, each close moves the floor by one."""
    costs = []
    for num_closed in (100, 12_000):
        core = _core(num_pages=32, credits_=9)
        frame = 0
        for sequence in range(8):
            frame = _serve(core, sequence, frame)
        core.handle(StageReceived(Close(1, 1, tuple(range(8, 8 + num_closed)), 0), 0.0))
        costs.append([_close_cost(core, sequence, sequence + 1) for sequence in range(7)][-1])
        assert core.num_sequences == 1
    assert costs[1] <= 1.2 * costs[0]


def _rows_said(commands: list[Command]) -> list[tuple[int, int, int, int]]:
    """(sequence, generation, position, rows) of all Forwards."""
    items = [item for forward in _messages(commands, Forward) for item in forward.items]  # type: ignore[attr-defined]
    return [(item.sequence, item.generation, item.position, item.num_rows) for item in items]


def test_a_frame_whose_dead_rows_follow_on_some_that_were_never_said_goes_without_rows() -> None:
    """The next stage would wait for those, and everybody behind it. What is alive of the frame is said out of the log."""
    core = _core(credits_=9)
    (first,) = _works(core.handle(_forward(0, _item(7, 0, 4))))
    (second,) = _works(core.handle(_forward(1, _item(7, 4, 2), _item(8, 0, 3))))
    core.handle(_forward(2, _item(7, 0, 5, generation=1, first_token=50)))
    commands = _done(core, first)
    assert _rows_said(commands) == []
    (new,) = _works(commands)
    commands = _done(core, second)
    assert _rows_said(commands) == []
    (gather,) = [command for command in commands if isinstance(command, Gather)]
    assert _rows_said(core.handle(Gathered(gather.number, "rows", 0.0))) == [(8, 0, 0, 3)]
    assert _rows_said(_done(core, new)) == [(7, 1, 0, 5)]


def test_dead_rows_that_the_next_stage_can_take_go_along_with_what_is_alive() -> None:
    core = _core(credits_=9)
    (first,) = _works(core.handle(_forward(0, _item(7, 0, 4), _item(8, 0, 3))))
    (second,) = _works(core.handle(_forward(1, _item(7, 4, 2), _item(8, 3, 1))))
    core.handle(_forward(2, _item(7, 0, 5, generation=1, first_token=50)))
    commands = _done(core, first)
    assert _rows_said(commands) == [(7, 0, 0, 4), (8, 0, 0, 3)]
    (new,) = _works(commands)
    assert _rows_said(_done(core, second)) == [(7, 0, 4, 2), (8, 0, 3, 1)]
    assert _rows_said(_done(core, new)) == [(7, 1, 0, 5)]


def test_a_frame_that_goes_without_rows_has_no_payload() -> None:
    core = _core(credits_=9)
    (work,) = _works(core.handle(_forward(0, _item(7, 0, 4))))
    core.handle(_forward(1, _item(7, 0, 4, generation=1, first_token=50)))
    (onward,) = [command for command in _done(core, work) if isinstance(command, Send) and type(command.message) is Forward]
    assert (onward.message.items, onward.payload) == ((), None)  # type: ignore[union-attr]
