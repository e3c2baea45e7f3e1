"""A plan that was chosen runs as was predicted: the real cores under a virtual clock, workers and links all unlike."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import pytest

from bench.window import find_window
from bloombee.control.events import Decision
from bloombee.errors import Infeasible
from bloombee.objective import Goal, Objective
from bloombee.plan.plan import Prediction
from bloombee.plan.topology import Device, Link, RowTime, Topology
from bloombee.sim.chosen import ChosenCluster
from bloombee.sim.cluster import SimCluster, sim_card
from bloombee.types import HEAD

HIDDEN = 2048
LAYER_BYTES = 40_000_000
CARD = dataclasses.replace(sim_card((0,) * 24), hidden_size=HIDDEN, layer_parameters=(LAYER_BYTES // 4,) * 24)
PAGES = 2048
"""Of 16 tokens: 64 sequences, as the planner reckons with them."""
TOKENS, SETTLE_TOKENS = 10, 4


def unlike(seed: int, num_workers: int = 6) -> Topology:
    """Devices up to four times apart, links ten times, some far from the others; none has room for half of the layers."""
    rng = random.Random(seed)
    workers = range(1, num_workers + 1)
    place = {worker: (rng.uniform(0, 0.04), rng.uniform(0, 0.02)) for worker in (HEAD, *workers)}
    rate = {worker: math.exp(rng.uniform(math.log(5e6), math.log(5e7))) for worker in (HEAD, *workers)}

    def device(worker: int) -> Device:
        speed = rng.choice((1.0, 2.0, 4.0)) * rng.uniform(0.8, 1.2)
        layer = RowTime(0.0008 * speed, 0.00005 * speed, 0.00002 * speed)
        room = rng.randint(4, 11) * LAYER_BYTES + 3_000_000
        return Device(f"w{worker}", room, RowTime(0.001 * speed), layer, RowTime(0.001 * speed, 0.00002 * speed))

    return Topology(
        {worker: device(worker) for worker in workers},
        {
            ends: Link(min(rate[end] for end in ends), 0.001 + math.dist(place[ends[0]], place[ends[1]]))
            for ends in itertools.permutations((HEAD, *workers), 2)
        },
    )


def cluster(topology: Topology, objective: Objective, *, microbatches: int | None = None) -> ChosenCluster:
    return ChosenCluster(
        topology,
        CARD,
        objective,
        seed=0,
        num_microbatches=microbatches or 128,
        num_pages=PAGES,
        page_size=16,
        max_rows=512,
        row_bytes=4 * HIDDEN,
        resend_after_s=60.0,
        tuned=microbatches is None,
    )


def prediction(swarm: SimCluster) -> Prediction:
    assert swarm.plan is not None
    assert swarm.plan.prediction is not None
    return swarm.plan.prediction


def speed(swarm: SimCluster, batch: int) -> float:
    """Decoded tokens a second once it has settled."""
    numbers = [swarm.submit([n] * 4, max_new_tokens=200, seed=n) for n in range(batch)]
    while True:
        assert swarm.run_for(0.5)
        times = [swarm.requests[number].token_times for number in numbers]
        if all(len(one) > SETTLE_TOKENS for one in times):
            window = find_window(times, TOKENS, max(one[SETTLE_TOKENS] for one in times))
            if window is not None:
                return window.tokens_per_s


@pytest.mark.parametrize("seed", range(6))
def test_tokens_per_second_are_as_predicted(seed: int) -> None:
    """With as many microbatches as there are to be, of the size that the plan is made for."""
    swarm = cluster(unlike(seed), Objective(Goal.THROUGHPUT), microbatches=4)
    predicted = prediction(swarm)
    assert predicted.num_microbatches == 4
    measured = speed(swarm, 4 * predicted.microbatch_sequences)
    assert measured == pytest.approx(predicted.tokens_per_s, rel=0.01)


@pytest.mark.parametrize("seed", range(6))
def test_a_sequence_alone_takes_as_long_as_predicted(seed: int) -> None:
    swarm = cluster(unlike(seed), Objective(Goal.LATENCY))
    assert 1 / speed(swarm, 1) == pytest.approx(prediction(swarm).alone_s, rel=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_tuned_live_is_no_slower_than_planned(seed: int) -> None:
    swarm = cluster(unlike(seed), Objective())
    predicted = prediction(swarm)
    measured = speed(swarm, predicted.num_microbatches * predicted.microbatch_sequences)
    assert measured >= 0.93 * predicted.tokens_per_s
    runs = [record for record in swarm.head.control_log if isinstance(record, Decision) and record.what in ("plan", "run")]
    assert runs[0].why == str(predicted)
    assert runs[1].chosen.startswith(f"{predicted.num_microbatches} microbatches")


@pytest.mark.parametrize("seed", range(4))
def test_each_plan_is_best_at_what_it_is_for(seed: int) -> None:
    latency, throughput = (prediction(cluster(unlike(seed), Objective(goal))) for goal in (Goal.LATENCY, Goal.THROUGHPUT))
    assert latency.alone_s <= throughput.alone_s
    assert throughput.tokens_per_s >= latency.tokens_per_s


def test_a_spare_that_the_plan_has_left_takes_over() -> None:
    swarm = cluster(unlike(1), Objective(Goal.LATENCY))
    assert swarm.plan is not None
    stages = [stage.worker for stage in swarm.plan.stages]
    assert len(stages) < 6
    number = swarm.submit([1] * 4, max_new_tokens=30)
    swarm.kill(stages[0], at=1.0)
    assert swarm.run()
    assert len(swarm.requests[number].tokens) == 30
    assert swarm.plan.epoch == 2
    assert swarm.plan.prediction is None


def test_no_plan_is_an_error_here_as_anywhere() -> None:
    topology = unlike(0)
    small = {worker: dataclasses.replace(device, memory_bytes=LAYER_BYTES) for worker, device in topology.devices.items()}
    with pytest.raises(Infeasible):
        cluster(dataclasses.replace(topology, devices=small), Objective())
