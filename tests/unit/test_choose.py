"""The plan that a swarm is to run: which workers, with what, and why the others are spares."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random

import pytest

from bench.topologies import wan
from bloombee.codec.choice import CodecMode
from bloombee.errors import Infeasible
from bloombee.models.card import ModelCard
from bloombee.models.standin import standin_card
from bloombee.objective import Goal, Objective
from bloombee.pipeline.swarm import PlanRequest
from bloombee.pipeline.swarm.member import Member
from bloombee.pipeline.swarm.planning import FirstPlan
from bloombee.plan.choose import Wish, choose
from bloombee.plan.cost import evaluate
from bloombee.plan.memory import kv_slots, model_shape, stage_memory
from bloombee.plan.plan import Plan
from bloombee.plan.topology import Device, Link, RowTime, Topology
from bloombee.sim.cluster import sim_card
from bloombee.types import HEAD, Dtype, SchedulerPlace, Span, WorkerId

CARD = standin_card("standin:1024x16")
WISH = Wish(Dtype.BFLOAT16, num_pages=2048, page_size=16, max_rows=512, most_microbatches=128)
LATENCY, THROUGHPUT = Objective(Goal.LATENCY), Objective(Goal.THROUGHPUT)


def device(worker: WorkerId, *, layer_ms: float = 1.0, memory: int | None = None) -> Device:
    return Device(f"w{worker}", memory, stage=RowTime(0.0005), layer=RowTime(layer_ms / 1e3, layer_ms / 2e4))


def near_and_far(far: int = 6) -> Topology:
    """Workers 1 and 2 are a millisecond from each other and the head, all others 80."""
    workers = range(1, far + 3)

    def link(a: WorkerId, b: WorkerId) -> Link:
        return Link(12.5e6, 0.001 if max(a, b) <= 2 else 0.080)

    return Topology(
        {worker: device(worker) for worker in workers},
        {ends: link(*ends) for ends in itertools.permutations((HEAD, *workers), 2)},
    )


def test_the_far_ones_are_left_out_for_latency_and_it_is_said_why() -> None:
    chosen = choose(near_and_far(), CARD, WISH, LATENCY)
    assert set(chosen.candidate.workers) <= {1, 2}
    spares = dict(chosen.prediction.spares)
    assert {f"w{worker}" for worker in range(3, 9)} <= spares.keys()
    assert all("longer" in spares[f"w{worker}"] for worker in range(3, 9))
    assert "left as spare (with one layer on it a token would take" in str(chosen.prediction)


def test_the_far_ones_are_used_for_throughput_where_that_pays() -> None:
    """A way round of a third of a second is filled by a thousand sequences, and not by the 64 that the usual KV memory holds."""
    wish = dataclasses.replace(WISH, num_pages=1 << 15)
    few, many = (choose(near_and_far(), CARD, wish, objective) for objective in (LATENCY, THROUGHPUT))
    assert set(choose(near_and_far(), CARD, WISH, THROUGHPUT).candidate.workers) == {1, 2}
    assert len(many.candidate.workers) > 2
    assert many.prediction.tokens_per_s > 1.5 * few.prediction.tokens_per_s
    assert many.prediction.alone_s > few.prediction.alone_s


def test_the_far_ones_are_used_for_latency_where_the_near_ones_have_no_room() -> None:
    topology = near_and_far(far=1)
    whole = CARD.weight_bytes(Span(0, CARD.num_layers))
    small = {worker: dataclasses.replace(one, memory_bytes=whole // 2) for worker, one in topology.devices.items()}
    chosen = choose(dataclasses.replace(topology, devices=small), CARD, dataclasses.replace(WISH, num_pages=64), LATENCY)
    assert set(chosen.candidate.workers) == {1, 2, 3}


def test_what_is_predicted_is_what_the_cost_model_says() -> None:
    topology = near_and_far()
    chosen = choose(topology, CARD, WISH, Objective())
    model = model_shape(CARD, Dtype.BFLOAT16, rows=512, tokens=2048 * 16)
    cost = evaluate(chosen.candidate, topology, model)
    prediction = chosen.prediction
    assert (prediction.tokens_per_s, prediction.time_per_token_s) == (cost.tokens_per_s, cost.time_per_token_s)
    assert (prediction.num_microbatches, prediction.bottleneck) == (chosen.candidate.num_microbatches, cost.bottleneck)
    assert prediction.gap == 0.0
    assert "proven best" in str(prediction)
    json.dumps(prediction.summary(), allow_nan=False)


def test_latency_is_of_one_sequence_and_yet_the_plan_starts_with_many() -> None:
    chosen = choose(near_and_far(), CARD, WISH, LATENCY)
    assert chosen.prediction.num_microbatches * chosen.prediction.microbatch_sequences > 1
    assert chosen.prediction.alone_s < chosen.prediction.time_per_token_s


def test_a_target_bounds_the_time_per_token() -> None:
    free = choose(near_and_far(), CARD, WISH, THROUGHPUT).prediction
    least = choose(near_and_far(), CARD, WISH, LATENCY).prediction.alone_s
    target_s = (least + free.time_per_token_s) / 2
    kept = choose(near_and_far(), CARD, WISH, Objective(Goal.TARGET, target_s)).prediction
    assert kept.time_per_token_s <= target_s
    assert kept.tokens_per_s <= free.tokens_per_s
    with pytest.raises(Infeasible) as caught:
        choose(near_and_far(), CARD, WISH, Objective(Goal.TARGET, least / 2))
    assert caught.value.fields["constraint"] == "target"


def test_microbatches_that_are_fixed_stay_so() -> None:
    chosen = choose(near_and_far(), CARD, dataclasses.replace(WISH, microbatches=5), THROUGHPUT)
    assert chosen.prediction.num_microbatches == 5


@pytest.mark.parametrize(("mode", "codes"), [(CodecMode.OFF, False), (CodecMode.ON, True), (CodecMode.AUTO, True)])
def test_links_are_coded_as_asked(mode: CodecMode, codes: bool) -> None:
    slow = near_and_far(far=0)
    slow = dataclasses.replace(slow, links={ends: Link(2e5, 0.001) for ends in slow.links})
    small = {worker: dataclasses.replace(one, memory_bytes=300_000_000) for worker, one in slow.devices.items()}
    wish = dataclasses.replace(WISH, codec=mode, num_pages=64)
    chosen = choose(dataclasses.replace(slow, devices=small), CARD, wish, THROUGHPUT)
    assert len(chosen.candidate.workers) == 2
    assert [ratio is not None for ratio in chosen.prediction.ratios] == [codes]


def test_a_worker_that_nothing_is_known_of_counts_as_the_slowest_of_the_others() -> None:
    topology = near_and_far(far=0)
    devices = {1: device(1, layer_ms=1.0), 2: device(2, layer_ms=4.0), 3: Device("w3")}
    links = {ends: Link(12.5e6, 0.001) for ends in itertools.permutations((HEAD, 1, 2, 3), 2)}
    chosen = choose(Topology(devices, links), CARD, WISH, LATENCY)
    assert chosen.candidate.workers == (1,)
    assert chosen.prediction.guessed == ()
    spares = dict(chosen.prediction.spares)
    assert spares["w3"].endswith("a token would take 4.8 ms longer, if a guess of its speed is right")
    assert "guess" not in spares["w2"]
    slower = choose(Topology({1: Device("w1", None), 2: devices[2]}, topology.links), CARD, WISH, THROUGHPUT)
    assert sum(slower.candidate.layers) == CARD.num_layers
    assert "nobody knows how fast w1 are" in str(slower.prediction)


def test_where_nobody_is_known_all_are_alike() -> None:
    topology = near_and_far(far=1)
    unknown = {worker: Device(f"w{worker}") for worker in topology.devices}
    chosen = choose(dataclasses.replace(topology, devices=unknown), CARD, WISH, LATENCY)
    assert set(chosen.candidate.workers) <= {1, 2}
    assert chosen.prediction.alone_s > 0
    assert chosen.prediction.guessed == tuple(f"w{worker}" for worker in chosen.candidate.workers)


def test_kv_memory_gives_way_to_weights_unless_it_is_fixed() -> None:
    plan = first(near_and_far(far=0), memory=350_000_000)
    assert plan is not None
    assert 0 < plan.num_tokens < 2048 * 16
    with pytest.raises(Infeasible) as caught:
        chosen_plan(near_and_far(far=0), memory=350_000_000, pages_fixed=True)
    assert caught.value.fields["constraint"] == "memory"


def request(card: ModelCard = CARD, **fields: object) -> PlanRequest:
    base = PlanRequest(
        card=card,
        dtype=Dtype.BFLOAT16,
        num_workers=2,
        split=None,
        num_pages=2048,
        page_size=16,
        max_rows=512,
        num_microbatches=128,
        tuned=True,
        pages_fixed=False,
        objective=Objective(),
    )
    return dataclasses.replace(base, **fields)  # type: ignore[arg-type]


def members(memories: dict[WorkerId, int]) -> list[Member]:
    return [Member(worker, f"w{worker}", "tcp://10.0.0.1:1", bytes(32), memory) for worker, memory in memories.items()]


def chosen_plan(topology: Topology, *, memory: int, **fields: object) -> Plan:
    return FirstPlan(request(**fields)).chosen(topology, members(dict.fromkeys(topology.devices, memory)))  # type: ignore[arg-type]


def first(topology: Topology, *, memory: int) -> Plan | None:
    try:
        return chosen_plan(topology, memory=memory)
    except Infeasible:
        return None


def random_card(rng: random.Random) -> ModelCard:
    """Layers of up to three sorts; scratch, ties and windows as they come."""
    num_layers = rng.randint(2, 9)
    sorts = [(rng.randint(1_000, 40_000), rng.choice((16, 64, 256)), rng.choice((0, 64, 512))) for _ in range(rng.randint(1, 3))]
    layers = [rng.choice(sorts) for _ in range(num_layers)]
    embed = rng.choice((0, 30_000))
    return dataclasses.replace(
        sim_card((0,) * num_layers),
        hidden_size=rng.choice((64, 512)),
        vocab_size=rng.choice((100, 50_000)),
        max_positions=rng.choice((256, 8192)),
        layer_parameters=tuple(parameters for parameters, _, _ in layers),
        layer_kv_elements=tuple(elements for _, elements, _ in layers),
        layer_windows=tuple(window for _, _, window in layers),
        embed_parameters=embed,
        tail_parameters=embed + rng.choice((0, 500)),
        tied_parameters=rng.choice((0, embed)),
        num_heads=rng.choice((0, 4)),
        row_elements=rng.choice((0, 0, 1000)),
        attended_elements=rng.choice((0, 128)),
        is_latent=rng.random() < 0.2,
    )


@pytest.mark.parametrize("seed", range(40))
def test_what_the_search_calls_feasible_can_be_loaded(seed: int) -> None:
    """Memory is one account: a plan is refused by neither side or by both."""
    rng = random.Random(seed)
    card = random_card(rng)
    wish = request(
        card,
        dtype=rng.choice((Dtype.FLOAT32, Dtype.BFLOAT16)),
        num_pages=rng.choice((4, 64, 500)),
        page_size=rng.choice((1, 16)),
        max_rows=rng.choice((1, 8, 64)),
        pages_fixed=rng.random() < 0.5,
        objective=rng.choice((LATENCY, THROUGHPUT, Objective())),
    )
    whole = card.weight_bytes(Span(0, card.num_layers), wish.dtype)
    topology = near_and_far(far=rng.randint(0, 2))
    scratch = 0 if not card.row_elements else rng.choice((0, 20_000_000, 200_000_000))
    memories = {worker: int(whole * rng.uniform(0.2, 3.0)) + scratch for worker in topology.devices}
    try:
        plan = FirstPlan(wish).chosen(topology, members(memories))
    except Infeasible:
        assert not any(fits_somehow(wish, memories))
        return
    assert [stage.span.stop for stage in plan.stages][-1] == card.num_layers
    for stage in plan.stages:
        assert stage.weight_bytes == card.weight_bytes(stage.span, wish.dtype)
        assert stage.weight_bytes + stage.kv_bytes + stage.scratch_bytes <= memories[stage.worker]
    assert plan.groups[0].num_pages == wish.num_pages or not wish.pages_fixed


def fits_somehow(wish: PlanRequest, memories: dict[WorkerId, int]) -> list[bool]:
    """Of every order and cut, whether it can be loaded with the pages that are asked for, or with one."""
    pages = wish.num_pages if wish.pages_fixed else 1
    model = model_shape(wish.card, wish.dtype, rows=wish.max_rows, tokens=pages * wish.page_size)
    slots = kv_slots(model, pages * wish.page_size, page_size=wish.page_size, rows=wish.max_rows)
    found = []
    for count in range(1, min(len(memories), wish.card.num_layers) + 1):
        for workers in itertools.permutations(memories, count):
            for cuts in itertools.combinations(range(1, wish.card.num_layers), count - 1):
                spans = [Span(start, stop) for start, stop in itertools.pairwise((0, *cuts, wish.card.num_layers))]
                found.append(
                    all(
                        stage_memory(model, span.start, span.stop, slots).total <= memories[worker]
                        for worker, span in zip(workers, spans, strict=True)
                    )
                )
    return found


def test_the_scheduler_is_where_it_is_best_or_where_it_is_wanted() -> None:
    workers = range(1, 4)
    links = {ends: Link(12.5e6, 0.050 if HEAD in ends else 0.010) for ends in itertools.permutations((HEAD, *workers), 2)}
    far = Topology({worker: device(worker) for worker in workers}, links)
    by_place = {
        place: choose(far, CARD, dataclasses.replace(WISH, scheduler=place), LATENCY)
        for place in (None, SchedulerPlace.HEAD, SchedulerPlace.STAGE0)
    }
    assert {place: one.candidate.scheduler for place, one in by_place.items()} == {
        None: SchedulerPlace.STAGE0, SchedulerPlace.HEAD: SchedulerPlace.HEAD, SchedulerPlace.STAGE0: SchedulerPlace.STAGE0
    }  # fmt: skip
    assert by_place[None].prediction.alone_s < by_place[SchedulerPlace.HEAD].prediction.alone_s - 0.05
    for place, want in ((None, SchedulerPlace.STAGE0), (SchedulerPlace.HEAD, SchedulerPlace.HEAD)):
        wanted = request(num_workers=3, objective=LATENCY, scheduler=place)
        members = [Member(worker, f"w{worker}", "tcp://h:1", bytes(32), 1 << 40) for worker in workers]
        assert FirstPlan(wanted).decide(members, far).scheduler is want
        assert FirstPlan(dataclasses.replace(wanted, objective=None)).decide(members, far).scheduler is SchedulerPlace.HEAD


def test_there_is_a_plan_for_many_workers_and_always_the_same_one() -> None:
    topology, _ = wan(3, 200)
    card = standin_card("standin:llama-70b")
    once, again = (choose(topology, card, WISH, THROUGHPUT) for _ in range(2))
    assert once == again
    assert len(once.prediction.spares) == 200 - len(once.candidate.workers)


def small(topology: Topology, share: float, stream: float | None) -> Topology:
    """The same, each worker with room for ``share`` of the weights, and a disk."""
    whole = CARD.weight_bytes(Span(0, CARD.num_layers))
    devices = {
        worker: dataclasses.replace(one, memory_bytes=int(share * whole), stream_bytes_per_s=stream)
        for worker, one in topology.devices.items()
    }
    return dataclasses.replace(topology, devices=devices)


STREAMING = dataclasses.replace(WISH, num_pages=128, streams=True)


def test_two_workers_that_stream_are_better_than_three_of_which_one_is_far() -> None:
    """One has a disk that keeps up; without it, or with one that does not, the far one is needed."""
    near = near_and_far(far=1)
    fast, slow = small(near, 0.45, 50e9), small(near, 0.45, 1e8)
    found = choose(fast, CARD, STREAMING, LATENCY)
    assert set(found.candidate.workers) == {1, 2}
    assert any(found.candidate.streamed_bytes)
    for topology, wish in ((slow, STREAMING), (fast, dataclasses.replace(STREAMING, streams=False))):
        plain = choose(topology, CARD, wish, LATENCY)
        assert set(plain.candidate.workers) == {1, 2, 3}
        assert not any(plain.candidate.streamed_bytes)
        assert plain.prediction.alone_s > 1.2 * found.prediction.alone_s


def test_nothing_streams_for_the_sake_of_more_kv_memory() -> None:
    topology = small(near_and_far(far=0), 0.8, 1e8)
    found = choose(topology, CARD, dataclasses.replace(STREAMING, num_pages=1 << 15), LATENCY)
    assert found.candidate.kv_tokens is not None
    assert found.candidate.kv_tokens < 16 << 15
    assert not any(found.candidate.streamed_bytes)


def test_what_fits_nowhere_without_streams_and_is_run_as_it_was_chosen() -> None:
    topology = small(near_and_far(far=0), 0.3, 2e9)
    memory = next(iter(topology.devices.values())).memory_bytes
    assert memory is not None
    plan = FirstPlan(request(num_pages=128, streams=True)).chosen(topology, members(dict.fromkeys((1, 2), memory)))
    assert sum(len(stage.streamed) for stage in plan.stages) >= 6
    for stage in plan.stages:
        assert stage.weight_bytes + stage.kv_bytes + stage.scratch_bytes <= memory
    with pytest.raises(Infeasible):
        FirstPlan(request(num_pages=128)).chosen(topology, members(dict.fromkeys((1, 2), memory)))
