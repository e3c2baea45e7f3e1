"""A stage's core and Commits: rows that are dead are not computed, not logged and not sent; those alive are not lost."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace
from stage_kit import PENALTY, a_commit, a_frame, a_stage, an_item, an_opening, done, messages, ran, works

from bloombee.kv.pool import MAX_ROLLBACK
from bloombee.pipeline.commands import Gather, Send
from bloombee.pipeline.cuts import MOST_AHEAD
from bloombee.pipeline.events import Gathered, Port, StageReceived, Tick
from bloombee.pipeline.frames import FrameSender
from bloombee.pipeline.stage import StageCore
from bloombee.pipeline.work import Pages
from bloombee.types import Lane
from bloombee.wire.messages import Ack, Close, Committed, Done, Fork, Forward, Gap, Holding, Lost, Resume, Wire


def test_a_rollback_gives_back_the_pages_beyond_it_and_is_confirmed() -> None:
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 14)))
    assert core.pages_free == 4
    assert core.handle(a_commit((7, 1, 5))) == [Send(Port.SCHEDULER, Lane.CONTROL, Committed(1, 1, (Done(7, 1),), 6))]
    (work,) = works(core.handle(a_frame(1, an_item(7, 5, 2, generation=1))))
    (segment,) = work.segments
    assert (segment.position, segment.generation, segment.pages) == (5, 1, (Pages((0, 1)),))


def test_rows_of_an_older_generation_that_are_dead_come_home_empty() -> None:
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 6)))
    core.handle(a_commit((7, 1, 4)))
    (work,) = works(core.handle(a_frame(1, an_item(7, 6, 1))))
    assert work.segments == ()
    (onward,) = messages(done(core, work), Forward)
    assert onward.items == ()


def test_a_preempted_sequence_holds_no_pages_and_begins_again() -> None:
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 14)))
    core.handle(a_commit((7, 1, 0)))
    assert core.pages_free == 8
    assert core.num_sequences == 1
    (work,) = works(core.handle(a_frame(1, an_item(7, 0, 9, generation=1))))
    assert work.segments[0].pages == (Pages((0, 1, 2)),)


def test_dead_rows_that_wait_for_the_device_are_not_computed() -> None:
    core = a_stage()
    running = [work for n in range(2) for work in works(core.handle(a_frame(n, an_item(n, 0, 1))))]
    core.handle(a_frame(2, an_item(7, 0, 6)))
    core.handle(a_frame(3, an_item(7, 6, 2), an_item(8, 0, 3)))
    core.handle(a_commit((7, 1, 4)))
    (first,) = works(done(core, running[0]))
    assert [(s.position, s.num_rows, s.generation) for s in first.segments] == [(0, 4, 1)]
    assert first.hidden_rows == ((0, 4),)
    (second,) = works(done(core, running[1]))
    assert [(s.sequence, s.num_rows) for s in second.segments] == [(8, 3)]
    assert second.hidden_rows == ((2, 5),)


def test_a_prompt_whose_waiting_chunk_died_lets_its_decode_overtake_again() -> None:
    core = a_stage(num_pages=20)
    for n in range(2):
        core.handle(a_frame(n, an_item(n, 0, 1)))
    core.handle(a_frame(0, an_item(7, 0, 6, picks=0), lane=Lane.BULK))
    core.handle(a_commit((7, 1, 0)))
    held = core.store.get(7)
    assert held is not None
    assert held.num_prefill == 0


def test_what_the_device_computes_of_dead_rows_alone_is_not_sent() -> None:
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 4)))
    (work,) = works(core.handle(a_frame(1, an_item(7, 4, 3))))
    core.handle(a_commit((7, 1, 4)))
    (send,) = [c for c in done(core, work) if isinstance(c, Send) and isinstance(c.message, Forward)]
    assert send.message.items == ()  # type: ignore[union-attr]
    assert send.payload is None
    assert core.log.bounds(7) == (0, 4)


def test_of_a_frame_that_is_partly_dead_the_log_keeps_what_is_alive() -> None:
    """The frame itself goes as it was computed: whoever gets it knows as much."""
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 4)))
    frame = a_frame(1, an_item(8, 0, 2), an_item(7, 4, 3), an_item(9, 0, 1))
    (work,) = works(core.handle(frame))
    core.handle(a_commit((7, 1, 5)))
    commands = done(core, work)
    (onward,) = messages(commands, Forward)
    assert onward.items == frame.message.items  # type: ignore[union-attr]
    assert core.log.bounds(7) == (0, 5)
    assert [(p.start, p.stop) for p in core.log.read(7, 3, 5).pieces] == [(3, 4), (2, 3)]
    assert [(p.start, p.stop) for p in core.log.read(9, 0, 1).pieces] == [(5, 6)]


def test_a_commit_that_overtakes_its_rows_lets_those_below_it_through() -> None:
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 2)))
    core.handle(a_commit((7, 1, 6)))
    (late,) = works(core.handle(a_frame(1, an_item(7, 2, 8))))
    assert [(s.position, s.num_rows, s.generation) for s in late.segments] == [(2, 4, 1)]
    done(core, late)
    (work,) = works(core.handle(a_frame(2, an_item(7, 6, 1, generation=1))))
    assert work.segments[0].position == 6


def test_a_commit_that_overtakes_the_sequence_itself_counts() -> None:
    core = a_stage()
    core.handle(a_commit((7, 1, 3), (8, 1, 0)))
    (work,) = works(core.handle(a_frame(0, an_item(7, 0, 5), an_item(8, 0, 5))))
    assert [(s.sequence, s.num_rows, s.generation) for s in work.segments] == [(7, 3, 1)]
    assert core.num_sequences == 1
    assert core.pages_free == 7


def test_rows_of_a_generation_that_no_commit_has_told_of_wait_for_it() -> None:
    """Their first row is not enough: it may be lost, and what is held before the next one dead."""
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 6)))
    early = a_frame(1, an_item(7, 4, 1, generation=1))
    assert messages(core.handle(early), Gap) == [Gap(1, 1, 7, 1, 0)]
    core.handle(a_commit((7, 1, 3)))
    assert messages(core.handle(early), Gap) == [Gap(1, 1, 7, 1, 3)]
    (work,) = works(core.handle(a_frame(2, an_item(7, 3, 1, generation=1))))
    assert work.segments[0].position == 3
    assert works(core.handle(early))


def test_a_frame_of_a_generation_that_is_not_known_is_asked_for_again_whatever_is_held_of_the_one_before() -> None:
    """A sequence begins anew, with rows on two frames of which the second is first: the sender must not take what is held of the
    old generation for what is held of the new one."""
    sender, core = FrameSender(limit=9, resend_after_s=30.0), a_stage()
    ran(core, a_frame(0, an_item(7, 0, 6)))
    begins, follows = (a_frame(number, an_item(7, 3 * number, 3, generation=1)).message for number in range(2))
    for message in (begins, follows):
        sender.push(lambda _, message=message: Send(Port.DOWNSTREAM, Lane.CONTROL, message), 0.0)
    (gap,) = messages(core.handle(StageReceived(replace(follows, frame=2), 0.0)), Gap)
    again = [send.message for send in sender.resend_rows(gap.sequence, gap.have, 0.1)]
    assert again == [begins, follows]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_commits_count_in_their_own_order_however_they_come(order: tuple[int, ...]) -> None:
    """Rows [0, 10) of generation 0, [4, 8) of 1, [7, 9) of 2; then 3 begins at 8."""
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 10)))
    cuts = [(7, 1, 4), (7, 2, 7), (7, 3, 8)]
    for index in order:
        core.handle(a_commit(cuts[index]))
    held = core.store.get(7)
    assert held is not None
    assert (held.generation, held.have) == (3, 4)
    (work,) = works(core.handle(a_frame(1, an_item(7, 4, 4, generation=1))))
    assert work.segments[0].num_rows == 3
    done(core, work)
    (work,) = works(core.handle(a_frame(2, an_item(7, 7, 2, generation=2))))
    assert work.segments[0].num_rows == 1
    assert work.segments[0].generation == 3


def test_a_commit_that_comes_twice_or_late_changes_nothing_and_is_answered() -> None:
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 10)))
    core.handle(a_commit((7, 1, 4)))
    ran(core, a_frame(1, an_item(7, 4, 4, generation=1)))
    for late in (a_commit((7, 1, 4)), a_commit((7, 1, 2))):
        assert core.handle(late) == [Send(Port.SCHEDULER, Lane.CONTROL, Committed(1, 1, (Done(7, 1),), 6))]
    held = core.store.get(7)
    assert held is not None
    assert (held.generation, held.have) == (1, 8)


def test_what_is_remembered_of_cuts_goes_with_the_sequence() -> None:
    core = a_stage()
    core.handle(a_commit((7, 3, 1), (8, 1, 1), (9, 1, 1)))
    core.handle(StageReceived(Close(1, 1, (9,), 9), 0.0))
    assert not core.store._cuts.of
    core.handle(a_commit((7, 4, 1)))
    assert not core.store._cuts.of


def test_cuts_that_are_more_than_can_be_remembered_are_not_confirmed_and_all_others_are() -> None:
    """As of a sequence whose rows come over a slow link to a stage that is new, and goes on round after round meanwhile."""
    core = a_stage()
    for generation in range(2, MOST_AHEAD + 2):
        core.handle(a_commit((7, generation, 1)))

    again, more = (7, MOST_AHEAD + 1, 1), (7, MOST_AHEAD + 2, 1)
    assert _confirmed(core, (8, 1, 0), more, again) == (Done(8, 1), Done(7, MOST_AHEAD + 1))
    assert core.handle(a_commit(more)) == []
    ran(core, a_frame(0, an_item(7, 0, 3, generation=MOST_AHEAD)))
    assert _confirmed(core, more) == (Done(7, MOST_AHEAD + 2),)
    assert _held(core) == (MOST_AHEAD + 2, 1)


def _confirmed(core: StageCore, *cuts: tuple[int, int, int]) -> tuple[Done, ...]:
    (answer,) = messages(core.handle(a_commit(*cuts)), Committed)
    return answer.cuts


def _held(core: StageCore) -> tuple[int, int]:
    """Generation of sequence 7, and the rows that are held."""
    held = core.store.get(7)
    assert held is not None
    return held.generation, held.have


def test_a_cut_that_can_be_taken_has_room_however_many_rows_have_yet_to_come() -> None:
    """Those rows may come as rows of the generation that the cut begins, so they wait for it."""
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 3)))
    newest = MOST_AHEAD + 9
    for generation in range(1, newest + 1):
        assert _confirmed(core, (7, generation, 10)) == (Done(7, generation),)
    assert _held(core) == (newest, 3)
    ran(core, a_frame(1, an_item(7, 3, 2)))
    ran(core, a_frame(2, an_item(7, 5, 9, generation=newest)))
    assert _held(core) == (newest, 14)
    assert not core.store._cuts.of


def test_of_cuts_that_lack_one_before_them_there_may_be_only_so_many_and_that_one_has_room() -> None:
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 3)))
    newest = MOST_AHEAD + 1
    for generation in range(2, newest + 1):
        assert _confirmed(core, (7, generation, 3)) == (Done(7, generation),)
    assert core.handle(a_commit((7, newest + 1, 3))) == []
    assert _held(core) == (0, 3)
    assert _confirmed(core, (7, 1, 3), (7, newest + 1, 3)) == (Done(7, 1), Done(7, newest + 1))
    assert _held(core) == (newest + 1, 3)


def test_a_cut_of_length_0_needs_no_room_beside_others() -> None:
    core = a_stage()
    for generation in range(2, MOST_AHEAD + 2):
        core.handle(a_commit((7, generation, 1)))
    anew = MOST_AHEAD + 9
    (answer,) = messages(core.handle(a_commit((7, anew, 0))), Committed)
    assert answer.cuts == (Done(7, anew),)
    assert not works(core.handle(a_frame(0, an_item(7, 0, 3, generation=5))))[0].segments
    (work,) = works(core.handle(a_frame(1, an_item(7, 0, 3, generation=anew))))
    assert work.segments[0].generation == anew


def test_a_rollback_beyond_what_a_window_keeps_is_reported_as_lost_until_it_comes_again() -> None:
    core = a_stage(windows=(0, 6), num_pages=100)
    for frame in range(10):
        ran(core, a_frame(frame, an_item(7, 30 * frame, 30)))
    core.handle(a_commit((7, 1, 300 - MAX_ROLLBACK)))
    ran(core, a_frame(10, an_item(7, 300 - MAX_ROLLBACK, 2, generation=1)))
    lost = Lost(1, 1, (Holding(7, 2, 0),), False)
    assert messages(core.handle(a_commit((7, 2, 300 - MAX_ROLLBACK - 1))), Lost) == [lost]
    assert messages(core.handle(Tick(5.0)), Lost) == [lost]
    ran(core, a_frame(11, an_item(7, 0, 20, generation=3)))
    assert messages(core.handle(Tick(9.0)), Lost) == []
    assert [pool.num_pages - pool.num_free for pool in core.store.kv.pools] == [5, 5]


def test_a_new_neighbour_is_sent_no_dead_rows() -> None:
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 6)))
    core.handle(a_commit((7, 1, 4)))
    core.handle(StageReceived(Wire(1, 2, 1, 0, 2, 9, 64, None, None, None, (), None, False, 1, False), 0.0))
    commands = core.handle(StageReceived(Resume(1, 2, (Holding(7, 0, 6),)), 0.0))
    (gather,) = [c for c in commands if isinstance(c, Gather)]
    assert gather.num_rows == 4
    commands = core.handle(StageReceived(Resume(1, 2, (Holding(7, 0, 6),)), 0.0))
    assert [type(c) for c in commands] == [Send]


def test_the_last_stage_says_no_pick_again_that_was_rolled_back() -> None:
    core = a_stage(stage=1)
    ran(core, a_frame(0, an_item(7, 0, 6)))
    core.handle(a_commit((7, 1, 4)))
    held = core.store.get(7)
    assert held is not None
    assert held.picks == ()


# -- forks -------------------------------------------------------------------------------------


def _fork(sequence: int, length: int, rows: int = 1, **sampling: object) -> Fork:
    return Fork(sequence, length, an_opening(rows, **sampling))  # type: ignore[arg-type]


def test_a_fork_shares_pages_and_copies_the_one_that_it_writes_to() -> None:
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 10)))
    (work,) = works(core.handle(a_frame(1, an_item(8, 6, 1, begins=_fork(7, 6)))))
    assert work.segments[0].pages == (Pages((0, 3), source=1),)
    assert core.pages_free == 4
    (onward,) = messages(done(core, work), Forward)
    assert onward.items == (an_item(8, 6, 1, begins=_fork(7, 6)),)
    (work,) = works(core.handle(a_frame(2, an_item(7, 10, 1))))
    assert work.segments[0].pages == (Pages((0, 1, 2)),)
    done(core, work)
    core.handle(StageReceived(Close(1, 1, (7,), 0), 0.0))
    assert core.pages_free == 6
    (work,) = works(core.handle(a_frame(3, an_item(8, 7, 1))))
    assert work.segments[0].pages == (Pages((0, 3)),)


def test_a_fork_whose_first_rows_are_not_here_yet_comes_again() -> None:
    core = a_stage()
    fork = a_frame(1, an_item(8, 6, 1, begins=_fork(7, 6)))
    assert messages(core.handle(fork), Gap) == [Gap(1, 1, 8, 0, 0)]
    (work,) = works(core.handle(a_frame(0, an_item(7, 0, 6))))
    (forked,) = works(core.handle(fork))
    assert forked.segments[0].pages[0].source == 1
    assert work.number < forked.number


def test_a_fork_of_what_is_closed_is_lost_and_can_be_sent_from_its_start() -> None:
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 6)))
    core.handle(StageReceived(Close(1, 1, (7,), 0), 0.0))
    commands = core.handle(a_frame(1, an_item(8, 6, 1, begins=_fork(7, 6))))
    assert messages(commands, Lost) == [Lost(1, 1, (Holding(8, 0, 0),), False)]
    (empty,) = works(commands)
    assert empty.segments == ()
    done(core, empty)
    (work,) = works(core.handle(a_frame(2, an_item(8, 0, 7, generation=1))))
    assert work.segments[0].num_rows == 7


def test_a_fork_begins_with_the_tokens_that_its_penalties_count() -> None:
    core = a_stage(stage=1)
    ran(core, a_frame(0, an_item(7, 0, 6, begins=an_opening(6, PENALTY))))
    (work,) = works(core.handle(a_frame(1, an_item(8, 4, 1, begins=_fork(7, 4, sampling=PENALTY)))))
    assert work.segments[0].history == an_item(7, 0, 4).tokens + an_item(8, 4, 1).tokens


def test_a_fork_with_penalties_of_one_without_knows_all_tokens() -> None:
    core = a_stage(stage=1)
    ran(core, a_frame(0, an_item(7, 0, 6)))
    (work,) = works(core.handle(a_frame(1, an_item(8, 4, 1, begins=_fork(7, 4, sampling=PENALTY)))))
    assert work.segments[0].history == an_item(7, 0, 4).tokens + an_item(8, 4, 1).tokens


def test_a_fork_is_rolled_back_into_what_it_shares_without_harm_to_the_other() -> None:
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 10)))
    ran(core, a_frame(1, an_item(8, 9, 2, begins=_fork(7, 9))))
    core.handle(a_commit((8, 1, 5)))
    (work,) = works(core.handle(a_frame(2, an_item(8, 5, 1, generation=1))))
    (pages,) = work.segments[0].pages
    assert pages.ids[0] == 0
    assert pages.source == 1
    assert pages.ids[1] not in (0, 1, 2)


def test_a_fork_that_is_behind_is_said_again_as_a_fork() -> None:
    """Its first frame carries none of its rows while those of another in it have to wait their turn."""
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 6)))
    core.handle(StageReceived(Wire(1, 2, 2, 0, 2, 9, 64, None, None, None, (), None, False, 1, False), 0.0))
    commands = core.handle(StageReceived(Resume(1, 2, ()), 0.0))
    (gather,) = [c for c in commands if isinstance(c, Gather)]
    commands = ran(core, a_frame(0, an_item(7, 6, 1), an_item(8, 4, 1, begins=_fork(7, 4)), epoch=2))
    (second,) = [c for c in commands if isinstance(c, Gather)]
    assert second.num_rows == 2
    assert core.seats[2].gathering[second.number][1].opening == _fork(7, 4)
    assert gather.num_rows == 6


def test_acks_part_what_is_held_from_what_is_logged() -> None:
    core = a_stage()
    first = works(core.handle(a_frame(0, an_item(7, 0, 2))))
    core.handle(a_frame(1, an_item(8, 0, 2)))
    assert messages(done(core, first[0]), Ack) == [Ack(1, 1, Lane.CONTROL, 2, (), 1, 100, 0)]


def test_a_frame_whose_dead_rows_follow_on_rows_that_are_still_being_said_goes_without_rows() -> None:
    """The next stage may take dead rows only from where the cut is on, and what lies below has yet to come to it."""
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 4)))
    core.handle(StageReceived(Wire(1, 2, 1, 0, 2, 99, 64, None, None, None, (), None, False, 1, False), 0.0))
    (gather,) = [c for c in core.handle(StageReceived(Resume(1, 2, ()), 0.0)) if isinstance(c, Gather)]
    (work,) = works(core.handle(a_frame(0, an_item(7, 4, 3), an_item(8, 0, 2), epoch=2)))
    core.handle(a_commit((7, 1, 4)))
    (onward,) = messages(done(core, work), Forward)
    assert onward.items == ()
    said = messages(core.handle(Gathered(gather.number, "rows", 0.0)), Forward)
    assert [(item.sequence, item.generation, item.position, item.num_rows) for f in said for item in f.items] == [(7, 0, 0, 4)]


def test_a_fork_that_was_preempted_is_said_again_from_its_start() -> None:
    """It is no fork any more: its rows from 0 on have been sent."""
    core = a_stage(num_pages=20)
    ran(core, a_frame(0, an_item(7, 0, 6)))
    ran(core, a_frame(1, an_item(8, 4, 2, begins=Fork(7, 4, an_opening(6)))))
    core.handle(a_commit((8, 1, 0)))
    ran(core, a_frame(2, an_item(8, 0, 6, generation=1)))
    core.handle(StageReceived(Wire(1, 2, 1, 0, 2, 99, 64, None, None, None, (), None, False, 1, False), 0.0))
    (gather,) = [c for c in core.handle(StageReceived(Resume(1, 2, (Holding(7, 0, 6),)), 0.0)) if isinstance(c, Gather)]
    (again,) = messages(core.handle(Gathered(gather.number, "rows", 0.0)), Forward)
    assert [(item.sequence, item.position, item.num_rows, item.opening) for item in again.items] == [(8, 0, 6, an_opening(6))]


def test_a_sequence_that_begins_anew_in_one_epoch_is_said_over_the_next_one_as_well() -> None:
    """Also where it has fewer rows than the next stage was told of it before."""
    core = a_stage()
    ran(core, a_frame(0, an_item(7, 0, 6)))
    core.handle(StageReceived(Wire(1, 2, 1, 0, 2, 99, 64, None, None, None, (), None, False, 1, False), 0.0))
    core.handle(StageReceived(Resume(1, 2, (Holding(7, 0, 6),)), 0.0))
    (gather,) = [c for c in ran(core, a_frame(1, an_item(7, 0, 2, generation=1))) if isinstance(c, Gather)]
    (again,) = messages(core.handle(Gathered(gather.number, "rows", 0.0)), Forward)
    assert [(again.epoch, item.sequence, item.generation, item.position, item.num_rows) for item in again.items] == [
        (2, 7, 1, 0, 2)
    ]
