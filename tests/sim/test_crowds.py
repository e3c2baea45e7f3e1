"""Machines that do other things too: what is chosen meanwhile, and what of it is left afterwards."""

from __future__ import annotations

import itertools

import pytest

from bloombee.pace import Pace
from bloombee.sim.cluster import SimCluster
from bloombee.sim.network import LinkShape

ROW_S, SEQUENCES, DELAY_S = 0.008, 128, 0.256
NAMES = ("stage0", "stage1", "stage2", "scheduler")


class Ring:
    """Three devices of ROW_S a row, half a second of round trip between them, and as many sequences as just fill that."""

    def __init__(self, seed: int, *, microbatches: int | None = None) -> None:
        far = LinkShape(DELAY_S, 125e6)
        shapes = {ends: far for a, b in itertools.pairwise(NAMES) for ends in ((a, b), (b, a))}
        self.cluster = SimCluster(
            seed=seed,
            num_stages=3,
            num_microbatches=microbatches or 128,
            num_pages=26 * SEQUENCES,
            page_size=16,
            max_rows=512,
            pace=Pace(0.0, ROW_S, 0.0005),
            shape=LinkShape(0.0),
            shapes=shapes,
            row_bytes=13312,
            resend_after_s=60.0,
            tuned=microbatches is None,
        )
        for number in range(SEQUENCES):
            self.cluster.submit([number] * 4, max_new_tokens=400, seed=number)

    def crowd(self, *, devices: tuple[float, float], hops: tuple[float, float]) -> None:
        """(share, mean seconds) of those who wake up late, from now on."""
        for crowd, late in ((self.cluster.devices.crowd, devices), (self.cluster.carrier.crowd, hops)):
            crowd.share, crowd.mean_s = late

    def speed(self, seconds: float) -> float:
        """Tokens a second from now on, as a share of what the devices allow."""
        before = self._tokens
        assert self.cluster.run_for(seconds)
        return (self._tokens - before) / seconds * ROW_S

    @property
    def _tokens(self) -> int:
        return sum(len(request.tokens) for request in self.cluster.requests.values())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("devices", "hops"), [((0.5, 0.040), (0.7, 0.040)), ((0.2, 0.100), (0.2, 0.050))], ids=["steadily", "by-stalls"]
)
def test_a_crowd_that_has_gone_leaves_nothing_behind(seed: int, devices: tuple[float, float], hops: tuple[float, float]) -> None:
    """Times that scatter show slopes that are none, and what was believed of rows then must not outlive it."""
    ring = Ring(seed)
    ring.speed(8.0)
    ring.crowd(devices=devices, hops=hops)
    ring.speed(12.0)
    ring.crowd(devices=(0.0, 0.0), hops=(0.0, 0.0))
    ring.speed(20.0)
    assert ring.speed(10.0) >= 0.97


@pytest.mark.parametrize("mean_s", [0.020, 0.040])
def test_hops_that_wait_for_a_core_are_part_of_the_loop(mean_s: float) -> None:
    """Of the least round trip of a link they are none, so that a ring that just fills the links leaves the devices idle."""
    hops = (0.7, mean_s)
    ring, fewest = Ring(0), Ring(0, microbatches=12)
    for one in (ring, fewest):
        one.crowd(devices=(0.0, 0.0), hops=hops)
        one.speed(20.0)
    assert fewest.speed(15.0) <= 0.94
    assert ring.speed(15.0) >= 0.95
