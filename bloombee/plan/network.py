"""A network as a file: who is there, their access lines, and the links between them. Pure data.

One file makes an emulated network (tools/wan_network.py) and a simulated one (:mod:`bloombee.sim.network`). docs/wan.md has
the format with an example. In short: a node's access line is shared by all that it sends (up) and receives (down); a link says
what a pair has besides. What a pair gets is as narrow as the narrowest of the three, and as long as all of them together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bloombee.config import LocalWorker
from bloombee.errors import ConfigError

VERSION = 1
HEAD_NODE = "head"
MAX_NODES = 1000
MAX_DELAY_S = 60.0
_RATE = "bytes per second from 125 to 12.5e9"


@dataclass(frozen=True, slots=True)
class Node:
    """A place in the network.

    Args:
        up_bytes_per_s, down_bytes_per_s: of its access line; None: no limit.
        delay_s: that the line adds to every way, one way.
        schedule: lines of a schedule (bench/schedules.py) of the line; ``forward`` is up. Simulated lines do not change.
        beside: another node whose line it shares; nothing lies between the two.
        worker: what a worker there is like: its pace, memory and how fast it loads.
    """

    name: str
    up_bytes_per_s: float | None = None
    down_bytes_per_s: float | None = None
    delay_s: float = 0.0
    schedule: tuple[str, ...] = ()
    beside: str | None = None
    worker: LocalWorker = field(default_factory=LocalWorker)


@dataclass(frozen=True, slots=True)
class DirectedLink:
    """What the way from ``source`` to ``target`` has besides their access lines.

    Args:
        bandwidth_bytes_per_s: None: no limit.
        delay_s, jitter_s: one way; the jitter is at most the delay.
        loss: probability that a packet is lost; stall_s: how long that holds a connection up, None: a round trip.
        schedule: lines of a schedule of this direction (bench/schedules.py); its delays are of the whole way.
    """

    source: str
    target: str
    bandwidth_bytes_per_s: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    stall_s: float | None = None
    schedule: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """Nodes by name and links by (from, to).

    Args:
        rest: sections of the file that are not the network's, as they were read.
    """

    nodes: Mapping[str, Node]
    links: Mapping[tuple[str, str], DirectedLink] = field(default_factory=dict)
    about: str = ""
    rest: Mapping[str, Any] = field(default_factory=dict)

    def site(self, name: str) -> str:
        """The node whose access line ``name`` uses.

        Raises:
            ConfigError: no such node.
        """
        return self.node(name).beside or name

    def node(self, name: str) -> Node:
        """Raises ConfigError if there is no such node."""
        try:
            return self.nodes[name]
        except KeyError:
            raise ConfigError(f"no node {name!r}; there are {', '.join(self.nodes)}", node=name) from None

    def lines(self, source: str, target: str) -> tuple[Node | None, Node | None]:
        """The access lines on the way: whose up, whose down. None, None within a site."""
        sites = self.site(source), self.site(target)
        return (None, None) if sites[0] == sites[1] else (self.nodes[sites[0]], self.nodes[sites[1]])

    def link(self, source: str, target: str) -> DirectedLink:
        """What the pair has besides its access lines; nothing unless the file says.

        Raises:
            ConfigError: no such node.
        """
        for name in (source, target):
            self.node(name)
        return self.links.get((source, target)) or DirectedLink(source, target)

    def delay_s(self, source: str, target: str) -> float:
        """Of the whole way."""
        lines = self.lines(source, target)
        return self.link(source, target).delay_s + sum(line.delay_s for line in lines if line is not None)

    def bandwidth_bytes_per_s(self, source: str, target: str) -> float | None:
        """Of the whole way for a pair that has it for itself; None: no limit."""
        up, down = self.lines(source, target)
        rates = [
            self.link(source, target).bandwidth_bytes_per_s,
            up.up_bytes_per_s if up is not None else None,
            down.down_bytes_per_s if down is not None else None,
        ]
        return min((rate for rate in rates if rate is not None), default=None)


def read_network(path: str | os.PathLike[str]) -> Network:
    """The network in a JSON file.

    Raises:
        ConfigError: the file cannot be read, or see :func:`parse_network`; the message starts with the file's name.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_number, object_pairs_hook=_no_twins)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this network file: {error.strerror}", path=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a JSON file: {error}", path=str(path)) from error
    try:
        return parse_network(record)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", **{**error.fields, "path": str(path)}) from error


def parse_network(record: Any) -> Network:
    """The network in what JSON holds.

    Raises:
        ConfigError: another version, an unknown or missing field, a value out of range, a node that does not exist; ``field`` is
            the path of the field, as ``links[2].delay_s``.
    """
    top = _Fields(record, "")
    top.take("version", lambda value: value == VERSION and not isinstance(value, bool), f"{VERSION}", required=True)
    about = top.take("about", _is_text, "a text") or ""
    nodes = _nodes(
        top.take("nodes", lambda value: isinstance(value, dict) and 0 < len(value) <= MAX_NODES, _NODES, required=True)
    )
    links = _links(top.take("links", lambda value: isinstance(value, list), "a list of links") or [], nodes)
    return Network(nodes, links, about, top.rest())


_NODES = f"an object of 1 to {MAX_NODES} nodes by name"


def _nodes(records: dict[str, Any]) -> dict[str, Node]:
    nodes = {name: _node(name, record) for name, record in records.items()}
    for name, node in nodes.items():
        if node.beside is not None and (node.beside not in nodes or nodes[node.beside].beside is not None or node.beside == name):
            raise _wrong(f"nodes.{name}.beside", node.beside, "another node that has an access line of its own")
    return nodes


def _node(name: str, record: Any) -> Node:
    path = f"nodes.{name}"
    if not name.strip() or len(name) > 256:
        raise _wrong(path, name, "a name of 1 to 256 characters")
    fields = _Fields(record, path)
    node = Node(
        name,
        fields.take("up_bytes_per_s", _is_rate, _RATE),
        fields.take("down_bytes_per_s", _is_rate, _RATE),
        fields.take("delay_s", _is_delay, _DELAY) or 0.0,
        _schedule(fields),
        fields.take("beside", _is_text, "the name of a node"),
        _worker(fields.take("worker", lambda value: isinstance(value, dict), "an object") or {}, f"{path}.worker"),
    )
    fields.take("about", _is_text, "a text")
    fields.end()
    if node.beside is not None and (node.up_bytes_per_s, node.down_bytes_per_s, node.delay_s, node.schedule) != (
        None,
        None,
        0,
        (),
    ):
        raise _wrong(f"{path}.beside", node.beside, f"without an access line of its own: {name!r} shares that of {node.beside!r}")
    return node


def _worker(record: Any, path: str) -> LocalWorker:
    fields = _Fields(record, path)
    values = {name: record[name] for name in ("pace", "memory_bytes", "load_bytes_per_s") if record.get(name) is not None}
    for name in values:
        fields.take(name, lambda _: True, "")
    fields.end()
    try:
        return LocalWorker(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error.message}", **{**error.fields, "field": f"{path}.{error.fields.get('field')}"}) from None


def _links(records: list[Any], nodes: Mapping[str, Node]) -> dict[tuple[str, str], DirectedLink]:
    links: dict[tuple[str, str], DirectedLink] = {}
    for number, record in enumerate(records):
        link = _link(record, f"links[{number}]", nodes)
        if (link.source, link.target) in links:
            raise _wrong(f"links[{number}]", f"{link.source} -> {link.target}", "named once")
        links[link.source, link.target] = link
    return links


def _link(record: Any, path: str, nodes: Mapping[str, Node]) -> DirectedLink:
    fields = _Fields(record, path)
    known = f"one of the nodes {', '.join(list(nodes)[:20])}"
    source = fields.take("from", lambda value: _is_text(value) and value in nodes, known, required=True)
    target = fields.take(
        "to", lambda value: _is_text(value) and value in nodes and value != source, f"another {known}", required=True
    )
    delay_s = fields.take("delay_s", _is_delay, _DELAY) or 0.0
    link = DirectedLink(
        source,
        target,
        fields.take("bandwidth_bytes_per_s", _is_rate, _RATE),
        delay_s,
        fields.take("jitter_s", lambda value: _is_number(value, 0, delay_s), f"seconds from 0 to the delay ({delay_s:g})") or 0.0,
        fields.take("loss", lambda value: _is_number(value, 0, 1) and value < 1, "a probability in [0, 1)") or 0.0,
        fields.take("stall_s", _is_delay, _DELAY),
        _schedule(fields),
    )
    fields.take("about", _is_text, "a text")
    fields.end()
    return link


def _schedule(fields: _Fields) -> tuple[str, ...]:
    lines = fields.take(
        "schedule", lambda value: isinstance(value, list) and all(map(_is_text, value)), "a list of lines of text"
    )
    return tuple(lines or ())


class _Fields:
    """An object's fields as they are taken; ``path`` is the object's own."""

    def __init__(self, record: Any, path: str) -> None:
        if not isinstance(record, dict):
            raise _wrong(path or "the file", record, "an object")
        self._record, self._path = dict(record), path

    def take(self, name: str, allows: Any, allowed: str, *, required: bool = False) -> Any:
        """The value of ``name``, or None if it is not there (or null)."""
        value = self._record.pop(name, None)
        if value is None and not required:
            return None
        if value is None or not allows(value):
            raise _wrong(self._of(name), value, allowed)
        return value

    def rest(self) -> dict[str, Any]:
        return self._record

    def end(self) -> None:
        """Nothing else may be there."""
        for name in self._record:
            raise ConfigError(f"{self._of(name)}: no such field", field=self._of(name))

    def _of(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name


def _wrong(path: str, value: Any, allowed: str) -> ConfigError:
    shown = "nothing" if value is None else repr(value)[:80]
    return ConfigError(f"{path} = {shown}: must be {allowed}", field=path, value=shown, allowed=allowed)


_DELAY = f"seconds from 0 to {MAX_DELAY_S:g}"


def _is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _is_rate(value: object) -> bool:
    return _is_number(value, 125, 12.5e9)


def _is_delay(value: object) -> bool:
    return _is_number(value, 0, MAX_DELAY_S)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON would take the last of two fields of one name."""
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return record


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")
