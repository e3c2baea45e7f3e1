"""What no implementation can beat on the links and devices asked for: delays, wire time, device time. Pure.

The ring of N workers has N links: stage 0 -> 1 -> ... -> N - 1 -> head; activations cross all but the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.shapes import Shape


@dataclass(frozen=True, slots=True)
class Floors:
    """Of one microbatch, alone, once round the ring."""

    delay_s: float
    """Sum of the one-way delays asked."""
    wires_s: tuple[float, ...]
    """Raw payload bits over the bandwidth asked, of each activation link."""
    computes_s: tuple[float, ...]
    """Device time of a forward, of each stage."""

    @property
    def wire_s(self) -> float:
        return sum(self.wires_s)

    @property
    def compute_s(self) -> float:
        return sum(self.computes_s)

    @property
    def loop_s(self) -> float:
        return self.delay_s + self.wire_s + self.compute_s

    @property
    def bottleneck_s(self) -> float:
        """The longest stage or wire: nothing passes faster."""
        return max(*self.wires_s, *self.computes_s, 1e-9)


def floors(links: Sequence[Shape], *, rows: int, row_bytes: int, computes_s: Sequence[float]) -> Floors:
    """Floors of a microbatch of ``rows``.

    Args:
        links: forward shapes in ring order, one a worker; none for a single worker.
    """
    wires = tuple(0.0 if s.bandwidth_bits_per_s is None else 8 * rows * row_bytes / s.bandwidth_bits_per_s for s in links[:-1])
    return Floors(sum(shape.delay_s for shape in links), wires, tuple(computes_s))


def microbatches_in_use(batch: int, microbatches: int) -> tuple[int, int]:
    """(how many, rows in the largest) when ``batch`` sequences are spread over at most ``microbatches``."""
    rows = math.ceil(batch / microbatches)
    return math.ceil(batch / rows), rows


def roofline_tokens_per_s(batch: int, microbatches: int, of_microbatch: Floors) -> float:
    """``batch`` tokens a step, which takes a loop or, if longer, the bottleneck's time for all microbatches."""
    count, _ = microbatches_in_use(batch, microbatches)
    return batch / max(count * of_microbatch.bottleneck_s, of_microbatch.loop_s)


def bubble(tokens_per_s: float, batch: int, microbatches: int, of_microbatch: Floors) -> float:
    """Share of the time in which the bottleneck stood idle, in [0, 1]."""
    count, _ = microbatches_in_use(batch, microbatches)
    return min(1.0, max(0.0, 1 - count * of_microbatch.bottleneck_s * tokens_per_s / batch))


def excess_per_hop_s(time_per_token_s: float, of_microbatch: Floors, hops: int) -> float:
    """What a token takes beyond the floor, spread over the hops."""
    return (time_per_token_s - of_microbatch.loop_s) / max(1, hops)
