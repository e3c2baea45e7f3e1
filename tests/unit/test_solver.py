"""The planner's search: against trying everything, against laws of every plan, and what it says where there is none."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import pytest

from bench import enumerator
from bench.topologies import Case, small, wan
from bloombee import _native
from bloombee._native import PlanSolver
from bloombee.errors import ConfigError, Infeasible, PlanError
from bloombee.models.shape import LayerKind, ModelShape
from bloombee.objective import Goal, Objective
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import evaluate
from bloombee.plan.explain import explain, spare_reasons
from bloombee.plan.solve import Solution, Space, solve
from bloombee.plan.solve.instance import make_instance, streamed_bytes
from bloombee.plan.topology import Cores, Device, Link, RowTime, Site, Topology
from bloombee.types import HEAD, WorkerId

LONG_S = 60.0
MODEL = ModelShape(hidden=4096, num_layers=8, layer_bytes=100, embedding_bytes=50, output_bytes=50)


def lowest_is_best(case: Case) -> bool:
    return case.objective.goal in (Goal.LATENCY, Goal.BALANCE)


def value(case: Case) -> float | None:
    """Of the best plan; larger is better. None: there is none."""
    try:
        found = solve(case.topology, case.model, case.space, case.objective, budget_s=LONG_S)
    except Infeasible:
        return None
    assert found.proven
    return -found.value if lowest_is_best(case) else found.value


def is_no_worse(after: float | None, before: float | None) -> bool:
    return before is None or (after is not None and after >= before - 1e-9 * abs(before))


# -- against the enumerator --------------------------------------------------------------------


@pytest.mark.parametrize("first", range(0, 80, 8))
def test_the_plan_is_the_best_of_all_that_there_are(first: int) -> None:
    for seed in range(first, first + 8):
        case = small(seed)
        truth = enumerator.best(case.topology, case.model, case.space, case.objective)
        if truth is None:
            with pytest.raises(Infeasible):
                solve(case.topology, case.model, case.space, case.objective, budget_s=LONG_S)
            continue
        found = solve(case.topology, case.model, case.space, case.objective, budget_s=LONG_S)
        assert found.value == pytest.approx(truth, rel=1e-9), seed
        assert found.proven, seed
        assert found.bound <= truth * (1 + 1e-9) if lowest_is_best(case) else found.bound >= truth * (1 - 1e-9), seed


def shared(seed: int) -> Case:
    """A small case whose workers share access lines, or cores."""
    case, rng = small(seed), random.Random(seed)
    if rng.random() < 0.3:
        topology = dataclasses.replace(case.topology, cores=Cores(2, 0.001, 0.002))
    else:
        sites = [Site(name, rng.uniform(1e5, 1e7), rng.uniform(1e5, 1e7)) for name in ("here", "there")]
        places = {worker: rng.choice(sites) for worker in (HEAD, *case.topology.devices) if rng.random() < 0.8}
        topology = dataclasses.replace(case.topology, sites=places)
    return Case(topology, case.model, dataclasses.replace(case.space, pipelines=1), case.objective)


def test_where_lines_or_cores_are_shared_a_bound_holds_and_nothing_is_called_proven_without_one() -> None:
    proven = 0
    for seed in range(40):
        case = shared(seed)
        truth = enumerator.best(case.topology, case.model, case.space, case.objective)
        if truth is None:
            continue
        try:
            found = solve(case.topology, case.model, case.space, case.objective, budget_s=5.0)
        except PlanError:
            continue
        if case.objective.goal is not Goal.BALANCE:  # (its bound is of plans near the most tokens that were found)
            assert found.bound <= truth * (1 + 1e-9) if lowest_is_best(case) else found.bound >= truth * (1 - 1e-9), seed
        if found.proven:
            assert found.value == pytest.approx(truth, rel=1e-9), seed
            proven += 1
    assert proven > 10


# -- the same arithmetic -----------------------------------------------------------------------


def any_chain(rng: random.Random, case: Case, solver: PlanSolver) -> tuple[list[int], list[int], list[int], list[int]]:
    topology, space = case.topology, case.space
    stages = rng.randint(1, min(len(topology.devices), case.model.num_layers))
    workers = rng.sample(range(len(topology.devices)), stages)
    layers = rng.choice(list(enumerator.compositions(case.model.num_layers, stages)))
    streamed = [rng.randrange(len(set(space.streamed))) for _ in workers]
    return workers, list(layers), streamed, [rng.randrange(len(set(space.ratios))) for _ in workers[1:]]


def test_the_value_of_every_plan_is_the_cost_models() -> None:
    compared = 0
    for seed in range(300):
        rng = random.Random(seed)
        case = shared(seed) if seed % 2 else small(seed)
        case = Case(case.topology, case.model, dataclasses.replace(case.space, order=None), case.objective)
        instance = make_instance(case.topology, case.model, case.space)
        solver = PlanSolver(instance.fields, 1.0, 1)
        workers, layers, streamed, codec = any_chain(rng, case, solver)
        point = rng.randrange(len(instance.points))
        found = {"point": point, "workers": workers, "layers": layers, "streamed": streamed, "codec": codec}
        try:
            cost = evaluate(instance.candidate(found, case.model, case.space), case.topology, case.model)
        except (PlanError, ConfigError):  # a link that is not there, a device that cannot stream
            continue
        assert 1 / solver.value_of(point, workers, layers, streamed, codec) == pytest.approx(cost.tokens_per_s, rel=1e-9)
        compared += 1
    assert compared > 100


def test_a_chain_that_cannot_be_is_refused() -> None:
    case = small(1)
    solver = PlanSolver(make_instance(case.topology, case.model, case.space).fields, 1.0, 1)
    for workers, layers in (([0], [1]), ([99], [case.model.num_layers]), ([], [])):
        with pytest.raises(ValueError, match="no chain"):
            solver.value_of(0, workers, layers, [0] * len(workers), [])


@pytest.mark.parametrize("goal", ["latency", "throughput", "balance", "target:0.4"])
def test_sets_of_workers_and_labels_find_the_same_plan(goal: str) -> None:
    """Layers that are alike are searched set by set; the same layers said to be of two kinds are not."""
    space = Space(sequences=(1, 8, 32), microbatches=(1, 4, 16), ratios=(None, 0.67), streamed=(0.0, 0.5, 1.0), context=1000)
    for seed in range(3):
        topology, model = wan(seed, 10, 24)
        devices = {w: dataclasses.replace(d, memory_bytes=(d.memory_bytes or 0) // 4) for w, d in topology.devices.items()}
        alike = solve(dataclasses.replace(topology, devices=devices), model, space, Objective.parse(goal), budget_s=LONG_S)
        twice = {worker: dataclasses.replace(device, kinds=device.kinds * 2) for worker, device in devices.items()}
        model = dataclasses.replace(model, kinds=model.kinds * 2, kind_of=(0, 1) * 12)
        apart = solve(dataclasses.replace(topology, devices=twice), model, space, Objective.parse(goal), budget_s=LONG_S)
        assert alike.proven
        assert apart.proven
        assert alike.value == pytest.approx(apart.value, rel=1e-9)


# -- laws --------------------------------------------------------------------------------------


MONOTONE = [case for case in map(small, range(100, 190)) if case.objective.goal is not Goal.BALANCE and case.space.order is None]


def test_a_better_link_never_makes_the_plan_worse() -> None:
    for seed, case in enumerate(MONOTONE):
        rng = random.Random(seed)
        pair = rng.choice(list(itertools.permutations((HEAD, *case.topology.devices), 2)))
        old = case.topology.links.get(pair)
        new = Link(1e7, 0.05) if old is None else Link(old.bandwidth_bytes_per_s * 3, old.latency_s / 3)
        assert is_no_worse(value(dataclasses.replace(case, topology=case.topology.with_link(*pair, new))), value(case)), seed


def with_device(case: Case, worker: WorkerId, device: Device) -> Case:
    return dataclasses.replace(
        case, topology=dataclasses.replace(case.topology, devices={**case.topology.devices, worker: device})
    )


def test_more_memory_never_makes_the_plan_worse() -> None:
    for seed, case in enumerate(MONOTONE):
        worker = random.Random(seed).choice(list(case.topology.devices))
        device = case.topology.device(worker)
        more = None if device.memory_bytes is None else device.memory_bytes * 3 // 2
        assert is_no_worse(value(with_device(case, worker, dataclasses.replace(device, memory_bytes=more))), value(case)), seed


def test_a_further_worker_never_makes_the_plan_worse() -> None:
    for seed, case in enumerate(MONOTONE):
        new = max(case.topology.devices) + 1
        other = random.Random(seed).choice(list(case.topology.devices))
        links = dict(case.topology.links)
        for (source, target), link in case.topology.links.items():
            if source == other:
                links[new, target] = link
            if target == other:
                links[source, new] = link
        more = with_device(case, new, case.topology.device(other))
        more = dataclasses.replace(more, topology=dataclasses.replace(more.topology, links=links))
        assert is_no_worse(value(more), value(case)), seed


def test_other_numbers_of_workers_change_nothing() -> None:
    for seed in range(200, 240):
        case = small(seed)
        names = list(case.topology.devices)
        other = dict(zip(names, random.Random(seed).sample(range(1, 90), len(names)), strict=True)) | {HEAD: HEAD}
        topology = Topology(
            {other[worker]: device for worker, device in case.topology.devices.items()},
            {(other[source], other[target]): link for (source, target), link in case.topology.links.items()},
        )
        order = None if case.space.order is None else tuple(other[worker] for worker in case.space.order)
        relabelled = dataclasses.replace(case, topology=topology, space=dataclasses.replace(case.space, order=order))
        assert value(relabelled) == (None if value(case) is None else pytest.approx(value(case), rel=1e-9)), seed


def scaled(time: RowTime, factor: float) -> RowTime:
    return time.scaled(factor)


def test_other_units_of_time_change_nothing_else() -> None:
    factor = 8.0
    for seed in range(240, 280):
        case = small(seed)
        devices = {
            worker: dataclasses.replace(
                device,
                **{name: scaled(getattr(device, name), factor) for name in ("stage", "layer", "output")},
                kinds=tuple(scaled(kind, factor) for kind in device.kinds),
                encode_bytes_per_s=device.encode_bytes_per_s / factor,
                decode_bytes_per_s=device.decode_bytes_per_s / factor,
                stream_bytes_per_s=None if device.stream_bytes_per_s is None else device.stream_bytes_per_s / factor,
            )
            for worker, device in case.topology.devices.items()
        }
        links = {
            pair: Link(link.bandwidth_bytes_per_s / factor, link.latency_s * factor) for pair, link in case.topology.links.items()
        }
        target_s = case.objective.target_s
        objective = Objective(case.objective.goal, None if target_s is None else target_s * factor)
        slow = dataclasses.replace(case, topology=Topology(devices, links), objective=objective)
        before, after = value(case), value(slow)
        if before is not None:
            before *= factor if lowest_is_best(case) else 1 / factor
            assert after == pytest.approx(before, rel=1e-9), seed
        else:
            assert after is None


def test_so_many_steps_give_the_same_plan_again() -> None:
    topology, model = wan(3, 24)
    plans = [solve(topology, model, Space(context=500), budget_s=math.inf, max_steps=3_000_000) for _ in range(2)]
    assert plans[0].pipelines == plans[1].pipelines
    assert (plans[0].value, plans[0].bound, plans[0].steps) == (plans[1].value, plans[1].bound, plans[1].steps)


def test_every_instruction_set_gives_the_same_plan() -> None:
    topology, model = wan(4, 21)
    space = Space(context=500, sequences=(1, 8), microbatches=(1, 4, 16), streamed=(0.0, 1.0), ratios=(None, 0.67))
    plans = []
    before = _native.current_isa()
    for isa in _native.available_isas():
        _native.set_isa(isa)
        try:
            plans.append(solve(topology, model, space, budget_s=math.inf, max_steps=2_000_000))
        finally:
            _native.set_isa(before)
    assert all((plan.pipelines, plan.value, plan.bound) == (plans[0].pipelines, plans[0].value, plans[0].bound) for plan in plans)


def test_more_time_never_makes_the_bound_or_the_plan_worse_than_what_is_proven() -> None:
    topology, model = wan(5, 12)
    space = Space(context=500, sequences=(1, 8), microbatches=(1, 4))
    proven = solve(topology, model, space, Objective(Goal.THROUGHPUT), budget_s=LONG_S)
    assert proven.proven
    for steps in (1, 300_000, 1_000_000):
        try:
            found = solve(topology, model, space, Objective(Goal.THROUGHPUT), budget_s=math.inf, max_steps=steps)
        except PlanError:
            continue
        assert found.value <= proven.value * (1 + 1e-9) <= found.bound * (1 + 2e-9)


# -- what people see ---------------------------------------------------------------------------


def uniform(count: int, link_s: float = 0.001, **changes: object) -> Topology:
    device = dataclasses.replace(Device("w", 1000, layer=RowTime(0.001, 0.0001)), **changes)  # type: ignore[arg-type]
    workers = range(1, count + 1)
    links = {pair: Link(1e8, link_s) for pair in itertools.permutations((HEAD, *workers), 2)}
    return Topology({worker: dataclasses.replace(device, name=f"w{worker}") for worker in workers}, links)


def two_near_six_far() -> Topology:
    topology = uniform(8)
    for far in range(3, 9):
        for other in (HEAD, *range(1, 9)):
            if other != far:
                topology = topology.with_link(far, other, Link(1e8, 0.03)).with_link(other, far, Link(1e8, 0.03))
    return topology


def test_far_workers_are_left_out_for_latency_and_used_for_throughput_and_that_is_said() -> None:
    topology = two_near_six_far()
    latency = solve(topology, MODEL, Space(), Objective(Goal.LATENCY))
    assert set(latency.pipelines[0].candidate.workers) <= {1, 2}
    assert set(latency.spares) >= set(range(3, 9))
    assert "ms longer" in spare_reasons(latency, topology, MODEL)[5]
    most = solve(topology, MODEL, Space(microbatches=(1, 8, 64, 256)), Objective(Goal.THROUGHPUT))
    assert set(most.pipelines[0].candidate.workers) == set(range(1, 9))
    text = explain(latency, topology, MODEL)
    assert text.startswith("latency: ")
    assert "proven best" in text
    assert "w5: with one layer on it a token would take" in text
    assert "left as spares" not in explain(most, topology, MODEL)


def test_a_target_is_kept_and_the_default_gives_throughput_for_time() -> None:
    topology = two_near_six_far()
    space = Space(microbatches=(1, 2, 4, 8, 64, 256))
    most = solve(topology, MODEL, space, Objective(Goal.THROUGHPUT))
    target = solve(topology, MODEL, space, Objective.parse("target:0.05"))
    assert target.pipelines[0].time_per_token_s <= 0.05
    assert target.tokens_per_s < most.tokens_per_s
    balance = solve(topology, MODEL, space)
    assert balance.tokens_per_s >= 0.97 * most.tokens_per_s
    assert balance.most_tokens_per_s == pytest.approx(most.value)


def test_unequal_layers_go_where_they_are_fast() -> None:
    kinds = (LayerKind(100), LayerKind(100))
    model = dataclasses.replace(MODEL, kinds=kinds, kind_of=(0, 0, 0, 0, 1, 1, 1, 1))
    quick, slow = RowTime(0.001), RowTime(0.020)
    topology = uniform(2)
    topology = dataclasses.replace(
        topology,
        devices={1: Device("a", kinds=(slow, quick)), 2: Device("b", kinds=(quick, slow))},
    )
    found = solve(topology, model, Space(), Objective(Goal.LATENCY))
    assert found.pipelines[0].candidate.workers == (2, 1)
    assert found.pipelines[0].candidate.layers == (4, 4)


def test_weights_are_streamed_only_where_they_have_to_be() -> None:
    topology = uniform(1, memory_bytes=500, stream_bytes_per_s=1e4)
    found = solve(topology, MODEL, Space(streamed=(0.0, 0.25, 0.5, 0.75, 1.0)), Objective(Goal.LATENCY))
    assert found.pipelines[0].candidate.streamed_bytes == (400,)
    assert found.pipelines[0].stages[0].stream_s == pytest.approx(0.04)
    roomy = solve(uniform(1, stream_bytes_per_s=1e4), MODEL, Space(streamed=(0.0, 1.0)), Objective(Goal.LATENCY))
    assert roomy.pipelines[0].candidate.streamed_bytes == ()
    assert streamed_bytes(MODEL, 0, 8, 0.5) == 400


def test_the_codec_is_used_on_narrow_links_only() -> None:
    topology = uniform(3, memory_bytes=400, encode_bytes_per_s=1e9, decode_bytes_per_s=1e9)
    narrow = topology
    for source, target in itertools.permutations((1, 2, 3), 2):
        narrow = narrow.with_link(source, target, Link(1e5, 0.001))
    space = Space(ratios=(None, 0.67))
    assert set(solve(narrow, MODEL, space, Objective(Goal.LATENCY)).pipelines[0].candidate.ratios) == {0.67}
    wide = Topology(topology.devices, {pair: Link(1e12, 0.001) for pair in topology.links})
    assert set(solve(wide, MODEL, space, Objective(Goal.LATENCY)).pipelines[0].candidate.ratios) == {None}


def test_two_pipelines_make_more_tokens_where_passes_cost_most() -> None:
    topology = uniform(4, stage=RowTime(0.05))
    one = solve(topology, MODEL, Space(), Objective(Goal.THROUGHPUT))
    two = solve(topology, MODEL, Space(pipelines=2), Objective(Goal.THROUGHPUT))
    assert len(two.pipelines) == 2
    assert two.value > 1.3 * one.value
    assert not set(two.pipelines[0].candidate.workers) & set(two.pipelines[1].candidate.workers)


def test_a_search_among_some_workers_takes_none_of_an_earlier_one() -> None:
    topology = uniform(2)
    slow = dataclasses.replace(topology.device(1), layer=RowTime(0.002))
    instance = make_instance(dataclasses.replace(topology, devices={**topology.devices, 1: slow}), MODEL, Space())
    solver = PlanSolver(instance.fields, LONG_S, 1 << 40)
    first, second = bytes([1, 0]), bytes([0, 1])
    value = 4 * solver.most_tokens(math.inf, first, 64)["value"]
    assert solver.least_alone(value, second, 64)["workers"] == [1]
    assert solver.least_alone(value, first, 64)["workers"] == [0]


def test_many_workers_are_shared_out_and_the_gap_is_told() -> None:
    topology = uniform(12, stage=RowTime(0.05))
    found = solve(topology, MODEL, Space(pipelines=3, sequences=(1, 8), microbatches=(1, 4)), Objective(Goal.THROUGHPUT))
    assert len(found.pipelines) == 3
    workers = [worker for cost in found.pipelines for worker in cost.candidate.workers]
    assert len(workers) == len(set(workers))
    assert found.bound >= found.value
    assert found.gap >= 0


def test_few_of_many_workers_have_the_plan_that_they_have_alone() -> None:
    topology, model = wan(3, 12, 16)
    some = (2, 5, 7, 11)
    alone = Topology({worker: topology.devices[worker] for worker in some}, {
        pair: link for pair, link in topology.links.items() if set(pair) <= {HEAD, *some}
    })  # fmt: skip
    space = Space(sequences=(1, 8), microbatches=(1, 4), ratios=(None, 0.67), streamed=(0.0, 1.0), context=1000)
    whole, part = make_instance(topology, model, space), make_instance(alone, model, space)
    among = PlanSolver(whole.fields, LONG_S, 1 << 40)
    own = PlanSolver(part.fields, LONG_S, 1 << 40)
    allowed = bytes(worker in some for worker in whole.workers)
    limit = math.inf
    for search in ("most_tokens", "least_alone"):
        found, expected = getattr(among, search)(limit, allowed, 64), getattr(own, search)(limit, bytes([1] * 4), 64)
        assert (found["value"], found["bound"]) == (expected["value"], expected["bound"])
        assert [whole.workers[number] for number in found["workers"]] == [part.workers[number] for number in expected["workers"]]
        limit = 1.1 * found["value"]
    assert among.steps == own.steps > 0


def test_hundreds_of_workers_are_shared_out_by_neighbourhood() -> None:
    topology, model = wan(1, 260, 8)
    space = Space(sequences=(1, 8), microbatches=(1, 4), pipelines=12)
    found = solve(topology, model, space, Objective(Goal.THROUGHPUT), budget_s=math.inf, max_steps=200_000)
    workers = [worker for cost in found.pipelines for worker in cost.candidate.workers]
    assert len(found.pipelines) == 12
    assert len(workers) == len(set(workers))
    assert set(workers).isdisjoint(found.spares)
    assert found.bound >= found.value == sum(cost.tokens_per_s for cost in found.pipelines)


def test_where_nothing_takes_time_there_is_a_plan_all_the_same() -> None:
    topology = Topology({1: Device("free")}, {(HEAD, 1): Link(math.inf, 0.0), (1, HEAD): Link(math.inf, 0.0)})
    for goal in ("latency", "throughput", "balance", "target:1"):
        found = solve(topology, MODEL, Space(), Objective.parse(goal))
        assert found.pipelines[0].step_s == 0
        assert found.gap == 0


# -- no plan -----------------------------------------------------------------------------------


def infeasible(topology: Topology, model: ModelShape = MODEL, **space: object) -> Infeasible:
    with pytest.raises(Infeasible) as caught:
        solve(topology, model, Space(**space), Objective(Goal.THROUGHPUT))  # type: ignore[arg-type]
    return caught.value


def test_too_little_memory_names_the_worker_that_is_least_short_and_by_how_much() -> None:
    topology = uniform(2, memory_bytes=300)
    topology = dataclasses.replace(topology, devices={**topology.devices, 2: Device("large", 430, layer=RowTime(0.001))})
    error = infeasible(topology)
    assert error.fields == {"constraint": "memory", "worker": "large", "short_bytes": 120, "short_layers": 1}
    nowhere = infeasible(uniform(3, memory_bytes=10))
    assert nowhere.fields["constraint"] == "memory"
    assert nowhere.fields["short_layers"] == 8


def test_kv_counts_as_memory() -> None:
    model = dataclasses.replace(MODEL, kv_token_bytes=1)
    solve(uniform(1, memory_bytes=900 + 8 * 50), model, Space(kv_tokens=50), Objective(Goal.THROUGHPUT))
    error = infeasible(uniform(1, memory_bytes=900 + 8 * 50 - 1), model, kv_tokens=50)
    assert (error.fields["constraint"], error.fields["short_layers"]) == ("memory", 1)


def test_a_worker_that_nothing_reaches_is_named() -> None:
    cut = uniform(2, memory_bytes=600)
    links = {pair: link for pair, link in cut.links.items() if pair[1] != 2}
    error = infeasible(dataclasses.replace(cut, links=links))
    assert error.fields == {"constraint": "link", "worker": "w2"}
    assert "reached from the head" in error.message
    deaf = infeasible(dataclasses.replace(cut, links={pair: link for pair, link in cut.links.items() if pair[1] != HEAD}))
    assert "left for the head" in deaf.message
    apart = {pair: link for pair, link in cut.links.items() if HEAD in pair}
    assert infeasible(dataclasses.replace(cut, links=apart)).fields["constraint"] == "link"


def test_a_target_that_no_plan_keeps_says_by_how_much() -> None:
    topology = uniform(2, memory_bytes=600)
    least = solve(topology, MODEL, Space(), Objective(Goal.LATENCY)).value
    with pytest.raises(Infeasible) as caught:
        solve(topology, MODEL, Space(), Objective(Goal.TARGET, least / 2))
    assert caught.value.fields["constraint"] == "target"
    assert caught.value.fields["short_s"] == pytest.approx(least / 2)
    many = Space(sequences=(4, 8), microbatches=(3, 9))  # the least of what there is to choose from, which is not B = 1
    with pytest.raises(Infeasible) as caught:
        solve(topology, MODEL, many, Objective(Goal.TARGET, least))
    short_s = caught.value.fields["short_s"]
    assert isinstance(short_s, float)
    assert solve(topology, MODEL, many, Objective(Goal.TARGET, least + short_s * 1.001)).value > 0


def test_a_budget_too_small_to_find_anything_is_no_infeasibility() -> None:
    topology, model = wan(1, 40)
    with pytest.raises(PlanError) as caught:
        solve(topology, model, Space(), budget_s=math.inf, max_steps=1)
    assert not isinstance(caught.value, Infeasible)


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        (lambda t: dataclasses.replace(t, devices={**t.devices, 2: Device("snail", layer=RowTime(1e18))}), {"worker": "snail"}),
        (lambda t: t.with_link(1, 2, Link(1.0, 1e18)), {"source": 1, "target": 2}),
        (lambda t: Topology({}, {}), {"field": "workers"}),
    ],
)
def test_figures_that_nothing_can_have_are_refused_with_their_culprit(change: object, culprit: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        solve(change(uniform(3)), MODEL)  # type: ignore[operator]
    assert caught.value.fields == culprit


@pytest.mark.parametrize("field", ["layer_bytes", "embedding_bytes", "hidden", "kv_token_bytes"])
def test_a_model_of_impossible_size_is_refused_by_the_figure(field: str) -> None:
    model = dataclasses.replace(MODEL, **{field: 10**18})
    with pytest.raises(ConfigError) as caught:
        solve(uniform(3), model, Space(kv_tokens=1))
    assert caught.value.fields == {"field": field}


def test_memory_and_bandwidth_beyond_all_measure_are_only_much() -> None:
    topology = uniform(2, memory_bytes=10**18)
    topology = topology.with_link(HEAD, 1, Link(1e18, 0.0))
    assert solve(topology, MODEL, Space(), Objective(Goal.LATENCY)).proven


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sequences": ()}, "sequences"),
        ({"microbatches": (0,)}, "microbatches"),
        ({"ratios": (math.nan,)}, "ratios"),
        ({"streamed": (0.5,)}, "streamed"),
        ({"pipelines": 0}, "pipelines"),
        ({"most_sequences": 0}, "most_sequences"),
        ({"context": -1}, "context"),
        ({"kv_tokens": -1}, "kv_tokens"),
        ({"tokens_per_round": 2.0}, "tokens_per_round"),
        ({"rows_per_sequence": 0}, "rows_per_sequence"),
        ({"order": (1, 1)}, "order"),
    ],
)
def test_a_space_that_cannot_be_names_the_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Space(**changes)  # type: ignore[arg-type]
    assert caught.value.fields == {"field": field}


@pytest.mark.parametrize("text", ["speed", "target", "target:x", "target:0", "target:nan", "latency:1"])
def test_an_objective_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Objective.parse(text)


def test_objectives_are_written_as_they_are_read() -> None:
    for text in ("latency", "throughput", "target:0.25", "balance"):
        assert str(Objective.parse(text)) == text


def test_a_plan_for_a_given_order_keeps_it() -> None:
    topology = uniform(4, memory_bytes=350)
    found: Solution = solve(topology, MODEL, Space(order=(3, 1, 4)), Objective(Goal.LATENCY))
    assert found.pipelines[0].candidate.workers == (3, 1, 4)
    assert found.spares == (2,)
    assert isinstance(found.pipelines[0].candidate, Candidate)
