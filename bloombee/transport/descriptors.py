"""File descriptors: ZeroMQ aborts its whole process where it gets none, so what is needed is made sure of before."""

from __future__ import annotations

import errno
import os
import resource

from bloombee.errors import CapacityError

PROCESS_DESCRIPTORS = 64
"""Of a worker, or of a head besides its workers' connections. Counted: 45 at most in a worker in the middle of a ring, 28 in a
head (loop, sockets with their monitors, pipes); the rest is for reading checkpoints and for connections that come back."""
WORKER_DESCRIPTORS = 2
"""Of a head, for each worker: a connection a lane."""


def require_descriptors(workers: int = 0) -> None:
    """See that this process can open what a worker, or the head of so many ``workers``, needs.

    Raises the soft limit as far as that takes, where the hard one allows it.

    Raises:
        CapacityError: it cannot; says what the limit must be.
    """
    wanted = PROCESS_DESCRIPTORS + workers * WORKER_DESCRIPTORS
    if _can_open(wanted):
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = soft + wanted
    if hard in (resource.RLIM_INFINITY, -1) or limit <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        if _can_open(wanted):
            return
    raise CapacityError(
        f"this process may open too few files: its limit is {soft}, {wanted} are needed besides those that are open;"
        f" 'ulimit -n {limit}' in the shell that starts it will do",
        limit=soft,
        needed=limit,
    )


def spare_descriptors(wanted: int, workers: int) -> int:
    """How many of ``wanted`` connections more this process can have, besides what the head of so many ``workers`` needs.

    Raises the soft limit as far as that takes and the hard one allows. Where even the head gets too few, that says so.
    """
    needed = PROCESS_DESCRIPTORS + workers * WORKER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted + needed
    if not _can_open(most):
        allowed = soft + most if hard in (resource.RLIM_INFINITY, -1) else min(soft + most, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    while wanted > 1 and not _can_open(wanted + needed):
        wanted //= 2
    return wanted


def _can_open(count: int) -> bool:
    """Tried, since nothing says how many are open on every system."""
    opened: list[int] = []
    try:
        opened.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(count))
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        return False
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return True
