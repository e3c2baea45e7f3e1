"""The cost model: figures worked out by hand, laws that hold for every plan, and the ring as a queueing network."""

from __future__ import annotations

import dataclasses
import heapq
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloombee.errors import ConfigError, Infeasible, PlanError
from bloombee.models.shape import LayerKind
from bloombee.pace import Pace
from bloombee.plan.cost import (
    FRAME_BYTES,
    ITEM_BYTES,
    PICK_BYTES,
    TOKEN_BYTES,
    VERDICT_BYTES,
    Candidate,
    Cost,
    ModelShape,
    core_wait_s,
    evaluate,
    prefill_s,
)
from bloombee.plan.topology import LOCAL, Cores, Device, Link, RowTime, Site, Topology
from bloombee.types import HEAD

MODEL = ModelShape(
    hidden=1000, num_layers=6, activation_bytes=2, layer_bytes=100, kv_token_bytes=3, embedding_bytes=50, output_bytes=70
)


def machine(name: str, **changes: object) -> Device:
    device = Device(
        name,
        memory_bytes=1000,
        stage=RowTime(fixed_s=0.001, decode_row_s=0.0001, prefill_row_s=0.00005),
        layer=RowTime(fixed_s=0.002, decode_row_s=0.0002, prefill_row_s=0.0001, context_s=1e-6),
        output=RowTime(fixed_s=0.003, decode_row_s=0.0003),
    )
    return dataclasses.replace(device, **changes)  # type: ignore[arg-type]


def ring(*links: Link) -> Topology:
    return Topology.ring([machine(f"m{i}") for i in range(len(links))], links)


THREE = ring(Link(1e6, 0.010), Link(2e6, 0.020), Link(4e6, 0.030))
PLAIN = Candidate(workers=(1, 2, 3), layers=(3, 2, 1), microbatch_sequences=4, context=10)
FRAME = FRAME_BYTES + 4 * (ITEM_BYTES + TOKEN_BYTES)


def test_each_stage_and_link_by_hand() -> None:
    cost = evaluate(PLAIN, THREE, MODEL)
    layer_s = 0.002 + 4 * (0.0002 + 10 * 1e-6)
    stage_s = 0.001 + 4 * 0.0001
    output_s = 0.003 + 4 * 0.0003
    assert [s.compute_s for s in cost.stages] == pytest.approx(
        [stage_s + 3 * layer_s, stage_s + 2 * layer_s, stage_s + layer_s + output_s]
    )
    assert [link.frame_bytes for link in cost.links] == [FRAME, FRAME + 8000, FRAME + 8000, VERDICT_BYTES + 4 * PICK_BYTES]
    assert [link.payload_bytes for link in cost.links] == [0, 8000, 8000, 0]
    wires = [0.0, (FRAME + 8000) / 1e6, (FRAME + 8000) / 2e6, (VERDICT_BYTES + 4 * PICK_BYTES) / 4e6]
    assert [link.wire_s for link in cost.links] == pytest.approx(wires)
    assert [link.latency_s for link in cost.links] == [0, 0.010, 0.020, 0.030]
    assert cost.delay_s == pytest.approx(0.060)
    assert cost.compute_s == pytest.approx(3 * stage_s + 6 * layer_s + output_s)
    assert cost.loop_s == pytest.approx(cost.compute_s + sum(wires) + 0.060)
    assert cost.bytes_per_token == pytest.approx(
        [size / 4 for size in (FRAME, FRAME + 8000, FRAME + 8000, VERDICT_BYTES + 4 * PICK_BYTES)]
    )


def test_one_microbatch_takes_the_loop() -> None:
    cost = evaluate(PLAIN, THREE, MODEL)
    assert cost.step_s == cost.time_per_token_s == cost.loop_s
    assert cost.tokens_per_s == pytest.approx(4 / cost.loop_s)
    assert cost.bottleneck_s == pytest.approx(0.001 + 0.0004 + 3 * (0.002 + 4 * 0.00021))
    assert cost.bottleneck == "worker m0"
    assert cost.bubble == pytest.approx(1 - cost.bottleneck_s / cost.loop_s)


def test_enough_microbatches_take_the_bottleneck() -> None:
    slow = THREE.with_link(2, 3, Link(0.1e6, 0.020))
    few = evaluate(PLAIN, slow, MODEL)
    assert few.bottleneck == "link m1 -> m2"
    full = dataclasses.replace(PLAIN, num_microbatches=few.filling_microbatches)
    cost = evaluate(full, slow, MODEL)
    assert cost.step_s == pytest.approx(few.filling_microbatches * (FRAME + 8000) / 0.1e6)
    assert cost.tokens_per_s == pytest.approx(4 / few.bottleneck_s)
    assert cost.bubble == pytest.approx(0)
    one_less = evaluate(dataclasses.replace(full, num_microbatches=few.filling_microbatches - 1), slow, MODEL)
    assert one_less.bubble > 0


def test_a_paced_device_takes_its_pace_whatever_its_layers() -> None:
    device = Device.paced("p", Pace(0.013, 0.00005, 0.0005))
    topology = Topology.ring([device] * 2, [Link(math.inf, 0.0)] * 2)
    for layers in ((1, 5), (3, 3)):
        cost = evaluate(Candidate((1, 2), layers, microbatch_sequences=32), topology, MODEL)
        assert [stage.compute_s for stage in cost.stages] == pytest.approx([0.013 + 32 * 0.00005] * 2)


def test_shared_cores_cost_nothing_alone_and_are_what_limits_many() -> None:
    cores = Cores(2, hop_s=0.0, hop_cpu_s=0.001)
    shared = dataclasses.replace(THREE, cores=cores)
    alone = evaluate(PLAIN, shared, MODEL)
    assert alone.step_s == alone.loop_s == evaluate(PLAIN, THREE, MODEL).step_s
    assert alone.cpu_s == pytest.approx(alone.compute_s + 3 * 0.001)
    many = evaluate(dataclasses.replace(PLAIN, num_microbatches=32), shared, MODEL)
    assert many.step_s == pytest.approx(32 * many.cpu_s / 2)
    assert "2 shared cores: C" in many.explain()
    assert "the wait for a core" in many.explain()
    asleep = dataclasses.replace(THREE, cores=dataclasses.replace(cores, is_computing=False))
    assert evaluate(PLAIN, asleep, MODEL).cpu_s == pytest.approx(3 * 0.001)


@given(st.floats(1e-6, 0.1), st.floats(0, 1), st.integers(1, 64), st.integers(1, 8))
def test_laws_of_waiting_for_cores(cpu_s: float, rest_s: float, count: int, cores: int) -> None:
    wait_s = core_wait_s(cpu_s, cpu_s + rest_s, count, cores)
    assert wait_s >= 0
    assert cpu_s + rest_s + wait_s >= count * cpu_s / cores * (1 - 1e-9)
    assert wait_s <= (count - 1) * cpu_s / cores * (1 + 1e-9)  # never more than all others, one after another
    assert core_wait_s(cpu_s, cpu_s + rest_s, count + 1, cores) >= wait_s * (1 - 1e-9)
    assert core_wait_s(cpu_s, cpu_s + rest_s, count, cores + 1) <= wait_s * (1 + 1e-9)


def test_a_codec_saves_bytes_and_costs_its_time() -> None:
    devices = {1: machine("a", encode_bytes_per_s=1e6), 2: machine("b", decode_bytes_per_s=4e6), 3: machine("c")}
    topology = Topology(devices, THREE.links)
    cost = evaluate(dataclasses.replace(PLAIN, ratios=(0.5, None)), topology, MODEL)
    assert [link.frame_bytes for link in cost.links[1:3]] == [FRAME + 4000, FRAME + 8000]
    assert (cost.links[1].encode_s, cost.links[1].decode_s) == pytest.approx((0.008, 0.002))
    assert cost.links[2].encode_s == cost.links[2].decode_s == 0
    assert cost.links[1].busy_s == 0.008  # the coder is slower than the wire that it relieves
    assert cost.codec_s == pytest.approx(0.010)
    assert cost.links[1].pass_s == pytest.approx(0.008 + 0.002 + (FRAME + 4000) / 1e6 + 0.010)


def test_speculation_moves_more_rows_and_gains_more_tokens() -> None:
    drafted = dataclasses.replace(PLAIN, rows_per_sequence=4, tokens_per_round=2.5)
    cost = evaluate(drafted, THREE, MODEL)
    assert cost.links[1].frame_bytes == FRAME_BYTES + 4 * ITEM_BYTES + 16 * TOKEN_BYTES + 16 * 2000
    assert cost.time_per_token_s == pytest.approx(cost.step_s / 2.5)
    assert cost.tokens_per_s == pytest.approx(4 * 2.5 / cost.step_s)
    assert cost.bytes_per_token[1] == pytest.approx(cost.links[1].frame_bytes / 10)


def test_streaming_goes_on_beside_the_compute() -> None:
    topology = Topology({**THREE.devices, 1: machine("a", stream_bytes_per_s=1000.0)}, THREE.links)
    cost = evaluate(dataclasses.replace(PLAIN, streamed_bytes=(200, 0, 0)), topology, MODEL)
    assert (cost.stages[0].stream_s, cost.stages[0].busy_s) == (0.2, 0.2)
    assert cost.stages[0].memory_bytes == 350 - 200 + 3 * 3 * 40
    hidden = evaluate(dataclasses.replace(PLAIN, streamed_bytes=(1, 0, 0)), topology, MODEL)
    assert hidden.stages[0].busy_s == hidden.stages[0].compute_s > hidden.stages[0].stream_s
    with pytest.raises(ConfigError, match="'m1' cannot stream"):
        evaluate(dataclasses.replace(PLAIN, streamed_bytes=(0, 1, 0)), topology, MODEL)


def test_memory_by_hand_and_what_does_not_fit() -> None:
    two = dataclasses.replace(PLAIN, num_microbatches=2)
    cost = evaluate(two, THREE, MODEL)
    assert [s.memory_bytes for s in cost.stages] == [300 + 50 + 3 * 3 * 80, 200 + 2 * 3 * 80, 100 + 70 + 3 * 80]
    with pytest.raises(Infeasible, match="'m0'") as caught:
        cost.check()
    assert caught.value.fields == {"constraint": "memory", "worker": "m0", "short_bytes": 70}
    evaluate(dataclasses.replace(two, kv_tokens=72), THREE, MODEL).check()
    unlimited = Topology(
        {worker: dataclasses.replace(device, memory_bytes=None) for worker, device in THREE.devices.items()}, THREE.links
    )
    evaluate(two, unlimited, MODEL).check()


KINDS = dataclasses.replace(
    MODEL, kinds=(LayerKind(100, 3), LayerKind(40, 1, window=4)), kind_of=(0, 1, 1, 0, 1, 0), embedding_bytes=0, output_bytes=0
)


def test_layers_of_two_kinds_each_take_their_own_time_and_memory() -> None:
    slow, quick = RowTime(0.010, context_s=1e-3), RowTime(0.001, context_s=1e-3)
    topology = Topology({worker: machine(f"m{worker}", kinds=(slow, quick)) for worker in (1, 2, 3)}, THREE.links)
    cost = evaluate(PLAIN, topology, KINDS)
    pass_s = 0.001 + 4 * 0.0001
    full_s, window_s = 0.010 + 4 * 10 * 1e-3, 0.001 + 4 * 4 * 1e-3  # four rows over ten tokens, of which the window shows four
    last_s = 0.003 + 4 * 0.0003
    assert [s.compute_s for s in cost.stages] == pytest.approx(
        [pass_s + full_s + 2 * window_s, pass_s + full_s + window_s, pass_s + full_s + last_s]
    )
    full, window = 100 + 3 * 40, 40 + 1 * 16
    assert [s.memory_bytes for s in cost.stages] == [full + 2 * window, full + window, full]
    pooled = evaluate(dataclasses.replace(PLAIN, kv_tokens=100), topology, KINDS)
    assert pooled.stages[1].memory_bytes == 100 + 3 * 100 + 40 + 4 + 64, "a window, and what may be rolled back"
    paged = evaluate(dataclasses.replace(PLAIN, kv_tokens=100, page_size=32, max_rows=8), topology, KINDS)
    assert paged.stages[1].memory_bytes == 100 + 3 * 128 + 40 + 4 * 32
    prefill = prefill_s(PLAIN, topology, KINDS, tokens=8, chunk=8)
    assert prefill > prefill_s(PLAIN, THREE, MODEL, tokens=8, chunk=8)


def test_a_kind_of_layer_that_a_device_does_not_know_is_named() -> None:
    topology = Topology({worker: machine(f"m{worker}", kinds=(RowTime(),)) for worker in (1, 2, 3)}, THREE.links)
    with pytest.raises(ConfigError, match="'m1' knows 1 kinds of layers, not 2"):
        evaluate(PLAIN, topology, KINDS)
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(KINDS, kind_of=(0, 1, 2, 0, 1, 0))
    assert caught.value.fields == {"field": "kind_of"}
    with pytest.raises(ConfigError, match="kinds of 2 layers, the model has 6"):
        dataclasses.replace(KINDS, kind_of=(0, 1))
    with pytest.raises(ConfigError, match="window"):
        LayerKind(window=-1)


def test_links_of_one_site_share_its_access_line() -> None:
    home, away = Site("home", 1e6, 2e6), Site("away", 0.5e6, 4e6)
    apart = dataclasses.replace(THREE, sites={1: home, 2: away, 3: home})
    cost = evaluate(PLAIN, apart, MODEL)
    big = FRAME + 8000
    assert [link.wire_s for link in cost.links[1:3]] == pytest.approx([big / 1e6, big / 0.5e6])
    home_up = (big + VERDICT_BYTES + 4 * PICK_BYTES) / 1e6  # from worker 1 to 2, and from worker 3 to the head
    home_down = (FRAME + big) / 2e6
    assert dict(cost.lines) == pytest.approx({"home up": home_up, "home down": home_down})
    together = dataclasses.replace(THREE, sites=dict.fromkeys((HEAD, 1, 2, 3), home))
    assert evaluate(PLAIN, together, MODEL).loop_s == evaluate(PLAIN, THREE, MODEL).loop_s
    narrow = dataclasses.replace(THREE, sites={1: Site("home", 1e4), 3: Site("home", 1e4), 2: away})
    assert evaluate(PLAIN, narrow, MODEL).bottleneck == "line home up"
    with pytest.raises(ConfigError):
        Site("none", up_bytes_per_s=0)


def test_explain_names_every_part() -> None:
    text = evaluate(dataclasses.replace(PLAIN, num_microbatches=2), THREE, MODEL).explain()
    for part in (
        "m0",
        "m2 ",
        "head -> m0",
        "m0 -> m1",
        "m2 -> head",
        "10.0 ms",
        "M = 2",
        "b = 4",
        "set by the loop",
        "tokens/s",
        "worker m0",
    ):
        assert part in text
    assert "set by worker m0" in evaluate(dataclasses.replace(PLAIN, num_microbatches=50), THREE, MODEL).explain()


def test_a_ring_of_one_and_nothing_that_takes_time() -> None:
    cost = evaluate(Candidate((1,), (6,)), Topology.ring([Device("free")], [LOCAL]), MODEL)
    assert (cost.loop_s, cost.step_s, cost.bubble, cost.filling_microbatches) == (0, 0, 0, 1)
    assert cost.tokens_per_s == math.inf
    assert "\nfree " in cost.explain()


def test_prefill_by_hand() -> None:
    one = prefill_s(PLAIN, THREE, MODEL, tokens=8, chunk=8)
    compute = 3 * (0.001 + 8 * 0.00005) + 6 * (0.002 + 8 * (0.0001 + (10 + 4) * 1e-6)) + 0.003 + 0.0003
    frame = FRAME_BYTES + ITEM_BYTES + 8 * TOKEN_BYTES + 16000
    verdict = (VERDICT_BYTES + PICK_BYTES) / 4e6
    assert one == pytest.approx(compute + frame / 1e6 + frame / 2e6 + verdict + 0.060)


def test_chunks_pay_the_path_once_and_then_the_bottleneck() -> None:
    device = Device.paced("p", Pace(0.0, 0.0, 1e-6))
    topology = Topology.ring([device] * 4, [Link(1e6, 0.050)] * 4)
    candidate = Candidate((1, 2, 3, 4), (1, 2, 2, 1))
    whole = prefill_s(candidate, topology, MODEL, tokens=2048, chunk=2048)
    parts = prefill_s(candidate, topology, MODEL, tokens=2048, chunk=64)
    frame = FRAME_BYTES + ITEM_BYTES + 64 * (TOKEN_BYTES + 2000)
    one_chunk = prefill_s(candidate, topology, MODEL, tokens=64, chunk=64)
    assert parts == pytest.approx(one_chunk + 31 * frame / 1e6)
    assert parts < whole / 2.5


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"workers": (), "layers": ()}, "workers"),
        ({"layers": (3, 3)}, "layers"),
        ({"layers": (6, 0, 0)}, "layers"),
        ({"num_microbatches": 0}, "num_microbatches"),
        ({"microbatch_sequences": 0}, "microbatch_sequences"),
        ({"rows_per_sequence": 0}, "rows_per_sequence"),
        ({"tokens_per_round": 1.5}, "tokens_per_round"),
        ({"tokens_per_round": 0}, "tokens_per_round"),
        ({"context": -1}, "context"),
        ({"ratios": (0.5,)}, "ratios"),
        ({"ratios": (0.5, 0.0)}, "ratios"),
        ({"kv_tokens": -1}, "kv_tokens"),
        ({"streamed_bytes": (1,)}, "streamed_bytes"),
        ({"streamed_bytes": (0, 0, -1)}, "streamed_bytes"),
    ],
)
def test_a_candidate_that_cannot_be_names_the_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(PLAIN, **changes)  # type: ignore[arg-type]
    assert caught.value.fields == {"field": field}


def test_what_the_topology_does_not_have_is_named() -> None:
    with pytest.raises(PlanError, match="no worker 9; there are m0, m1, m2"):
        evaluate(Candidate((1, 9), (3, 3)), THREE, MODEL)
    with pytest.raises(PlanError, match="no link from 'm2' to 'm0'"):
        evaluate(Candidate((3, 1), (3, 3)), Topology(THREE.devices, {**THREE.links, (HEAD, 3): LOCAL}), MODEL)
    with pytest.raises(ConfigError, match="add up to 5"):
        evaluate(Candidate((1, 2, 3), (3, 1, 1)), THREE, MODEL)
    with pytest.raises(ConfigError, match="one link a device"):
        Topology.ring([machine("a")], [])
    with pytest.raises(ConfigError, match="chunks of 0"):
        prefill_s(PLAIN, THREE, MODEL, tokens=10, chunk=0)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Link(0, 0), "bandwidth_bytes_per_s"),
        (lambda: Link(math.nan, 0), "bandwidth_bytes_per_s"),
        (lambda: Link(1, -1), "latency_s"),
        (lambda: Link(1, math.inf), "latency_s"),
        (lambda: RowTime(fixed_s=-1), "fixed_s"),
        (lambda: RowTime(context_s=math.inf), "context_s"),
        (lambda: Device("a", memory_bytes=-1), "memory_bytes"),
        (lambda: Device("a", encode_bytes_per_s=0), "encode_bytes_per_s"),
        (lambda: Device("a", stream_bytes_per_s=0), "stream_bytes_per_s"),
    ],
)
def test_a_figure_out_of_range_names_the_field(make: object, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()  # type: ignore[operator]
    assert caught.value.fields == {"field": field}


seconds = st.floats(0, 0.1).map(lambda value: round(value, 6))
links = st.builds(Link, st.floats(1e4, 1e8), seconds)
row_times = st.builds(RowTime, seconds, st.floats(0, 1e-3), st.floats(0, 1e-3), st.floats(0, 1e-6))
devices = st.builds(
    Device,
    st.just("m"),
    st.none(),
    row_times,
    row_times,
    row_times,
    encode_bytes_per_s=st.floats(1e5, 1e9),
    decode_bytes_per_s=st.floats(1e5, 1e9),
)


@st.composite
def plans(draw: st.DrawFn) -> tuple[Candidate, Topology, ModelShape]:
    stages = draw(st.integers(1, 4))
    layers = tuple(draw(st.integers(1, 5)) for _ in range(stages))
    topology = Topology.ring([draw(devices) for _ in range(stages)], [draw(links) for _ in range(stages)])
    rows = draw(st.integers(1, 4))
    candidate = Candidate(
        tuple(range(1, stages + 1)),
        layers,
        num_microbatches=draw(st.integers(1, 12)),
        microbatch_sequences=draw(st.integers(1, 16)),
        rows_per_sequence=rows,
        tokens_per_round=draw(st.floats(0.5, rows)),
        context=draw(st.integers(0, 2000)),
        ratios=tuple(draw(st.none() | st.floats(0.1, 1.5)) for _ in range(stages - 1)),
    )
    return candidate, topology, ModelShape(draw(st.integers(1, 8192)), sum(layers))


def queueing_step_s(cost: Cost) -> float:
    """Mean round of M microbatches that chase each other round the ring, each resource serving in order of arrival."""
    path: list[tuple[float, bool]] = []  # (seconds, one at a time?)
    for index, link in enumerate(cost.links):
        path += [(link.encode_s, True), (link.wire_s, True), (link.latency_s, False), (link.decode_s, True)]
        path += [(cost.stages[index].busy_s, True)] if index < len(cost.stages) else []
    free = [0.0] * len(path)
    count = cost.candidate.num_microbatches
    waiting = [(0.0, number, 0) for number in range(count)]  # (arrival, microbatch, where)
    home: list[list[float]] = [[] for _ in range(count)]
    rounds = 40
    while len(home[0]) <= 2 * rounds:
        now, number, at = heapq.heappop(waiting)
        service, exclusive = path[at]
        begin = max(now, free[at]) if exclusive else now
        done = begin + service
        if exclusive:
            free[at] = done
        if at + 1 == len(path):
            home[number].append(done)
        heapq.heappush(waiting, (done, number, (at + 1) % len(path)))
    return (home[0][2 * rounds] - home[0][rounds]) / rounds


@settings(max_examples=60, deadline=None)
@given(plans())
def test_the_ring_as_a_queueing_network_has_this_step(plan: tuple[Candidate, Topology, ModelShape]) -> None:
    cost = evaluate(*plan)
    assert queueing_step_s(cost) == pytest.approx(cost.step_s, rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(plans(), st.floats(1, 100), st.data())
def test_a_better_machine_or_link_never_costs_more(
    plan: tuple[Candidate, Topology, ModelShape], factor: float, data: st.DataObject
) -> None:
    candidate, topology, model = plan
    before = evaluate(candidate, topology, model)
    ends, link = data.draw(st.sampled_from(sorted(topology.links.items(), key=lambda item: item[0])))
    wider = topology.with_link(*ends, Link(link.bandwidth_bytes_per_s * factor, link.latency_s))
    nearer = topology.with_link(*ends, Link(link.bandwidth_bytes_per_s, link.latency_s / factor))
    worker, device = data.draw(st.sampled_from(sorted(topology.devices.items(), key=lambda item: item[0])))
    layer = dataclasses.replace(
        device.layer, fixed_s=device.layer.fixed_s / factor, decode_row_s=device.layer.decode_row_s / factor
    )
    faster = dataclasses.replace(topology, devices={**topology.devices, worker: dataclasses.replace(device, layer=layer)})
    for better in (wider, nearer, faster):
        after = evaluate(candidate, better, model)
        assert after.loop_s <= before.loop_s
        assert after.bottleneck_s <= before.bottleneck_s
        assert after.tokens_per_s >= before.tokens_per_s
        assert after.time_per_token_s <= before.time_per_token_s


@given(plans())
def test_laws_of_every_plan(plan: tuple[Candidate, Topology, ModelShape]) -> None:
    candidate, topology, model = plan
    cost = evaluate(candidate, topology, model)
    assert cost.loop_s == pytest.approx(cost.compute_s + cost.wire_s + cost.delay_s + cost.codec_s)
    assert 0 <= cost.bottleneck_s <= cost.loop_s <= cost.step_s * (1 + 1e-12)
    assert -1e-12 <= cost.bubble <= 1
    more = evaluate(dataclasses.replace(candidate, num_microbatches=candidate.num_microbatches + 1), topology, model)
    assert more.tokens_per_s >= cost.tokens_per_s * (1 - 1e-12)
    assert more.time_per_token_s >= cost.time_per_token_s
    full = evaluate(dataclasses.replace(candidate, num_microbatches=cost.filling_microbatches), topology, model)
    assert full.bubble <= 1e-6
    if cost.bottleneck_s > 0:
        best = candidate.microbatch_sequences * candidate.tokens_per_round / cost.bottleneck_s
        assert full.tokens_per_s == pytest.approx(best, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(plans(), st.integers(1, 200), st.integers(1, 50))
def test_a_prefill_is_never_faster_than_its_bottleneck_nor_slower_than_one_chunk_at_a_time(
    plan: tuple[Candidate, Topology, ModelShape], tokens: int, chunk: int
) -> None:
    candidate, topology, model = plan
    took = prefill_s(candidate, topology, model, tokens=tokens, chunk=chunk)
    alone = 0.0
    for start in range(0, tokens, chunk):
        size = min(chunk, tokens - start)
        after = dataclasses.replace(candidate, context=candidate.context + start)
        alone += prefill_s(after, topology, model, tokens=size, chunk=size)
    assert took <= alone * (1 + 1e-9)
    for link in [topology.link(worker, worker + 1) for worker in candidate.workers[:-1]]:
        least = 0.1 * tokens * model.row_bytes  # ratios are 0.1 or more
        assert took >= link.wire_s(least) + link.latency_s


def test_chunks_may_differ_by_position() -> None:
    ring = Topology.ring([Device("w", stage=RowTime(0.001, 0.0, 0.0001, 1e-6))] * 3, [Link(1e9, 0.01)] * 3)
    alike = prefill_s(PLAIN, ring, MODEL, tokens=1000, chunk=100)
    assert prefill_s(PLAIN, ring, MODEL, tokens=1000, chunk=lambda _: 100) == alike
    starts: list[int] = []

    def shrinking(position: int) -> int:
        starts.append(position)
        return 200 if position < 400 else 50

    assert prefill_s(PLAIN, ring, MODEL, tokens=510, chunk=shrinking) > 0
    assert starts == [0, 200, 400, 450, 500]
