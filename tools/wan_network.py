"""An emulated network of several nodes on one machine: links by (from, to), and access lines that links share.

Each node has an address of its own in 127.77.0.0/16, from which its process dials (``source``), and one endpoint that all others
dial. The relay knows by the caller's address whose link it is: so a worker has one address to advertise, whichever worker comes
before it, and every pair crosses a link of its own. No rights are needed. docs/wan.md has the file's format and the model::

    with Network.from_json("network.json") as network:
        places = [network.local_worker(name) for name in ("w0", "w1", "w2")]
        async with Runtime(model, workers=3, listen=network.listen("head"), local_workers=places) as rt: ...
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from bench.schedules import Schedule, ScheduleError, Step, parse_schedule
from bench.shapes import Shape
from bloombee.config import LocalWorker
from bloombee.plan.document import read_network
from bloombee.plan.network import HEAD_NODE, Node
from bloombee.plan.network import Network as Spec
from tools.ports import free_ports
from tools.wan_native import PortInUse, WanError
from tools.wan_wires import LineStats, LinkStats, Refused, Shapes, Wires, periods_of

HOST = "127.0.0.1"
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class NetworkStats:
    """Counters since the start.

    Args:
        links: by (from, to), each pair both ways round; ``forward`` is what goes from the first to the second, whoever dialled.
        up, down: of each access line, by its node.
        strangers: callers from an address that is no node's, or whose node does not reach this one; they were reset.
    """

    links: Mapping[Pair, LinkStats]
    up: Mapping[str, LineStats]
    down: Mapping[str, LineStats]
    strangers: int


class Network:
    """Nodes and links that exist from ``with`` to the end of its block. Thread-safe.

    Args:
        ports: on which a node's own process listens, where that is given; default: free ones.

    Raises:
        ConfigError: a port of an unknown node; of the methods, an unknown node.
        ScheduleError: a schedule that cannot be read or followed; the message starts with the field's path.
        WanError: on entry, the relay cannot be built, or cannot listen; of the methods, the network is not up.
    """

    def __init__(self, spec: Spec, *, ports: Mapping[str, int] | None = None) -> None:
        self.spec = spec
        self._ports = dict(ports or {})
        for name in self._ports:
            spec.node(name)
        self._sources = {name: f"127.77.{number >> 8}.{number & 255}" for number, name in enumerate(spec.nodes, 1)}
        self._numbers = {pair: number for number, pair in enumerate(itertools.combinations(spec.nodes, 2))}
        self._sites = [name for name, node in spec.nodes.items() if node.beside is None]
        self._schedules = {pair: tuple(_link_schedule(spec, *ends) for ends in (pair, pair[::-1])) for pair in self._numbers}
        self._node_schedules = {name: _node_schedule(spec.nodes[name]) for name in self._sites}
        self._shapes: dict[Pair, Shape] = {}
        self._take_first_shapes()
        self._steps = {pair: self._link_steps(pair) for pair in self._numbers}
        self._line_steps = {name: _line_steps(spec.nodes[name], self._node_schedules[name]) for name in self._sites}
        self._endpoints: dict[str, int] = {}
        self._wires: Wires | None = None
        self._last: NetworkStats | None = None
        self.scheduler = ""
        """How the relay is scheduled: ``SCHED_RR`` where it may, else ``SCHED_OTHER``."""

    @classmethod
    def from_json(cls, path: str | os.PathLike[str], *, ports: Mapping[str, int] | None = None) -> Self:
        """Raises ConfigError if the file is no network; names the field. Else as the class."""
        return cls(read_network(path), ports=ports)

    def __enter__(self) -> Self:
        missing = [name for name in self.spec.nodes if name not in self._ports]
        self._ports |= dict(zip(missing, free_ports(len(missing)), strict=True))
        self._wires = Wires()
        try:
            self._add_all(self._wires)
            ports, self.scheduler = self._listen(self._wires)
        except BaseException:
            self._wires.abandon()
            self._wires = None
            raise
        self._endpoints = dict(zip(self.spec.nodes, ports, strict=True))
        self._wires.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends all links; :meth:`stats` then answers with the last counters. May be called twice."""
        if self._wires is not None:
            wires, self._wires = self._wires, None
            self._last = self._parse(wires.close())

    # -- where things are ------------------------------------------------------------------

    def listen(self, node: str) -> str:
        """``tcp://HOST:PORT`` at which the node's own process has to listen."""
        return self._endpoint(node, self._ports)

    def endpoint(self, node: str) -> str:
        """``tcp://HOST:PORT`` at which all others reach the node."""
        return self._endpoint(node, self._endpoints)

    def source(self, node: str) -> str:
        """The address from which the node's own process has to dial."""
        self.spec.node(node)
        return self._sources[node]

    def local_worker(self, node: str) -> LocalWorker:
        """A worker at the node, as the file says it is, for a head at the node ``head``."""
        return replace(
            self.spec.node(node).worker,
            listen=self.listen(node),
            advertise=self.endpoint(node),
            head_endpoint=self.endpoint(HEAD_NODE),
            source=self.source(node),
        )

    def dial(self, source: str, target: str, timeout_s: float = 30.0) -> socket.socket:
        """A connection from one node to another."""
        address = HOST, int(self.endpoint(target).rpartition(":")[2])
        return socket.create_connection(address, timeout=timeout_s, source_address=(self.source(source), 0))

    @property
    def pid(self) -> int:
        """Of the relay process, to account for its CPU time."""
        return self._running.pid

    # -- changes ---------------------------------------------------------------------------

    def start(self) -> None:
        """All links and lines take their first shapes again, and their schedules begin now."""
        self._take_first_shapes()
        for source, target in self._numbers:
            self.set(source, target)
            self.set(target, source)
        for name in self._sites:
            node = self.spec.nodes[name]
            self.set_line(name, up_bytes_per_s=node.up_bytes_per_s, down_bytes_per_s=node.down_bytes_per_s)
        self._running.start()

    def set(self, source: str, target: str, shape: Shape | None = None, *, is_up: bool = True) -> None:
        """Change one direction of a link from now on, until its schedule's next step.

        Args:
            shape: of the link's own wire, its delay that of the whole way; None: as it was set.
            is_up: False: nothing enters the wire until the next change; connections stay.
        """
        number, d = self._place(source, target)
        self._shapes[source, target] = shape or self._shapes[source, target]
        self._running.shape(f"{number}.{d}", self._shapes[source, target], self._round_trip_s(source, target), is_up)

    def set_line(
        self, node: str, *, up_bytes_per_s: float | None = None, down_bytes_per_s: float | None = None, is_up: bool = True
    ) -> None:
        """Change a node's access line from now on, until its schedule's next step; None: no limit."""
        number = self._sites.index(self.spec.site(node))
        for line, rate in ((2 * number, up_bytes_per_s), (2 * number + 1, down_bytes_per_s)):
            self._running.shape(f"@{line}", _line_shape(rate), 0.0, is_up)

    def reset(self, one: str, other: str) -> None:
        """Reset the connections between two nodes, at both ends at once; what is on its way is lost."""
        self._running.reset(self._place(one, other)[0])

    def stats(self) -> NetworkStats:
        """Counters; after the end, the last ones."""
        return self._last if self._wires is None and self._last is not None else self._parse(self._running.stats())

    # -- the relay's view ------------------------------------------------------------------

    def _add_all(self, wires: Wires) -> None:
        """Lines 2 i (up) and 2 i + 1 (down) of site i, a link for each pair, a listener for each node."""
        for name in self._sites:
            node, schedule = self.spec.nodes[name], self._node_schedules[name]
            period_s = schedule.period_s if schedule is not None else None
            up, down = self._line_steps[name]
            wires.add_line(_line_shape(node.up_bytes_per_s), is_uplink=True, steps=up, period_s=period_s)
            wires.add_line(_line_shape(node.down_bytes_per_s), is_uplink=False, steps=down, period_s=period_s)
        for pair, number in self._numbers.items():
            wires.add_link(self._both(pair), self._steps[pair], periods_of(self._schedules[pair]))
            for d, (source, target) in enumerate((pair, pair[::-1])):
                sender, receiver = self.spec.lines(source, target)
                if sender is not None and receiver is not None:
                    wires.via(number, d, 2 * self._sites.index(sender.name), 2 * self._sites.index(receiver.name) + 1)
        for name in self.spec.nodes:
            listener = wires.add_listener((HOST, 0), (HOST, self._ports[name]))
            for other in self.spec.nodes:
                if other != name and self.spec.reaches(other, name):
                    number, side = self._place(other, name)
                    wires.route(listener, number, side=side, source=self._sources[other])

    def _listen(self, wires: Wires) -> tuple[list[int], str]:
        try:
            return wires.listen()
        except Refused as error:
            kind = PortInUse if error.errno == errno.EADDRINUSE else WanError
            raise kind(f"node {list(self.spec.nodes)[error.number]!r} cannot be listened for: {error.reason}") from error

    def _parse(self, answer: dict[str, Any]) -> NetworkStats:
        links: dict[Pair, LinkStats] = {}
        for (one, other), facts in zip(self._numbers, answer["links"], strict=True):
            stats = LinkStats.of(f"{one} -> {other}", facts)
            links[one, other] = stats
            links[other, one] = replace(stats, name=f"{other} -> {one}", forward=stats.backward, backward=stats.forward)
        lines = [LineStats.of(facts) for facts in answer["lines"]]
        ups, downs = dict(zip(self._sites, lines[::2], strict=True)), dict(zip(self._sites, lines[1::2], strict=True))
        return NetworkStats(links, ups, downs, answer["strangers"])

    def _endpoint(self, node: str, ports: Mapping[str, int]) -> str:
        self.spec.node(node)
        if node not in ports:
            raise WanError("the network is not up: use `with Network(...)`")
        return f"tcp://{HOST}:{ports[node]}"

    @property
    def _running(self) -> Wires:
        if self._wires is None:
            raise WanError("the network is not up: use `with Network(...)`")
        return self._wires

    def _place(self, source: str, target: str) -> tuple[int, int]:
        """(number of the link, which of its directions) from ``source`` to ``target``."""
        for name in (source, target):
            self.spec.node(name)
        if source == target:
            raise WanError(f"{source!r} has no link to itself")
        is_first = (source, target) in self._numbers
        return self._numbers[(source, target) if is_first else (target, source)], 0 if is_first else 1

    def _take_first_shapes(self) -> None:
        for pair in self._numbers:
            for source, target in (pair, pair[::-1]):
                self._shapes[source, target] = _link_shape(self.spec, source, target)

    def _both(self, pair: Pair) -> Shapes:
        return self._shapes[pair], self._shapes[pair[::-1]]

    def _round_trip_s(self, source: str, target: str) -> float:
        return self._shapes[source, target].delay_s + self._shapes[target, source].delay_s

    def _link_steps(self, pair: Pair) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
        forward, backward = (
            _steps(f"links: {source} -> {target}", schedule, self._shapes[source, target])
            for (source, target), schedule in zip((pair, pair[::-1]), self._schedules[pair], strict=True)
        )
        return forward, backward


def _link_shape(spec: Spec, source: str, target: str) -> Shape:
    link = spec.link(source, target)
    bandwidth, delay_s = link.bandwidth_bytes_per_s, spec.delay_s(source, target)
    return Shape(None if bandwidth is None else 8 * bandwidth, delay_s, link.jitter_s, link.loss, link.stall_s)


def _line_shape(bytes_per_s: float | None) -> Shape:
    return Shape(None if bytes_per_s is None else 8 * bytes_per_s)


def _link_schedule(spec: Spec, source: str, target: str) -> Schedule | None:
    where, lines = f"links: {source} -> {target}: schedule", spec.link(source, target).schedule
    schedule = _read(where, lines)
    if schedule is not None and any(change.way is not None for change in schedule.changes):
        raise ScheduleError(f"{where}: a link of the file is one direction: neither forward nor backward")
    return schedule


def _node_schedule(node: Node) -> Schedule | None:
    where = f"nodes.{node.name}.schedule"
    schedule = _read(where, node.schedule)
    for change in schedule.changes if schedule is not None else ():
        if change.field not in ("bandwidth", "up", "reset"):
            raise ScheduleError(f"{where}: {change.field}: of an access line only its bandwidth changes, up and down, and reset")
    return schedule


def _read(where: str, lines: tuple[str, ...]) -> Schedule | None:
    with _named(where):
        return parse_schedule("\n".join(lines)) if lines else None


def _steps(where: str, schedule: Schedule | None, shape: Shape) -> tuple[Step, ...]:
    with _named(where):
        return schedule.steps(shape, "forward") if schedule is not None else ()


def _line_steps(node: Node, schedule: Schedule | None) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """Of a node's line up and its line down."""
    if schedule is None:
        return (), ()
    with _named(f"nodes.{node.name}.schedule"):
        up, down = _line_shape(node.up_bytes_per_s), _line_shape(node.down_bytes_per_s)
        return schedule.steps(up, "forward"), schedule.steps(down, "backward")


@contextlib.contextmanager
def _named(where: str) -> Any:
    """Errors of a schedule say whose it is."""
    try:
        yield
    except ScheduleError as error:
        raise ScheduleError(f"{where}: {error}") from error
