"""The event loop that the project's own threads and processes run on."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, or asyncio's where there is no uvloop."""
    return _factory()()


@functools.cache
def _factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Asked once a process, so that what is missing is said once."""
    try:
        import uvloop
    except (ImportError, OSError) as error:
        log.info("no uvloop (%s): asyncio's own event loop serves, at more CPU a message", error)
        return asyncio.SelectorEventLoop  # ZeroMQ's sockets are watched by add_reader, which Windows' default loop lacks
    return uvloop.new_event_loop
