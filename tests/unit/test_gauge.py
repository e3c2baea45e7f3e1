"""What a gauge finds out of a link, over wires of which everything is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from bloombee.links.estimator import LinkEstimator, LinkFacts
from bloombee.links.gauge import FIRST_BYTES, LIMIT_S, MOST_BYTES, TRIPS, Gauge, Train

HEADER_BYTES = 40
READER_CLOCK = 12_345.0


@dataclass
class Wire:
    """Of so many bytes per second and such a delay each way; a reader that reads what has come every ``turn_s``, and stands still
    while in ``stalls``; its answers take ``back_s`` more by turns."""

    bytes_per_s: float
    delay_s: float
    turn_s: float = 0.0
    stalls: tuple[tuple[float, float], ...] = ()
    back_s: tuple[float, ...] = (0.0,)
    free_at: float = 0.0

    def reads(self, train: Train, now: float) -> list[float]:
        """When each of its probes is read."""
        times = []
        for _ in range(train.num_probes):
            self.free_at = max(self.free_at, now) + (train.probe_bytes + HEADER_BYTES + 43) / self.bytes_per_s
            times.append(self._read_at(self.free_at + self.delay_s))
        return times

    def _read_at(self, arrives: float) -> float:
        at = math.ceil(arrives / self.turn_s) * self.turn_s if self.turn_s else arrives
        return next((end for begin, end in self.stalls if begin <= at < end), at)


def _measure(wire: Wire, *, fills: bool, estimator: LinkEstimator | None = None) -> tuple[LinkFacts, float, int]:
    """What is known then, how long it took, and how many bytes of padding."""
    estimator = estimator or LinkEstimator()
    now, number, padding = 0.0, 0, 0
    gauge = Gauge(estimator, now, fills=fills)
    acks: list[tuple[float, int, float]] = []
    while not gauge.is_over:
        while (train := gauge.next(now)) is not None:
            reads = wire.reads(train, now)
            for probe, at in enumerate(reads):
                back = wire.back_s[(number + probe) % len(wire.back_s)]
                acks.append((at + wire.delay_s + back, number + probe + 1, at))
            gauge.sent(number, train, HEADER_BYTES, now)
            number += train.num_probes
            padding += train.num_probes * train.probe_bytes
        if gauge.is_over:
            break
        acks.sort()
        if acks and acks[0][0] <= gauge.wake_at:
            now, upto, read_s = acks.pop(0)
            gauge.acked(upto, READER_CLOCK + read_s, now)
        else:
            now = gauge.wake_at
    return estimator.facts(), now, padding


def test_how_long_a_link_is_is_the_least_of_a_few_round_trips() -> None:
    facts, took_s, padding = _measure(Wire(1e6, 0.05, back_s=(0.004, 0.0, 0.02)), fills=False)
    assert facts.base_rtt_s == pytest.approx(0.1, abs=1e-3)
    assert facts.bandwidth_bytes_per_s is None
    assert padding == TRIPS
    assert took_s < 0.5


@pytest.mark.parametrize("bits_per_s", [1e6, 5e6, 20e6, 100e6, 200e6])
@pytest.mark.parametrize("delay_s", [0.001, 0.05, 0.15])
def test_how_wide_it_is_takes_a_few_round_trips_and_a_second_of_padding(bits_per_s: float, delay_s: float) -> None:
    wire = Wire(bits_per_s / 8, delay_s, turn_s=0.002)
    estimator = LinkEstimator()
    _measure(wire, fills=False, estimator=estimator)
    wire.free_at = 0.0
    facts, took_s, padding = _measure(wire, fills=True, estimator=estimator)
    assert facts.bandwidth_bytes_per_s == pytest.approx(bits_per_s / 8, rel=0.02)
    assert facts.bandwidth_low_bytes_per_s is not None
    assert 0.8 < facts.bandwidth_low_bytes_per_s / (bits_per_s / 8) < 1.0
    assert took_s < 1.1 + 4 * 2 * delay_s
    assert padding < max(2 * FIRST_BYTES, 1.2 * bits_per_s / 8)


@pytest.mark.parametrize(
    "wire",
    [
        Wire(1e6, 0.02, back_s=(0.0, 0.3, 0.1)),
        Wire(1e6, 0.02, turn_s=0.002, stalls=((0.5, 0.56),)),
        Wire(1e6, 0.02, turn_s=0.002, stalls=((0.6, 0.75),)),
    ],
    ids=["a way back that varies", "a reader that stalls", "a reader that stalls at the end"],
)
def test_it_is_told_by_the_readers_clock_and_by_most_of_a_train(wire: Wire) -> None:
    facts, _, _ = _measure(wire, fills=True)
    assert facts.bandwidth_bytes_per_s == pytest.approx(1e6, rel=0.05)


def test_a_link_wider_than_can_be_told_is_as_wide_as_what_passed() -> None:
    facts, took_s, padding = _measure(Wire(2e9, 0.0001, turn_s=0.05), fills=True)
    assert facts.bandwidth_bytes_per_s is not None
    assert facts.bandwidth_bytes_per_s > MOST_BYTES / 0.1
    assert padding < 2 * MOST_BYTES
    assert took_s < 1.0


@pytest.mark.parametrize("fills", [False, True])
def test_what_never_answers_is_given_up_and_nothing_is_known(fills: bool) -> None:
    facts, took_s, padding = _measure(Wire(1e6, 1e9), fills=fills)
    assert (facts.base_rtt_s, facts.bandwidth_bytes_per_s) == (None, None)
    assert took_s == LIMIT_S
    assert padding <= FIRST_BYTES
