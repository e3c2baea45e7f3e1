from __future__ import annotations

import dataclasses
import tracemalloc

import msgspec
import pytest

from bloombee.control.chunks import Chunks
from bloombee.errors import (
    BloomBeeError,
    DeadlineExceeded,
    DeviceError,
    GrammarFailed,
    Infeasible,
    LinkDown,
    RemoteProtocolError,
    SequenceLost,
    StalePlan,
)
from bloombee.pipeline.commands import Command, Send, TellHead
from bloombee.pipeline.events import (
    Cancel,
    Emitted,
    Ended,
    FromStage,
    Moved,
    Open,
    PipelineLost,
    PlanBroken,
    PlanWired,
    Tick,
    Tune,
)
from bloombee.pipeline.patience import SLACK_S
from bloombee.pipeline.scheduler import BESIDE_DECODE, MOST_ITEMS, SchedulerCore
from bloombee.plan.plan import Plan, StagePlan
from bloombee.types import Dtype, FinishReason, Lane, PageGroup, Phase, Span
from bloombee.wire.envelope import encode_envelope
from bloombee.wire.messages import (
    MAX_BIASES,
    MAX_GRAMMAR_BYTES,
    MAX_HEADER_BYTES,
    NO_GRAMMAR,
    NO_TOKEN,
    REPLAY,
    Ack,
    Close,
    Closed,
    Forward,
    Gap,
    Grammar,
    Holding,
    Lost,
    Pick,
    Resume,
    Resumed,
    Sampling,
    Verdict,
)
from tests.work_kit import count_opcodes

SAMPLING = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, -1)


def _plan(*, microbatches: int = 2, num_pages: int = 8) -> Plan:
    groups = (PageGroup(0, num_pages),)
    stages = tuple(StagePlan(i, i + 1, f"w{i}", Span(i, i + 1), 0, 0, groups) for i in range(2))
    return Plan(1, 1, "m", Dtype.FLOAT32, 2, groups, 4, microbatches, stages)


def _core(*, step_deadline_s: float = 10.0, **plan: int) -> SchedulerCore:
    core = SchedulerCore(max_rows=8, resend_after_s=1.0, step_deadline_s=step_deadline_s)
    (known,) = core.handle(PlanWired(_plan(**plan).ring, 0.0))
    assert known == Send(1, Lane.CONTROL, Resume(1, 1, ()))
    assert core.handle(FromStage(1, Resumed(1, 1), 0.0)) == []
    assert core.handle(FromStage(0, Resume(1, 1, ()), 0.0)) == [Send(0, Lane.CONTROL, Resumed(1, 1))]
    return core


def _open(sequence: int, num_prompt: int = 2, max_new: int = 4, ends: frozenset[int] = frozenset()) -> Open:
    return Open(sequence, bytes(4 * num_prompt), SAMPLING, max_new, ends, 0.0)


def _forwards(commands: list[Command]) -> list[Forward]:
    return [c.message for c in commands if isinstance(c, Send) and isinstance(c.message, Forward)]


def _told(commands: list[Command]) -> list[object]:
    return [c.message for c in commands if isinstance(c, TellHead)]


def _closes(commands: list[Command]) -> list[tuple[int, Close]]:
    return [(c.to, c.message) for c in commands if isinstance(c, Send) and isinstance(c.message, Close)]  # type: ignore[misc]


def ack(forward: Forward) -> Ack:
    """Everything up to ``forward`` on its lane, and credit for two more."""
    return Ack(1, 1, forward.lane, forward.frame + 1, (), forward.frame + 1, forward.frame + 3, 0)


class _Ring:
    """Plays both stages: acknowledges at once and answers each microbatch with given tokens."""

    def __init__(self, core: SchedulerCore) -> None:
        self.core = core
        self.frames = 0

    def home(self, forward: Forward, token: int = 9, now: float = 0.0) -> list[Command]:
        picks = tuple(
            Pick(item.sequence, item.generation, item.position + item.num_rows, token, None, ())
            for item in forward.items
            if item.num_picks
        )
        commands = self.core.handle(FromStage(0, ack(forward), now))
        self.frames += 1
        return commands + self.core.handle(FromStage(1, Verdict(1, 1, self.frames - 1, forward.microbatch, picks, None), now))


def test_one_request_from_prompt_to_length() -> None:
    core = _core()
    ring = _Ring(core)
    (forward,) = _forwards(core.handle(_open(1)))
    assert forward.lane == Lane.BULK
    assert [(i.position, i.num_rows, i.num_picks, i.opening is not None) for i in forward.items] == [(0, 2, 1, True)]
    told: list[object] = []
    for expected in (2, 3, 4):
        commands = ring.home(forward)
        told += _told(commands)
        (forward,) = _forwards(commands)
        assert [(i.position, i.num_rows) for i in forward.items] == [(expected, 1)]
    commands = ring.home(forward)
    told += _told(commands)
    assert [(t.pick.position, t.finish) for t in told] == [(2, None), (3, None), (4, None), (5, FinishReason.LENGTH)]  # type: ignore[attr-defined]
    assert _closes(commands) == [(0, Close(1, 1, (1,), 1)), (1, Close(1, 1, (1,), 1))]
    for stage in (0, 1):
        assert not core.is_idle
        core.handle(FromStage(stage, Closed(1, 1, (1,), 1, 8), 0.0))
    assert core.is_idle


def test_an_end_token_stops() -> None:
    core = _core()
    (forward,) = _forwards(core.handle(_open(1, ends=frozenset({9}))))
    assert [t.finish for t in _told(_Ring(core).home(forward))] == [FinishReason.STOP]  # type: ignore[attr-defined]


def test_a_long_prompt_goes_in_chunks_of_which_only_the_last_is_sampled() -> None:
    core = _core(microbatches=4)
    forwards = _forwards(core.handle(_open(1, num_prompt=20, max_new=1)))
    items = [item for forward in forwards for item in forward.items]
    assert [(i.position, i.num_rows, i.num_picks) for i in items] == [(0, 8, 0), (8, 8, 0), (16, 4, 1)]


def _decode_sizes(ring: _Ring, waiting: list[Forward], count: int) -> list[int]:
    """Of the next ``count`` decode microbatches that come home, in order; ``waiting`` is kept up to date."""
    sizes: list[int] = []
    while len(sizes) < count:
        forward = waiting.pop(0)
        if forward.lane == Lane.CONTROL:
            sizes.append(len(forward.items))
        waiting += _forwards(ring.home(forward))
    return sizes


def test_decoding_sequences_are_spread_over_the_microbatches() -> None:
    core = _core(num_pages=64)
    ring = _Ring(core)
    waiting = [f for n in range(6) for f in _forwards(core.handle(_open(n, num_prompt=1, max_new=8)))]
    shapes = []
    for _ in range(40):
        if not waiting:
            break
        forward = waiting.pop(0)
        if forward.lane == Lane.CONTROL:
            shapes.append(len(forward.items))
        waiting += _forwards(ring.home(forward))
        assert sum(f.lane == Lane.CONTROL for f in waiting) <= 2
    assert set(shapes[6:12]) == {3}


def test_prefill_that_crosses_a_slow_wire_withholds_no_credit_from_decode() -> None:
    core = _core(num_pages=64)
    ring = _Ring(core)
    (forward,) = _forwards(core.handle(_open(1, num_prompt=1, max_new=40)))
    (forward,) = _forwards(ring.home(forward))
    chunks = _forwards(core.handle(_open(2, num_prompt=64, max_new=1)))
    assert [(f.lane, f.frame) for f in chunks] == [(Lane.BULK, 1), (Lane.BULK, 2)]
    for step in range(30):
        assert (forward.lane, forward.frame) == (Lane.CONTROL, step)
        (forward,) = _forwards(ring.home(forward))


def test_chunks_are_gentle_while_something_decodes_and_bounded_in_rows() -> None:
    core = _core(microbatches=9, num_pages=64)
    core.handle(Tune(4, (Chunks(0, 8, 2, 10),), None, 0.0))
    chunks = _forwards(core.handle(_open(1, num_prompt=24, max_new=9)))
    assert [chunk.items[0].num_rows for chunk in chunks] == [8, 8]
    ring = _Ring(core)
    chunks += _forwards(ring.home(chunks[0]))
    for chunk in chunks[1:]:
        ring.home(chunk)
    chunks = _forwards(core.handle(_open(2, num_prompt=40)))
    assert [chunk.items[0].num_rows for chunk in chunks] == [2, 2]


def test_chunks_are_cut_and_counted_by_position() -> None:
    """At most one and a half chunks at a time, of eight rows at first and of four from position 20 on."""
    core = _core(microbatches=9, num_pages=64)
    core.handle(Tune(4, (Chunks(0, 8, 2, 12), Chunks(20, 4, 1, 6)), None, 0.0))
    ring = _Ring(core)
    (first, second) = _forwards(core.handle(_open(1, num_prompt=40, max_new=1)))
    rest = [*_forwards(ring.home(first)), *_forwards(ring.home(second))]
    assert [(chunk.items[0].position, chunk.items[0].num_rows) for chunk in (first, second)] == [(0, 8), (8, 8)]
    assert [(chunk.items[0].position, chunk.items[0].num_rows) for chunk in rest] == [(16, 8), (24, 4)]


def test_the_end_of_one_prompt_and_the_start_of_another_share_a_chunk_as_far_as_both_allow() -> None:
    core = _core(microbatches=9, num_pages=64)
    core.handle(Tune(4, (Chunks(0, 8, 8, 8), Chunks(8, 4, 4, 4)), None, 0.0))
    ring = _Ring(core)
    (first,) = _forwards(core.handle(_open(1, num_prompt=10, max_new=1)))
    core.handle(_open(2, num_prompt=30, max_new=1))
    (second,) = _forwards(ring.home(first))
    assert [(item.sequence, item.position, item.num_rows) for item in second.items] == [(1, 8, 2), (2, 0, 6)]
    (third,) = _forwards(ring.home(second))
    assert [(item.sequence, item.position, item.num_rows) for item in third.items] == [(2, 6, 8)]


def test_chunks_beside_decode_are_spread_over_a_loop() -> None:
    """Eight rows may be under way in a loop of a second: a chunk of two each quarter, and one to catch up."""
    core = _core(microbatches=9, num_pages=64)
    core.handle(Tune(4, (Chunks(0, 8, 2, 8 / BESIDE_DECODE),), None, 0.0))
    ring = _Ring(core)
    (prompt,) = _forwards(core.handle(_open(1, num_prompt=1, max_new=9)))
    (decode,) = _forwards(ring.home(prompt))
    ring.home(decode, now=1.0)
    core.quickest_loop = (1.0, 1)

    def num_chunks(commands: list[Command]) -> int:
        return sum(forward.lane is Lane.BULK for forward in _forwards(commands))

    assert num_chunks(core.handle(Open(2, bytes(4 * 200), SAMPLING, 1, frozenset(), 5.0))) == 2
    assert [num_chunks(core.handle(Tick(now))) for now in (5.1, 5.26, 5.4, 5.55, 5.9)] == [0, 1, 0, 1, 0]


def test_decode_that_fills_its_lane_withholds_no_credit_from_prefill() -> None:
    core = _core(num_pages=64)
    ring = _Ring(core)
    for sequence in (1, 2):
        (prompt,) = _forwards(core.handle(_open(sequence, num_prompt=1, max_new=8)))
        (decode,) = _forwards(ring.home(prompt))
        assert decode.lane == Lane.CONTROL
    (chunk,) = _forwards(core.handle(_open(3, num_prompt=3)))
    assert [item.sequence for item in chunk.items] == [3]


def test_silence_on_one_lane_resends_that_lane_alone() -> None:
    core = _core(num_pages=64)
    (chunk,) = _forwards(core.handle(_open(1, num_prompt=1)))
    (decode,) = _forwards(_Ring(core).home(chunk))
    (second,) = _forwards(core.handle(_open(2, num_prompt=2)))
    core.handle(FromStage(0, ack(decode), 0.5))
    assert _forwards(core.handle(Tick(1.5))) == [second]


def test_sizes_are_apart_by_turns_while_that_is_asked_for() -> None:
    core = _core(num_pages=64)
    ring = _Ring(core)
    core.handle(Tune(2, (Chunks(0, 8, 8, 64),), None, 0.0, sizes_apart=True))
    waiting = [f for n in range(8) for f in _forwards(core.handle(_open(n, num_prompt=1, max_new=20)))]
    apart = _decode_sizes(ring, waiting, 12)
    core.handle(Tune(2, (Chunks(0, 8, 8, 64),), None, 0.0))
    together = _decode_sizes(ring, waiting, 8)
    assert set(apart[8:]) == {3, 5}
    assert set(together[4:]) == {4}


def test_stale_and_doubled_verdicts_change_nothing() -> None:
    core = _core()
    (forward,) = _forwards(core.handle(_open(1)))
    verdict = Verdict(1, 1, 0, forward.microbatch, (Pick(1, 0, 2, 9, None, ()),), None)
    assert len(_told(core.handle(FromStage(1, verdict, 0.0)))) == 1
    assert _told(core.handle(FromStage(1, verdict, 0.0))) == []
    wrong = (Pick(1, 0, 2, 9, None, ()), Pick(1, 1, 3, 9, None, ()), Pick(5, 0, 3, 9, None, ()), Pick(1, 0, 4, 9, None, ()))
    assert _told(core.handle(FromStage(1, Verdict(1, 1, 1, 77, wrong, None), 0.0))) == []


def test_admission_waits_for_pages_and_closing_gives_them_back() -> None:
    core = _core(num_pages=2)
    (first,) = _forwards(core.handle(_open(1, num_prompt=4, max_new=5)))
    assert _forwards(core.handle(_open(2, num_prompt=4, max_new=5))) == []
    commands = core.handle(Cancel(1, 0.0))
    assert _told(commands) == [Ended(1, None)]
    assert _forwards(commands) == []
    assert _forwards(core.handle(FromStage(0, Closed(1, 1, (1,), 1, 2), 0.0))) == []
    (second,) = _forwards(core.handle(FromStage(1, Closed(1, 1, (1,), 1, 2), 0.0)))
    assert [item.sequence for item in second.items] == [2]
    assert first.microbatch != second.microbatch


@pytest.mark.parametrize(("is_finished", "num_admitted"), [(True, 3), (False, 1)])
def test_answers_that_stop_strings_end_tell_how_long_answers_are(is_finished: bool, num_admitted: int) -> None:
    """Others are admitted beside one that may have more than it will; of those that are given up nothing is learnt."""
    core = _core(num_pages=4)
    ring = _Ring(core)
    for number in range(1, 31):
        (forward,) = _forwards(core.handle(_open(number, num_prompt=2, max_new=14)))
        ring.home(forward)
        core.handle(Cancel(number, 0.0, is_finished))
        for stage in range(2):
            core.handle(FromStage(stage, Closed(1, 1, (number,), number, 4), 0.0))
    for number in range(31, 34):
        core.handle(_open(number, num_prompt=2, max_new=14))
    assert core.num_open == num_admitted


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    core = _core(num_pages=2)
    (ended,) = _told(core.handle(_open(1, num_prompt=6, max_new=4)))
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, Infeasible)
    assert (ended.error.fields["wanted"], ended.error.fields["allowed"]) == (10, 8)


def test_cancelling_one_that_waits_or_has_ended() -> None:
    core = _core(num_pages=2)
    core.handle(_open(1, num_prompt=4, max_new=5))
    core.handle(_open(2, num_prompt=4, max_new=5))
    assert _told(core.handle(Cancel(2, 0.0))) == [Ended(2, None)]
    assert core.handle(Cancel(2, 0.0)) == []


def test_close_is_repeated_until_every_stage_confirms() -> None:
    core = _core()
    core.handle(_open(1))
    core.handle(Cancel(1, 0.0))
    core.handle(FromStage(0, Closed(1, 1, (1,), 1, 8), 0.1))
    assert _closes(core.handle(Tick(0.5))) == []
    assert _closes(core.handle(Tick(1.5))) == [(1, Close(1, 1, (1,), 1))]


def test_a_step_past_its_deadline_ends_its_requests_and_the_next_one_is_served() -> None:
    core = _core()
    ring = _Ring(core)
    (late,) = _forwards(core.handle(_open(1)))
    assert _told(core.handle(Tick(10.0))) == []
    commands = core.handle(Tick(10.5))
    (ended,) = _told(commands)
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, DeadlineExceeded)
    assert ended.error.retryable
    assert [stage for stage, close in _closes(commands) if close.sequences == (1,)] == [0, 1]
    (again,) = _forwards(core.handle(_open(2, max_new=1)))
    assert _told(ring.home(late, now=11.0)) == []  # nobody waits for it any more
    assert [t.finish for t in _told(ring.home(again, now=11.5))] == [FinishReason.LENGTH]  # type: ignore[attr-defined]


def test_a_device_that_hangs_ends_each_request_and_those_that_wait_for_credit() -> None:
    core = _core(step_deadline_s=600.0, microbatches=1, num_pages=64)
    ring = _Ring(core)
    (shown,) = _forwards(core.handle(_open(0, max_new=1)))
    ring.home(shown, now=0.1)
    for sequence in (1, 2):
        core.handle(_open(sequence))
    told = {tick: _told(core.handle(Tick(float(tick)))) for tick in range(1, 30)}
    ends = [(tick, ended.sequence, type(ended.error)) for tick, all_told in told.items() for ended in all_told]  # type: ignore[attr-defined]
    assert [(sequence, kind) for _, sequence, kind in ends] == [(1, DeadlineExceeded), (2, DeadlineExceeded)]
    assert ends[0][0] == ends[1][0] > SLACK_S
    core.handle(Open(3, bytes(8), SAMPLING, 4, frozenset(), 40.0))  # who comes later has as long
    assert _told(core.handle(Tick(41.0))) == []
    assert len(_told(core.handle(Tick(60.0)))) == 1


def test_a_prompt_that_comes_on_has_no_deadline() -> None:
    core = _core(step_deadline_s=600.0)
    ring = _Ring(core)
    (shown,) = _forwards(core.handle(_open(0, max_new=1)))
    ring.home(shown, now=0.1)
    core.handle(_open(1))
    for tick in range(1, 1000):
        core.handle(Moved(float(tick)))
        assert _told(core.handle(Tick(tick + 0.5))) == []
    assert len(_told(core.handle(Tick(1100.0)))) == 1


def test_what_was_overtaken_on_its_lane_is_not_excused_by_what_comes_on_beside_it() -> None:
    core = _core(step_deadline_s=600.0, microbatches=4, num_pages=64)
    ring = _Ring(core)
    (stuck,) = _forwards(core.handle(_open(0, num_prompt=8)))
    (forward,) = _forwards(core.handle(_open(1, num_prompt=8, max_new=200)))
    assert stuck.lane == forward.lane == Lane.BULK
    for tick in range(60):
        ended = [told for told in _told(core.handle(Tick(tick / 2))) if isinstance(told, Ended)]
        if ended:
            break
        (forward,) = _forwards(ring.home(forward, now=tick / 2))
    assert [told.sequence for told in ended] == [0]


def test_a_stage_that_cannot_pass_on_a_frame_ends_the_requests_in_it_alone() -> None:
    core = _core(microbatches=4, num_pages=64)
    ring = _Ring(core)
    (bad,) = _forwards(core.handle(_open(0)))
    (good,) = _forwards(core.handle(_open(1, max_new=1)))
    ring.frames += 1
    assert (
        _told(core.handle(FromStage(1, Verdict(1, 1, 0, bad.microbatch, (), None), 0.1))) == []
    )  # its rows may come another way
    commands = core.handle(FromStage(0, Lost(1, 1, (Holding(0, 0, 2),), True), 0.1))
    assert core.handle(FromStage(0, Lost(1, 1, (Holding(0, 0, 2),), True), 0.1)) == []
    (ended,) = _told(commands)
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, SequenceLost)
    assert {stage for stage, close in _closes(commands) if close.sequences == (0,)} == {0, 1}
    assert [t.finish for t in _told(ring.home(good))] == [FinishReason.LENGTH]  # type: ignore[attr-defined]


def test_a_microbatch_holds_no_more_sequences_than_a_frame() -> None:
    core = SchedulerCore(max_rows=1 << 16, resend_after_s=1.0, step_deadline_s=10.0)
    core.handle(PlanWired(_plan(microbatches=1, num_pages=1 << 16).ring, 0.0))
    core.handle(FromStage(0, Resume(1, 1, ()), 0.0))
    ring = _Ring(core)
    waiting = [f for n in range(5000) for f in _forwards(core.handle(_open(n, num_prompt=1, max_new=3)))]
    sizes = []
    for _ in range(60):
        if not waiting:
            break
        forward = waiting.pop(0)
        encode_envelope(1, forward)
        sizes.append(len(forward.items))
        waiting += _forwards(ring.home(forward))
    assert max(sizes) == MOST_ITEMS
    assert sum(sizes) == 3 * 5000


def test_a_lost_pipeline_ends_every_sequence() -> None:
    core = _core(num_pages=2)
    for sequence in (1, 2):
        core.handle(_open(sequence, num_prompt=4, max_new=5))
    error = LinkDown("gone")
    assert _told(core.handle(PipelineLost(error, 0.0))) == [Ended(1, error), Ended(2, error)]
    assert core.is_idle


@pytest.mark.parametrize(
    ("stage", "message", "kind"),
    [
        (0, Verdict(1, 1, 0, 0, (), None), RemoteProtocolError),
        (1, Ack(1, 1, 0, 0, (), 0, 9, 0), RemoteProtocolError),
        (0, Ack(1, 1, 0, 5, (), 5, 9, 0), RemoteProtocolError),
        (0, Forward(1, 1, 0, 0, 0, 0, ()), RemoteProtocolError),
        (1, Verdict(1, 2, 0, 0, (), None), StalePlan),
    ],
)
def test_messages_from_the_wrong_stage_or_epoch_are_refused(stage: int, message: object, kind: type[Exception]) -> None:
    core = _core()
    core.handle(_open(1))
    with pytest.raises(kind):
        core.handle(FromStage(stage, message, 0.0))  # type: ignore[arg-type]


def test_tokens_are_told_before_the_end_and_in_order() -> None:
    core = _core()
    ring = _Ring(core)
    (forward,) = _forwards(core.handle(_open(1, max_new=2)))
    first = _told(ring.home(forward, token=3))
    assert [type(t) for t in first] == [Emitted]


@pytest.mark.parametrize(
    ("token", "kind", "said"),
    [
        (NO_TOKEN, DeviceError, "logits at position 2 are not finite"),
        (NO_GRAMMAR, GrammarFailed, "grammar at position 2"),
    ],
)
def test_what_cannot_be_picked_ends_its_sequence_and_no_other(token: int, kind: type[BloomBeeError], said: str) -> None:
    core = _core()
    core.handle(_open(1))
    core.handle(_open(2))
    picks = (Pick(1, 0, 2, token, None, ()), Pick(2, 0, 2, 9, None, ()))
    commands = core.handle(FromStage(1, Verdict(1, 1, 0, 0, picks, None), 0.0))
    ended, emitted = _told(commands)
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, kind)
    assert said in ended.error.message
    assert isinstance(emitted, Emitted)
    assert {close.sequences for _, close in _closes(commands)} == {(1,)}
    assert core.num_open == 1


def _admitted(core: SchedulerCore, sequence: int, client: str, num_prompt: int = 4) -> bool:
    """Whether a sequence of one page a 4 tokens (its last token needs no slot) is let in at once."""
    before = core.num_open
    core.handle(Open(sequence, bytes(4 * num_prompt), SAMPLING, 1, frozenset(), 0.0, client))
    return core.num_open == before + 1


def test_a_client_leaves_room_for_one_more_like_its_own() -> None:
    core = _core(num_pages=8)
    assert [_admitted(core, n, "many") for n in range(9)] == [True] * 7 + [False] * 2
    assert _admitted(core, 9, "new")
    assert not _admitted(core, 10, "newer")  # now it is full


def test_a_newcomer_goes_before_those_who_must_leave_room_whatever_its_turn() -> None:
    core = _core(num_pages=8)
    assert _admitted(core, 0, "once")  # it has been served, and has nothing open any more
    core.handle(Cancel(0, 0.0))
    for stage in (0, 1):
        core.handle(FromStage(stage, Closed(1, 1, (0,), 1, 8), 0.0))
    assert [_admitted(core, n, "many") for n in range(1, 9)] == [True] * 7 + [False]
    assert _admitted(core, 9, "once")


def test_the_room_is_a_quarter_of_the_pool_at_most() -> None:
    core = _core(num_pages=8)
    assert [_admitted(core, n, "large", num_prompt=12) for n in range(3)] == [True, True, False]
    assert not _admitted(core, 3, "new", num_prompt=12)
    assert not _admitted(core, 4, "newer")  # the larger one's turn comes first


def test_nothing_is_left_over_where_nobody_names_a_client() -> None:
    core = _core(num_pages=8)
    assert [_admitted(core, n, "") for n in range(9)] == [True] * 8 + [False]


def test_the_most_open_sequences_hold_for_all_but_newcomers() -> None:
    core = _core(num_pages=64)
    core.handle(Tune(2, (Chunks(0, 8, 8, 64),), 2, 0.0))
    assert [_admitted(core, n, "many") for n in range(3)] == [True, True, False]
    assert _admitted(core, 3, "new")
    assert not _admitted(core, 4, "new")


def _phases(core: SchedulerCore, sequence: int, client: str, num_prompt: int) -> list[tuple[Phase, int]]:
    """Phase and rows of what goes out as soon as a request comes."""
    sent = _forwards(core.handle(Open(sequence, bytes(4 * num_prompt), SAMPLING, 9, frozenset(), 0.0, client)))
    return [(Phase(forward.lane), forward.items[0].num_rows) for forward in sent]


def test_a_short_prompt_of_a_client_with_nothing_open_passes_the_chunks_of_others() -> None:
    core = _core(num_pages=64, microbatches=4)
    core.handle(Tune(4, (Chunks(0, 8, 4, 8),), None, 0.0))
    assert _phases(core, 0, "many", 8) == [(Phase.PREFILL, 8)]  # there is nobody to pass
    assert _phases(core, 1, "many", 8) == []
    assert _phases(core, 2, "once", 7) == [(Phase.DECODE, 4), (Phase.DECODE, 3)]
    assert _phases(core, 3, "once", 2) == []  # it has something open now
    assert _phases(core, 4, "long", 9) == []


def test_a_prompt_that_passed_goes_on_to_decode_and_ends() -> None:
    core = _core(num_pages=64, microbatches=4)
    core.handle(Open(0, bytes(4), SAMPLING, 9, frozenset(), 0.0, "many"))
    (passing,) = _forwards(core.handle(Open(1, bytes(8), SAMPLING, 2, frozenset(), 0.0, "once")))
    ring = _Ring(core)
    commands = ring.home(passing)
    (decode,) = _forwards(commands)
    assert [(item.sequence, item.position) for item in decode.items] == [(1, 2)]
    assert [told.finish for told in _told(commands) + _told(ring.home(decode))] == [None, FinishReason.LENGTH]  # type: ignore[attr-defined]


# -- another epoch -----------------------------------------------------------------------------


def _rewired(core: SchedulerCore, holdings: tuple[Holding, ...]) -> list[Command]:
    """What stage 0 of the next epoch, which holds so much, is sent."""
    core.handle(PlanBroken(1.0))
    assert core.handle(Tick(2.0)) == []
    plan = dataclasses.replace(_plan(microbatches=4, num_pages=64), epoch=2)
    known, *_ = core.handle(PlanWired(plan.ring, 2.0))
    assert isinstance(known, Send)
    assert isinstance(known.message, Resume)
    return core.handle(FromStage(0, Resume(1, 2, holdings), 2.0))


def test_in_a_new_epoch_stage_0_gets_the_rows_that_it_lacks() -> None:
    core = _core(microbatches=4, num_pages=64)
    core.handle(_open(0, num_prompt=5))
    (forward,) = _forwards(_rewired(core, ()))
    ((item,),) = [forward.items]
    assert (forward.epoch, item.position, item.num_rows, item.num_picks, item.generation) == (2, 0, 5, 1, 0)
    assert item.opening is not None


def test_in_a_new_epoch_nothing_is_sent_that_stage_0_holds() -> None:
    core = _core(microbatches=4, num_pages=64)
    core.handle(_open(0, num_prompt=5))
    assert _forwards(_rewired(core, (Holding(0, 0, 5),))) == []


def test_a_token_that_comes_while_rows_are_sent_again_is_sent_after_them() -> None:
    core = SchedulerCore(max_rows=3, resend_after_s=1.0, step_deadline_s=10.0)
    core.handle(PlanWired(_plan(microbatches=1, num_pages=64).ring, 0.0))
    core.handle(FromStage(0, Resume(1, 1, ()), 0.0))
    (prompt,) = _forwards(core.handle(_open(0, num_prompt=5)))
    assert len(_forwards(core.handle(FromStage(0, ack(prompt), 0.5)))) == 1
    core.handle(PlanBroken(1.0))
    core.handle(PlanWired(dataclasses.replace(_plan(microbatches=1, num_pages=64), epoch=2).ring, 1.0))
    (first,) = _forwards(core.handle(FromStage(0, Resume(1, 2, ()), 1.0)))
    assert [(item.position, item.num_rows, item.num_picks) for item in first.items] == [(0, 3, 0)]
    told = (
        FromStage(1, Verdict(1, 2, 0, REPLAY, (Pick(0, 0, 5, 9, None, ()),), None), 1.1),
        FromStage(0, msgspec.structs.replace(ack(first), epoch=2), 1.2),
        FromStage(1, Verdict(1, 2, 1, first.microbatch, (), None), 1.3),
    )
    (second,) = [forward for event in told for forward in _forwards(core.handle(event))]
    assert [(item.position, item.num_rows, item.num_picks) for item in second.items] == [(3, 3, 1)]


def test_what_no_log_has_any_more_begins_anew_as_another_generation_once() -> None:
    core = _core(microbatches=4, num_pages=64)
    (first,) = _forwards(core.handle(_open(0)))
    lost = FromStage(0, Lost(1, 1, (Holding(0, 0, 0),), False), 0.1)
    (again,) = _forwards(core.handle(lost))
    assert [(item.position, item.num_rows, item.generation) for item in again.items] == [(0, 2, 1)]
    assert _forwards(core.handle(lost)) == []
    stale = Verdict(1, 1, 0, first.microbatch, (Pick(0, 0, 2, 9, None, ()),), None)
    assert _told(core.handle(FromStage(1, stale, 0.2))) == []


def _end_cost(core: SchedulerCore, sequence: int) -> int:
    """What ending an open sequence and hearing that both stages have costs."""
    closed = [FromStage(stage, Closed(1, 1, (sequence,), 0, 8), 0.0) for stage in (0, 1)]
    return count_opcodes(lambda: [core.handle(Cancel(sequence, 0.0)), *(core.handle(event) for event in closed)])


def test_the_3000th_close_beside_a_long_stream_costs_what_the_hundredth_does() -> None:
    core = _core(num_pages=64, microbatches=4)
    ring = _Ring(core)
    (prompt,) = _forwards(core.handle(_open(0, num_prompt=1, max_new=200)))
    ring.home(prompt)
    costs = []
    for sequence in range(1, 3001):
        for forward in _forwards(core.handle(_open(sequence, num_prompt=1, max_new=2))):
            core.handle(FromStage(0, ack(forward), 0.0))
        costs.append(_end_cost(core, sequence))
    assert costs[-1] <= 1.2 * costs[99]
    assert core.num_open == 1


def test_a_close_costs_the_same_however_many_wait() -> None:
    costs = []
    for num_waiting in (10, 3000):
        core = _core(num_pages=4)
        for sequence in range(num_waiting + 2):
            core.handle(_open(sequence, num_prompt=4, max_new=5))
        costs.append(_end_cost(core, 0))
        assert core.num_sequences == num_waiting + 1
    assert costs[1] <= 1.2 * costs[0]


def test_cancelling_one_of_many_that_wait_looks_at_no_other() -> None:
    costs = []
    for num_waiting in (10, 3000):
        core = _core(num_pages=4)
        for sequence in range(num_waiting + 2):
            core.handle(_open(sequence, num_prompt=4, max_new=5))
        costs.append(count_opcodes(lambda core=core, last=num_waiting: core.handle(Cancel(last, 0.0))))  # type: ignore[misc]
    assert costs[1] <= 1.2 * costs[0]


def test_names_and_what_they_asked_for_leave_nothing_behind() -> None:
    core = _core(num_pages=64, microbatches=4)
    ring = _Ring(core)
    tracemalloc.start()
    try:
        grown = []
        for sequence in range(5000):
            asked = Open(sequence, bytes(4), SAMPLING, 1, frozenset(), 0.0, f"client {sequence}")
            (forward,) = _forwards(core.handle(asked))
            ring.home(forward)
            for stage in (0, 1):
                core.handle(FromStage(stage, Closed(1, 1, (sequence,), 0, 8), 0.0))
            if sequence in (100, 4999):
                grown.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert grown[1] - grown[0] < 0.5e6
    assert core.is_idle


# -- what is said wrongly ----------------------------------------------------------------------


def _two_streams() -> tuple[SchedulerCore, _Ring, Forward, Forward]:
    """Sequences 1 and 2, of which each has a microbatch of its own under way."""
    core = _core(microbatches=4, num_pages=64)
    ring = _Ring(core)
    (first,) = _forwards(core.handle(_open(1, num_prompt=1, max_new=9)))
    (first,) = _forwards(ring.home(first))
    (second,) = _forwards(core.handle(_open(2, num_prompt=2, max_new=9)))
    return core, ring, first, second


def _finish(ring: _Ring, waiting: list[Forward], sequences: set[int]) -> None:
    """All go on to their ends, each row sent once."""
    rows: list[tuple[int, int]] = []
    ended: set[int] = set()
    while waiting:
        forward = waiting.pop(0)
        for item in forward.items:
            assert item.num_rows > 0
            rows.append((item.sequence, item.position))
        commands = ring.home(forward)
        waiting += _forwards(commands)
        ended |= {told.pick.sequence for told in _told(commands) if isinstance(told, Emitted) and told.finish is not None}
    assert ended == sequences
    assert len(set(rows)) == len(rows)


def test_tokens_of_sequences_that_nobody_can_know_yet_are_not_believed() -> None:
    """A verdict speaks of a prompt that has not been sent whole, and twice of a sequence that waits for its turn."""
    core = SchedulerCore(max_rows=3, resend_after_s=1.0, step_deadline_s=10.0)
    core.handle(PlanWired(_plan(microbatches=1, num_pages=64).ring, 0.0))
    core.handle(FromStage(0, Resume(1, 1, ()), 0.0))
    ring = _Ring(core)
    (first,) = _forwards(core.handle(_open(1, num_prompt=5, max_new=3)))
    assert first.items[0].num_rows == 3
    early = Verdict(1, 1, 0, 77, (Pick(1, 0, 5, 9, None, ()), Pick(1, 0, 6, 9, None, ())), None)
    ring.frames = 1
    assert _told(core.handle(FromStage(1, early, 0.0))) == []
    _finish(ring, [first], {1})


def test_a_verdict_about_the_sequences_of_another_microbatch_costs_none_a_row_or_a_token() -> None:
    core, ring, first, second = _two_streams()
    wrong = (Pick(2, 0, 2, 7, None, ()), Pick(2, 0, 3, 7, None, ()), Pick(9, 0, 1, 7, None, ()), Pick(1, 4, 2, 7, None, ()))
    commands = core.handle(FromStage(1, Verdict(1, 1, ring.frames, 12345, wrong, None), 0.0))
    ring.frames += 1
    assert [told.pick.position for told in _told(commands) if isinstance(told, Emitted)] == [2]
    _finish(ring, [first, second, *_forwards(commands)], {1, 2})


@pytest.mark.parametrize("stage", [0, 1])
def test_what_is_said_of_sequences_that_are_not_meant_changes_nothing(stage: int) -> None:
    core, ring, first, second = _two_streams()
    nonsense = [
        Lost(1, 1, (Holding(77, 0, 0), Holding(1, 3, 0)), False),
        Lost(1, 1, (Holding(77, 0, 0), Holding(2, 1, 0)), True),
        Closed(1, 1, (1, 2, 77), 99, 1 << 20),
    ]
    for message in nonsense:
        assert core.handle(FromStage(stage, message, 0.0)) == []
    assert _forwards(core.handle(FromStage(0, Resume(1, 1, (Holding(1, 0, 0), Holding(77, 5, 9))), 0.0))) == []
    assert core.handle(FromStage(0, Gap(1, 1, 77, 0, 0), 0.0)) == []
    _finish(ring, [first, second], {1, 2})


@pytest.mark.parametrize(
    "message",
    [
        Ack(1, 1, 7, 0, (), 0, 9, 0),
        Ack(1, 1, Lane.CONTROL, 99, (), 99, 100, 0),
        Ack(1, 1, Lane.CONTROL, 0, (99,), 0, 100, 0),
        Ack(1, 2, Lane.CONTROL, 0, (), 0, 100, 0),
        Verdict(1, 1, 1 << 21, 0, (), None),
        Verdict(2, 1, 0, 0, (), None),
    ],
)
def test_an_illegal_message_is_refused_and_leaves_everything_as_it_was(message: Ack | Verdict) -> None:
    core, ring, first, second = _two_streams()
    with pytest.raises((RemoteProtocolError, StalePlan)):
        core.handle(FromStage(0 if isinstance(message, Ack) else 1, message, 0.0))
    _finish(ring, [first, second], {1, 2})


# -- in the place of another -------------------------------------------------------------------


def _successor(num_pages: int = 8) -> SchedulerCore:
    """Of a scheduler that is gone, with nothing open yet."""
    core = SchedulerCore(max_rows=8, resend_after_s=1.0, step_deadline_s=10.0, takes_over=True)
    core.handle(PlanWired(dataclasses.replace(_plan(num_pages=num_pages), epoch=3).ring, 0.0))
    core.handle(FromStage(1, Resumed(1, 3), 0.0))
    core.handle(FromStage(0, Resume(1, 3, ()), 0.0))
    return core


def test_who_takes_over_has_stages_let_go_of_all_that_was_before_its_first_sequence_is_begun() -> None:
    core = _successor()
    assert core.handle(_open(7)) == []
    assert core.handle(Tick(0.05)) == [Send(stage, Lane.CONTROL, Close(1, 3, (6,), 6)) for stage in (0, 1)]
    assert _forwards(core.handle(FromStage(0, Closed(1, 3, (6,), 6, 8), 0.1))) == []
    assert _closes(core.handle(Tick(1.2))) == [(1, Close(1, 3, (6,), 6))]
    (forward,) = _forwards(core.handle(FromStage(1, Closed(1, 3, (6,), 6, 8), 1.3)))
    assert forward.items[0].sequence == 7
    assert core.handle(FromStage(1, Closed(1, 3, (6,), 6, 8), 1.4)) == []


def test_who_takes_over_and_is_asked_before_it_is_wired_has_stages_let_go_when_it_is() -> None:
    core = SchedulerCore(max_rows=8, resend_after_s=1.0, step_deadline_s=10.0, takes_over=True)
    assert core.handle(_open(7)) == []
    commands = core.handle(PlanWired(dataclasses.replace(_plan(), epoch=3).ring, 0.0))
    assert _closes(commands) == [(0, Close(1, 3, (6,), 6)), (1, Close(1, 3, (6,), 6))]
    core.handle(FromStage(1, Resumed(1, 3), 0.0))
    assert _forwards(core.handle(FromStage(0, Resume(1, 3, ()), 0.0))) == []
    core.handle(FromStage(0, Closed(1, 3, (6,), 6, 8), 0.1))
    assert len(_forwards(core.handle(FromStage(1, Closed(1, 3, (6,), 6, 8), 0.1)))) == 1


def test_a_sequence_goes_on_from_the_output_that_another_scheduler_had_come_to() -> None:
    core = _core(microbatches=1)
    event = msgspec.structs.replace(_open(1, num_prompt=2, max_new=4), output=(5).to_bytes(4, "little") * 2)
    (forward,) = _forwards(core.handle(event))
    (item,) = forward.items
    assert (item.position, item.num_rows, item.num_picks) == (0, 4, 1)
    assert item.opening is not None
    assert item.opening.num_prompt_tokens == 2  # type: ignore[union-attr]
    pick = Pick(1, 0, 4, 9, None, ())
    assert _told(core.handle(FromStage(1, Verdict(1, 1, 0, forward.microbatch, (pick,), None), 0.1))) == [Emitted(pick, None)]
    core.handle(FromStage(0, ack(forward), 0.1))
    last = Pick(1, 0, 5, 9, None, ())
    told = _told(core.handle(FromStage(1, Verdict(1, 1, 1, forward.microbatch + 1, (last,), None), 0.2)))
    assert told == [Emitted(last, FinishReason.LENGTH)]


def test_a_short_prompt_with_an_output_may_pass_others_whole() -> None:
    core = _core(microbatches=2, num_pages=64)
    core.handle(msgspec.structs.replace(_open(1, num_prompt=4, max_new=8), client="a"))
    event = msgspec.structs.replace(_open(2, num_prompt=2, max_new=9), output=bytes(4 * 5), client="b")
    (forward,) = _forwards(core.handle(event))
    assert [(item.sequence, item.position, item.num_rows) for item in forward.items] == [(2, 0, 7)]


def test_grammars_and_biases_that_would_not_fit_one_header_go_in_several() -> None:
    core = _core()
    grammar = Grammar("regex", "a" * (MAX_GRAMMAR_BYTES - 10))
    biases = tuple((token, -1.5) for token in range(MAX_BIASES))
    sent = [
        forward
        for number in range(1, 7)
        for forward in _forwards(
            core.handle(Open(number, bytes(8), SAMPLING, 1, frozenset(), 0.0, biases=biases, grammar=grammar))
        )
    ]
    ring = _Ring(core)
    for forward in sent:  # grows
        assert len(encode_envelope(1, forward)) < MAX_HEADER_BYTES
        sent += _forwards(ring.home(forward, token=3))
    assert sorted(item.sequence for forward in sent for item in forward.items) == [*range(1, 7)]
