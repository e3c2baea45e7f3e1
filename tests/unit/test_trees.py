"""A stage's core and trees of drafts: nodes hang on the last row, a path makes rows of them, and the rest is nothing."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from stage_kit import PENALTY, a_frame, a_stage, an_item, an_opening, done, messages, ran, works

from bloombee.errors import RemoteProtocolError
from bloombee.pipeline.commands import Command, Gather
from bloombee.pipeline.events import Computed, Gathered, StageReceived
from bloombee.pipeline.stage import StageCore
from bloombee.pipeline.work import Outcome, Pages, Work
from bloombee.types import Kind, Lane
from bloombee.wire.messages import Ack, Commit, Cut, Forward, Gap, Holding, Item, Resume, Tree, Verdict, Wire

WIDE = (0, 1, 1, 2, 3, 4)
"""Parents of six nodes: 1 - (2 - 4 - 6, 3 - 5)."""


def a_tree(
    sequence: int, position: int, parents: tuple[int, ...], *, first: int = 1, generation: int = 0, picks: int | None = None
) -> Item:
    """Tokens say sequence, generation and node."""
    num_rows = len(parents)
    tokens = b"".join((sequence << 20 | generation << 10 | 512 | first + i).to_bytes(4, "little") for i in range(num_rows))
    bits = (1 << num_rows) - 1 if picks is None else picks
    tree = Tree(first, parents, bits.to_bytes((num_rows + 7) // 8, "little"))
    return Item(sequence, generation, Kind.DRAFT, position, tokens, bits.bit_count(), None, tree)


def a_path(sequence: int, generation: int, length: int, *path: int) -> StageReceived:
    return StageReceived(Commit(1, 1, (Cut(sequence, generation, length, path),)), 0.0)


def a_stage_with_tree(parents: tuple[int, ...] = WIDE, **arguments: int) -> tuple[StageCore, list[Command]]:
    """Rows [0, 5) of sequence 7, and a tree behind them; what its work gave."""
    core = a_stage(num_pages=20, **arguments)
    ran(core, a_frame(0, an_item(7, 0, 5)))
    return core, ran(core, a_frame(1, a_tree(7, 5, parents)))


def test_nodes_get_slots_one_after_the_other_and_the_positions_of_their_depths() -> None:
    core = a_stage(num_pages=20)
    ran(core, a_frame(0, an_item(7, 0, 5)))
    (work,) = works(core.handle(a_frame(1, a_tree(7, 5, WIDE))))
    (segment,) = work.segments
    assert segment.position == 5
    assert segment.pages == (Pages((0, 1, 2)),)
    assert list(segment.positions()) == [5, 6, 6, 7, 7, 8]
    assert segment.tree is not None
    assert segment.tree.path(6) == [1, 2, 4, 6]


def test_a_path_that_lies_in_its_place_becomes_rows_without_moves() -> None:
    core, _ = a_stage_with_tree((0, 1, 2, 1))
    core.handle(a_path(7, 1, 5, 1, 2, 3))
    (work,) = works(core.handle(a_frame(2, an_item(7, 8, 1, generation=1))))
    (segment,) = work.segments
    assert (segment.position, segment.tree) == (8, None)
    assert segment.pages == (Pages((0, 1, 2)),)


def test_rows_of_another_path_are_moved_with_the_next_work() -> None:
    core, _ = a_stage_with_tree()
    core.handle(a_path(7, 1, 5, 1, 3, 5))
    (segment,) = works(core.handle(a_frame(2, an_item(7, 8, 1, generation=1))))[0].segments
    assert segment.pages == (Pages((0, 1, 2), moves=((7, 6), (9, 7))),)
    (segment,) = works(core.handle(a_frame(3, an_item(7, 9, 1, generation=1))))[0].segments
    assert segment.pages[0].moves == ()


def test_pages_beyond_the_path_are_free_at_once_but_for_rows_that_wait_to_be_moved() -> None:
    core, _ = a_stage_with_tree((0, *[1] * 10))
    assert core.pages_free == 16
    core.handle(a_path(7, 1, 5, 1, 2))
    assert core.pages_free == 18
    core, _ = a_stage_with_tree((0, *[1] * 10))
    core.handle(a_path(7, 1, 5, 1, 9))
    assert core.pages_free == 16
    core.handle(a_path(7, 2, 6))
    assert core.pages_free == 18


def test_a_path_is_given_up_whole() -> None:
    core, _ = a_stage_with_tree()
    core.handle(a_path(7, 1, 5))
    assert core.store.holdings() == (Holding(7, 1, 5),)
    (work,) = works(core.handle(a_frame(2, an_item(7, 5, 2, generation=1))))
    assert work.segments[0].pages == (Pages((0, 1)),)


def test_later_fragments_hang_on_nodes_of_earlier_frames() -> None:
    core, _ = a_stage_with_tree((0, 1))
    (work,) = works(core.handle(a_frame(2, a_tree(7, 5, (2, 1), first=3))))
    (segment,) = work.segments
    assert segment.position == 7
    assert list(segment.positions()) == [7, 6]
    done(core, work)
    core.handle(a_path(7, 1, 5, 1, 2, 3))
    assert core.store.holdings() == (Holding(7, 1, 8),)


def test_a_fragment_that_comes_twice_brings_what_is_new() -> None:
    core, _ = a_stage_with_tree((0, 1))
    (work,) = works(core.handle(a_frame(2, a_tree(7, 5, (1, 2), first=2, picks=0b10))))
    (segment,) = work.segments
    assert (segment.tree and segment.tree.first, segment.num_picks) == (3, 0)
    assert work.hidden_rows == ((1, 2),)


def test_a_fragment_whose_first_nodes_are_missing_waits_for_them() -> None:
    core, _ = a_stage_with_tree((0, 1))
    assert messages(core.handle(a_frame(2, a_tree(7, 5, (3,), first=4))), Gap) == [Gap(1, 1, 7, 0, 5)]


@pytest.mark.parametrize(
    "item",
    [
        an_item(7, 5, 1),
        a_tree(7, 4, (0, 1), first=7),
        a_tree(7, 5, (0,) * 60, first=7),
    ],
    ids=["rows beside it", "on another row", "too many"],
)
def test_what_no_scheduler_sends_is_refused_and_changes_nothing(item: Item) -> None:
    core, _ = a_stage_with_tree()
    before = core.store.holdings(), core.pages_free
    with pytest.raises(RemoteProtocolError, match="sequence 7"):
        core.handle(a_frame(2, item))
    assert (core.store.holdings(), core.pages_free) == before
    core.handle(a_path(7, 1, 5, 1, 2))
    assert core.store.holdings() == (Holding(7, 1, 7),)


def test_a_path_over_nodes_that_are_none_ends_before_them() -> None:
    core, _ = a_stage_with_tree()
    core.handle(a_path(7, 1, 5, 1, 2, 40, 4_000_000))
    assert core.store.holdings() == (Holding(7, 1, 7),)


def test_a_path_that_overtakes_its_nodes_makes_rows_of_them() -> None:
    core = a_stage(num_pages=20)
    ran(core, a_frame(0, an_item(7, 0, 5)))
    core.handle(a_path(7, 1, 5, 1, 3, 5))
    (work,) = works(core.handle(a_frame(1, a_tree(7, 5, WIDE))))
    assert [(s.position, s.num_rows, s.generation, s.tree) for s in work.segments] == [
        (5, 1, 1, None), (6, 1, 1, None), (7, 1, 1, None)
    ]  # fmt: skip
    assert work.hidden_rows == ((0, 1), (2, 3), (4, 5))
    done(core, work)
    assert core.store.holdings() == (Holding(7, 1, 8),)
    assert core.log.bounds(7) == (0, 8)
    assert not core.store._cuts.of


def test_nodes_that_wait_for_the_device_are_computed_if_they_are_on_the_path() -> None:
    core = a_stage(num_pages=20)
    running = [work for n in range(2) for work in works(core.handle(a_frame(n, an_item(n, 0, 1))))]
    core.handle(a_frame(2, an_item(7, 0, 5), an_item(8, 0, 1)))
    core.handle(a_frame(3, a_tree(7, 5, WIDE), an_item(8, 1, 1)))
    core.handle(a_path(7, 1, 5, 1, 2, 4))
    (first,) = works(done(core, running[0]))
    (second,) = works(done(core, running[1]))
    assert [(s.sequence, s.position, s.num_rows) for s in first.segments] == [(7, 0, 5), (8, 0, 1)]
    assert [(s.sequence, s.position, s.num_rows, s.tree) for s in second.segments] == [
        (7, 5, 2, None), (7, 7, 1, None), (8, 1, 1, None)
    ]  # fmt: skip
    assert second.hidden_rows == ((0, 2), (3, 4), (6, 7))


def test_of_nodes_on_the_device_those_on_the_path_are_logged() -> None:
    core = a_stage(num_pages=20)
    ran(core, a_frame(0, an_item(7, 0, 5)))
    frame = a_frame(1, a_tree(7, 5, WIDE))
    (work,) = works(core.handle(frame))
    core.handle(a_path(7, 1, 5, 1, 3, 5))
    commands = done(core, work)
    assert core.log.bounds(7) == (0, 8)
    assert [(piece.start, piece.stop) for piece in core.log.read(7, 5, 8).pieces] == [(0, 1), (2, 3), (4, 5)]
    (onward,) = messages(commands, Forward)
    assert onward.items == ()  # parts of one sequence are said out of the log
    assert [c.num_rows for c in commands if isinstance(c, Gather)] == [3]


def test_the_log_makes_rows_of_a_path_and_lets_go_of_the_rest() -> None:
    core, _ = a_stage_with_tree()
    assert core.log.bounds(7) == (0, 5)
    core.handle(a_path(7, 1, 5, 1, 2, 4))
    said = core.log.read(7, 4, 8)
    assert [(piece.start, piece.stop) for piece in said.pieces] == [(4, 5), (0, 2), (3, 4)]
    assert said.num_picks == 0
    core.handle(a_path(7, 2, 5))
    assert core.log.num_bytes == 8 * 5


def _wire(core: StageCore, *held: Holding) -> list[Command]:
    """Another next stage in epoch 2, which holds this."""
    core.handle(StageReceived(Wire(1, 2, 1, 0, 2, 99, 64, None, None, None, (), None, False, 1, False), 0.0))
    return core.handle(StageReceived(Resume(1, 2, held), 0.0))


def _said(core: StageCore, commands: list[Command]) -> list[Item]:
    """What is said again, until nothing is left."""
    items: list[Item] = []
    while gathers := [command for command in commands if isinstance(command, Gather)]:
        commands = [one for gather in gathers for one in core.handle(Gathered(gather.number, "rows", 0.0))]
        items += [item for forward in messages(commands, Forward) for item in forward.items]
    return items


def test_a_new_neighbour_gets_the_path_as_rows() -> None:
    core, _ = a_stage_with_tree()
    core.handle(a_path(7, 1, 5, 1, 3, 5))
    items = _said(core, _wire(core))
    assert [(item.position, item.num_rows, item.generation, item.tree) for item in items] == [(0, 8, 1, None)]


def test_a_new_neighbour_gets_the_tree_as_a_tree_after_its_rows() -> None:
    core, _ = a_stage_with_tree()
    rows, tree = _said(core, _wire(core))
    assert (rows.position, rows.num_rows, rows.tree) == (0, 5, None)
    assert tree == replace(a_tree(7, 5, WIDE), kind=Kind.REPLAY)


def test_nodes_that_are_on_their_way_to_a_neighbour_are_not_said_again_as_rows() -> None:
    """They count there, as the path tells it too."""
    core, _ = a_stage_with_tree()
    commands = [*_wire(core, Holding(7, 0, 3)), *core.handle(a_path(7, 1, 5, 1, 2))]
    rows, tree = _said(core, commands)
    assert [(item.position, item.num_rows, item.generation) for item in (rows, tree)] == [(3, 2, 0), (5, 6, 0)]
    (onward,) = messages(ran(core, a_frame(0, an_item(7, 7, 1, generation=1), epoch=2)), Forward)
    assert onward.items == ()  # it waits until these have come


def test_who_was_told_the_nodes_is_not_told_the_rows() -> None:
    core, commands = a_stage_with_tree()
    assert [item.tree for forward in messages(commands, Forward) for item in forward.items] == [a_tree(7, 5, WIDE).tree]
    core.handle(StageReceived(Ack(1, 1, Lane.CONTROL, 2, (), 2, 99, 0), 0.0))
    assert not [one for one in core.handle(a_path(7, 1, 5, 1, 2)) if isinstance(one, Gather)]
    (onward,) = messages(ran(core, a_frame(2, an_item(7, 7, 1, generation=1))), Forward)
    assert [(item.position, item.generation) for item in onward.items] == [(7, 1)]


def _picked(core: StageCore, work: Work) -> list[Verdict]:
    return messages(core.handle(Computed(Outcome(work.number, picks=()), 0.0)), Verdict)


def test_verdicts_of_the_last_stage_say_which_node_each_pick_is_of() -> None:
    core = a_stage(stage=1, num_pages=20)
    (work,) = works(core.handle(a_frame(0, an_item(7, 0, 5), an_item(8, 0, 2))))
    assert [verdict.nodes for verdict in _picked(core, work)] == [None]
    (work,) = works(core.handle(a_frame(1, an_item(8, 2, 1), a_tree(7, 5, WIDE, picks=0b101011))))
    assert [verdict.nodes for verdict in _picked(core, work)] == [(0, 1, 2, 4, 6)]


def test_penalties_see_the_tokens_of_a_nodes_own_path() -> None:
    core = a_stage(stage=1, num_pages=20)
    (work,) = works(core.handle(a_frame(0, an_item(7, 0, 5, begins=an_opening(5, PENALTY)))))
    _picked(core, work)
    tree = a_tree(7, 5, WIDE)
    (work,) = works(core.handle(a_frame(1, tree)))
    (segment,) = work.segments
    assert segment.history == an_item(7, 0, 5).tokens
    assert segment.tree is not None
    nodes = [tree.tokens[4 * at : 4 * at + 4] for at in range(6)]
    assert segment.tree.tokens_on(5) == nodes[0] + nodes[2] + nodes[4]
    _picked(core, work)
    core.handle(a_path(7, 1, 5, 1, 3, 5))
    (work,) = works(core.handle(a_frame(2, an_item(7, 8, 1, generation=1))))
    assert work.segments[0].history == an_item(7, 0, 5).tokens + nodes[0] + nodes[2] + nodes[4] + an_item(
        7, 8, 1, generation=1
    ).tokens  # fmt: skip


def test_a_tree_in_a_window_gives_back_no_page_that_its_nodes_see() -> None:
    core = a_stage(windows=(0, 6), num_pages=100)
    for frame in range(10):
        ran(core, a_frame(frame, an_item(7, 30 * frame, 30)))
    (work,) = works(core.handle(a_frame(10, a_tree(7, 300, (0, *[1] * 40)))))
    done(core, work)
    core.handle(a_path(7, 1, 300, 1, 41))
    assert core.store.holdings() == (Holding(7, 1, 302),)
    (work,) = works(core.handle(a_frame(11, an_item(7, 302, 1, generation=1))))
    assert not messages(done(core, work), Gap)
    assert [len(pages.moves) for pages in work.segments[0].pages] == [1, 1]
