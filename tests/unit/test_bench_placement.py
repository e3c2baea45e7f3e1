"""bench/placement.py: Petals' rule, the best of every order, what is made of a world, and how its rows are judged."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from bench import enumerator, petals_rule, placement
from bench.choose import choose, quickest, space_of
from bench.foretold import foretell
from bench.petals_rule import Server
from bench.program import BenchError
from bench.worlds import APART, Placement, World, drawn, network, read
from bloombee.control.events import Decision, Figures, LinkSeen, PlanRuns
from bloombee.control.log import to_line
from bloombee.errors import Infeasible
from bloombee.models.shape import ModelShape
from bloombee.objective import Objective
from bloombee.plan import document
from bloombee.plan.explain import spare_reasons
from bloombee.plan.solve import Space, solve
from bloombee.plan.topology import Device, Link, RowTime, Topology
from bloombee.planning import load
from bloombee.types import HEAD

NETWORKS = Path(__file__).resolve().parents[2] / "bench" / "networks"
SHAPE = ModelShape(64, 12, layer_bytes=10)


def world(
    rooms: dict[int, int], links: dict[tuple[int, int], Link] | None = None, times: dict[int, float] | None = None
) -> World:
    """Workers with room for so many layers, joined in that order; all links alike unless given, both ways."""
    devices = {
        worker: Device(f"w{worker}", 10 * room, layer=RowTime((times or {}).get(worker, 0.001))) for worker, room in rooms.items()
    }
    pairs = itertools.permutations((HEAD, *rooms), 2)
    every = {pair: (links or {}).get(pair) or (links or {}).get(pair[::-1]) or Link(1e6, 0.01) for pair in pairs}
    return World("small", Topology(devices, every), SHAPE, "standin:64x12", tuple(rooms), 0)


def spans(servers: list[Server]) -> list[tuple[int, int, int]]:
    return [(server.worker, server.start, server.stop) for server in servers]


def test_who_joins_takes_the_blocks_that_are_served_worst() -> None:
    servers = petals_rule.settle(world({1: 5, 2: 4, 3: 5, 4: 6}), rows=1)
    assert spans(servers[:3]) == [(1, 0, 5), (2, 5, 9), (3, 7, 12)]
    totals = petals_rule.throughputs(12, servers[:3])
    start = servers[3].start
    assert min(totals[start : start + 6]) == min(totals)


def test_a_server_moves_where_the_swarm_gains_from_it() -> None:
    slow_first = petals_rule.settle(world({1: 12, 2: 12, 3: 6}, times={1: 0.1, 2: 0.1}), rows=1)
    assert spans(slow_first) == [(1, 0, 12), (2, 0, 12), (3, 0, 6)]
    servers = [Server(1, 0, 6, 10.0), Server(2, 0, 6, 10.0), Server(3, 6, 12, 1.0)]
    assert petals_rule._move(12, servers, 0)
    assert spans(servers) == [(1, 6, 12), (2, 0, 6), (3, 6, 12)]
    assert not petals_rule._move(12, servers, 1)


def test_a_server_announces_the_lesser_of_its_device_and_its_line() -> None:
    by_device = world({1: 12, 2: 12}, links={(1, 2): Link(1e9, 0.0)})
    assert petals_rule.announced_rows_per_s(by_device, 1, 11, 6) == pytest.approx(6 / (6 * 0.001))
    by_line = world({1: 12, 2: 12}, times={1: 1e-9})
    assert petals_rule.announced_rows_per_s(by_line, 1, 12, 1) == 1e6 / SHAPE.row_bytes


def test_a_client_goes_by_round_trips_and_devices_whatever_the_width() -> None:
    narrow_but_near = {(1, 2): Link(10.0, 0.001), (1, 3): Link(1e9, 0.01)}
    there = world({1: 6, 2: 6, 3: 6}, links=narrow_but_near)
    assert petals_rule.route(there, [Server(1, 0, 6, 1.0), Server(2, 6, 12, 1.0), Server(3, 6, 12, 1.0)]) == Placement(
        (1, 2), (6, 6)
    )
    slow = world({1: 6, 2: 6, 3: 6}, links=narrow_but_near, times={2: 0.01})
    assert petals_rule.route(slow, [Server(1, 0, 6, 1.0), Server(2, 6, 12, 1.0), Server(3, 6, 12, 1.0)]) == Placement(
        (1, 3), (6, 6)
    )


def test_a_client_uses_the_part_of_a_span_that_its_chain_needs() -> None:
    servers = [Server(1, 0, 8, 1.0), Server(2, 4, 12, 1.0)]
    assert petals_rule.route(world({1: 8, 2: 8}, times={1: 0.002}), servers) == Placement((1, 2), (4, 8))
    assert petals_rule.route(world({1: 8, 2: 8}, times={2: 0.002}), servers) == Placement((1, 2), (8, 4))


def test_no_chain_is_infeasible() -> None:
    with pytest.raises(Infeasible, match="no chain of servers"):
        petals_rule.place(world({1: 5, 2: 6}), rows=1)


def test_a_link_that_nobody_can_open_is_in_no_chain() -> None:
    there = world({1: 6, 2: 6})
    links = {pair: link for pair, link in there.topology.links.items() if pair != (1, 2)}
    cut = World("cut", Topology(there.topology.devices, links), SHAPE, there.model, there.joined, 0)
    with pytest.raises(Infeasible):
        petals_rule.route(cut, [Server(1, 0, 6, 1.0), Server(2, 6, 12, 1.0)])


def test_drawn_worlds_are_what_they_say() -> None:
    worlds = [drawn(seed, 128) for seed in range(40)]
    assert {len(one.joined) for one in worlds} == {4, 5, 6, 7, 8}
    for one in worlds:
        links = one.topology.links.values()
        assert max(link.bandwidth_bytes_per_s for link in links) <= 2.5e6 * APART
        assert min(link.latency_s for link in links) >= 0.010
        times = {round(device.layer.fixed_s, 9) for device in one.topology.devices.values()}
        assert max(times) == pytest.approx(4 * min(times))
        rooms = [one.room(worker) for worker in one.joined]
        assert max(rooms) < 60 <= sum(rooms)
        assert sorted(one.joined) == list(one.topology.devices)
    assert drawn(3, 128) == worlds[3]


@pytest.mark.parametrize("seed", range(6))
def test_the_best_of_every_order_is_the_enumerators(seed: int) -> None:
    rooms = {1: 5, 2: 4, 3: 6, 4: 12 if seed % 3 else 3}
    times = {worker: 0.001 * (1 + (seed * worker) % 4) for worker in rooms}
    pairs = itertools.combinations((HEAD, *rooms), 2)
    links = {pair: Link(1e4 * (1 + number), 0.001 * (1 + (seed + 7 * number) % 10)) for number, pair in enumerate(pairs)}
    there = world(rooms, links, times)
    space = Space(sequences=(1,), microbatches=(1,), ratios=(0.662,), kv_tokens=0)
    best = enumerator.best(there.topology, there.shape, space, Objective.parse("latency"))
    found = quickest(there)
    assert solve(there.topology, there.shape, space, Objective.parse("latency")).value == pytest.approx(best)
    assert placement.tuned(there, found, placement.Way(), 1).time_per_token_s == pytest.approx(best)


def test_a_choice_uses_all_sequences_and_fits() -> None:
    there = drawn(1, 128)
    for objective, batch in (("throughput", 128), ("latency", 1)):
        chosen = choose(there, Objective.parse(objective), batch)
        assert sum(chosen.placement.layers) == there.shape.num_layers
        chosen.placement.candidate(there, None)
        assert all(sequences * count <= batch for sequences, count in space_of(there, batch).points())


def test_a_world_becomes_a_network_with_the_paces_of_its_stages() -> None:
    there = drawn(2, 128)
    chosen = Placement(there.joined[:2], (20, 40))
    spec = network(there, chosen, hop_s=0.001)
    first, second = chosen.workers
    assert set(spec.nodes) == {"head", *(f"w{worker}" for worker in there.joined)}
    assert spec.delay_s("head", f"w{first}") == there.topology.link(HEAD, first).latency_s
    assert spec.delay_s(f"w{first}", f"w{second}") == there.topology.link(first, second).latency_s + 0.001
    assert spec.nodes[f"w{second}"].worker.pace == str(chosen.paces(there)[1])
    layer = there.topology.device(second).layer
    assert chosen.paces(there)[1].fixed_s == pytest.approx(40 * layer.fixed_s)


@pytest.mark.parametrize("file", sorted(NETWORKS.glob("*.json")), ids=lambda file: file.stem)
def test_every_network_file_is_a_world(file: Path) -> None:
    there = read(file, 1000)
    assert there.kv_tokens == 16384
    assert petals_rule.place(there, rows=128)
    assert choose(there, Objective.parse("throughput"), 128)


def test_far_workers_are_left_out_for_latency_and_used_for_throughput() -> None:
    problem = load(document.read(NETWORKS / "two-near-six-far.json"))
    names = {worker: device.name for worker, device in problem.topology.devices.items()}

    def used(objective: str) -> set[str]:
        solution = solve(problem.topology, problem.model, problem.space, Objective.parse(objective))
        reasons = spare_reasons(solution, problem.topology, problem.model)
        assert set(reasons) == set(solution.spares)
        assert all("longer" in why for why in reasons.values())
        return {names[worker] for worker in names if worker not in solution.spares}

    assert used("latency") == {"near-1", "near-2"}
    assert used("throughput") > {"near-1", "near-2"}


def line(name: str, batch: int, who: str, tokens: float, time_s: float, **more: float) -> dict[str, object]:
    figures = {"simulated_tokens_per_s": tokens, "simulated_time_per_token_s": time_s}
    return {"world": name, "batch": batch, "who": who, **figures, **more}


def test_bounds_are_of_worlds_and_of_the_wall() -> None:
    lines = [
        line("a", 128, "plan", 200.0, 0.6, measured_tokens_per_s=190.0, cpu_share=0.2, foretold_tokens_per_s=200.0),
        line("a", 128, "rule", 100.0, 1.2),
        line("a", 128, "rule, plain", 50.0, 2.4),
        line("a", 1, "plan", 5.0, 0.2),
        line("a", 1, "rule", 4.0, 0.25),
        line("a", 1, "best order", 5.0, 0.2),
        line("b", 128, "plan", 100.0, 1.2),
        line("b", 128, "rule", 101.0, 1.2),
        line("b", 128, "rule, plain", 50.0, 2.4),
    ]
    found = {bound.name: bound for bound in placement.bounds(lines)}
    most, worst = found[placement.BOUNDS["tokens/s"]], found[placement.BOUNDS["less"]]
    assert (most.found, most.met) == (pytest.approx((2.0 + 100 / 101) / 2), False)
    assert (worst.found, worst.met) == (pytest.approx(100 / 101), False)
    assert found[placement.BOUNDS["plain"]].found == 3.0
    assert found[placement.BOUNDS["time"]].met
    assert found[placement.BOUNDS["wall"]].found == pytest.approx(200 / 190 - 1)
    assert not found[placement.BOUNDS["wall"]].met
    assert found[placement.BOUNDS["foretold worst"]].met


def test_what_a_swarm_expects_of_itself_is_in_its_log() -> None:
    device = RowTime(0.010, 0.001)
    plan = PlanRuns(1, (3, 5), ("a", "b"), (2, 2), 1000, 2, 128, 512, None, None, "auto", 0.0)
    seen = [LinkSeen(0, 3, 0.01, None, 0.0), LinkSeen(3, 5, 0.02, 1e5, 0.0), LinkSeen(5, 0, 0.03, None, 0.0)]
    figures = Figures(10, (device, device), ((0.01, None), (0.5, 1e6), (0.03, None)), (0.5,), (0, 0.0), 1.0, None)
    run = Decision(1.0, 1, "run", "4 microbatches; prompts by 64 rows", "the first figures", figures)
    lines = [to_line(record).decode() for record in (plan, *seen, run, Decision(2.0, 1, "codec", "link 3 -> 5", "on"))]
    found = foretell(lines, 10)
    wire_s = (140 + 2.5 * (15 + 4 + 1000)) / 1e5  # the width as it was seen last, not as it was weighed
    assert found.time_per_token_s == pytest.approx(max(4 * wire_s, 0.06 + 2 * 0.0125 + wire_s), rel=1e-3)
    assert found.tokens_per_s == pytest.approx(10 / found.time_per_token_s)
    with pytest.raises(BenchError, match="weighed nothing"):
        foretell(lines[:-2], 10)
