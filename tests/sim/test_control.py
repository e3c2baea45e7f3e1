"""The control core in a whole swarm: its log can be replayed, and what it needs may be lost."""

from __future__ import annotations

import random

import pytest

from bloombee.control.events import Decision, Figures
from bloombee.control.log import replay
from bloombee.pace import Pace
from bloombee.sim.cluster import SimCluster
from bloombee.sim.network import Faults, LinkShape
from tests.sim_kit import log_lines

HARSH = Faults(lose=0.3, duplicate=0.1, delay=0.1, max_extra_delay_s=0.3)
NEAR, FAR = LinkShape(0.005), LinkShape(0.4)
HEADS_OWN = {("scheduler", "stage0"): FAR, ("stage0", "scheduler"): FAR}


def _tuned(seed: int, *, lossy: bool = False, shapes: dict[tuple[str, str], LinkShape] | None = None) -> SimCluster:
    cluster = SimCluster(
        seed=seed,
        num_stages=3,
        num_spares=1,
        num_microbatches=64,
        num_pages=1024,
        max_rows=64,
        pace=Pace(0.0, 0.004, 0.0005),
        shape=NEAR,
        shapes=shapes,
        faults=HARSH if lossy else None,
        lossy_orders=lossy,
        tuned=True,
    )
    rng = random.Random(seed)
    for number in range(24):
        cluster.submit([number] * rng.randint(1, 40), max_new_tokens=60, seed=number, at=rng.uniform(0, 1.0))
    return cluster


@pytest.mark.parametrize("lossy", [False, True])
def test_a_run_with_a_loss_decides_the_same_again_from_its_log(lossy: bool) -> None:
    cluster = _tuned(1, lossy=lossy)
    assert cluster.clock.run(lambda: sum(len(one.tokens) for one in cluster.requests.values()) > 200, deadline_s=60.0)
    cluster.kill(2, at=cluster.clock.now)
    assert cluster.run()
    found = replay(log_lines(cluster))
    assert (found.difference, found.is_cut) == (None, False)
    assert found.decisions == [record for record in cluster.head.control_log if isinstance(record, Decision)]
    assert {decision.epoch for decision in found.decisions} == {1, 2}


@pytest.mark.parametrize("seed", range(3))
def test_tuning_goes_on_where_every_third_question_or_answer_is_lost(seed: int) -> None:
    cluster = _tuned(seed, lossy=True)
    assert cluster.run()
    figures = [record.figures for record in cluster.head.control_log if isinstance(record, Decision) and record.figures]
    assert len(figures) >= 1
    assert all(isinstance(one, Figures) for one in figures)
    assert all(request.error is None and len(request.tokens) == 60 for request in cluster.requests.values())


def test_a_head_far_away_from_the_first_stage_costs_no_throughput() -> None:
    """One that takes itself to be beside it has too few microbatches under way for the whole loop."""
    sequences, row_s, delays_s = 32, 0.004, FAR.latency_s + 3 * NEAR.latency_s
    cluster = SimCluster(
        seed=0,
        num_stages=3,
        num_microbatches=128,
        num_pages=4096,
        max_rows=64,
        pace=Pace(0.0, row_s, 0.0005),
        shape=NEAR,
        shapes=HEADS_OWN,
        tuned=True,
        resend_after_s=60.0,
    )
    for number in range(sequences):
        cluster.submit([number] * 4, max_new_tokens=150, seed=number)
    cluster.run_for(12.0)
    before = sum(len(request.tokens) for request in cluster.requests.values())
    assert cluster.run_for(10.0)
    speed = (sum(len(request.tokens) for request in cluster.requests.values()) - before) / 10
    assert speed >= 0.9 * sequences / (delays_s + 3 * row_s)
