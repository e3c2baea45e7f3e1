"""The simulated network of a file: access lines that links share, and a cluster on it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from bloombee.errors import ConfigError, Infeasible
from bloombee.pace import parse_pace
from bloombee.plan.document import parse_network
from bloombee.plan.network import Network
from bloombee.sim.clock import VirtualClock
from bloombee.sim.cluster import SimCluster, sim_card
from bloombee.sim.device import oracle
from bloombee.sim.network import Faults, LinkShape, SimLink, SimNetwork
from bloombee.types import Lane

MB = 1_000_000


def network(nodes: dict[str, Any], links: list[dict[str, Any]] | None = None) -> Network:
    return parse_network({"version": 1, "nodes": nodes, "links": links or []})


def transfer(spec: Network, flows: list[tuple[str, str, int]], lane: Lane = Lane.BULK) -> list[float]:
    """When each flow (from, to, bytes) has arrived, all begun at 0."""
    clock = VirtualClock()
    sim = SimNetwork(clock, spec, rng=random.Random(0))
    ends: dict[int, float] = {}

    def end_of(number: int) -> Any:
        return lambda: ends.setdefault(number, clock.now)

    for number, (source, target, num_bytes) in enumerate(flows):
        sim.link(source, target).send(num_bytes, end_of(number), lane=lane, reliable=True)
    assert clock.run(lambda: len(ends) == len(flows), deadline_s=1000)
    return [ends[number] for number in range(len(flows))]


ACCESS = {"head": {"up_bytes_per_s": 2 * MB, "delay_s": 0.01}, "w0": {"down_bytes_per_s": MB, "delay_s": 0.02}, "w1": {}}


@pytest.mark.parametrize("lane", list(Lane))
def test_a_pair_gets_the_lesser_of_up_and_down(lane: Lane) -> None:
    spec = network(ACCESS)
    assert transfer(spec, [("head", "w0", MB)], lane) == pytest.approx([1.03], rel=0.01)
    assert transfer(spec, [("head", "w1", MB)], lane) == pytest.approx([0.51], rel=0.01)
    assert transfer(spec, [("w1", "w0", MB)], lane) == pytest.approx([1.02], rel=0.01)
    assert transfer(spec, [("w0", "w1", MB)], lane) == pytest.approx([0.02])


def test_two_flows_from_one_node_get_half_each_and_the_rest_when_one_ends() -> None:
    spec = network({"head": {"up_bytes_per_s": 2 * MB}, "w0": {}, "w1": {}})
    assert transfer(spec, [("head", "w0", MB), ("head", "w1", 2 * MB)]) == pytest.approx([1.0, 1.5], rel=0.02)


def test_two_flows_to_one_node_share_its_line_and_a_narrow_one_leaves_the_rest() -> None:
    spec = network({"head": {"down_bytes_per_s": 2 * MB}, "w0": {}, "w1": {"up_bytes_per_s": MB / 2}})
    slow, fast = transfer(spec, [("w1", "head", MB), ("w0", "head", 3 * MB)])
    assert (slow, fast) == (pytest.approx(2.0, rel=0.02), pytest.approx(2.0, rel=0.02))


def test_neighbours_share_a_line_and_nothing_lies_between_them() -> None:
    spec = network({"head": {"up_bytes_per_s": MB, "delay_s": 0.1}, "w0": {"beside": "head"}, "w1": {}})
    assert transfer(spec, [("w0", "head", MB), ("w0", "w1", MB), ("head", "w1", MB)])[0] == 0.0
    assert transfer(spec, [("w0", "w1", MB), ("head", "w1", MB)]) == pytest.approx([2.1, 2.1], rel=0.02)


def test_control_overtakes_bulk_on_every_wire() -> None:
    clock = VirtualClock()
    link = SimNetwork(clock, network(ACCESS), rng=random.Random(0)).link("head", "w0")
    order: list[str] = []
    link.send(MB, lambda: order.append("bulk"), lane=Lane.BULK, reliable=True)
    clock.call_at(0.1, lambda: link.send(100, lambda: order.append("control"), reliable=True))
    assert clock.run(lambda: len(order) == 2, deadline_s=10)
    assert order == ["control", "bulk"]
    assert clock.now == pytest.approx(1.03, rel=0.01)


def test_a_single_wire_is_as_before() -> None:
    """16 KB of bulk are committed at once, a control frame goes as a whole."""
    clock = VirtualClock()
    link = SimLink(clock, random.Random(0), LinkShape(0.5, 16 << 10), Faults())
    ends: list[tuple[str, float]] = []
    link.send(40 << 10, lambda: ends.append(("bulk", clock.now)), lane=Lane.BULK, reliable=True)
    link.send(16 << 10, lambda: ends.append(("control", clock.now)), reliable=True)
    assert clock.run(lambda: len(ends) == 2, deadline_s=10)
    assert ends == [("control", 2.5), ("bulk", 4.0)]
    assert (link.busy_s, link.num_bytes) == (3.5, 56 << 10)


def test_links_that_change_over_time_are_refused() -> None:
    for spec in (
        network({"head": {"schedule": ["1s down"]}}),
        network({"head": {}, "w0": {}}, [{"from": "head", "to": "w0", "schedule": ["1s reset"]}]),
    ):
        with pytest.raises(ConfigError, match="do not change over time"):
            SimNetwork(VirtualClock(), spec, rng=random.Random(0))


RING = {"head": {}, "w0": {"beside": "head"}, "w1": {"up_bytes_per_s": MB, "delay_s": 0.01}, "w2": {"delay_s": 0.05}}


def cluster(nodes: list[str], **arguments: Any) -> SimCluster:
    return SimCluster(seed=3, num_stages=3, network=network(RING), nodes=nodes, row_bytes=100, **arguments)


def test_a_cluster_on_a_network_gives_the_tokens_and_pays_the_delays_of_its_order() -> None:
    """Once round w0 -> w1 -> w2 -> head: 10 + 60 + 50 ms, whatever the stages compute; in another order another sum."""
    for nodes, round_s in ((["w0", "w1", "w2"], 0.12), (["w1", "w2", "w0"], 0.01 + 0.06 + 0.05)):
        ring = cluster(nodes, pace=parse_pace("0,0,0"))
        number = ring.submit([1, 2, 3], max_new_tokens=20, seed=5)
        assert ring.run()
        request = ring.requests[number]
        assert request.tokens == oracle([1, 2, 3], 5, 3, 20)
        gaps = [after - before for before, after in zip(request.token_times, request.token_times[1:], strict=False)]
        assert min(gaps) == pytest.approx(round_s, rel=0.05)


def test_paces_of_layers_count_each_stages_own() -> None:
    card = sim_card((0,) * 6)
    ring = cluster(["w0"] * 3, card=card, pace=parse_pace("20,0,0/4"))
    number = ring.submit([1, 2, 3], max_new_tokens=5)
    assert ring.run()
    times = ring.requests[number].token_times
    assert times[-1] - times[-2] == pytest.approx(3 * 0.010, rel=0.01)


def test_a_workers_own_memory_counts_in_the_plan() -> None:
    card = sim_card((0,) * 6)
    ring = cluster(["w0"] * 3, card=card, memory_bytes=[1 << 20, 100, 1 << 20])
    assert isinstance(ring.head.down, Infeasible)
    assert ring.head.down.fields["worker"] == "w2"


def test_a_cluster_needs_a_node_for_each_stage() -> None:
    with pytest.raises(ConfigError, match="2 nodes for 3 stages"):
        cluster(["w0", "w1"])
