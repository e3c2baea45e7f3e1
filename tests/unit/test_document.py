"""The file of a topology: what is read is what is written, and nonsense is refused with the path of the field."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.topologies import small, wan
from bloombee.errors import ConfigError
from bloombee.models.shape import LayerKind, ModelShape
from bloombee.models.standin import default_pace, standin_card
from bloombee.objective import Objective
from bloombee.plan.document import (
    CoresPart,
    Document,
    KindPart,
    LinkPart,
    NodePart,
    ShapePart,
    SpacePart,
    Times,
    WorkerPart,
    from_json,
    parse,
    read,
    schema,
)
from bloombee.plan.problem import Problem, document_of, named_model, problem_of
from bloombee.plan.solve import Space, solve
from bloombee.plan.topology import Cores, Device, Link, RowTime, Site, Topology
from bloombee.types import HEAD, Dtype, Phase, Span

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "topology.json"
SHAPE = ModelShape(hidden=64, num_layers=4, layer_bytes=100)


def example() -> dict[str, Any]:
    record: dict[str, Any] = json.loads((ROOT / "docs" / "topology.md").read_text().split("```json\n")[1].split("```")[0])
    return record


def changed(path: str, value: Any) -> dict[str, Any]:
    """The example with what a path of keys names set, or taken out for ``...``."""
    record = copy.deepcopy(example())
    *way, last = (int(part) if part.isdigit() else part for part in path.split("/"))
    place: Any = record
    for part in way:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return record


# -- there and back ----------------------------------------------------------------------------


def test_the_documented_example_is_read_and_written_as_it_is() -> None:
    text = parse(example()).to_json()
    assert json.loads(text) == example()
    assert from_json(text).to_json() == text


def test_a_file_of_this_version_means_what_it_always_meant() -> None:
    assert read(GOLDEN) == parse(example())
    assert read(GOLDEN).to_json() == GOLDEN.read_text()


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda name: bool(name.strip()))
rates = st.none() | st.floats(125, 12.5e9)
times = st.floats(0, 1e6)
row_times = st.builds(RowTime, times, times, times, times)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """With all kinds of names and numbers; what schedules say is the emulator's."""
    nodes = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    pairs = [(a, b) for a in nodes for b in nodes if a != b]
    links = []
    for source, target in draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []:
        delay_s = draw(st.floats(0, 60))
        links.append(
            LinkPart(
                source=source,
                target=target,
                delay_s=delay_s,
                jitter_s=delay_s * draw(st.floats(0, 1)),
                bandwidth_bytes_per_s=draw(rates),
                loss=draw(st.floats(0, 0.999)),
                reachable=draw(st.booleans()),
                estimated=draw(st.booleans()),
            )
        )
    workers = st.builds(WorkerPart, memory_bytes=st.none() | st.integers(2**20, 2**53), encode_bytes_per_s=rates)
    parts = {name: NodePart(up_bytes_per_s=draw(rates), delay_s=draw(st.floats(0, 60)), worker=draw(workers)) for name in nodes}
    return Document(version=1, nodes=parts, links=tuple(links), pairs=draw(st.sampled_from(["all", "listed"])))


@given(documents())
def test_whatever_is_written_is_read_as_the_same(document: Document) -> None:
    text = document.to_json()
    assert from_json(text) == document
    assert from_json(text).to_json() == text


@given(st.integers(0, 10_000))
def test_a_problem_that_became_a_file_is_the_same_problem(seed: int) -> None:
    case = small(seed)
    topology = dataclasses.replace(case.topology, devices={w: roomy(device) for w, device in case.topology.devices.items()})
    problem = Problem(topology, case.model, case.space, case.objective)
    assert problem_of(from_json(document_of(problem).to_json())) == problem


def roomy(device: Device) -> Device:
    """With as much memory as a file may say at least."""
    return device if device.memory_bytes is None else dataclasses.replace(device, memory_bytes=device.memory_bytes + 2**20)


def test_what_workers_share_survives_being_a_file() -> None:
    flat, office = Site("flat", 1e6, 1e7), Site("w3", up_bytes_per_s=1e7)
    time = RowTime(1e-3, 1e-4, 1e-5, 1e-9, 0.0)
    devices = {1: Device("w1", layer=time), 2: Device("w2"), 3: Device("w3", stream_bytes_per_s=1e9)}
    sites = {HEAD: flat, 1: flat, 3: office}
    topology = Topology(devices, {(HEAD, 1): Link(math.inf, 0.0), (1, HEAD): Link(1e6, 0.1)}, Cores(2, 1e-3, 2e-3, False), sites)
    again = problem_of(document_of(Problem(topology, SHAPE, Space(), Objective()), model="mine", about="a flat"))
    assert (again.topology.links, again.topology.cores) == (topology.links, topology.cores)
    assert again.topology.devices[1].layer == time
    assert [(site.up_bytes_per_s, site.down_bytes_per_s) for site in again.topology.sites.values()] == [
        (1e6, 1e7),
        (1e6, 1e7),
        (1e7, math.inf),
    ]
    assert again.topology.lines(HEAD, 1) == ()


def test_rates_and_names_that_no_file_may_have_become_such_as_it_may() -> None:
    devices = {4: Device("gpu"), 7: Device("gpu"), 9: Device(" ")}
    links = {(4, 7): Link(1e12, 0.0), (7, 4): Link(3.0, 0.0)}
    document = document_of(Problem(Topology(devices, links), SHAPE, Space(order=(7, 4)), Objective()))
    assert list(document.nodes) == ["head", "gpu", "gpu#7", "worker"]
    assert [link.bandwidth_bytes_per_s for link in document.links] == [None, 125]
    assert document.space.order == ("gpu#7", "gpu")
    assert from_json(document.to_json()) == document


def test_what_nobody_has_measured_is_marked_in_a_file() -> None:
    devices, links = {4: Device("a"), 7: Device("b")}, {(4, 7): Link(1e9, 0.0), (7, 4): Link(1e6, 0.1)}
    problem = Problem(Topology(devices, links), SHAPE, Space(), Objective())
    document = document_of(problem, guessed=(7,), estimated={(7, 4)})
    assert {name: node.about for name, node in document.nodes.items()} == {
        "head": None,
        "a": None,
        "b": "how fast it is is a guess",
    }
    assert [link.estimated for link in document.links] == [False, True]


def test_a_large_topology_is_planned_for_from_its_file_as_from_itself() -> None:
    topology, model = wan(3, 12, kinds=2)
    problem = Problem(topology, model, Space(ratios=(None, 0.67), context=1000), Objective.parse("throughput"))
    again = problem_of(from_json(document_of(problem).to_json()))
    plans = [
        solve(one.topology, one.model, one.space, one.objective, budget_s=math.inf, max_steps=1_000_000)
        for one in (problem, again)
    ]
    assert plans[0] == plans[1]


# -- what it means -----------------------------------------------------------------------------


def test_lines_links_and_reach_become_a_topology() -> None:
    problem = problem_of(parse(example()), standin_card("standin:llama-30b"))
    topology = problem.topology
    assert [device.name for device in topology.devices.values()] == ["flat", "office", "rented"]
    assert dataclasses.astuple(topology.links[1, 2]) == (1e7, pytest.approx(0.017))
    assert topology.links[HEAD, 1] == Link(math.inf, 0.0)  # one site
    assert (1, 3) not in topology.links
    assert (2, 3) not in topology.links
    assert topology.links[HEAD, 3] == Link(math.inf, 0.010)  # not named, so it has its lines
    assert topology.lines(3, 1) == (("head down", 12.5e6),)
    assert topology.lines(1, HEAD) == ()
    assert topology.devices[1].layer.decode_s(1) == pytest.approx(13.05e-3 / 20)
    assert topology.devices[2].encode_bytes_per_s == 2e9
    assert topology.devices[3].memory_bytes == 80 * 10**9
    assert problem.space == Space(context=1000, ratios=(None, 0.67), most_sequences=64)
    assert problem.objective == Objective.parse("target:0.3")


def test_pairs_that_are_not_listed_are_no_links_where_the_file_says_so() -> None:
    topology = problem_of(parse(changed("pairs", "listed")), standin_card("standin:llama-30b")).topology
    assert set(topology.links) == {(1, 2), (3, 2)}


@pytest.mark.parametrize("layers", [1, 7])
def test_a_stand_in_without_times_takes_what_its_data_sheet_allows(layers: int) -> None:
    card = standin_card(f"standin:512x{layers}")
    record = {"version": 1, "nodes": {"head": {}, "w": {}}, "model": card.model}
    device = problem_of(parse(record), card).topology.devices[1]
    pace = default_pace(card, Span(0, layers))
    for rows in (1, 100):
        said = layers * device.layer.decode_s(rows) + device.output.decode_s(rows)
        assert said == pytest.approx(pace.seconds(Phase.DECODE, rows, layers))


def test_layers_that_differ_are_kinds_of_a_shape() -> None:
    card = standin_card("standin:64x4")
    windows = dataclasses.replace(card, layer_windows=(0, 16, 16, 0))
    shape = windows.shape(Dtype.FLOAT32)
    layer = card.layer_parameters[0] * 4
    assert shape.kinds == (LayerKind(layer, 512, 0), LayerKind(layer, 512, 16))
    assert (shape.kind_of, shape.activation_bytes) == ((0, 1, 1, 0), 4)
    assert card.shape().layer_kinds == (LayerKind(layer // 2, 256),)
    own = sum(count * kind.layer_bytes for count, kind in zip(shape.counts(0, 4), shape.kinds, strict=True))
    assert card.weight_bytes(Span(0, 4), Dtype.FLOAT32) == own + shape.embedding_bytes + shape.output_bytes


@pytest.mark.parametrize(
    ("part", "kind", "besides"),
    [
        (ShapePart, ModelShape, {"name"}),
        (KindPart, LayerKind, set()),
        (SpacePart, Space, set()),
        (Times, RowTime, set()),
        (CoresPart, Cores, set()),
        (WorkerPart, Device, {"pace", "load_bytes_per_s"}),
    ],
)
def test_whatever_a_planner_takes_a_file_can_say(part: Any, kind: Any, besides: set[str]) -> None:
    assert set(part.__struct_fields__) == {field.name for field in dataclasses.fields(kind)} - {"name"} | besides


# -- nonsense ----------------------------------------------------------------------------------

SIZES = {"hidden": 64, "num_layers": 4}


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("version", 2, "version"),
        ("modle", "demo", "modle"),
        ("pairs", "some", "pairs"),
        ("dtype", "int8", "dtype"),
        ("model", 7, "model"),
        ("model", {"hidden": 64}, "model.num_layers"),
        ("model", SIZES | {"hidden": 0}, "model.hidden"),
        ("model", SIZES | {"num_layers": 10**18}, "model.num_layers"),
        ("model", SIZES | {"layer_bytes": 10**18}, "model.layer_bytes"),
        ("model", SIZES | {"layer_bytes": 1.5}, "model.layer_bytes"),
        ("model", SIZES | {"kinds": [{"window": -1}]}, "model.kinds[0].window"),
        ("objective", "fast", "objective"),
        ("objective", "target:nan", "objective"),
        ("space/sequences", [], "space.sequences"),
        ("space/sequences", [1, 10**18], "space.sequences[1]"),
        ("space/ratios", [0], "space.ratios[0]"),
        ("space/order", ["flat", "nobody"], "space.order"),
        ("space/order", ["head"], "space.order"),
        ("cores", {"count": 0}, "cores.count"),
        ("nodes/office/worker/layer/fixed_s", -1, "nodes.office.worker.layer.fixed_s"),
        ("nodes/office/worker/layer/fixed_s", 10**18, "nodes.office.worker.layer.fixed_s"),
        ("nodes/office/worker/pace", "1,2,3", "nodes.office.worker.pace"),
        ("nodes/office/worker/memory_bytes", 10**18, "nodes.office.worker.memory_bytes"),
        ("nodes/office/worker/memory_bytes", 0, "nodes.office.worker.memory_bytes"),
        ("nodes/office/worker/encode_bytes_per_s", 0, "nodes.office.worker.encode_bytes_per_s"),
        ("links/0/bandwidth_bytes_per_s", 0, "links[0].bandwidth_bytes_per_s"),
        ("links/0/bandwidth_bytes_per_s", 10**18, "links[0].bandwidth_bytes_per_s"),
        ("links/0/reachable", 1, "links[0].reachable"),
    ],
)
def test_nonsense_is_refused_with_the_path_of_the_field(path: str, value: Any, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(changed(path, value))
    assert caught.value.fields["field"] == field
    assert field in caught.value.message


def test_of_a_node_whose_name_has_dots_and_brackets_the_value_is_shown() -> None:
    record = {"version": 1, "nodes": {"a": {}, "a.b[0]": {"worker": {"memory_bytes": "much"}}}}
    with pytest.raises(ConfigError, match=r"^nodes\.a\.b\[0\]\.worker\.memory_bytes = 'much': must be a whole number$"):
        parse(record)


@pytest.mark.parametrize("text", ['{"version": 1, "nodes": {"head": {"delay_s": Infinity}}}', '{"version": 1, "x": NaN}'])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no number"):
        from_json(text)


def test_a_number_too_large_for_any_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^nodes\.w\.delay_s = inf: must be a number"):
        from_json('{"version": 1, "nodes": {"w": {"delay_s": 1e999}}}')


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("model", ..., "model"),
        ("model", SIZES, "nodes.rented.worker"),
        ("model", SIZES | {"kind_of": [0, 0, 0, 1]}, "model.kind_of"),
        ("nodes", {"w": {}}, "nodes.head"),
        ("nodes", {"head": {}}, "nodes"),
        ("space/most_sequences", 1, "space.most_sequences"),
        ("nodes/rented/worker", {"kinds": [{}, {}]}, "nodes.rented.worker.kinds"),
    ],
)
def test_what_is_no_problem_to_plan_for_is_said_so(path: str, value: Any, field: str) -> None:
    record = changed(path, value)
    if path == "nodes":
        record.pop("links")
    if path == "space/most_sequences":
        record["space"]["sequences"] = [2]
    document = parse(record)
    with pytest.raises(ConfigError) as caught:
        problem_of(document, standin_card("standin:llama-30b") if named_model(document) else None)
    assert caught.value.fields["field"] == field


def test_the_schema_is_of_the_format() -> None:
    described = schema()
    assert set(described["$defs"]["Document"]["properties"]) == set(Document.__struct_encode_fields__)
    assert described["$defs"]["LinkPart"]["required"] == ["from", "to"]
    assert described["$defs"]["LinkPart"]["additionalProperties"] is False


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="it has more than"):
        read("/dev/zero")
