"""The lines of standard input that a head answers, one after the other; with a state, until each has been answered."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass

from bloombee.errors import ConfigError
from bloombee.runtime import Runtime

_NAME = "line "


@dataclass(frozen=True, slots=True)
class Line:
    """
    Args:
        id: counted over all heads of one state. position: in the input that it was read from, from 1 on.
        text: without the line's end.
        request: that goes on for it from a head before this one; None: it has to begin.
    """

    id: int
    position: int
    text: bytes
    request: int | None = None

    @property
    def name(self) -> str:
        """As its note has it, and as the client of its request."""
        return f"{_NAME}{self.id}"


class Lines:
    """Those that heads before this one have read and not answered, then those of standard input.

    Lines are noted as they are read, all of them as soon as they are there; blank ones are none.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._keeps = runtime.config.state is not None
        self._queue = asyncio.Queue[Line | OSError | None]()
        self._position = 0
        notes = runtime.notes
        self._id = int(notes.get("lines", b"0"))
        requests = {running.client: running.id for running in runtime.running}
        left = sorted(int(name.removeprefix(_NAME)) for name in notes if name.startswith(_NAME))
        for id in left:
            position, _, text = notes[f"{_NAME}{id}"].partition(b" ")
            self._queue.put_nowait(Line(id, int(position), text, requests.get(f"{_NAME}{id}")))

    async def __aiter__(self) -> AsyncIterator[Line]:
        """Until the input ends; asks for each line on a terminal.

        A daemon thread reads, with a file object of its own: a read that nobody ends must hold up neither the loop nor
        the interpreter's exit, which takes the lock of sys.stdin.

        Raises:
            ConfigError: it cannot be read, as under nohup at a terminal.
        """
        loop = asyncio.get_running_loop()

        def read() -> None:
            end: OSError | None = None
            with contextlib.suppress(RuntimeError):  # the loop has ended
                try:
                    with open(sys.stdin.fileno(), "rb", closefd=False) as source:
                        for line in source:
                            loop.call_soon_threadsafe(self._take, line.rstrip(b"\r\n"))
                except OSError as error:
                    end = error
                loop.call_soon_threadsafe(self._queue.put_nowait, end)

        threading.Thread(target=read, name="stdin", daemon=True).start()
        while True:
            if sys.stdin.isatty():
                print("> ", end="", file=sys.stderr, flush=True)
            line = await self._queue.get()
            if line is None:
                return
            if isinstance(line, OSError):
                raise ConfigError(f"stdin cannot be read: {line.strerror}", field="prompt") from line
            yield line

    def _take(self, text: bytes) -> None:
        self._position += 1
        if not text.strip():
            return
        self._id += 1
        line = Line(self._id, self._position, text)
        if self._keeps:
            self._runtime.note(line.name, b"%d %s" % (line.position, text))
            self._runtime.note("lines", b"%d" % self._id)
        self._queue.put_nowait(line)

    def answered(self, line: Line) -> None:
        """Nothing is left to do about it."""
        if self._keeps:
            self._runtime.note(line.name, None)
