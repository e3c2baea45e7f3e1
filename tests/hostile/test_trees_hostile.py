"""Trees that no scheduler would send, and verdicts on nodes that are none: typed errors, bounded memory, no wrong token."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Sequence

import pytest
from draft_kit import Eager
from stage_kit import SAMPLING, a_frame, a_stage, an_item, ran, works

from bloombee.errors import RemoteProtocolError
from bloombee.pipeline.commands import Send, TellHead
from bloombee.pipeline.events import Computed, Emitted, FromStage, Open, PlanWired, StageReceived, Tick
from bloombee.pipeline.scheduler import SchedulerCore
from bloombee.pipeline.work import Outcome
from bloombee.plan.plan import Ring
from bloombee.spec.tree import Draft
from bloombee.types import Kind, PageGroup
from bloombee.wire.messages import Commit, Cut, Forward, Item, Pick, Resume, Tree, Verdict
from bloombee.wire.schema import decode_message, encode_message

MOST_ROWS = 64
"""Of a frame of the stage's kit."""


def _tree(rng: random.Random, sequence: int) -> Item:
    first, rows = rng.choice([1, 1, 2, 5, 60, 2**31]), rng.randint(1, 20)
    parents = tuple(rng.randrange(first + row) for row in range(rows))
    bits = rng.getrandbits(rows)
    tree = Tree(first, parents, bits.to_bytes((rows + 7) // 8, "little"))
    position, generation = rng.choice([1, 4, 5, 5, 5, 6, 1000]), rng.choice([0, 0, 0, 1, 2, 9])
    return Item(sequence, generation, Kind.DRAFT, position, rng.randbytes(4 * rows), bits.bit_count(), None, tree)


def _commit(rng: random.Random, sequence: int) -> StageReceived:
    path = tuple(sorted(rng.sample(range(1, 30), rng.randint(0, 6))))
    cut = Cut(sequence, rng.randint(1, 4), rng.choice([0, 3, 5, 5, 5, 7, 2**31]), path)
    return StageReceived(Commit(1, 1, (cut,)), 0.0)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("seed", range(20))
def test_a_stage_survives_any_trees_and_any_paths(stage: int, seed: int) -> None:
    rng = random.Random(seed)
    core = a_stage(stage=stage, num_pages=2000)
    for sequence in (7, 8):
        ran(core, a_frame(sequence - 7, an_item(sequence, 0, 5)))
    frame, queued = 2, []
    for _ in range(200):
        event = _commit(rng, rng.choice([7, 8, 9])) if rng.random() < 0.3 else a_frame(frame, _tree(rng, rng.choice([7, 8, 9])))
        before = core.store.holdings(), core.pages_free
        try:
            commands = core.handle(event)
        except RemoteProtocolError:
            assert (core.store.holdings(), core.pages_free) == before
            continue
        frame += core.seats[1].upstream[0].holds(frame)
        queued += works(commands)
        while queued and rng.random() < 0.7:
            work = queued.pop(0)
            hidden = [b""] * work.num_rows
            queued += works(core.handle(Computed(Outcome(work.number, hidden=hidden, num_bytes=len(hidden)), 0.0)))
        for _, held in core.store:
            assert len(held.nodes) <= MOST_ROWS
            for table in held.tables:
                assert table.stop <= held.have + MOST_ROWS + 4
    assert not core.failed


@pytest.mark.parametrize(
    "tree",
    [
        Tree(1, (0, 2), b"\x00"),
        Tree(1, (1, 0), b"\x00"),
        Tree(1, (0, 2**32 - 1), b"\x00"),
        Tree(7, (0,), b"\x00"),
    ],
    ids=["a cycle", "its own parent", "a parent far away", "a parent missing"],
)
def test_a_tree_that_is_none_is_refused_as_it_is_read(tree: Tree) -> None:
    item = Item(7, 0, Kind.DRAFT, 5, bytes(8), 0, None, tree)
    with pytest.raises(RemoteProtocolError, match="tree"):
        decode_message(encode_message(Forward(1, 1, 0, 1, 0, 0, (item,))))


def test_a_tree_where_a_sequence_begins_is_refused_as_it_is_read() -> None:
    begins = an_item(7, 0, 1)
    item = Item(7, 0, Kind.DRAFT, 0, bytes(4), 0, begins.opening, Tree(1, (0,), b"\x00"))
    with pytest.raises(RemoteProtocolError, match="begins"):
        decode_message(encode_message(Forward(1, 1, 0, 1, 0, 0, (item,))))


def test_65_536_siblings_cost_their_own_bytes() -> None:
    count = 1 << 16
    item = Item(7, 0, Kind.DRAFT, 5, bytes(4 * count), 0, None, Tree(1, (0,) * count, bytes(count // 8)))
    core = a_stage(num_pages=20)
    ran(core, a_frame(0, an_item(7, 0, 5)))
    tracemalloc.start()
    with pytest.raises(RemoteProtocolError):
        core.handle(a_frame(1, item))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


# -- the scheduler -----------------------------------------------------------------------------


class _Chain:
    def propose(self, sequence: int, tokens: Sequence[int], budget: int) -> Draft:
        return Draft((100, 101, 102, 200), (0, 1, 2, 0), (0.9, 0.8, 0.7, 0.05), (1,) * 4)

    def closed(self, sequence: int) -> None:
        pass


def _scheduler_with_round() -> tuple[SchedulerCore, Item]:
    """A sequence with tokens 1, 2, 3, 50 whose draft 100, 101, 102 or 200 is under way."""
    core = SchedulerCore(max_rows=64, resend_after_s=1.0, step_deadline_s=60.0, speculator=Eager(_Chain()))
    core.handle(PlanWired(Ring(1, 1, 1, 4, (PageGroup(0, 64),), 16), 0.0))
    core.handle(FromStage(0, Resume(1, 1, ()), 0.0))
    core.handle(Open(1, struct.pack("<3I", 1, 2, 3), SAMPLING, 20, frozenset(), 0.0, "", 0, None, b""))
    commands = core.handle(FromStage(0, _verdict(0, (3, 50, 0)), 0.0))
    items = [item for c in commands if isinstance(c, Send) and isinstance(c.message, Forward) for item in c.message.items]
    assert items[0].tree is not None
    return core, items[0]


def _verdict(frame: int, *picks: tuple[int, int, int], generation: int = 0) -> Verdict:
    """Of (position, token, node)."""
    made = tuple(Pick(1, generation, position, token, None, ()) for position, token, _ in picks)
    return Verdict(1, 1, frame, frame, made, tuple(node for _, _, node in picks))


def _tokens(core: SchedulerCore, verdict: Verdict) -> list[int]:
    return [
        command.message.pick.token
        for command in core.handle(FromStage(0, verdict, 0.0))
        if isinstance(command, TellHead) and isinstance(command.message, Emitted)
    ]


def test_a_path_is_followed_as_far_as_picks_say_so() -> None:
    core, item = _scheduler_with_round()
    assert (item.position, item.num_rows, item.num_picks) == (3, 5, 5)
    assert _tokens(core, _verdict(1, (4, 100, 1), (5, 101, 2), (6, 7, 3), (7, 9, 4), (5, 8, 5))) == [100, 101, 7]


@pytest.mark.parametrize(
    "verdict",
    [
        _verdict(1, (5, 101, 2), (6, 102, 3)),
        _verdict(1, (4, 100, 9), (4, 100, 2**32 - 1)),
        _verdict(1, (5, 100, 1)),
        _verdict(1, (4, 100, 0)),
        _verdict(1, (4, 100, 1), generation=1),
    ],
    ids=["without the root", "of no node", "at another position", "of no node but a row", "of another generation"],
)
def test_picks_that_say_nothing_of_the_next_token_give_none(verdict: Verdict) -> None:
    core, _ = _scheduler_with_round()
    assert _tokens(core, verdict) == []
    core.handle(Tick(1.0))
    assert _tokens(core, _verdict(2, (4, 77, 1)))[:1] in ([77], [100])


def test_a_node_is_picked_after_once() -> None:
    core, _ = _scheduler_with_round()
    assert _tokens(core, _verdict(1, (4, 100, 1), (4, 200, 1), (5, 101, 2), (6, 9, 3))) == [100, 101, 9]
