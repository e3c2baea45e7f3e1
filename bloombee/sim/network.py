"""Links in memory: latency, bandwidth, access lines that links share, and faults drawn from one seeded generator."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bloombee.errors import ConfigError
from bloombee.plan.network import Network
from bloombee.sim.clock import VirtualClock
from bloombee.types import Lane

PIECE_BYTES = 16 << 10
"""Of bulk that is committed to the wire at once: docs/wire.md section 9."""
QUANTUM_S = 0.5e-3
LEAST_QUANTUM_BYTES, MOST_QUANTUM_BYTES = 1448, 32 << 10
"""Where a way has several wires, all goes in pieces of so much of the narrowest one's time, as in the emulator (docs/wan.md): a
wire passes a piece on when it has all of it."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to a message on a link. Probabilities in [0, 1); delays uniform in [0, max_extra_delay_s]."""

    lose: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    max_extra_delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LinkShape:
    """One direction of a link. ``bandwidth_bytes_per_s`` None: unlimited."""

    latency_s: float = 0.0005
    bandwidth_bytes_per_s: float | None = None


@dataclass(slots=True, eq=False)
class _Piece:
    """Of a message, on its way over wires; ``then``: when it has left the one it is on."""

    num_bytes: int
    lane: Lane
    then: Callable[[], None]


@dataclass(slots=True, eq=False)
class _Flow:
    """What one link has waiting at a wire; ``finish``: in the wire's virtual time, of what was served."""

    waiting: dict[Lane, deque[_Piece]] = field(default_factory=lambda: {lane: deque() for lane in Lane})
    finish: float = 0.0

    @property
    def lane(self) -> Lane | None:
        """Whose turn it is: control goes between the pieces of bulk."""
        return next((lane for lane in Lane if self.waiting[lane]), None)


class SimWire:
    """One wire of finite bandwidth. Flows take turns, by bytes (start-time fair queueing, as in csrc/wan/wire.cpp)."""

    def __init__(self, clock: VirtualClock, bytes_per_s: float) -> None:
        self._clock = clock
        self.bytes_per_s = bytes_per_s
        self.busy_s = 0.0
        self._flows: dict[object, _Flow] = {}
        self._virtual = 0.0
        self._is_busy = False

    def send(self, flow: object, piece: _Piece) -> None:
        self._flows.setdefault(flow, _Flow()).waiting[piece.lane].append(piece)
        if not self._is_busy:
            self._begin()

    def _begin(self) -> None:
        turns = [
            (max(flow.finish, self._virtual), lane, flow) for flow in self._flows.values() if (lane := flow.lane) is not None
        ]
        self._is_busy = bool(turns)
        if not turns:
            return
        self._virtual, lane, flow = min(turns, key=lambda turn: turn[0])
        piece = flow.waiting[lane].popleft()
        flow.finish = self._virtual + piece.num_bytes
        seconds = piece.num_bytes / self.bytes_per_s
        self.busy_s += seconds

        def end() -> None:
            piece.then()
            self._begin()

        self._clock.call_later(seconds, end)


class SimLink:
    """One direction: its wires, two lanes. In order within a lane unless a fault delays a message past a later one; control
    goes between the pieces of bulk.

    Args:
        rng: shared by all links of a cluster, so that one seed gives one trace.
        lines: access lines that it shares, before and after its own wire.
    """

    def __init__(
        self,
        clock: VirtualClock,
        rng: random.Random,
        shape: LinkShape,
        faults: Faults,
        lines: tuple[SimWire | None, SimWire | None] = (None, None),
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._faults = faults
        self.shape = shape
        self.num_bytes = 0
        self.num_pieces = 0
        """Of bulk, that have left the last wire."""
        self._connection = 0
        self._is_cut = False
        self._held: list[tuple[int, Callable[[], None], Lane]] = []
        own = SimWire(clock, shape.bandwidth_bytes_per_s) if shape.bandwidth_bytes_per_s else None
        self._own_wire = own
        self._wires = [wire for wire in (lines[0], own, lines[1]) if wire is not None]

    @property
    def busy_s(self) -> float:
        """Of its own wire."""
        return self._own_wire.busy_s if self._own_wire is not None else 0.0

    @property
    def bandwidth_bytes_per_s(self) -> float | None:
        """Of the narrowest wire on the way; None: no limit."""
        return min((wire.bytes_per_s for wire in self._wires), default=None)

    def send(self, num_bytes: int, deliver: Callable[[], None], *, lane: Lane = Lane.CONTROL, reliable: bool = False) -> None:
        """Deliver after the wires' time and the latency; ``reliable`` messages meet no fault."""
        if self._is_cut and not reliable:
            self._held.append((num_bytes, deliver, lane))
            return
        self.num_bytes += num_bytes

        connection = self._connection

        def arrive() -> None:
            if reliable or connection == self._connection:
                self._arrive(deliver, reliable)

        if not self._wires:
            arrive()
            return
        *firsts, last = self._pieces(num_bytes, lane)
        for size in firsts:
            self._pass(0, size, lane, _nothing)
        self._pass(0, last, lane, arrive)

    def scale(self, factor: float) -> None:
        """Its own wire becomes ``factor`` times as wide, from the next piece on."""
        if self._own_wire is not None:
            self._own_wire.bytes_per_s *= factor

    def cut(self) -> None:
        """Its connections are reset: what is on its way is lost, and what is said meanwhile waits."""
        self._connection += 1
        self._is_cut = True

    def mend(self, *, keeps: bool) -> None:
        """The connections are back. ``keeps``: this end dialled, and what waited goes now; else it is lost."""
        self._is_cut = False
        held, self._held = self._held, []
        for num_bytes, deliver, lane in held if keeps else ():
            self.send(num_bytes, deliver, lane=lane)

    def _pass(self, hop: int, num_bytes: int, lane: Lane, arrive: Callable[[], None]) -> None:
        """Put a piece on wire ``hop``; from the last one it arrives."""
        is_last = hop + 1 == len(self._wires)

        def then() -> None:
            self.num_pieces += is_last and lane is Lane.BULK
            arrive() if is_last else self._pass(hop + 1, num_bytes, lane, arrive)

        self._wires[hop].send(self, _Piece(num_bytes, lane, then))

    def _pieces(self, num_bytes: int, lane: Lane) -> Sequence[int]:
        """Sizes of the pieces of a message; a single wire commits itself to all of a message that is not bulk."""
        size = PIECE_BYTES if lane is Lane.BULK else max(1, num_bytes)
        if len(self._wires) > 1:
            narrowest = min(wire.bytes_per_s for wire in self._wires)
            size = min(size, min(max(int(narrowest * QUANTUM_S), LEAST_QUANTUM_BYTES), MOST_QUANTUM_BYTES))
        whole, rest = divmod(num_bytes, size)
        return [size] * whole + ([rest] if rest or not whole else [])

    def _arrive(self, deliver: Callable[[], None], reliable: bool) -> None:
        """It has left the last wire."""
        arrival = self._clock.now + self.shape.latency_s
        if reliable:
            self._clock.call_at(arrival, deliver)
            return
        connection = self._connection

        def land() -> None:
            if connection == self._connection:
                deliver()

        copies = 1 - (self._rng.random() < self._faults.lose) + (self._rng.random() < self._faults.duplicate)
        for _ in range(copies):
            extra = self._rng.uniform(0, self._faults.max_extra_delay_s) if self._rng.random() < self._faults.delay else 0.0
            self._clock.call_at(arrival + extra, land)


def _nothing() -> None:
    """Of a message of which more is to come."""


class SimNetwork:
    """The links of a network file by (from, to), with the access lines that they share.

    Simulated ways have the mean of their delay: jitter and losses are left out, and so are connections that are made.

    Raises:
        ConfigError: something in the network changes over time.
    """

    def __init__(self, clock: VirtualClock, network: Network, *, rng: random.Random, faults: Faults | None = None) -> None:
        changing = [name for name, node in network.nodes.items() if node.schedule]
        changing += [f"{link.source} -> {link.target}" for link in network.links.values() if link.schedule]
        if changing:
            raise ConfigError(f"{changing[0]}: simulated links do not change over time; take its schedule out", field="schedule")
        self._clock, self._rng, self._faults = clock, rng, faults or Faults()
        self.network = network
        self._lines: dict[tuple[str, str], SimWire] = {}
        self._links: dict[tuple[str, str], SimLink] = {}

    def link(self, source: str, target: str) -> SimLink:
        """Of a pair of nodes; the same one each time.

        Raises:
            ConfigError: no such node.
        """
        key = source, target
        if key not in self._links:
            up, down = self.network.lines(source, target)
            lines = (
                None if up is None else self._line(up.name, "up", up.up_bytes_per_s),
                None if down is None else self._line(down.name, "down", down.down_bytes_per_s),
            )
            own = self.network.link(source, target)
            shape = LinkShape(self.network.delay_s(source, target), own.bandwidth_bytes_per_s)
            self._links[key] = SimLink(self._clock, self._rng, shape, self._faults, lines)
        return self._links[key]

    def _line(self, site: str, way: str, rate: float | None) -> SimWire | None:
        if rate is None:
            return None
        return self._lines.setdefault((site, way), SimWire(self._clock, rate))
