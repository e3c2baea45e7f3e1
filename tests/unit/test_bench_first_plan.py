"""``bench/first_plan.py``: what it asks for, and that it sees where a start falls short of it."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from bench.first_plan import MEMORY_BYTES, MODEL, Start, World, judged
from bloombee.config import RuntimeConfig
from bloombee.models.standin import standin_card
from bloombee.pipeline.swarm import FirstPlan, PlanRequest
from bloombee.pipeline.swarm.member import Member
from bloombee.plan.plan import Plan
from bloombee.roles.plan_wishes import plan_request
from bloombee.types import HEAD

WORLD = World.random(0, 8, 200e6)
NAMES = {HEAD: "head"} | {number: f"w{7 - index}" for index, number in enumerate(range(11, 19))}


def _request() -> PlanRequest:
    return plan_request(RuntimeConfig(model=MODEL, remote_workers=8), standin_card(MODEL), ())


def _plan(memory_bytes: int = MEMORY_BYTES) -> Plan:
    """By the very figures that are asked for."""
    workers = [Member(number, name, "tcp://10.0.0.1:1", bytes(32), memory_bytes) for number, name in NAMES.items() if number]
    topology = WORLD.topology([worker.name for worker in workers])
    number = {HEAD: HEAD} | {place: worker.id for place, worker in enumerate(workers, HEAD + 1)}
    known = dataclasses.replace(
        topology,
        devices={number[worker]: device for worker, device in topology.devices.items()},
        links={(number[one], number[other]): link for (one, other), link in topology.links.items()},
        sites={number[party]: site for party, site in topology.sites.items()},
    )
    return FirstPlan(_request()).chosen(known, workers)


def _start(*, off: float = 1.0, late_s: float = 0.0, without: int = 0) -> Start:
    found = {link: WORLD.asked(NAMES[link[0]], NAMES[link[1]]) for link in itertools.permutations(NAMES, 2)}
    link = next(iter(found))
    bandwidth = found[link].bandwidth_bytes_per_s
    assert bandwidth is not None
    found[link] = dataclasses.replace(found[link], bandwidth_bytes_per_s=bandwidth * off, rtt_s=found[link].rtt_s * off)
    for gone in list(found)[:without]:
        del found[gone]
    names = {number: name for number, name in NAMES.items() if number}
    return Start(names, found, _plan(), _request(), known_s=12.0 + late_s, running_s=13.0 + late_s, loading_s=0.5)


def test_a_world_has_a_line_for_each_a_slow_device_and_one_that_only_dials_out() -> None:
    assert set(WORLD.nodes) == {"head", *WORLD.order}
    assert len(WORLD.order) == 8
    assert {WORLD.slow, WORLD.dials_only} < set(WORLD.order)
    with WORLD.network() as net:
        assert not net.spec.reaches("head", WORLD.dials_only)
        assert net.spec.reaches(WORLD.dials_only, "head")
        for one, other in itertools.permutations(WORLD.nodes, 2):
            asked = WORLD.asked(one, other)
            assert net.spec.bandwidth_bytes_per_s(one, other) == asked.bandwidth_bytes_per_s
            assert net.spec.delay_s(one, other) + net.spec.delay_s(other, one) == pytest.approx(asked.rtt_s)


def test_a_start_that_finds_what_was_asked_for_meets_every_bound() -> None:
    again = dataclasses.replace(_start(), known_s=1.0, running_s=2.0)
    checks = list(judged(WORLD, _start(), again))
    assert all(check.is_met for check in checks), checks
    over = {check.what: check.found for check in checks if check.what.startswith("plan")}
    assert list(over.values()) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("first", "again_s", "missed"),
    [
        ({"off": 1.2}, 2.0, {"bandwidth, worst", "round trip beyond 5 %, worst"}),
        ({"late_s": 9.0}, 2.0, {"known after the last has joined", "running after the last has joined, loading apart"}),
        ({"without": 1}, 2.0, {"directed links known before the plan"}),
        ({}, 30.0, {"the second time: running, loading apart"}),
    ],
)
def test_what_falls_short_is_seen(first: dict[str, float], again_s: float, missed: set[str]) -> None:
    again = dataclasses.replace(_start(), running_s=again_s)
    checks = judged(WORLD, _start(**first), again)  # type: ignore[arg-type]
    assert {check.what for check in checks if not check.is_met} == missed


def test_where_memory_is_so_tight_that_a_search_ends_with_nothing_a_plan_with_less_kv_memory_is_made() -> None:
    plan = _plan(memory_bytes=512 << 20)
    assert sum(len(stage.span) for stage in plan.stages) == 24
    assert plan.groups[0].num_pages < _request().num_pages
