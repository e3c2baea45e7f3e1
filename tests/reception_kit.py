"""A head's socket for tests: a Reception on a loop of its own, and callers that say whatever they like."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bloombee.loop_thread import LoopThread
from bloombee.roles.questions import reachable
from bloombee.roles.reception import Reception, Told

STATUS = {"process": 1, "model": "demo", "workers": 2, "epoch": 1, "requests": 0}


def always(answer: Any) -> Told:
    return lambda _: lambda: answer


TOLD: Mapping[str, Told] = {"status": always(STATUS)}


@contextlib.contextmanager
def reception(folders: Sequence[Path], told: Mapping[str, Told] = TOLD) -> Iterator[None]:
    """One that is open."""
    home = LoopThread("reception")

    async def begin() -> Reception:
        begun = Reception(told)
        begun.open(folders)
        return begun

    begun = home.run(begin()).result(30)
    try:
        yield
    finally:
        home.run(begun.close()).result(30)
        home.end()


def call(path: Path) -> socket.socket:
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    caller.settimeout(30)
    with reachable(path) as name:
        caller.connect(name)
    return caller


def all_that_comes(caller: socket.socket) -> bytes:
    """Until the other end hangs up, in whichever way."""
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while part := caller.recv(1 << 16):
            data += part
    return bytes(data)
