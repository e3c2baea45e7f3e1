"""What one direction of an emulated link is like, and how its numbers are written."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from bench.arguments import OptionError

_BITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}

MIN_BITS_PER_S, MAX_BITS_PER_S = 1e3, 1e11
MAX_DELAY_S = 60.0


class ShapeError(OptionError):
    """A number that is malformed or out of range; the message says what is allowed."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One direction of a link.

    Args:
        bandwidth_bits_per_s: 1e3 to 1e11, or None for no limit.
        delay_s: one way, 0 to 60.
        jitter_s: the delay wanders within +- this, its mean stays; at most ``delay_s``.
        loss: probability in [0, 1) that a packet of 1,448 bytes is lost. TCP repairs it, so what a
            connection sees is a stall, which holds up that connection's later bytes too.
        stall_s: how long one loss holds up its connection; None: one round trip of the link.

    Raises:
        ShapeError: a value out of range.
    """

    bandwidth_bits_per_s: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    stall_s: float | None = None

    def __post_init__(self) -> None:
        bandwidth = self.bandwidth_bits_per_s
        for ok, field, allowed in (
            (
                bandwidth is None or MIN_BITS_PER_S <= bandwidth <= MAX_BITS_PER_S,
                "bandwidth_bits_per_s",
                "from 1e3 to 1e11, or None (no limit)",
            ),
            (0 <= self.delay_s <= MAX_DELAY_S, "delay_s", "from 0 to 60"),
            (0 <= self.jitter_s <= self.delay_s, "jitter_s", f"from 0 to the delay ({self.delay_s:g} s)"),
            (0 <= self.loss < 1, "loss", "in [0, 1)"),
            (self.stall_s is None or 0 <= self.stall_s <= MAX_DELAY_S, "stall_s", "from 0 to 60, or None (one round trip)"),
        ):
            if not ok:
                raise ShapeError(f"{field} = {getattr(self, field)!r}: must be {allowed}")

    def scaled(self, factor: float) -> Shape:
        """Bandwidth times ``factor``; no limit stays no limit."""
        if self.bandwidth_bits_per_s is None:
            return self
        return replace(self, bandwidth_bits_per_s=self.bandwidth_bits_per_s * factor)

    def __str__(self) -> str:
        bandwidth = "no limit" if self.bandwidth_bits_per_s is None else format_bandwidth(self.bandwidth_bits_per_s)
        parts = [bandwidth, f"{self.delay_s * 1e3:g} ms"]
        parts += [f"+-{self.jitter_s * 1e3:g} ms"] if self.jitter_s else []
        parts += [f"loss {self.loss:g}"] if self.loss else []
        return ", ".join(parts)


UNSHAPED = Shape()


def parse_bandwidth(text: str) -> float:
    """``100M``, ``1.5G``, ``56k`` (bits per second) as a number.

    Raises:
        ShapeError: malformed, or outside 1e3 to 1e11.
    """
    value = _number(text, _BITS, "a bandwidth in bits per second, such as 20M or 1.5G")
    if not MIN_BITS_PER_S <= value <= MAX_BITS_PER_S:
        raise ShapeError(f"bandwidth {text!r}: must be from 1k to 100G")
    return value


def parse_duration(text: str) -> float:
    """``60ms``, ``1.5s``, ``200us`` in seconds.

    Raises:
        ShapeError: malformed or not finite.
    """
    return _number(text, _SECONDS, "a time with its unit, such as 60ms or 1.5s")


def format_bandwidth(bits_per_s: float) -> str:
    for unit in ("G", "M", "k"):
        if bits_per_s >= _BITS[unit]:
            return f"{bits_per_s / _BITS[unit]:g} {unit}bit/s"
    return f"{bits_per_s:g} bit/s"


def _number(text: str, units: dict[str, float], what: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([a-zA-Z]*)", text.strip(), re.ASCII)
    if match is None or match[2] not in units:
        raise ShapeError(f"{text!r} is not {what}")
    value = float(match[1]) * units[match[2]]
    if not math.isfinite(value):
        raise ShapeError(f"{text!r} is not {what}")
    return value
