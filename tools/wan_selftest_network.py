"""Is an emulated network what its file says? Links by (from, to), shared lines, set-up, resets, outages; and the simulated one.

Part of ``tools/wan.py --self-test``: asked and measured side by side, from outside, through plain sockets.
"""

from __future__ import annotations

import random
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from bloombee.plan.document import parse_network
from bloombee.sim.clock import VirtualClock
from bloombee.sim.network import SimNetwork
from bloombee.types import Lane
from tools.wan_network import Network

TOLERANCE = 0.05
TOLERANCE_S = 1e-3
AGREEMENT = 0.10
"""Of simulated and emulated times."""
MBIT = 125_000
Flow = tuple[str, str, int]
"""From, to, bytes."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was asked and what was measured, in the same unit."""

    name: str
    asked: float
    measured: float
    unit: str
    tolerance: float = TOLERANCE
    floor: float = 0.0

    @property
    def is_met(self) -> bool:
        return abs(self.measured - self.asked) <= max(self.tolerance * self.asked, self.floor)

    def __str__(self) -> str:
        error = self.measured / self.asked - 1
        verdict = "" if self.is_met else "  FAILED"
        return f"{self.name:<66} {self.asked:>9.2f} {self.measured:>9.2f} {self.unit:<6} {error:>+7.2%}{verdict}"


def network_checks() -> Iterator[Check]:
    """As they are measured; about 15 s."""
    for measure in (_pairs, _shared, _set_up, _per_link_schedule, _reset, _outage, _simulated):
        yield from measure()


# -- what is measured ------------------------------------------------------------------------


def _pairs() -> Iterator[Check]:
    """A pair gets the lesser of the sender's up and the receiver's down, and of the link between them."""
    nodes = {
        "a": {"up_bytes_per_s": 40 * MBIT, "delay_s": 0.005},
        "b": {"down_bytes_per_s": 10 * MBIT, "delay_s": 0.010},
        "c": {},
    }
    with _up(nodes, [{"from": "c", "to": "a", "bandwidth_bytes_per_s": 20 * MBIT}]) as run:
        for source, target, mbit in (("a", "b", 10), ("a", "c", 40), ("c", "a", 20)):
            (rate,) = run.rates([(source, target, mbit * MBIT)])
            yield Check(f"{source} -> {target} alone: the lesser of up, link and down", mbit, rate, "Mbit/s")
        yield Check("a -> b: the delays of both lines", 15, 1e3 * run.one_way_s("a", "b"), "ms", floor=1e3 * TOLERANCE_S)


def _shared() -> Iterator[Check]:
    """Two flows of one node get half of its line each, however long their ways are."""
    nodes: dict[str, Any] = {"a": {"up_bytes_per_s": 20 * MBIT, "down_bytes_per_s": 16 * MBIT}, "b": {}, "c": {"delay_s": 0.1}}
    with _up(nodes) as run:
        for source, target, rate in zip("aa", "bc", run.rates([("a", "b", 20 * MBIT), ("a", "c", 20 * MBIT)]), strict=True):
            yield Check(f"{source} -> {target} beside the other: half of a line up", 10, rate, "Mbit/s")
        for source, rate in zip("bc", run.rates([("b", "a", 16 * MBIT), ("c", "a", 16 * MBIT)]), strict=True):
            yield Check(f"{source} -> a beside the other: half of a line down", 8, rate, "Mbit/s")


def _set_up() -> Iterator[Check]:
    """The first byte of a new connection is there after one and a half round trips, of one that stands after half of one."""
    for delay_s in (0.010, 0.050):
        with _up({"a": {"delay_s": delay_s / 2}, "b": {"delay_s": delay_s / 2}}) as run:
            first_s = statistics.median(run.first_byte_s("a", "b") for _ in range(5))
            yield Check("first byte of a new connection: 1.5 round trips", 3e3 * delay_s, 1e3 * first_s, "ms", floor=1.0)
            standing_s = run.one_way_s("a", "b")
            yield Check("a byte on one that stands: half a round trip", 1e3 * delay_s, 1e3 * standing_s, "ms", floor=1.0)


def _per_link_schedule() -> Iterator[Check]:
    """One link becomes narrow, the other of the same node does not."""
    links = [
        {"from": "a", "to": "b", "bandwidth_bytes_per_s": 20 * MBIT, "schedule": ["100ms bandwidth=x0.1"]},
        {"from": "a", "to": "c", "bandwidth_bytes_per_s": 20 * MBIT},
    ]
    with _up({"a": {}, "b": {}, "c": {}}, links) as run:
        run.network.start()
        time.sleep(0.15)
        narrow, wide = run.rates([("a", "b", 2 * MBIT), ("a", "c", 20 * MBIT)])
        yield Check("a -> b after its schedule's step to a tenth", 2, narrow, "Mbit/s")
        yield Check("a -> c, which has no schedule", 20, wide, "Mbit/s")


def _reset() -> Iterator[Check]:
    """A reset of a schedule is seen at both ends, at its time."""
    with _up({"a": {}, "b": {"delay_s": 0.02}}, [{"from": "a", "to": "b", "schedule": ["400ms reset"]}]) as run:
        run.network.start()
        began = time.monotonic()
        for end, whose in zip(run.pair("a", "b"), ("its caller", "its target"), strict=True):
            with end:
                try:
                    end.recv(1)
                    seen_s = float("nan")
                except ConnectionResetError:
                    seen_s = time.monotonic() - began
            yield Check(f"a reset at 400 ms, seen by {whose}", 400, 1e3 * seen_s, "ms", floor=5.0)


def _outage() -> Iterator[Check]:
    """What is sent into a dark link is there when it is bright again; the connection stays."""
    with _up({"a": {}, "b": {}}, [{"from": "a", "to": "b", "delay_s": 0.02, "schedule": ["200ms down", "600ms up"]}]) as run:
        client, server = run.pair("a", "b")
        with client, server:
            run.network.start()
            began = time.monotonic()
            time.sleep(0.3)
            client.sendall(b"x")
            server.recv(1)
            yield Check(
                "sent at 300 ms into an outage until 600 ms, 20 ms long", 620, 1e3 * (time.monotonic() - began), "ms", floor=5
            )


def _simulated() -> Iterator[Check]:
    """Transfers that share lines and links, all begun at once: when each has arrived."""
    nodes = {
        "head": {"up_bytes_per_s": 8 * MBIT, "down_bytes_per_s": 40 * MBIT, "delay_s": 0.010},
        "w0": {"beside": "head"},
        "w1": {"up_bytes_per_s": 20 * MBIT, "down_bytes_per_s": 20 * MBIT, "delay_s": 0.030},
        "w2": {"up_bytes_per_s": 12 * MBIT, "down_bytes_per_s": 50 * MBIT, "delay_s": 0.005},
    }
    links = [{"from": "w1", "to": "w2", "bandwidth_bytes_per_s": 10 * MBIT, "delay_s": 0.050}]
    flows: list[Flow] = [
        ("w0", "w1", 2 * MBIT),
        ("head", "w2", 3 * MBIT),
        ("w1", "w2", 5 * MBIT),
        ("w2", "head", 10 * MBIT),
        ("w2", "w1", 4 * MBIT),
    ]
    simulated = _simulated_s(nodes, links, flows)
    with _up(nodes, links) as run:
        emulated = run.transfer_s(flows)
    for (source, target, num_bytes), asked, measured in zip(flows, simulated, emulated, strict=True):
        name = f"{source} -> {target}, {num_bytes / 1e6:.2f} MB among {len(flows)} flows: simulated, emulated"
        yield Check(name, 1e3 * asked, 1e3 * measured, "ms", AGREEMENT)


def _simulated_s(nodes: dict[str, Any], links: list[dict[str, Any]], flows: Sequence[Flow]) -> list[float]:
    clock = VirtualClock()
    network = SimNetwork(clock, parse_network({"version": 1, "nodes": nodes, "links": links}), rng=random.Random(0))
    ends: dict[int, float] = {}

    def note(number: int) -> Callable[[], None]:
        return lambda: ends.update({number: clock.now})

    for number, (source, target, num_bytes) in enumerate(flows):
        network.link(source, target).send(num_bytes, note(number), lane=Lane.BULK, reliable=True)
    clock.run(lambda: len(ends) == len(flows), deadline_s=3600.0)
    return [ends[number] for number in range(len(flows))]


# -- how -------------------------------------------------------------------------------------


class _Running:
    """A network that is up, with a listening socket at each node."""

    def __init__(self, network: Network, servers: dict[str, socket.socket]) -> None:
        self.network = network
        self._servers = servers

    def pair(self, source: str, target: str) -> tuple[socket.socket, socket.socket]:
        """Both ends of a new connection that has been used once, so that it stands."""
        client = self.network.dial(source, target)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server, _ = self._servers[target].accept()
        client.sendall(b"a")
        server.recv(1)
        server.sendall(b"b")
        client.recv(1)
        return client, server

    def first_byte_s(self, source: str, target: str) -> float:
        """From dialling until the first byte is there."""
        began = time.monotonic()
        with self.network.dial(source, target) as client:
            client.sendall(b"a")
            server, _ = self._servers[target].accept()
            with server:
                server.recv(1)
                return time.monotonic() - began

    def one_way_s(self, source: str, target: str) -> float:
        """Of a byte on a connection that stands; median of 9."""
        client, server = self.pair(source, target)
        times = []
        with client, server:
            for _ in range(9):
                began = time.monotonic()
                client.sendall(b"a")
                server.recv(1)
                times.append(time.monotonic() - began)
        return statistics.median(times)

    def transfer_s(self, flows: Sequence[Flow]) -> list[float]:
        """Until each has arrived, all begun at once."""
        ends = [self.pair(source, target) for source, target, _ in flows]
        found = [0.0] * len(flows)
        go = threading.Barrier(2 * len(flows))

        def send(number: int) -> None:
            go.wait()
            ends[number][0].sendall(bytes(flows[number][2]))

        def receive(number: int) -> None:
            go.wait()
            began, left = time.monotonic(), flows[number][2]
            while left:
                left -= len(ends[number][1].recv(min(left, 1 << 16)))
            found[number] = time.monotonic() - began

        threads = [threading.Thread(target=what, args=(number,)) for number in range(len(flows)) for what in (send, receive)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for both in ends:
            for end in both:
                end.close()
        return found

    def rates(self, flows: Sequence[Flow]) -> list[float]:
        """Mbit/s of each, all begun at once: its bytes over its time, less the delay that the first of them takes."""
        delays = [self.network.spec.delay_s(source, target) for source, target, _ in flows]
        times = self.transfer_s(flows)
        return [num_bytes / MBIT / (took - delay) for (_, _, num_bytes), took, delay in zip(flows, times, delays, strict=True)]


@contextmanager
def _up(nodes: dict[str, Any], links: Sequence[dict[str, Any]] = ()) -> Iterator[_Running]:
    spec = parse_network({"version": 1, "nodes": nodes, "links": list(links)})
    with Network(spec) as network, ExitStack() as stack:
        servers = {}
        for name in spec.nodes:
            host, _, port = network.listen(name).removeprefix("tcp://").rpartition(":")
            servers[name] = stack.enter_context(socket.create_server((host, int(port))))
        yield _Running(network, servers)
