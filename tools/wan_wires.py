"""What a relay process emulates, by number: links, the access lines that they share, listeners and who comes from where."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from bench.schedules import Schedule, Step
from bench.shapes import Shape
from tools.wan_native import Relay, WanError

Shapes = tuple[Shape, Shape]
"""Of a link: forward, backward."""
Steps = tuple[tuple[Step, ...], tuple[Step, ...]]
Periods = tuple[float | None, float | None]
"""Likewise."""
Address = tuple[str, int]
"""Numeric host, port."""


@dataclass(frozen=True, slots=True)
class DirectionStats:
    """Counters of one direction since the start, and what it is at this moment."""

    bytes_in: int
    """Read from senders."""
    bytes_out: int
    """Handed to receivers' sockets."""
    busy_s: float
    """Time the wire spent on bytes; bytes over busy time is the bandwidth. 0 where there is no limit."""
    losses: int
    queued_bytes: int
    """In the relay: waiting for the wire, on their way, or due and not taken by the receiver."""
    waiting_bytes: int
    """Of these, not on the wire yet, or not yet past the last line of their way."""
    max_queued_bytes: int
    limit_bytes: int
    """What ``queued_bytes`` may reach before the relay stops reading."""
    kernel_bytes: int
    """In the relay's own socket buffers besides."""
    stopped_s: float
    """Time the relay did not read although there was something to read."""
    late_mean_s: float
    """How long after their time bytes were handed over: the emulator's own error."""
    late_max_s: float
    bandwidth_bits_per_s: float | None
    """Of the narrowest wire on the way."""
    delay_s: float
    is_up: bool

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Self:
        return cls(
            bytes_in=facts["bytes_in"],
            bytes_out=facts["bytes_out"],
            busy_s=facts["busy_ns"] / 1e9,
            losses=facts["losses"],
            queued_bytes=facts["queued_bytes"],
            waiting_bytes=facts["waiting_bytes"],
            max_queued_bytes=facts["max_queued_bytes"],
            limit_bytes=facts["limit_bytes"],
            kernel_bytes=facts["kernel_bytes"],
            stopped_s=facts["full_ns"] / 1e9,
            late_mean_s=facts["late_sum_ns"] / 1e9 / max(1, facts["late_chunks"]),
            late_max_s=facts["late_max_ns"] / 1e9,
            bandwidth_bits_per_s=facts["bits_per_s"] or None,
            delay_s=facts["delay_ns"] / 1e9,
            is_up=facts["up"],
        )


@dataclass(frozen=True, slots=True)
class LinkStats:
    name: str
    connections: int
    """Accepted since the start."""
    open: int
    failed: int
    """Accepted, but the target did not answer."""
    resets: int
    """Connections that the emulator reset, as asked."""
    forward: DirectionStats
    backward: DirectionStats

    @classmethod
    def of(cls, name: str, facts: dict[str, Any]) -> Self:
        directions = map(DirectionStats.of, facts["directions"])
        return cls(name, facts["connections"], facts["open"], facts["failed"], facts["resets"], *directions)


@dataclass(frozen=True, slots=True)
class LineStats:
    """An access line in one direction."""

    num_bytes: int
    """That have passed it."""
    busy_s: float
    bandwidth_bits_per_s: float | None
    is_up: bool

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Self:
        return cls(facts["bytes"], facts["busy_ns"] / 1e9, facts["bits_per_s"] or None, facts["up"])


class Refused(WanError):
    """A listener cannot listen; ``number`` is the listener's, ``reason`` the system's."""

    def __init__(self, number: int, reason: str, errno: int) -> None:
        super().__init__(reason)
        self.number, self.reason, self.errno = number, reason, errno


class Wires:
    """One relay process. Links, lines and listeners are added, then :meth:`listen`. Thread-safe after that.

    Raises:
        WanError: no compiler, not Linux; of every method: the relay refuses, or has ended.
    """

    def __init__(self) -> None:
        self._relay = Relay()
        self._num_links = self._num_lines = self._num_listeners = 0

    @property
    def pid(self) -> int:
        return self._relay.pid

    def add_link(self, shapes: Shapes, steps: Steps = ((), ()), period: Periods = (None, None)) -> int:
        """A link of two directions; ``steps`` and ``period`` of each."""
        number = self._num_links
        self._relay.ask("link", number)
        self._num_links += 1
        for d in (0, 1):
            self._add_wire(f"{number}.{d}", shapes[d], _stall_s(shapes), steps[d], period[d])
        return number

    def add_line(self, shape: Shape, *, is_uplink: bool, steps: tuple[Step, ...] = (), period_s: float | None = None) -> int:
        """An access line, before (``is_uplink``) or after the links' own wires; of ``shape`` only the bandwidth counts."""
        number = self._num_lines
        self._relay.ask("line", number, "up" if is_uplink else "down")
        self._num_lines += 1
        self._add_wire(f"@{number}", shape, 0.0, steps, period_s)
        return number

    def via(self, link: int, direction: int, up: int | None, down: int | None) -> None:
        """Lead a direction of a link over lines."""
        self._relay.ask("via", link, direction, *("-" if line is None else line for line in (up, down)))

    def add_listener(self, listen: Address, target: Address) -> int:
        number = self._num_listeners
        self._relay.ask("listener", number, *listen, *target)
        self._num_listeners += 1
        return number

    def route(self, listener: int, link: int, *, side: int, source: str = "*") -> None:
        """Callers of ``listener`` from the address ``source`` (default: any) are at end ``side`` of ``link``."""
        self._relay.ask("route", listener, link, side, source)

    def listen(self) -> tuple[list[int], str]:
        """(port of each listener, how the relay is scheduled).

        Raises:
            Refused: one cannot listen.
        """
        try:
            answer = self._relay.ask("listen")
        except WanError as error:
            found = re.match(r"listener (\d+): (.*)", str(error))
            if found is None:
                raise
            raise Refused(int(found[1]), found[2], getattr(error, "errno", 0)) from error
        return answer["ports"], answer["scheduler"]

    def start(self) -> None:
        """Schedules begin."""
        self._relay.ask("start")

    def shape(self, wire: str, shape: Shape, stall_s: float, is_up: bool) -> None:
        """From now on. ``wire``: ``LINK.DIRECTION`` or ``@LINE``; ``stall_s``: of a loss, unless the shape says."""
        self._relay.ask("shape", wire, *_words(shape, stall_s, is_up))

    def shape_link(self, link: int, shapes: Shapes, *, is_up: bool) -> None:
        """Both directions, from now on."""
        for d in (0, 1):
            self.shape(f"{link}.{d}", shapes[d], _stall_s(shapes), is_up)

    def reset(self, link: int) -> None:
        """RST to both ends of all its connections."""
        self._relay.ask("reset", link)

    def stats(self) -> dict[str, Any]:
        """As the relay tells: ``links``, ``lines``, ``strangers``."""
        return self._relay.ask("stats")

    def close(self) -> dict[str, Any]:
        """End the process; the last counters."""
        try:
            return self._relay.ask("quit")
        finally:
            self._relay.close()

    def abandon(self) -> None:
        """End the process, whatever it says."""
        self._relay.close()

    def _add_wire(self, wire: str, shape: Shape, stall_s: float, steps: tuple[Step, ...], period_s: float | None) -> None:
        self.shape(wire, shape, stall_s, is_up=True)
        for step in steps:
            self._relay.ask("step", wire, _ns(step.at_s), int(step.reset), *_words(step.shape, stall_s, step.is_up))
        if period_s is not None:
            self._relay.ask("period", wire, _ns(period_s))


def periods_of(schedules: Sequence[Schedule | None]) -> Periods:
    """Of a link's two directions."""
    forward, backward = (schedule.period_s if schedule is not None else None for schedule in schedules)
    return forward, backward


def _stall_s(shapes: Shapes) -> float:
    """A round trip: how long a loss holds up its connection unless the shape says."""
    return shapes[0].delay_s + shapes[1].delay_s


def _words(shape: Shape, stall_s: float, is_up: bool) -> tuple[object, ...]:
    """A shape as the relay reads it."""
    stall_s = stall_s if shape.stall_s is None else shape.stall_s
    return (
        repr(shape.bandwidth_bits_per_s or 0.0),
        _ns(shape.delay_s),
        _ns(shape.jitter_s),
        repr(shape.loss),
        _ns(stall_s),
        int(is_up),
    )


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
