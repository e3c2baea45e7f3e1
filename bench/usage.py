"""Whose CPU time a run took: ours without the relay, everybody's, and the cores there are."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass

import psutil

from bloombee.machine import cores


@dataclass(frozen=True, slots=True)
class CpuUse:
    """CPU seconds up to a moment."""

    at_s: float
    own_s: float
    """Of this process and all its descendants, the relay left out: it stands for the network."""
    machine_s: float

    def share_since(self, before: CpuUse) -> tuple[float, float]:
        """(ours, the rest's) share of all cores since ``before``."""
        available = max(1e-9, (self.at_s - before.at_s) * num_cores())
        own = (self.own_s - before.own_s) / available
        return own, max(0.0, (self.machine_s - before.machine_s) / available - own)


def num_cores() -> int:
    """That this process may use."""
    return cores().amount


def measure_cpu(relay_pid: int | None) -> CpuUse:
    """As of now. About a millisecond. Ours exact on Linux, elsewhere and the machine's in ticks of a hundredth of a second."""
    own = 0.0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        if process.pid != relay_pid:
            with contextlib.suppress(psutil.NoSuchProcess):
                own += _cpu_s(process)
    every = psutil.cpu_times()
    return CpuUse(time.monotonic(), own, sum(every) - every.idle - getattr(every, "iowait", 0.0) - getattr(every, "guest", 0.0))


def _cpu_s(process: psutil.Process) -> float:
    if sys.platform == "linux":  # the clock of another process's CPU time: clock_getcpuclockid(3)
        with contextlib.suppress(OSError):
            return time.clock_gettime((~process.pid << 3) | 2)
    times = process.cpu_times()
    return float(times.user + times.system)
