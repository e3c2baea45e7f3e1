"""Kept rows that a stage has copied to its host's memory and back: who may use which page meanwhile."""

from __future__ import annotations

from msgspec.structs import replace

from bloombee.kv.tiers import Copy, Way
from bloombee.pipeline.commands import Command, CopyPages
from bloombee.pipeline.events import HostRoom, PagesCopied, StageReceived
from bloombee.pipeline.stage import StageCore
from bloombee.wire.messages import Close, Have, Item, Keep, Prefix
from tests.stage_kit import a_commit, a_frame, a_stage, an_item, an_opening, done, messages, ran, works

KEY, OTHER = b"k" * 32, b"o" * 32


def _copies(commands: list[Command]) -> list[Copy]:
    return [command.copy for command in commands if isinstance(command, CopyPages)]


def _keep(core: StageCore, sequence: int, length: int, key: bytes) -> list[Command]:
    return core.handle(StageReceived(Keep(1, 1, sequence, 0, Prefix(key, length)), 0.0))


def _copied(core: StageCore, copy: Copy, *, failed: bool = False) -> list[Command]:
    return core.handle(PagesCopied(copy.number, failed))


def _close(core: StageCore, *sequences: int) -> list[Command]:
    return core.handle(StageReceived(Close(1, 1, sequences, 0), 0.0))


def _on(sequence: int, length: int, rows: int, *, generation: int = 0, key: bytes = KEY) -> Item:
    opening = replace(an_opening(length + rows), prefix=Prefix(key, length))
    return an_item(sequence, length, rows, generation=generation, begins=opening)


def _a_stage(host_pages: int = 8) -> StageCore:
    """Of eight pages of four rows. Sequence 1 had nine rows and has ended; eight of them are kept in pages 0 and 1."""
    core = a_stage(num_pages=8)
    core.handle(HostRoom((host_pages,)))
    ran(core, a_frame(0, an_item(1, 0, 9)))
    return core


def _kept(core: StageCore) -> Copy:
    (copy,) = _copies(_keep(core, 1, 8, KEY))
    assert (copy.way, [source for _, source, _ in copy.pages]) == (Way.OUT, [0, 1])
    _close(core, 1)
    return copy


def _away(core: StageCore) -> None:
    """The rows are on the host alone, and all pages of the device are free."""
    _copied(core, _kept(core))
    ran(core, a_frame(1, an_item(2, 0, 32)))
    _close(core, 2)
    assert core.pages_free == 8


def test_pages_that_are_copied_out_are_nobodys_until_they_are_and_then_anybodys() -> None:
    core = _a_stage()
    copy = _kept(core)
    assert core.pages_free == 8
    assert works(core.handle(a_frame(1, an_item(2, 0, 32)))) == []  # all eight pages; it waits
    (work,) = works(_copied(core, copy))
    assert sorted(work.segments[0].pages[0].ids) == list(range(8))
    assert messages(done(core, work), Have) == []  # the rows are still kept


def test_what_needs_no_such_page_does_not_wait() -> None:
    core = _a_stage()
    copy = _kept(core)
    (work,) = works(core.handle(a_frame(1, an_item(2, 0, 24))))
    assert not {0, 1} & set(work.segments[0].pages[0].ids)
    done(core, work)
    _copied(core, copy)


def test_rows_come_back_for_who_begins_on_them_while_others_go_on() -> None:
    core = _a_stage()
    _away(core)
    commands = core.handle(a_frame(2, _on(3, 8, 1)))
    assert works(commands) == []
    (copy,) = _copies(commands)
    assert copy.way is Way.IN
    (other,) = works(core.handle(a_frame(3, an_item(4, 0, 4))))
    coming = {target for _, _, target in copy.pages}
    assert not coming & set(other.segments[0].pages[0].ids)
    done(core, other)
    (work,) = works(_copied(core, copy))
    (pages,) = work.segments[0].pages
    assert set(pages.ids[:2]) == coming
    assert work.segments[0].position == 8
    done(core, work)
    _close(core, 3, 4)
    assert core.pages_free == 8


def test_a_copy_begins_when_works_that_the_device_had_before_have_ended() -> None:
    """They may still write to what is about to be somebody else's."""
    core = _a_stage()
    _away(core)
    (running,) = works(core.handle(a_frame(2, an_item(4, 0, 4))))
    commands = core.handle(a_frame(3, _on(3, 8, 1)))
    assert (works(commands), _copies(commands)) == ([], [])
    (copy,) = _copies(done(core, running))
    assert copy.way is Way.IN


def test_rows_that_do_not_come_back_are_said_not_to_be_there_and_others_go_on() -> None:
    core = _a_stage()
    _away(core)
    (copy,) = _copies(core.handle(a_frame(2, _on(3, 8, 1), an_item(4, 0, 2))))
    commands = _copied(core, copy, failed=True)
    assert Have(1, 1, 3, 0) in messages(commands, Have)
    (work,) = works(commands)
    assert [segment.sequence for segment in work.segments] == [4]
    done(core, work)
    ran(core, a_frame(3, an_item(3, 0, 9, generation=1)))
    _close(core, 3, 4)
    assert core.pages_free == 8


def test_who_ends_or_is_cut_while_its_rows_come_leaves_nothing_behind() -> None:
    for end in (lambda core: _close(core, 3), lambda core: core.handle(a_commit((3, 1, 0)))):
        core = _a_stage()
        _away(core)
        (copy,) = _copies(core.handle(a_frame(2, _on(3, 8, 1))))
        (empty,) = works(end(core))
        assert empty.segments == ()
        done(core, empty)
        assert core.pages_free == 6
        _copied(core, copy)
        assert core.pages_free == 8
        assert not core.store.kv.prefixes.tiers.has_arrivals


def test_the_least_useful_make_way_on_the_host_and_that_is_said() -> None:
    core = _a_stage(host_pages=3)
    _away(core)
    ran(core, a_frame(2, an_item(5, 0, 9)))
    commands = _keep(core, 5, 8, OTHER)
    assert messages(commands, Have) == [Have(1, 1, 5, 8), Have(1, 1, 1, 0)]
    (copy,) = _copies(commands)
    assert len({target for _, _, target in copy.pages}) == 2
    _copied(core, copy)
    assert core.store.kv.prefixes.usable(KEY, 8) == 0
    assert core.store.kv.prefixes.usable(OTHER, 8) == 8


def test_rows_of_who_will_come_back_do_not_make_way_on_the_host() -> None:
    """Sequence 1 is open: it has made way for others on the device."""
    core = _a_stage(host_pages=3)
    (copy,) = _copies(_keep(core, 1, 8, KEY))
    core.handle(a_commit((1, 1, 0)))
    _copied(core, copy)
    ran(core, a_frame(1, an_item(2, 0, 32)))
    assert _copies(_keep(core, 2, 8, OTHER)) == []  # no room
    _close(core, 2)
    assert core.store.kv.prefixes.usable(KEY, 8) == 8
    ran(core, a_frame(2, an_item(6, 0, 32)))  # of the other rows there is no copy
    assert core.store.kv.prefixes.usable(OTHER, 8) == 0
