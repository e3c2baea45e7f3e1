"""The event loop that the project's own threads and processes run on."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import Callable

log = logging.getLogger(__name__)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, or asyncio's where there is no uvloop."""
    hold_standard_files()
    return _factory()()


def hold_standard_files() -> None:
    """Put the null device where standard files were closed, for good.

    The next socket would take such a number: what somebody prints would go into it, and libuv aborts its process rather than
    close one of them.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


@functools.cache
def _factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Asked once a process, so that what is missing is said once."""
    try:
        import uvloop
    except (ImportError, OSError) as error:
        log.info("no uvloop (%s): asyncio's own event loop serves, at more CPU a message", error)
        return asyncio.SelectorEventLoop  # ZeroMQ's sockets are watched by add_reader, which Windows' default loop lacks
    return uvloop.new_event_loop
