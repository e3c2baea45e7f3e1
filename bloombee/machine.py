"""What of this machine this process may use: cores and memory, as affinity and control groups leave it.

A container, a batch system or ``systemd-run`` gives a process a part of a machine, and the machine's own figures
(``os.cpu_count()``, what ``/proc/meminfo`` calls available) say nothing of it. Threads beyond the share wait for each other,
memory beyond it ends the process. Groups of version 1 and 2 are read, each with all that it lies in, as each of them binds.
Source: cgroups(7), the kernel's admin-guide/cgroup-v1 and admin-guide/cgroup-v2.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

ROOT = Path("/")
MEMORY_SHARE = 0.8
"""Of what is free, that workers may hold of a model: the rest is for what else starts, and for what no plan counts."""


@dataclass(frozen=True, slots=True)
class Share:
    """How much this process may use, and what holds it to that; ``bound_by`` is empty if only the machine does."""

    amount: int
    bound_by: str = ""


def cores(root: Path = ROOT) -> Share:
    """Threads that can compute at once, at least 1. Of a quota the whole cores: a thread that runs out of it holds up the rest.

    Args:
        root: where /proc and /sys are found.
    """
    whole = os.cpu_count() or 1
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else whole
    shares = [Share(whole), Share(own, f"an affinity to {own} of {whole} cores")]
    for group in _groups("cpu", root):
        quota = _cpu_quota(group)
        if quota is not None:
            shares.append(Share(max(1, int(quota)), f"the quota of {quota:g} cores of {group}"))
    return min(shares, key=lambda share: share.amount)


def free_memory(root: Path = ROOT) -> Share:
    """Bytes that can be had without taking any from who uses them; the caches of files count as free.

    Args:
        root: where /proc and /sys are found.
    """
    shares = [Share(int(psutil.virtual_memory().available))]
    for group in _groups("memory", root):
        limit = _memory_limit(group)
        if limit is not None:
            shares.append(Share(max(0, limit - _memory_used(group)), f"the limit of {limit / 2**30:.1f} GiB of {group}"))
    return min(shares, key=lambda share: share.amount)


def _cpu_quota(group: Path) -> float | None:
    """In cores; None if there is none."""
    words = _text(group / "cpu.max").split()  # version 2: "max 100000"
    if not words:
        words = [_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")]
    quota, period = (_number(word) for word in words[:2]) if len(words) >= 2 else (None, None)
    return quota / period if quota and period and quota > 0 else None


def _memory_limit(group: Path) -> int | None:
    """In bytes; None if there is none. Version 1 has a number near 2**63 for none, and says what binds from above."""
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    limits = [_number(_text(group / name)) for name in names]
    limits.append(_fields(group).get("hierarchical_memory_limit"))
    return min((limit for limit in limits if limit is not None and limit < 2**62), default=None)


def _memory_used(group: Path) -> int:
    """Without what the kernel gives back when memory is short. A group's numbers of version 2 include those below it."""
    used = _number(_text(group / "memory.current")) or _number(_text(group / "memory.usage_in_bytes")) or 0
    fields = _fields(group)
    prefix = "total_" if "total_inactive_file" in fields else ""
    names = (f"{prefix}inactive_file", f"{prefix}active_file", "slab_reclaimable")
    return max(0, used - sum(fields.get(name, 0) for name in names))


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The directories of the groups that this process is in, innermost first, of either version."""
    for version, mount, top in _mounts(controller, root):
        own = _own_group(controller, version, root)
        if own is None:
            continue
        # What lies above a mount is not to be seen; a path from elsewhere (another namespace) is where we are: the mount.
        inside = own.relative_to(top) if own.is_relative_to(top) and ".." not in own.parts else PurePosixPath()
        if not (mount / inside).is_dir():
            inside = PurePosixPath()
        for part in (inside, *inside.parents) if inside.parts else (inside,):
            yield mount / part


def _mounts(controller: str, root: Path) -> Iterator[tuple[int, Path, PurePosixPath]]:
    """(version, where it is mounted, the group that is mounted there) of the hierarchies that may have ``controller``."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        place, kind = before.split(), after.split()
        if len(place) < 5 or len(kind) < 3:
            continue
        version = {"cgroup": 1, "cgroup2": 2}.get(kind[0])
        if version == 2 or (version == 1 and controller in kind[2].split(",")):
            yield version, root / _unescaped(place[4]).lstrip("/"), PurePosixPath(_unescaped(place[3]))


def _own_group(controller: str, version: int, root: Path) -> PurePosixPath | None:
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (version == 2 and number == "0" and not controllers) or (version == 1 and controller in controllers.split(",")):
            return PurePosixPath(path)
    return None


def _fields(group: Path) -> dict[str, int]:
    pairs = (line.split() for line in _text(group / "memory.stat").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(text: str) -> int | None:
    """None for "max", and for nothing."""
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: Path) -> str:
    """Empty if there is no such file, or none that may be read."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""


def _unescaped(path: str) -> str:
    """mountinfo writes blanks and the like as octal numbers."""
    for code in ("\\040", "\\011", "\\012", "\\134"):
        path = path.replace(code, chr(int(code[1:], 8)))
    return path
