from __future__ import annotations

from dataclasses import replace

import pytest

from bloombee.models.shape import ModelShape
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import evaluate
from bloombee.plan.drafting import load_of
from bloombee.plan.topology import Device, Link, RowTime, Topology

MODEL = ModelShape(hidden=6656, num_layers=4, activation_bytes=2)
TOPOLOGY = Topology.ring(
    [Device("a", stage=RowTime(0.004, 0.0005)), Device("b", stage=RowTime(0.001, 0.001))], [Link(1e6, 0.1)] * 2
)


@pytest.mark.parametrize("microbatches", [1, 4, 40])
@pytest.mark.parametrize("drafted", [0, 7, 30])
def test_a_round_costs_what_the_cost_model_says_of_so_many_rows(microbatches: int, drafted: int) -> None:
    plan = Candidate((1, 2), (2, 2), num_microbatches=microbatches, ratios=(0.7,))
    load = load_of(plan, TOPOLOGY, MODEL)
    cost = evaluate(replace(plan, microbatch_sequences=1 + drafted), TOPOLOGY, MODEL)
    in_one_s = max(load.loop.at(1 + drafted), microbatches * max(line.at(1 + drafted) for line in load.busy))
    assert in_one_s == pytest.approx(cost.step_s)
    assert load.round_s(drafted) <= in_one_s * (1 + 1e-9)
    assert load.sequences == microbatches


def test_others_of_the_microbatch_make_it_as_much_longer_as_rows_of_ones_own() -> None:
    load = load_of(Candidate((1, 2), (2, 2)), TOPOLOGY, MODEL)
    assert replace(load, rows=5).round_s(3) == pytest.approx(load.round_s(8))
