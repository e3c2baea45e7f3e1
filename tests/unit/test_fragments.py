"""Drafts in parts: how many rows each has, what a round costs then, and what is left to send."""

from __future__ import annotations

import pytest

from bloombee.pipeline.events import Open
from bloombee.pipeline.scheduler.fragments import Parts, part_rows
from bloombee.pipeline.scheduler.round import Round
from bloombee.pipeline.scheduler.sequence import SequenceState
from bloombee.spec.controller import Line, Load
from bloombee.wire.messages import Sampling, Tree

HOPS = 4
FAR = Load(Line(0.5, HOPS * 0.001), (Line(0.002, 0.001),) * HOPS)
"""Half a second of ways; 1 ms a row on each of four wires, and 2 a frame."""


def _sequence() -> SequenceState:
    sampling = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, -1)
    return SequenceState.of(Open(7, bytes(12), sampling, 20, frozenset(), 0.0, "", 0, None, b""))


def _home_s(num_rows: int, rows: int, load: Load) -> float:
    """The last of parts of ``rows``, one after the other through the slowest hop."""
    count = -(-num_rows // rows)
    return load.loop.at(rows) + (count - 1) * max(line.at(rows) for line in load.busy)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 9, 16, 33, 64])
def test_no_other_parts_are_home_sooner(num_rows: int) -> None:
    rows = part_rows(num_rows, FAR)
    best = min(_home_s(num_rows, other, FAR) for other in range(1, num_rows + 1))
    assert _home_s(num_rows, rows, FAR) <= best / 0.98


def test_many_rows_go_in_several_parts_and_a_few_in_one() -> None:
    assert part_rows(64, FAR) < 32
    assert part_rows(2, FAR) == 2


@pytest.mark.parametrize(
    "load",
    [
        Load(Line(0.5, 0.004)),
        Load(Line(0.02, 0.004), (Line(0.012, 0.001),)),
        Load(Line(0.5, 0.004), (Line(0.002, 0.001),), num_microbatches=200),
        Load(Line(0.5, 0.0002), (Line(0.1, 0.00005),)),
    ],
    ids=["nothing is known", "a stage is busy", "others fill the ring", "a frame costs more than its rows"],
)
def test_where_frames_are_dear_a_draft_is_one(load: Load) -> None:
    assert part_rows(40, load) == 40


def test_a_round_takes_what_its_parts_take() -> None:
    assert FAR.round_s(64) == pytest.approx(_home_s(65, part_rows(65, FAR), FAR), rel=0.05)
    assert FAR.round_s(64) < 0.8 * FAR.loop.at(65)
    assert not Load(Line(0.5, 0.1)).is_idle
    assert not Load(Line(0.02, 0.004), (Line(0.012, 0.001),)).is_idle


def _round() -> Round:
    return Round(3, (50, 60, 61, 62, 63, 64), (0, 1, 2, 3, 1, 5))


def test_parts_have_the_nodes_one_after_the_other() -> None:
    current = _round()
    first, second, third = (current.part(7, 2, 2) for _ in range(3))
    assert [item.tree for item in (first, second, third)] == [
        Tree(1, (0, 1), b"\x03"), Tree(3, (2, 3), b"\x03"), Tree(5, (1, 5), b"\x03")
    ]  # fmt: skip
    assert {(item.position, item.generation, item.num_picks) for item in (first, second, third)} == {(3, 2, 2)}
    assert current.newly_drafted() == 5
    assert current.newly_drafted() == 0


def test_what_is_left_of_a_round_that_is_over_is_not_sent() -> None:
    sequence, parts = _sequence(), Parts()
    sequence.round = Round(3, tuple(range(65)), tuple(range(65)))
    first = parts.first(sequence, sequence.round, FAR)
    assert first.num_rows == part_rows(65, FAR)
    following = parts.next()
    assert following is not None
    assert following.tree is not None
    assert following.tree.first == first.num_rows + 1
    sequence.round.accept(9_999)
    assert parts.next() is None


def test_what_is_left_of_a_sequence_that_has_ended_is_not_sent() -> None:
    sequence, parts = _sequence(), Parts()
    sequence.round = Round(3, tuple(range(65)), tuple(range(65)))
    parts.first(sequence, sequence.round, FAR)
    parts.drop(7)
    assert parts.next() is None
