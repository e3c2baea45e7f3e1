"""How long a pipeline may show no sign of life before what is under way is given up. Pure.

Theory of operation. A worker that is gone or stopped, and a link that is lost, are found by whoever speaks with them. What is
left is a device that hangs, or a frame that never comes home: nothing says so but time, and how much time is right
depends on the model, the devices and the links. So it follows from what they have shown: the slowest microbatch of late,
scaled to the rows of the largest that is under way. And it is counted from the last sign that anything came on: a frame
acknowledged, a verdict, pieces that arrive somewhere. A prompt that crosses a slow link for minutes is no fault. Until a
microbatch of a phase has come home the caller's figure stands: a first forward may compile kernels or read weights from a disk.
"""

from __future__ import annotations

from collections.abc import Iterable

from bloombee.types import Phase

FACTOR = 4
"""Times as long as expected."""
SLACK_S = 10.0
"""Machines stall, and a neighbour on the same cores may start something."""
FORGETS = 1.001
"""By how much the slowest is doubted with each quicker one."""


class Patience:
    """Of one pipeline.

    Args:
        unknown_s: while nothing is known.
    """

    def __init__(self, unknown_s: float) -> None:
        self._unknown_s = unknown_s
        self._slowest: dict[Phase, tuple[float, int]] = {}

    def came_home(self, phase: Phase, rows: int, seconds: float) -> None:
        """A microbatch took so long, waits for others included."""
        slowest = self._slowest.get(phase)
        if slowest is None or seconds * FORGETS >= slowest[0]:
            self._slowest[phase] = (seconds, max(1, rows))
        else:
            self._slowest[phase] = (slowest[0] / FORGETS, slowest[1])

    def allows_s(self, under_way: Iterable[tuple[Phase, int]]) -> float:
        """Without a sign of life, while microbatches of such phases and rows are under way."""
        expected = 0.0
        for phase, rows in under_way:
            slowest = self._slowest.get(phase)
            if slowest is None:
                return self._unknown_s
            seconds, shown = slowest
            expected = max(expected, seconds * max(1.0, rows / shown))
        return FACTOR * expected + min(SLACK_S, self._unknown_s)
