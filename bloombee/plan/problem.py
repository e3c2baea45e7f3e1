"""What a planner solves: a document whose model is known, as a topology, sizes, choices and an objective; and back. Pure."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from bloombee.errors import ConfigError
from bloombee.models.card import ModelCard
from bloombee.models.shape import LayerKind, ModelShape
from bloombee.models.standin import DEFAULT_ACCELERATOR, default_layer_paces, is_standin
from bloombee.objective import Objective
from bloombee.pace import Pace, parse_pace
from bloombee.plan.document import (
    NO_WORKER,
    ZERO,
    CoresPart,
    Document,
    KindPart,
    LinkPart,
    NodePart,
    ShapePart,
    SpacePart,
    Times,
    WorkerPart,
)
from bloombee.plan.memory import model_shape
from bloombee.plan.network import HEAD_NODE, Network
from bloombee.plan.solve import Space
from bloombee.plan.topology import Cores, Device, Link, RowTime, Site, Topology
from bloombee.quote import printable, quoted
from bloombee.types import HEAD, Dtype, WorkerId

LEAST_LINK_RATE, MOST_LINK_RATE = 125.0, 12.5e9
LEAST_RATE, MOST_RATE = 1.0, 1e15
LEAST_MEMORY = 1 << 20
GUESSED = "how fast it is is a guess"


@dataclass(frozen=True, slots=True)
class Problem:
    """As :func:`~bloombee.plan.solve.solve` takes it; a device is called as its node is."""

    topology: Topology
    model: ModelShape
    space: Space
    objective: Objective


def readable(problem: Problem) -> Problem:
    """The same, all names such as can be shown to people."""
    topology = problem.topology
    devices = {worker: dataclasses.replace(device, name=printable(device.name)) for worker, device in topology.devices.items()}
    sites = {party: dataclasses.replace(site, name=printable(site.name)) for party, site in topology.sites.items()}
    return dataclasses.replace(problem, topology=dataclasses.replace(topology, devices=devices, sites=sites))


def named_model(document: Document) -> str | None:
    """The model whose card :func:`problem_of` needs; None: the document has its sizes.

    Raises:
        ConfigError: the document has no model.
    """
    if document.model is None:
        raise ConfigError("model: it is missing: a checkpoint, a stand-in or sizes", field="model")
    return document.model if isinstance(document.model, str) else None


def problem_of(document: Document, card: ModelCard | None = None) -> Problem:
    """The problem of ``document``.

    Args:
        card: of :func:`named_model`; None where that is None.

    Raises:
        ConfigError: no node is the head, or no other is there; a worker does not say how fast it is; values that do not go
            together. ``field`` is the path.
    """
    network = document.network()
    names = worker_names(document)
    space = _space(document.space, names)
    model, standard = _model(document, card, space)
    devices = {worker: _device(name, document.nodes[name].worker, model, standard) for name, worker in names.items()}
    topology = Topology(devices, _links(network, names), _cores(document.cores), _sites(network, names))
    return Problem(topology, model, space, Objective.parse(document.objective or "balance"))


def worker_names(document: Document) -> dict[str, WorkerId]:
    """Nodes with a worker, which is each but the head's, in their order.

    Raises:
        ConfigError: see :func:`problem_of`.
    """
    if HEAD_NODE not in document.nodes:
        raise ConfigError(f"nodes.{HEAD_NODE}: it is missing: where the head is", field=f"nodes.{HEAD_NODE}")
    names = [name for name in document.nodes if name != HEAD_NODE]
    if not names:
        raise ConfigError(f"nodes: besides {HEAD_NODE!r} there is none, and so no worker", field="nodes")
    return {name: number for number, name in enumerate(names, HEAD + 1)}


# -- from a document ---------------------------------------------------------------------------


def _model(document: Document, card: ModelCard | None, space: Space) -> tuple[ModelShape, Device | None]:
    """Sizes, and what a worker is like that does not say; None: each has to."""
    named = named_model(document)
    if isinstance(document.model, ShapePart):
        return _shape(document.model), None
    if card is None:
        raise ConfigError(f"model = {named!r}: its card is not known", field="model")
    dtype = card.dtype if document.dtype is None else Dtype(document.dtype)
    shape = model_shape(card, dtype, rows=space.max_rows, tokens=space.kv_tokens or 0)
    if not is_standin(card.model):
        return shape, None
    layer, output = (_row_time(pace) for pace in default_layer_paces(card))
    return shape, Device("", DEFAULT_ACCELERATOR.memory_bytes, layer=layer, output=output)


def _row_time(pace: Pace) -> RowTime:
    return RowTime(pace.fixed_s, pace.decode_row_s, pace.prefill_row_s)


def _shape(part: ShapePart) -> ModelShape:
    fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(ModelShape)}
    fields["kinds"] = tuple(LayerKind(kind.layer_bytes, kind.kv_token_bytes, kind.window) for kind in part.kinds)
    try:
        return ModelShape(**fields)
    except ConfigError as error:
        raise ConfigError(f"model.{error.message}", **{**error.fields, "field": f"model.{error.fields['field']}"}) from None


def _device(name: str, part: WorkerPart, model: ModelShape, standard: Device | None) -> Device:
    path = f"nodes.{name}.worker"
    if part.pace is not None:
        stage, layer = RowTime.paced(parse_pace(part.pace))
        device = Device(name, stage=stage, layer=layer)
    elif part.has_times:
        stage, layer, output = (_times(times) for times in (part.stage, part.layer, part.output))
        device = Device(name, stage=stage, layer=layer, output=output, kinds=tuple(map(_times, part.kinds)))
    elif standard is not None:
        device = dataclasses.replace(standard, name=name)
    else:
        raise ConfigError(f"{path}: it does not say how fast it is: a pace, or times of layer", field=path)
    if device.kinds and len(device.kinds) != len(model.layer_kinds):
        said = f"{path}.kinds: it knows {len(device.kinds)} kinds of layers, the model has {len(model.layer_kinds)}"
        raise ConfigError(said, field=f"{path}.kinds")
    return dataclasses.replace(
        device,
        memory_bytes=device.memory_bytes if part.memory_bytes is None else part.memory_bytes,
        encode_bytes_per_s=part.encode_bytes_per_s or math.inf,
        decode_bytes_per_s=part.decode_bytes_per_s or math.inf,
        stream_bytes_per_s=part.stream_bytes_per_s,
    )


def _times(part: Times | None) -> RowTime:
    return RowTime() if part is None else RowTime(**msgspec.structs.asdict(part))


def _links(network: Network, names: Mapping[str, WorkerId]) -> dict[tuple[WorkerId, WorkerId], Link]:
    """Of pairs that can open a connection; the lines' bandwidth is that of sites, their delay is in the link's."""
    links = {}
    for (source, a), (target, b) in itertools.permutations({HEAD_NODE: HEAD, **names}.items(), 2):
        if network.reaches(source, target):
            bandwidth = network.link(source, target).bandwidth_bytes_per_s
            links[a, b] = Link(math.inf if bandwidth is None else bandwidth, network.delay_s(source, target))
    return links


def _sites(network: Network, names: Mapping[str, WorkerId]) -> dict[WorkerId, Site]:
    sites = {}
    for name, worker in {HEAD_NODE: HEAD, **names}.items():
        line = network.nodes[network.site(name)]
        if (line.up_bytes_per_s, line.down_bytes_per_s) != (None, None):
            sites[worker] = Site(line.name, line.up_bytes_per_s or math.inf, line.down_bytes_per_s or math.inf)
    return sites


def _cores(part: CoresPart | None) -> Cores | None:
    return None if part is None else Cores(part.count, part.hop_s, part.hop_cpu_s, part.is_computing)


def _space(part: SpacePart, names: Mapping[str, WorkerId]) -> Space:
    given: dict[str, Any] = {name: value for name in part.__struct_fields__ if (value := getattr(part, name)) is not None}
    if part.order is not None:
        twice = next((name for name, times in Counter(part.order).items() if times > 1), None)
        if twice is not None:
            raise ConfigError(f"space.order: {quoted(twice)} stands twice in it", field="space.order")
        given["order"] = tuple(names[name] for name in part.order)
    try:
        return Space(**given)
    except ConfigError as error:
        raise ConfigError(f"space.{error.message}", **{**error.fields, "field": f"space.{error.fields['field']}"}) from None


# -- to a document -----------------------------------------------------------------------------


def document_of(
    problem: Problem,
    *,
    model: str | None = None,
    about: str | None = None,
    guessed: Collection[WorkerId] = (),
    estimated: Collection[tuple[WorkerId, WorkerId]] = (),
) -> Document:
    """What :func:`problem_of` makes ``problem`` of again, all its links listed.

    Workers are numbered anew, names that stand twice get a number, and rates that no file may have are the nearest that one may.

    Args:
        model: what the model is called.
        guessed: workers of whose speed nothing is known. estimated: links that nobody has measured.
    """
    topology = problem.topology
    names = _node_names(topology)
    nodes = {name: _node_part(worker, names, topology) for worker, name in names.items()}
    nodes |= {names[worker]: msgspec.structs.replace(nodes[names[worker]], about=GUESSED) for worker in guessed}
    links = tuple(
        LinkPart(
            source=names[source],
            target=names[target],
            bandwidth_bytes_per_s=_bounded(link.bandwidth_bytes_per_s, LEAST_LINK_RATE, MOST_LINK_RATE),
            delay_s=link.latency_s or ZERO,
            estimated=(source, target) in estimated,
        )
        for (source, target), link in topology.links.items()
        if source != target
    )
    return Document(
        version=1,
        about=about,
        nodes=nodes,
        pairs="listed",
        links=links,
        cores=None if topology.cores is None else CoresPart(**dataclasses.asdict(topology.cores)),
        model=_shape_part(problem.model, model),
        space=_space_part(problem.space, names),
        objective=_objective(problem.objective),
    )


def _node_names(topology: Topology) -> dict[WorkerId, str]:
    names, taken = {HEAD: HEAD_NODE}, {HEAD_NODE}
    for worker, device in topology.devices.items():
        name = device.name.strip()[:200] or "worker"
        names[worker] = name if name not in taken else f"{name}#{worker}"
        taken.add(names[worker])
    return names


def _node_part(worker: WorkerId, names: Mapping[WorkerId, str], topology: Topology) -> NodePart:
    part = NO_WORKER if worker == HEAD else _worker_part(topology.devices[worker])
    site = topology.sites.get(worker)
    if site is None:
        return NodePart(worker=part)
    first = next(other for other in names if (own := topology.sites.get(other)) is not None and own.name == site.name)
    if first != worker:
        return NodePart(beside=names[first], worker=part)
    up, down = (_bounded(rate, LEAST_LINK_RATE, MOST_LINK_RATE) for rate in (site.up_bytes_per_s, site.down_bytes_per_s))
    return NodePart(up_bytes_per_s=up, down_bytes_per_s=down, worker=part)


def _worker_part(device: Device) -> WorkerPart:
    encode, decode = (_bounded(rate, LEAST_RATE, MOST_RATE) for rate in (device.encode_bytes_per_s, device.decode_bytes_per_s))
    stream = device.stream_bytes_per_s
    return WorkerPart(
        memory_bytes=None if device.memory_bytes is None else max(LEAST_MEMORY, device.memory_bytes),
        stage=None if device.stage == RowTime() else _times_part(device.stage),
        layer=_times_part(device.layer),
        kinds=tuple(map(_times_part, device.kinds)),
        output=None if device.output == RowTime() else _times_part(device.output),
        encode_bytes_per_s=encode,
        decode_bytes_per_s=decode,
        stream_bytes_per_s=None if stream is None else min(max(stream, LEAST_RATE), MOST_RATE),
    )


def _times_part(time: RowTime) -> Times:
    return Times(**{name: ZERO if value == 0 else value for name, value in dataclasses.asdict(time).items()})


def _shape_part(model: ModelShape, name: str | None) -> ShapePart:
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    fields["kinds"] = tuple(KindPart(**dataclasses.asdict(kind)) for kind in model.kinds)
    return ShapePart(name=name, **fields)


def _space_part(space: Space, names: Mapping[WorkerId, str]) -> SpacePart:
    """What differs from the default."""
    standard = Space()
    given = {name: value for name in SpacePart.__struct_fields__ if (value := getattr(space, name)) != getattr(standard, name)}
    if space.order is not None:
        given["order"] = tuple(names[worker] for worker in space.order)
    return SpacePart(**given)


def _objective(objective: Objective) -> str:
    """As it is read: what people are shown is rounded."""
    return str(objective.goal) if objective.target_s is None else f"{objective.goal}:{objective.target_s!r}"


def _bounded(rate: float, least: float, most: float) -> float | None:
    """None: no limit."""
    return None if rate > most else max(rate, least)
