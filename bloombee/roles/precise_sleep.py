"""Sleeping to a moment, for emulated devices: asleep until shortly before it, awake for the rest."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time

SPIN_NS = 100_000
"""The last stretch is spent awake: a sleeping thread wakes up to this much late on a machine that has a core free."""
PR_SET_TIMERSLACK = 29


def wake_exactly() -> None:
    """Ask the kernel to wake this thread when its time is up, not up to 50 us later. Linux only, else nothing."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)


def sleep_until(moment_ns: int) -> None:
    """Return at ``moment_ns`` of the monotonic clock; at once if it has passed."""
    left_ns = moment_ns - time.monotonic_ns()
    if left_ns > SPIN_NS:
        time.sleep((left_ns - SPIN_NS) / 1e9)
    while time.monotonic_ns() < moment_ns:
        pass
