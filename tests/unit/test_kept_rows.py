"""First rows that a stage keeps by content: what begins on them, what is said of them, and who has to make way."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bloombee.errors import LocalProtocolError, PoolExhausted
from bloombee.kv.pool import PagePool, PageTable
from bloombee.kv.prefix import MOST_KEPT, PrefixStore
from bloombee.pipeline.commands import Command
from bloombee.pipeline.events import StageReceived, Tick
from bloombee.pipeline.stage import StageCore
from bloombee.wire.messages import Close, Closed, Gap, Have, Item, Keep, Prefix
from tests.stage_kit import PENALTY, a_frame, a_stage, an_item, an_opening, done, messages, ran, works

KEY, OTHER = b"k" * 32, b"o" * 32


def _keep(core: StageCore, sequence: int, length: int, *, key: bytes = KEY, generation: int = 0) -> list[Command]:
    return core.handle(StageReceived(Keep(1, 1, sequence, generation, Prefix(key, length)), 0.0))


def _close(core: StageCore, *sequences: int) -> Closed:
    (closed,) = messages(core.handle(StageReceived(Close(1, 1, sequences, 0), 0.0)), Closed)
    return closed


def _on(sequence: int, length: int, rows: int, *, key: bytes = KEY, generation: int = 0) -> Item:
    """That begins on kept rows."""
    opening = replace(an_opening(length + rows), prefix=Prefix(key, length))
    return an_item(sequence, length, rows, generation=generation, begins=opening)


def _a_stage_that_keeps(num_pages: int = 8, *, stage: int = 0, windows: tuple[int, ...] = (0,)) -> StageCore:
    """Eight rows of sequence 1, which has ended."""
    core = a_stage(stage=stage, num_pages=num_pages, windows=windows)
    ran(core, a_frame(0, an_item(1, 0, 9)))
    assert messages(_keep(core, 1, 8), Have) == [Have(1, 1, 1, 8)]
    assert _close(core, 1).pages_free == num_pages * len(windows)  # what is only kept is free
    return core


def test_a_sequence_begins_on_what_is_kept_and_writes_beside_it() -> None:
    core = _a_stage_that_keeps()
    for sequence in (2, 3):
        (work,) = works(core.handle(a_frame(sequence, _on(sequence, 8, 2))))
        (pages,) = work.segments[0].pages
        assert pages.ids[:2] == (0, 1)
        assert pages.ids[2] not in (0, 1)
        assert pages.source is None
        done(core, work)
    assert core.pages_free == 8 - 4


def test_a_part_of_what_is_kept_will_do_and_its_last_page_is_copied() -> None:
    core = _a_stage_that_keeps()
    (work,) = works(core.handle(a_frame(1, _on(2, 6, 1))))
    (pages,) = work.segments[0].pages
    assert pages.source == 1
    assert pages.ids[0] == 0
    assert pages.ids[1] not in (0, 1)


def test_the_last_stage_knows_all_tokens_of_what_is_kept() -> None:
    core = _a_stage_that_keeps(stage=1)
    opening = replace(an_opening(9, PENALTY), prefix=Prefix(KEY, 8))
    (work,) = works(core.handle(a_frame(1, an_item(2, 8, 1, begins=opening))))
    assert work.segments[0].history == an_item(1, 0, 8).tokens + an_item(2, 8, 1).tokens


def test_what_is_kept_makes_way_for_whoever_needs_pages_and_that_is_said() -> None:
    core = _a_stage_that_keeps()
    assert messages(ran(core, a_frame(1, an_item(2, 0, 24))), Have) == []
    commands = core.handle(a_frame(2, an_item(3, 0, 8)))
    assert messages(commands, Have) == [Have(1, 1, 1, 0)]
    assert len(works(commands)) == 1
    assert core.pages_free == 0


def test_what_a_sequence_holds_does_not_make_way() -> None:
    core = _a_stage_that_keeps()
    ran(core, a_frame(1, _on(2, 8, 1)))
    ran(core, a_frame(2, an_item(3, 0, 20)))
    assert core.pages_free == 0
    assert core.store.kv.prefixes.usable(KEY, 8) == 8


def test_a_stage_that_lacks_the_rows_says_so_until_they_come_another_way() -> None:
    core = _a_stage_that_keeps()
    commands = core.handle(a_frame(1, _on(2, 8, 1, key=OTHER), an_item(3, 0, 2)))
    assert messages(commands, Have) == [Have(1, 1, 2, 0)]
    (work,) = works(commands)
    assert [segment.sequence for segment in work.segments] == [3]
    done(core, work)
    assert messages(core.handle(Tick(2.0)), Have) == [Have(1, 1, 2, 0)]
    late = core.handle(a_frame(2, an_item(2, 9, 1)))  # of the same generation: it comes to nothing, and takes no room
    assert messages(late, Gap) == []
    done(core, *works(late))
    ran(core, a_frame(3, an_item(2, 0, 9, generation=1)))
    assert messages(core.handle(Tick(4.0)), Have) == []
    assert core.num_sequences == 2


def test_more_than_is_kept_is_not_there_and_how_much_is_is_said() -> None:
    core = _a_stage_that_keeps()
    assert messages(core.handle(a_frame(1, _on(2, 12, 1))), Have) == [Have(1, 1, 2, 8)]
    (work,) = works(core.handle(a_frame(2, _on(2, 8, 5, generation=1))))
    assert work.segments[0].position == 8


def test_only_rows_that_are_here_and_of_that_generation_are_kept() -> None:
    core = a_stage()
    ran(core, a_frame(0, an_item(1, 0, 6)))
    assert messages(_keep(core, 1, 8), Have) == [Have(1, 1, 1, 0)]
    assert messages(_keep(core, 1, 4, generation=1), Have) == [Have(1, 1, 1, 0)]
    assert messages(_keep(core, 9, 4), Have) == [Have(1, 1, 9, 0)]
    for _ in range(2):
        assert messages(_keep(core, 1, 4), Have) == [Have(1, 1, 1, 4)]
    _close(core, 1)
    assert messages(_keep(core, 1, 4), Have) == [Have(1, 1, 1, 4)]  # said again


def test_a_window_that_has_gone_on_keeps_nothing() -> None:
    core = a_stage(num_pages=40, windows=(0, 8))
    for frame in range(2):
        ran(core, a_frame(frame, an_item(1, 50 * frame, 50)))
    assert messages(_keep(core, 1, 32), Have) == [Have(1, 1, 1, 0)]
    assert messages(_keep(core, 1, 96), Have) == [Have(1, 1, 1, 96)]
    _close(core, 1)
    (work,) = works(core.handle(a_frame(2, _on(2, 96, 2))))
    full, window = work.segments[0].pages
    assert full.start == 0
    assert 0 < window.start <= 96 - 8
    done(core, work)
    assert messages(core.handle(a_frame(3, _on(3, 16, 1))), Have) == [Have(1, 1, 3, 0)]


def _store(num_pages: int = 8) -> tuple[PagePool, PrefixStore]:
    pool = PagePool(num_pages, 4)
    return pool, PrefixStore([pool], [0])


def _placed(pool: PagePool, rows: int) -> PageTable:
    table = PageTable(pool)
    table.place(0, rows)
    return table


def test_what_was_of_use_last_stays_longest() -> None:
    pool, store = _store()
    for number in range(4):
        table = _placed(pool, 8)
        assert store.keep(bytes([number]), number, [table], 8, 8, b"")
        table.truncate(0)
    (used,) = store.tables(store.begin(bytes([0]), 8))
    used.truncate(0)
    assert pool.num_free == 8
    _placed(pool, 9)
    assert store.take_gone() == [1, 2]
    assert store.take_gone() == []
    assert [store.usable(bytes([number]), 8) for number in range(4)] == [8, 0, 0, 8]


def test_a_page_is_free_when_nobody_holds_nor_keeps_it() -> None:
    pool, store = _store()
    table = _placed(pool, 8)
    store.keep(KEY, 1, [table], 8, 8, b"")
    store.keep(OTHER, 1, [table], 4, 8, b"")
    assert (pool.num_free, pool.num_idle) == (6, 0)
    table.truncate(0)
    assert (pool.num_free, pool.num_idle) == (8, 2)
    with pytest.raises(PoolExhausted):
        pool.take(9)
    assert len(store) == 2
    assert len(pool.take(8)) == 8
    assert (pool.num_free, pool.num_idle, len(store)) == (0, 0, 0)
    with pytest.raises(LocalProtocolError):
        pool.unkeep([0])


def test_so_many_are_kept_and_no_more() -> None:
    pool, store = _store()
    table = _placed(pool, 4)
    for number in range(MOST_KEPT + 1):
        store.keep(number.to_bytes(2, "little"), number, [table], 4, 4, b"")
    assert len(store) == MOST_KEPT
    assert store.take_gone() == [0]
    store.clear()
    assert pool.num_free == 7


def test_what_cannot_begin_twice_is_dropped_by_its_newest_generation() -> None:
    """It is preempted before it has begun in the other way that was asked for."""
    core = a_stage()
    for frame, generation in enumerate((1, 3)):
        commands = core.handle(a_frame(frame, _on(2, 8, 2, generation=generation)))
        assert messages(commands, Have) == [Have(1, 1, 2, 0)]
    commands = core.handle(a_frame(2, an_item(2, 10, 1, generation=3)))
    assert not messages(commands, Gap), "it would come again and again, and keep its credit"
    assert core.num_sequences == 0
    core.handle(a_frame(3, an_item(2, 0, 2, generation=4)))
    assert core.num_sequences == 1
