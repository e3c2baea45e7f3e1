"""Answers this user's other programs at a Unix socket (``roles/questions.py``); nothing that they say or leave hurts the head."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bloombee.errors import BloomBeeError, RemoteProtocolError
from bloombee.roles.questions import (
    MAX_QUESTION_BYTES,
    SUFFIX,
    answer_line,
    is_own,
    is_private,
    reachable,
    read_question,
    sockets_in,
)

log = logging.getLogger(__name__)
MOST_CALLERS = 16
PATIENCE_S = 10.0
"""For a question once a caller is there, for the next one, and for the answer to be taken."""
BUSY_S = 1.0
"""Before the next caller is taken when this process has no file for one."""
Told = Callable[[str], Callable[[], Any]]
"""Given what the question is about: what the head knows now, and then, on another thread since it may take long, what JSON can
hold of it. Raises BloomBeeError."""


class Reception:
    """Belongs to one event loop.

    Args:
        told: by what is asked.
    """

    def __init__(self, told: Mapping[str, Told]) -> None:
        self._told = told
        self._callers: set[asyncio.Task[None]] = set()
        self._serving: asyncio.Task[None] | None = None
        self._path: Path | None = None

    def open(self, folders: Sequence[Path]) -> None:
        """Answer in the first folder that will do. If there is none a line of the log says so, and the head goes on without."""
        reasons = []
        for folder in folders:
            try:
                listener, self._path = _bind(folder)
            except OSError as error:
                reasons.append(f"{folder}: {error.strerror or error}")
                continue
            self._serving = asyncio.get_running_loop().create_task(self._serve(listener), name="bloombee-reception")
            return
        log.warning("no other program can ask this head: %s", "; ".join(reasons))

    async def close(self) -> None:
        """Nobody is answered after this, and the socket is gone."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
        tasks = [task for task in (self._serving, *self._callers) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    caller, _ = await loop.sock_accept(listener)
                except OSError as error:
                    log.debug("a caller was not taken: %s", error)
                    await asyncio.sleep(BUSY_S)
                    continue
                if len(self._callers) < MOST_CALLERS and is_own(caller):
                    task = loop.create_task(self._talk(caller))
                    self._callers.add(task)
                    task.add_done_callback(self._hung_up)
                else:
                    caller.close()

    def _hung_up(self, task: asyncio.Task[None]) -> None:
        self._callers.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a question could not be answered: %s", error, exc_info=error)

    async def _talk(self, caller: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=caller, limit=MAX_QUESTION_BYTES)
        try:
            while (line := await _line(reader)) is not None:
                writer.write(await self._answer(line))
                async with asyncio.timeout(PATIENCE_S):
                    await writer.drain()
        except RemoteProtocolError as error:
            writer.write(answer_line(error))
        except (OSError, TimeoutError):
            writer.transport.abort()
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> bytes:
        """Raises RemoteProtocolError: who says that says nothing better next."""
        asked = read_question(line)
        try:
            if asked.ask not in self._told:
                raise RemoteProtocolError(f"{asked.ask!r} is nothing to ask; there are {', '.join(self._told)}", path="ask")
            make = self._told[asked.ask](asked.about)
            return await asyncio.to_thread(lambda: answer_line(make()))
        except BloomBeeError as error:
            return answer_line(error)


async def _line(reader: asyncio.StreamReader) -> bytes | None:
    """None: the caller has gone. Raises RemoteProtocolError: a line that is too long; TimeoutError: none came."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError:
        return None
    except asyncio.LimitOverrunError:
        raise RemoteProtocolError(f"a question has at most {MAX_QUESTION_BYTES} bytes", path="question") from None


def _bind(folder: Path) -> tuple[socket.socket, Path]:
    """A socket that listens, for this user alone, and where.

    Raises:
        OSError: the folder is not there, is not this user's, or has no room.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_private(folder):
        raise OSError(errno.EPERM, "others may write there, or it is another user's")
    sockets_in(folder)  # what dead heads have left goes
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path = _take_name(listener, folder)
        os.chmod(path, 0o600)
        listener.listen(128)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener, path


def _take_name(listener: socket.socket, folder: Path) -> Path:
    """Of this process; the first that no other head of it has."""
    for number in range(1, 1000):
        path = folder / f"{os.getpid()}{f'-{number}' if number > 1 else ''}{SUFFIX}"
        try:
            with reachable(path) as name:
                listener.bind(name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return path
    raise OSError(errno.EADDRINUSE, "a thousand heads of this process answer there")
