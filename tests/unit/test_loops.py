"""What loops take beyond what devices and links account for, by the tokens that came of them."""

from __future__ import annotations

import pytest

from bloombee.control.loops import MOST_SURPLUS, Loops
from bloombee.models.shape import ModelShape
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import Cost, evaluate
from bloombee.plan.topology import Device, Link, RowTime, Topology

SEQUENCES, COUNT = 32, 8
LOOK_S = 0.5


def _expected(latency_s: float = 0.2) -> Cost:
    devices = [Device(f"w{index}", stage=RowTime(0.0, 0.005)) for index in range(3)]
    ring = Topology.ring(devices, [Link(1e9, latency_s)] * 3)
    spread = Candidate((1, 2, 3), (1, 1, 1), num_microbatches=COUNT, microbatch_sequences=SEQUENCES // COUNT)
    return evaluate(spread, ring, ModelShape(hidden=1, num_layers=3))


class Driven:
    def __init__(self, expected: Cost) -> None:
        self.loops, self.expected = Loops(), expected
        self.now, self.tokens, self.busy_s = 0.0, 0.0, 0.0

    def run(self, seconds: float, wait_s: float, *, busy: float, count: int = COUNT, is_steady: bool = True) -> float:
        """Each sequence waits ``wait_s`` for a token, and the slowest stage is busy for that share of the time."""
        stop = self.now + seconds
        while self.now < stop:
            self.now += LOOK_S
            self.tokens += SEQUENCES * LOOK_S / wait_s
            self.busy_s += busy * LOOK_S
            busy_s = (self.busy_s / 2, self.busy_s, 0.0)
            decoded = (round(self.tokens), self.now)
            self.loops.look(count, SEQUENCES, decoded, busy_s, self.expected, is_steady=is_steady, now=self.now)
        return self.loops.surplus_s


def test_what_is_missing_while_the_bottleneck_idles_is_on_the_way() -> None:
    expected = _expected()
    driven = Driven(expected)
    assert driven.run(20.0, expected.loop_s + 0.08, busy=0.85) == pytest.approx(0.08, abs=0.01)
    assert driven.run(20.0, expected.loop_s, busy=0.9) == pytest.approx(0.0, abs=0.01)


def test_a_bottleneck_that_is_busy_says_only_how_much_it_is_at_most() -> None:
    expected = _expected()
    driven = Driven(expected)
    assert driven.run(20.0, expected.loop_s + 0.1, busy=1.0) == 0.0
    driven.run(20.0, expected.loop_s + 0.1, busy=0.8)
    assert driven.run(20.0, expected.loop_s + 0.05, busy=1.0) == pytest.approx(0.05, abs=0.01)


def test_no_more_is_believed_than_a_share_of_the_links() -> None:
    for latency_s in (0.0, 0.2):
        expected = _expected(latency_s)
        links_s = sum(link.pass_s for link in expected.links)
        assert Driven(expected).run(60.0, 3 * expected.loop_s, busy=0.5) == pytest.approx(MOST_SURPLUS * links_s)


def test_nothing_is_measured_right_after_a_change_or_while_prompts_are_under_way() -> None:
    expected = _expected()
    driven = Driven(expected)
    assert driven.run(20.0, expected.loop_s + 0.08, busy=0.8, is_steady=False) == 0.0
    for count in (4, 5, 6, 7):
        assert driven.run(2.0, expected.loop_s + 0.08, busy=0.8, count=count) == 0.0
