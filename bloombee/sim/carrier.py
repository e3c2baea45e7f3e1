"""What lies between the parties of a simulated swarm: links by the names of their ends, and every message that goes over them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from bloombee.errors import ConfigError
from bloombee.plan.network import HEAD_NODE, Network
from bloombee.plan.topology import Cores, Link
from bloombee.sim.clock import VirtualClock
from bloombee.sim.cpu import CorePool, Crowd
from bloombee.sim.network import Faults, LinkShape, SimLink, SimNetwork
from bloombee.types import Lane, WorkerId
from bloombee.wire.messages import AnyMessage, Ask, Forward, Told, Verdict
from bloombee.wire.rules import check_message

HEADER_BYTES = 160
"""What a frame costs besides its rows: envelope, ZeroMQ, CURVE, TCP/IP."""
HEAD, SCHEDULER = "head", "scheduler"


def stage_name(index: int) -> str:
    """Of the end of a link at that stage."""
    return f"stage{index}"


def worker_name(worker: WorkerId) -> str:
    """Of the end of a link at that worker, whether or not it has a stage."""
    return f"worker{worker}"


class SimCarrier:
    """Links between ``head``, ``scheduler``, ``stage0``, ...; arguments as those of :class:`~bloombee.sim.cluster.SimCluster`.

    Args:
        trace: gets a line for each message that arrives.
    """

    def __init__(
        self,
        clock: VirtualClock,
        trace: list[str],
        *,
        rng: random.Random,
        shape: LinkShape,
        shapes: Mapping[tuple[str, str], LinkShape],
        faults: Faults,
        row_bytes: int,
        network: Network | None,
        nodes: Sequence[str],
        cores: Cores | None,
        pool: CorePool,
    ) -> None:
        self.links: dict[tuple[str, str], SimLink] = {}
        self._clock = clock
        self._trace = trace
        self._rng = rng
        self._shape = shape
        self._shapes = shapes
        self._faults = faults
        self._row_bytes = row_bytes
        self._network = None if network is None else SimNetwork(clock, network, rng=rng, faults=faults)
        self._nodes = {HEAD: HEAD_NODE, SCHEDULER: HEAD_NODE, **{stage_name(i): node for i, node in enumerate(nodes)}}
        self._cores = cores
        self._pool = pool
        self.crowd = Crowd(rng)
        """Of who passes a stage's frames on."""

    def place(self, name: str, node: str) -> None:
        """Whoever is called ``name`` is at that node of the network."""
        self._nodes[name] = node

    def link(self, source: str, target: str) -> SimLink:
        """One direction between two parties; the same one each time."""
        if self._network is not None:
            return self._network.link(self._nodes[source], self._nodes[target])
        key = (source, target)
        if key not in self.links:
            self.links[key] = self._make_link(source, target)
        return self.links[key]

    def _make_link(self, source: str, target: str) -> SimLink:
        return SimLink(self._clock, self._rng, self._shapes.get((source, target), self._shape), self._faults)

    def seen(self, source: str, target: str) -> Link | None:
        """What is known of a link: here all there is to know."""
        link = self.link(source, target)
        return Link(link.bandwidth_bytes_per_s or math.inf, link.shape.latency_s)

    def num_pieces(self, source: str, target: str) -> int:
        """Of bulk, that have come over a link."""
        link = self.links.get((source, target))
        return 0 if link is None else link.num_pieces

    def carry(
        self,
        source: str,
        target: str,
        message: AnyMessage,
        deliver: Callable[[], None],
        *,
        reliable: bool,
        lane: Lane = Lane.CONTROL,
    ) -> None:
        """Bring ``message`` over; ``deliver`` is called when it is there, unless it is lost on the way.

        Raises:
            RemoteProtocolError: it breaks a rule between its fields, and could not be sent.
        """
        check_message(message)

        def arrive() -> None:
            self._trace.append(f"{self._clock.now:.9f} {source}->{target} {message!r}")
            deliver()

        self.link(source, target).send(self.num_bytes(source, message), arrive, lane=lane, reliable=reliable)

    def num_bytes(self, source: str, message: AnyMessage) -> int:
        """Of a message on the wire."""
        if isinstance(message, Forward) and source != SCHEDULER:
            return HEADER_BYTES + self._row_bytes * sum(item.num_rows for item in message.items)
        if isinstance(message, Ask):
            return HEADER_BYTES + sum(len(request.tokens) for request in message.requests)
        count = len(message.picks) if isinstance(message, Verdict) else len(message.given) if isinstance(message, Told) else 0
        return HEADER_BYTES + 16 * count

    def hop(self, source: str, target: str, message: AnyMessage, lane: Lane, deliver: Callable[[], None]) -> None:
        """Carry what a stage sends; with shared cores a frame first takes its turn there, and in a crowd it waits for one."""
        carry = partial(self.carry, source, target, message, deliver, reliable=False, lane=lane)
        cores = self._cores
        if cores is None or not isinstance(message, Forward | Verdict):
            late_s = self.crowd.late_s()
            if late_s:
                self._clock.call_later(late_s, carry)
            else:
                carry()
            return
        on_core_s = min(cores.hop_s, cores.hop_cpu_s)

        def go() -> None:
            self._pool.take(cores.hop_cpu_s - on_core_s, lambda: None)
            self._clock.call_later(cores.hop_s - on_core_s, carry)

        self._pool.take(on_core_s, go)


def check_nodes(network: Network | None, nodes: Sequence[str], num_stages: int) -> None:
    """Raises ConfigError unless every stage has its node."""
    if network is not None and len(nodes) != num_stages:
        raise ConfigError(f"{len(nodes)} nodes for {num_stages} stages: one each", field="nodes")
