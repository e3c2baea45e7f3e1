"""A client with one short request beside one with two hundred, by the real cores under a virtual clock."""

from __future__ import annotations

import itertools

import pytest

from bloombee.pace import Pace
from bloombee.pipeline.work import Outcome, Work
from bloombee.sim.cluster import SimCluster
from bloombee.sim.network import LinkShape
from bloombee.wire.messages import Load, Pick
from tests.sim_kit import Forgetful

FIXED = Pace(0.004, 0.0001, 0.0001)
PER_ROW = Pace(0.002, 0.004, 0.0005)
NAMES = ("stage0", "stage1", "stage2", "scheduler")


class _Blank:
    """Rows without content and one token for all: here only times count."""

    def __init__(self, load: Load) -> None:
        self._is_last = load.stop == load.num_layers

    def run(self, work: Work) -> Outcome:
        if not self._is_last:
            return Outcome(work.number, hidden=[b""] * work.num_rows)
        picked = [s for s in work.segments if s.num_picks]
        picks = [Pick(s.sequence, s.generation, s.position + s.num_rows, 7, None, ()) for s in picked]
        return Outcome(work.number, picks=tuple(picks))


def _cluster(pace: Pace, latency_s: float, num_pages: int) -> SimCluster:
    """Three stages, 125 Mbit/s between them."""
    far = LinkShape(latency_s, 125e6 / 8)
    cluster = Forgetful(
        seed=0,
        num_stages=3,
        num_microbatches=128,
        num_pages=num_pages,
        page_size=16,
        max_rows=512,
        make_device=_Blank,
        pace=pace,
        shape=LinkShape(0.0),
        shapes={ends: far for a, b in itertools.pairwise(NAMES) for ends in ((a, b), (b, a))},
        row_bytes=2048,
        resend_after_s=60.0,
        tuned=True,
    )
    _first_token_s(cluster)
    assert cluster.run()
    return cluster


def _first_token_s(cluster: SimCluster) -> float:
    request = cluster.requests[cluster.submit([1] * 32, max_new_tokens=8, at=cluster.clock.now, client="single")]
    assert cluster.clock.run(lambda: bool(request.token_times), deadline_s=cluster.clock.now + 100.0)
    return request.token_times[0] - request.submitted_at


@pytest.mark.parametrize("num_pages", [1700, 300], ids=["all", "a part"])
@pytest.mark.parametrize("latency_s", [0.003, 0.030])
@pytest.mark.parametrize("pace", [FIXED, PER_ROW])
def test_one_request_beside_two_hundred_has_its_first_token_in_twice_the_time_alone(
    pace: Pace, latency_s: float, num_pages: int
) -> None:
    """At the burst itself, while its prompts go in and while it decodes; the pool holds all of its sequences or a part."""
    cluster = _cluster(pace, latency_s, num_pages)
    alone = _first_token_s(cluster)
    assert cluster.run()
    for after in (0, 1, 50, 400, 1600):
        start = cluster.clock.now
        numbers = [cluster.submit([n] * 64, max_new_tokens=64, at=start, client="many") for n in range(200)]
        many = [cluster.requests[n] for n in numbers]
        assert cluster.clock.run(lambda: cluster.scheduler.num_open > 0, deadline_s=start + 1.0)
        assert cluster.clock.run(lambda: sum(len(r.tokens) for r in many) >= after, deadline_s=start + 100.0)  # noqa: B023
        assert _first_token_s(cluster) <= 2 * alone, f"after {after} tokens"
        for number in numbers:
            cluster.cancel(number, at=cluster.clock.now)
        assert cluster.run()
