"""What a planner and an emulator are asked about, as one JSON file: nodes, links, a model, what may be chosen. Pure.

docs/topology.md has the format with examples. The structs below are the format: their names, types and bounds are what is read,
written and published as a JSON Schema (:func:`schema`). A file makes an emulated network (tools/wan_network.py), a simulated one
(:mod:`bloombee.sim.network`) and, once its model is known, a planner's problem (``plan/problem.py``).
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field

from bloombee.config import LocalWorker
from bloombee.errors import ConfigError
from bloombee.objective import Objective
from bloombee.plan.network import HEAD_NODE, DirectedLink, Network, Node
from bloombee.quote import quoted
from bloombee.utf8 import surrogate_at

VERSION = 1
MAX_NODES = 1000
MAX_BYTES = 2**53
"""Exact in binary64, which JSON's readers have."""

Text = Annotated[str, Meta(min_length=1, max_length=4096)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Seconds = Annotated[float, Meta(ge=0, le=1e6)]
Delay = Annotated[float, Meta(ge=0, le=60, description="seconds, one way")]
LinkRate = Annotated[float, Meta(ge=125, le=12.5e9, description="bytes per second")]
Rate = Annotated[float, Meta(ge=1, le=1e15, description="bytes per second")]
Size = Annotated[int, Meta(ge=0, le=MAX_BYTES, description="bytes")]
Memory = Annotated[int, Meta(ge=2**20, le=MAX_BYTES, description="bytes")]
Count = Annotated[int, Meta(ge=1, le=2**20)]
Tokens = Annotated[int, Meta(ge=0, le=2**40)]
Ratio = Annotated[float, Meta(gt=0, lt=1e6)]
Part = Annotated[float, Meta(ge=0, le=1)]
DtypeName = Literal["bfloat16", "float16", "float32"]


ZERO = 0.0
"""A default is known by its identity: this one is left out, another 0.0 is written."""


MAX_FILE_CHARS = 1 << 26
"""Of a file; 1,000 workers and all their links have about 12 million."""


class _Struct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    pass


class Times(_Struct, frozen=True):
    """Seconds of one pass, as :class:`~bloombee.plan.topology.RowTime`."""

    fixed_s: Seconds = ZERO
    decode_row_s: Seconds = ZERO
    prefill_row_s: Seconds = ZERO
    context_s: Seconds = ZERO
    decode_context_s: Seconds | None = None


class WorkerPart(_Struct, frozen=True):
    """What a worker at a node is like: either its ``pace`` or the times of ``stage``, ``layer`` (or ``kinds``) and ``output``."""

    pace: Text | None = None
    memory_bytes: Memory | None = None
    load_bytes_per_s: Rate | None = None
    stage: Times | None = None
    layer: Times | None = None
    kinds: Annotated[tuple[Times, ...], Meta(max_length=1000)] = ()
    output: Times | None = None
    encode_bytes_per_s: Rate | None = None
    decode_bytes_per_s: Rate | None = None
    stream_bytes_per_s: Rate | None = None

    @property
    def has_times(self) -> bool:
        return any(times is not None for times in (self.stage, self.layer, self.output)) or bool(self.kinds)


NO_WORKER = WorkerPart()


class NodePart(_Struct, frozen=True):
    """A place in the network with its access line."""

    up_bytes_per_s: LinkRate | None = None
    down_bytes_per_s: LinkRate | None = None
    delay_s: Delay = ZERO
    schedule: tuple[Text, ...] = ()
    beside: Name | None = None
    worker: WorkerPart = NO_WORKER
    about: Text | None = None

    @property
    def has_line(self) -> bool:
        return (self.up_bytes_per_s, self.down_bytes_per_s, self.delay_s, self.schedule) != (None, None, 0, ())


class LinkPart(_Struct, frozen=True):
    """What the way from one node to another has besides their access lines."""

    source: Name = field(name="from")
    target: Name = field(name="to")
    bandwidth_bytes_per_s: LinkRate | None = None
    delay_s: Delay = ZERO
    jitter_s: Delay = ZERO
    loss: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    stall_s: Delay | None = None
    schedule: tuple[Text, ...] = ()
    reachable: bool = True
    estimated: bool = False
    about: Text | None = None


class CoresPart(_Struct, frozen=True):
    """CPU cores that all workers and the head take turns on, as :class:`~bloombee.plan.topology.Cores`."""

    count: Annotated[int, Meta(ge=1, le=2**16)]
    hop_s: Seconds = ZERO
    hop_cpu_s: Seconds = ZERO
    is_computing: bool = True


class KindPart(_Struct, frozen=True):
    """Of layers of one kind, as :class:`~bloombee.models.shape.LayerKind`."""

    layer_bytes: Size = 0
    kv_token_bytes: Size = 0
    window: Tokens = 0


class ShapePart(_Struct, frozen=True):
    """A model by its sizes, as :class:`~bloombee.models.shape.ModelShape`."""

    hidden: Annotated[int, Meta(ge=1, le=2**24)]
    num_layers: Annotated[int, Meta(ge=1, le=4096)]
    name: Text | None = None
    activation_bytes: Annotated[int, Meta(ge=1, le=16)] = 2
    layer_bytes: Size = 0
    kv_token_bytes: Size = 0
    embedding_bytes: Size = 0
    output_bytes: Size = 0
    tied_bytes: Size = 0
    scratch_bytes: Size = 0
    output_scratch_bytes: Size = 0
    loading_bytes: Size = 0
    streaming_bytes: Size = 0
    kinds: Annotated[tuple[KindPart, ...], Meta(max_length=1000)] = ()
    kind_of: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=10_000)] = ()


class SpacePart(_Struct, frozen=True):
    """What may be chosen, as :class:`~bloombee.plan.solve.space.Space`; None: its default."""

    sequences: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=100)] | None = None
    microbatches: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=100)] | None = None
    ratios: Annotated[tuple[Ratio | None, ...], Meta(min_length=1, max_length=100)] | None = None
    streamed: Annotated[tuple[Part, ...], Meta(min_length=1, max_length=100)] | None = None
    pipelines: Annotated[int, Meta(ge=1, le=1000)] | None = None
    most_sequences: Count | None = None
    context: Tokens | None = None
    kv_tokens: Tokens | None = None
    page_size: Count | None = None
    max_rows: Count | None = None
    rows_per_sequence: Count | None = None
    tokens_per_round: Annotated[float, Meta(gt=0, le=2**20)] | None = None
    order: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=MAX_NODES)] | None = None


class Document(_Struct, frozen=True):
    """The whole file."""

    version: Literal[1] = field()
    nodes: dict[Name, NodePart]
    about: Text | None = None
    pairs: Literal["all", "listed"] = "all"
    links: tuple[LinkPart, ...] = ()
    cores: CoresPart | None = None
    model: Text | ShapePart | None = None
    dtype: DtypeName | None = None
    space: SpacePart = SpacePart()
    objective: Text | None = None

    def network(self) -> Network:
        """What an emulator needs of it."""
        nodes = {name: _node(name, part) for name, part in self.nodes.items()}
        links = {(link.source, link.target): _link(link) for link in self.links}
        return Network(nodes, links, self.about or "", only_listed=self.pairs == "listed")

    def to_json(self) -> str:
        """The text that :func:`parse` reads as the same document; what has its default is left out."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode() + "\n"


# -- reading -----------------------------------------------------------------------------------


def read(path: str | os.PathLike[str]) -> Document:
    """The document in a file.

    Raises:
        ConfigError: the file cannot be read, or see :func:`parse`; the message starts with the file's name.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(MAX_FILE_CHARS + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot read this file: {why}", path=str(path)) from error
    if len(text) > MAX_FILE_CHARS:
        raise ConfigError(f"{path}: more than {MAX_FILE_CHARS} characters: no topology is so large", path=str(path))
    try:
        return from_json(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", **{**error.fields, "path": str(path)}) from error


def from_json(text: str) -> Document:
    """The document in a text.

    Raises:
        ConfigError: it is no JSON, or see :func:`parse`.
    """
    try:
        record = json.loads(text, parse_constant=_no_number, object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not a JSON file: {error}") from error
    return parse(record)


def parse(record: Any) -> Document:
    """The document in what JSON holds.

    Raises:
        ConfigError: another version, an unknown or missing field, a value out of range, a node that does not exist; ``field`` is
            the path of the field, as ``links[2].delay_s`` or ``nodes.w1.worker.pace``.
    """
    if not isinstance(record, dict):
        raise ConfigError(f"the file = {quoted(record)}: must be an object", field="the file")
    if type(record.get("version")) is not int or record["version"] != VERSION:
        raise _wrong("version", record.get("version"), f"{VERSION}")
    try:
        document = msgspec.convert(record, Document)
    except msgspec.ValidationError as error:
        raise _refusal(record, str(error)) from None
    _check(document)
    return document


def read_network(path: str | os.PathLike[str]) -> Network:
    """The network in a file. Raises ConfigError as :func:`read`."""
    return read(path).network()


def parse_network(record: Any) -> Network:
    """The network in what JSON holds. Raises ConfigError as :func:`parse`."""
    return parse(record).network()


def schema() -> dict[str, Any]:
    """The format as a JSON Schema (2020-12); what one field cannot know of another is not in it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Document)}


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON would take the last of two fields of one name."""
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return record


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


# -- what is wrong -----------------------------------------------------------------------------

_AT = re.compile(r" - at (?:`key` in )?`\$(?P<path>[^`]*)`$")
_FIELD = re.compile(r"Object (?:contains unknown|missing required) field `(?P<name>.*)`$", re.DOTALL)


def _wrong(path: str, value: Any, allowed: str) -> ConfigError:
    shown = "nothing" if value is None else quoted(value)
    return ConfigError(f"{path} = {shown}: must be {allowed}", field=path, value=shown, allowed=allowed)


def _refusal(record: dict[str, Any], text: str) -> ConfigError:
    """msgspec's error as ours: the path with the names of nodes in it, the value that is there, what is allowed."""
    match = _AT.search(text)
    path, what = (match["path"].lstrip("."), text[: match.start()]) if match else ("", text)
    if path.startswith("nodes[...]"):
        path = f"nodes.{_culprit(record['nodes'])}" + path.removeprefix("nodes[...]")
    if (field_match := _FIELD.search(what)) is not None:
        path = f"{path}.{field_match['name']}" if path else field_match["name"]
        said = "no such field" if "unknown" in what else "it is missing"
        return ConfigError(f"{path}: {said}", field=path)
    return _wrong(path, _value_at(record, path), _CHOICES.get(path) or _allowed(what))


_CHOICES = {"pairs": "all or listed", "dtype": "bfloat16, float16 or float32"}
_WORDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "object": "an object"}
_WORDS |= {"array": "a list"}


def _allowed(what: str) -> str:
    """``Expected `int | null` >= 1, got `str` ``: a whole number >= 1."""
    match = re.match(r"Expected `(?P<types>[^`]*)`(?P<bound>.*?)(?:, got .*)?$", what, re.DOTALL)
    if match is None:
        return what
    types = [_WORDS.get(name, name) for name in match["types"].split(" | ") if name != "null"]
    return " or ".join(types) + match["bound"]


def _culprit(nodes: Mapping[str, Any]) -> str:
    """The name of the node that is wrong; msgspec says of a mapping only that one is."""
    for name, node in nodes.items():
        try:
            msgspec.convert({name: node}, dict[Name, NodePart])
        except msgspec.ValidationError:
            return name
    raise AssertionError("each node is right by itself")


def _value_at(record: Any, path: str) -> Any:
    """The value whose path that is; of a path that does not lead anywhere, nothing."""
    value = record
    for step in _steps(record, path):
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _steps(record: Any, path: str) -> Iterator[str | int]:
    names = record.get("nodes")
    if path.startswith("nodes.") and isinstance(names, dict):  # a name may hold dots
        name = max((name for name in names if path.startswith(f"nodes.{name}")), key=len, default="")
        yield from ("nodes", name)
        path = path.removeprefix(f"nodes.{name}")
    for word, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        yield word or int(index)


def _check(document: Document) -> None:
    """What one field cannot know of another. Raises ConfigError."""
    if not 0 < len(document.nodes) <= MAX_NODES:
        raise _wrong("nodes", len(document.nodes), f"an object of 1 to {MAX_NODES} nodes by name")
    for name, node in document.nodes.items():
        _check_node(name, node, document.nodes)
    seen: set[tuple[str, str]] = set()
    for number, link in enumerate(document.links):
        _check_link(f"links[{number}]", link, document.nodes, seen)
    if document.objective is not None:
        Objective.parse(document.objective)
    for name in document.space.order or ():
        if name not in document.nodes or name == HEAD_NODE:
            raise _wrong("space.order", name, "names of nodes with workers")


def _check_node(name: str, node: NodePart, nodes: Mapping[str, NodePart]) -> None:
    path = f"nodes.{name}"
    if not name.strip() or surrogate_at(name) is not None:
        raise _wrong(path, name, "a name of 1 to 256 characters of text")
    if node.beside is not None:
        other = nodes.get(node.beside)
        if other is None or other.beside is not None or node.beside == name:
            raise _wrong(f"{path}.beside", node.beside, "another node that has an access line of its own")
        if node.has_line:
            allowed = f"without an access line of its own: {name!r} shares that of {node.beside!r}"
            raise _wrong(f"{path}.beside", node.beside, allowed)
    if node.worker.pace is not None and node.worker.has_times:
        raise _wrong(f"{path}.worker.pace", node.worker.pace, "left out where stage, layer, kinds or output say how fast it is")
    try:
        _local_worker(node.worker)
    except ConfigError as error:
        where = f"{path}.worker"
        raise ConfigError(f"{where}.{error.message}", **{**error.fields, "field": f"{where}.{error.fields['field']}"}) from None


def _check_link(path: str, link: LinkPart, nodes: Mapping[str, NodePart], seen: set[tuple[str, str]]) -> None:
    known = f"one of the nodes {', '.join(list(nodes)[:20])}"
    if link.source not in nodes:
        raise _wrong(f"{path}.from", link.source, known)
    if link.target not in nodes or link.target == link.source:
        raise _wrong(f"{path}.to", link.target, f"another {known}")
    if (link.source, link.target) in seen:
        raise _wrong(path, f"{link.source} -> {link.target}", "named once")
    if link.jitter_s > link.delay_s:
        raise _wrong(f"{path}.jitter_s", link.jitter_s, f"seconds from 0 to the delay ({link.delay_s:g})")
    seen.add((link.source, link.target))


# -- as an emulator takes it -------------------------------------------------------------------


def _local_worker(part: WorkerPart) -> LocalWorker:
    return LocalWorker(pace=part.pace, memory_bytes=part.memory_bytes, load_bytes_per_s=part.load_bytes_per_s)


def _node(name: str, part: NodePart) -> Node:
    return Node(
        name, part.up_bytes_per_s, part.down_bytes_per_s, part.delay_s, part.schedule, part.beside, _local_worker(part.worker)
    )


def _link(part: LinkPart) -> DirectedLink:
    return DirectedLink(
        part.source,
        part.target,
        part.bandwidth_bytes_per_s,
        part.delay_s,
        part.jitter_s,
        part.loss,
        part.stall_s,
        part.schedule,
        part.reachable,
    )
