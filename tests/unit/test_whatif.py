"""Changes to a problem as people write them: what each one makes of a topology, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path

import pytest

from bloombee.errors import ConfigError, PlanError
from bloombee.models.standin import standin_card
from bloombee.plan.cost import evaluate
from bloombee.plan.document import read
from bloombee.plan.problem import Problem, problem_of, readable
from bloombee.plan.solve import solve
from bloombee.plan.topology import LOCAL, Link
from bloombee.plan.whatif import improvements, parse_scenario
from bloombee.types import HEAD

PROBLEM = problem_of(read(Path(__file__).parents[1] / "golden" / "topology.json"), standin_card("standin:llama-30b"))
FLAT, OFFICE, RENTED = 1, 2, 3
TOPOLOGY = PROBLEM.topology


def after(text: str, problem: Problem = PROBLEM) -> Problem:
    return parse_scenario(text).apply(problem)


def changed_links(text: str) -> dict[tuple[int, int], Link]:
    links = after(text).topology.links
    return {ends: link for ends, link in links.items() if link != TOPOLOGY.links[ends]}


def test_a_worker_less() -> None:
    topology = after("-office").topology
    assert list(topology.devices) == [FLAT, RENTED]
    assert set(topology.links) == {ends for ends in TOPOLOGY.links if OFFICE not in ends}
    assert OFFICE not in topology.sites
    assert dataclasses.replace(topology, devices={}, links={}, sites={}) == dataclasses.replace(
        TOPOLOGY, devices={}, links={}, sites={}
    )


def test_a_worker_more_stands_beside_the_one_it_is_like() -> None:
    topology = after("+second=office").topology
    new = 4
    assert topology.devices[new] == dataclasses.replace(TOPOLOGY.devices[OFFICE], name="second")
    assert topology.links[new, OFFICE] == topology.links[OFFICE, new] == LOCAL
    for (source, target), link in TOPOLOGY.links.items():
        assert topology.links[source, target] == link
        if OFFICE in (source, target):
            assert topology.links[new if source == OFFICE else source, new if target == OFFICE else target] == link
    assert topology.lines(new, OFFICE) == ()
    assert topology.lines(new, HEAD) == topology.lines(OFFICE, HEAD)


def test_an_order_follows_its_workers() -> None:
    ordered = dataclasses.replace(PROBLEM, space=dataclasses.replace(PROBLEM.space, order=(RENTED, OFFICE)))
    assert after("-office", ordered).space.order == (RENTED,)
    assert after("+second=rented", ordered).space.order == (RENTED, 4, OFFICE)
    with pytest.raises(ConfigError, match="the only worker of the order"):
        after("-office, -rented", ordered)


def test_a_part_of_a_bandwidth_is_one_of_what_the_pair_gets() -> None:
    assert changed_links("flat->office bandwidth=0.1x") == {(FLAT, OFFICE): Link(2.5e5, 0.017)}  # of the head's line up
    assert changed_links("flat->office bandwidth=8Mbit/s") == {(FLAT, OFFICE): Link(1e6, 0.017)}
    assert changed_links("flat<->office bandwidth=3MB")[OFFICE, FLAT] == Link(3e6, 0.015)
    assert changed_links("rented->head bandwidth=125B/s") == {(RENTED, HEAD): Link(125.0, 0.010)}


def test_a_round_trip_is_of_both_directions() -> None:
    delays = {ends: link.latency_s for ends, link in changed_links("flat->office rtt=80ms").items()}
    assert delays == {(FLAT, OFFICE): 0.040, (OFFICE, FLAT): 0.040}
    (longer,) = {link.latency_s for link in changed_links("rented<->office rtt=2x").values()}
    assert longer == 2 * TOPOLOGY.links[RENTED, OFFICE].latency_s


def test_a_star_is_any_end() -> None:
    assert set(changed_links("office->* rtt=3s")) == {ends for ends in TOPOLOGY.links if OFFICE in ends}
    assert set(changed_links("*->* rtt=0s")) == {ends for ends, link in TOPOLOGY.links.items() if link.latency_s}


def test_a_device_twice_as_fast_takes_half_as_long() -> None:
    before, now = TOPOLOGY.devices[OFFICE], after("office speed=2x").topology.devices[OFFICE]
    assert now.layer.decode_s(3, 100) == pytest.approx(before.layer.decode_s(3, 100) / 2)
    assert now.output.prefill_s(3) == pytest.approx(before.output.prefill_s(3) / 2)
    assert after("office memory=0.5x").topology.devices[OFFICE].memory_bytes == 12 * 10**9
    assert after("office memory=48GB").topology.devices[OFFICE].memory_bytes == 48 * 10**9


def test_an_access_line_is_that_of_all_who_share_it() -> None:
    sites = after("flat up=2x, head down=1MB/s").topology.sites
    assert sites[HEAD] == sites[FLAT]
    assert (sites[HEAD].up_bytes_per_s, sites[HEAD].down_bytes_per_s) == (5e6, 1e6)
    assert sites[OFFICE] == TOPOLOGY.sites[OFFICE]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "office",
        "-",
        "+second",
        "+=office",
        "flat->office",
        "flat->office bandwidth",
        "flat->office bandwidth=5M",
        "flat->office bandwidth=0x",
        "flat->office bandwidth=0MB/s",
        "flat->office bandwidth=-1x",
        "flat->office bandwidth=nanx",
        "flat->office rtt=80",
        "flat->office speed=2x",
        "office bandwidth=2x",
        "office speed=2",
        "office speed=0x",
        "office up=3ms",
        "office colour=2x",
        "-office,,",
        "-off\udcffice",
        f"office speed={'9' * 400}x",
        f"flat<->office rtt={'9' * 400}ms",
        f"flat->office bandwidth={'9' * 400}MB/s",
        f"flat->office bandwidth=0.{'0' * 400}1x",
    ],
)
def test_what_is_no_change_is_refused_with_what_one_is(text: str) -> None:
    with pytest.raises(ConfigError, match=r"what-if .*: must be -NAME"):
        parse_scenario(text)
    with pytest.raises(ConfigError, match="must be a size"):
        parse_scenario(f"office memory={'9' * 400}x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("-nobody", "no worker 'nobody'; there are flat, office, rented"),
        ("-head", "no worker 'head'"),
        ("+office=flat", "there is a 'office' already"),
        ("+head=flat", "there is a 'head' already"),
        ("+new=nobody", "no worker 'nobody'"),
        ("flat->rented bandwidth=1MB", "there is no link flat -> rented"),
        ("flat->nobody rtt=2x", "no worker 'nobody'"),
        ("flat->head bandwidth=0.5x", "flat -> head has no limit of which that could be a part"),
        ("rented up=2x", "of 'rented' no access line up is known"),
        ("-flat, -office, -rented", "'rented' is the only worker"),
    ],
)
def test_a_change_of_what_is_not_there_is_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        after(text)


@pytest.mark.parametrize("text", ["office speed={}x", "office memory={}x", "flat<->office rtt={}s", "flat->office bandwidth={}x"])
@pytest.mark.parametrize("number", ["99999999999999999999", "0.00000000000000000001"])
def test_the_longest_figures_give_a_plan_or_a_sentence(text: str, number: str) -> None:
    changed = after(text.format(number))
    with contextlib.suppress(ConfigError, PlanError):  # anything else is a fault
        found = solve(changed.topology, changed.model, changed.space, changed.objective, budget_s=math.inf, max_steps=20_000)
        assert found.tokens_per_s > 0


def test_a_worker_is_named_as_people_see_it() -> None:
    device = dataclasses.replace(TOPOLOGY.devices[FLAT], name="fl\nat\x1b[2J")
    problem = dataclasses.replace(PROBLEM, topology=dataclasses.replace(TOPOLOGY, devices={**TOPOLOGY.devices, FLAT: device}))
    shown = readable(problem)
    assert shown.topology.devices[FLAT].name == r"fl\nat\x1b[2J"
    for one in (problem, shown):
        for text in (r"-fl\nat\x1b[2J", "-fl\nat\x1b[2J"):
            assert FLAT not in after(text, one).topology.devices


def test_memory_without_a_limit_has_no_part() -> None:
    boundless = dataclasses.replace(TOPOLOGY.devices[FLAT], memory_bytes=None)
    topology = dataclasses.replace(TOPOLOGY, devices={FLAT: boundless})
    with pytest.raises(ConfigError, match="of 'flat' no limit of memory is known"):
        after("flat memory=2x", dataclasses.replace(PROBLEM, topology=topology))


def test_whatever_a_plan_uses_can_be_better_and_then_it_is_no_worse() -> None:
    solution = solve(PROBLEM.topology, PROBLEM.model, PROBLEM.space, PROBLEM.objective, budget_s=math.inf, max_steps=100_000)
    scenarios = improvements(PROBLEM, solution.pipelines)
    texts = [scenario.text for scenario in scenarios]
    assert {"rented speed=2x", "rented memory=2x", "office down=2x", "rented<->office rtt=0.5x"} <= set(texts)
    assert "office memory=2x" not in texts  # it has room
    assert "rented->office bandwidth=2x" not in texts  # the line is what is narrow
    for scenario in scenarios:
        changed = scenario.apply(PROBLEM)
        assert changed != PROBLEM
        for cost in solution.pipelines:
            assert evaluate(cost.candidate, changed.topology, changed.model).step_s <= cost.step_s * (1 + 1e-12)


def test_a_link_narrower_than_its_lines_is_what_could_be_wider() -> None:
    narrow = after("rented->office bandwidth=1MB/s")
    solution = solve(narrow.topology, narrow.model, narrow.space, narrow.objective, budget_s=math.inf, max_steps=100_000)
    ring = [(link.source, link.target) for link in solution.pipelines[0].links]
    texts = [scenario.text for scenario in improvements(narrow, solution.pipelines)]
    assert ("rented->office bandwidth=2x" in texts) == ((RENTED, OFFICE) in ring)
