"""When compressing a link's activations pays, and where it is done. Pure arithmetic; source: docs/codec.md, "When".

A frame of S bytes that is encoded, sent and decoded one after the other is home sooner iff the bytes saved take longer on
the wire than coding takes::

    S (1 - 1/r) / bandwidth  >  S / Ve + S / Vd + t0
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from dataclasses import dataclass

SHORT_RTT_S = 0.001
"""A link of unknown bandwidth is taken for a local one, where coding does not pay, if its round trip is shorter."""


class CodecMode(enum.IntEnum):
    """What a plan asks of every link."""

    OFF = 0
    ON = 1
    AUTO = 2


@dataclass(frozen=True, slots=True)
class CodecSpeed:
    """Of this worker. ``fixed_s``: of one frame's encode and decode together, whatever its size."""

    encode_bytes_per_s: float
    decode_bytes_per_s: float
    fixed_s: float

    def break_even_bytes_per_s(self, num_bytes: int, ratio: float) -> float:
        """Bandwidth below which coding a frame of ``num_bytes`` pays; 0: never."""
        coding_s_per_byte = 1 / self.encode_bytes_per_s + 1 / self.decode_bytes_per_s + self.fixed_s / max(1, num_bytes)
        return max(0.0, 1 - 1 / ratio) / coding_s_per_byte


@dataclass(frozen=True, slots=True)
class LinkChoice:
    """Whether to code, for one link as it is now.

    Args:
        bandwidth_bytes_per_s: None while nothing has shown it.
        rtt_s: shortest round trip; None if unknown.
    """

    mode: CodecMode
    speed: CodecSpeed
    ratio: float
    bandwidth_bytes_per_s: float | None = None
    rtt_s: float | None = None

    def pays(self, num_bytes: int) -> bool:
        if self.mode is not CodecMode.AUTO:
            return self.mode is CodecMode.ON
        if self.bandwidth_bytes_per_s is None:
            return self.rtt_s is None or self.rtt_s >= SHORT_RTT_S
        return self.bandwidth_bytes_per_s < self.speed.break_even_bytes_per_s(num_bytes, self.ratio)

    def explain(self, num_bytes: int) -> str:
        """The rule with its figures, for people."""
        verdict = "on" if self.pays(num_bytes) else "off"
        if self.mode is not CodecMode.AUTO:
            return f"{verdict}: asked for"
        if self.bandwidth_bytes_per_s is None:
            rtt = "unknown" if self.rtt_s is None else f"{1e3 * self.rtt_s:.2f} ms"
            return f"{verdict}: bandwidth unknown yet, round trip {rtt} (local below {1e3 * SHORT_RTT_S:g} ms)"
        limit = self.speed.break_even_bytes_per_s(num_bytes, self.ratio)
        return (
            f"{verdict}: {8e-6 * self.bandwidth_bytes_per_s:.0f} Mbit/s against a break-even of {8e-6 * limit:.0f} Mbit/s"
            f" for frames of {num_bytes} bytes at a ratio of {self.ratio:.2f}"
        )


@dataclass(frozen=True, slots=True)
class Timings:
    """How long frames of a few sizes took: (bytes, seconds), two at least, by size. Others lie on the lines through them."""

    points: tuple[tuple[int, float], ...]

    def seconds(self, num_bytes: int) -> float:
        after = bisect_right(self.points, num_bytes, key=lambda point: point[0])
        after = min(max(after, 1), len(self.points) - 1)
        (size0, spent0), (size1, spent1) = self.points[after - 1 : after + 1]
        return max(0.0, spent0 + (spent1 - spent0) * (num_bytes - size0) / (size1 - size0))


@dataclass(frozen=True, slots=True)
class PlaceChoice:
    """Where a frame is coded, of values that are on a device: there, or by the processor; copies between the two included."""

    device: Timings
    processor: Timings

    def on_device(self, num_bytes: int) -> bool:
        return self.device.seconds(num_bytes) < self.processor.seconds(num_bytes)

    def explain(self) -> str:
        """What was measured, for people: size, device, processor."""
        return ", ".join(
            f"{size} B {1e6 * there:.0f}/{1e6 * here:.0f} us"
            for (size, there), (_, here) in zip(self.device.points, self.processor.points, strict=True)
        )
