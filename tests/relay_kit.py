"""A relay with a delay whose connections can be reset: what lies between two processes of a swarm, for tests."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from tools.ports import free_ports


@dataclass
class Relay:
    """Listens on loopback and passes on to ``target`` (a port), each way ``rtt_s / 2`` late.

    A new connection costs a round trip before its first byte leaves, as TCP's own opening does.
    """

    target: int
    rtt_s: float = 0.0
    port: int = 0
    num_accepted: int = 0
    is_deaf: bool = False
    """What comes is swallowed, and the connections stay."""
    _open: list[asyncio.StreamWriter] = field(default_factory=list)
    _server: asyncio.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def num_open(self) -> int:
        """Connections that stand, each end of each."""
        return len([writer for writer in self._open if not writer.is_closing()])

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def reset(self) -> None:
        """Abort every connection, towards both ends."""
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_accepted += 1
        await asyncio.sleep(self.rtt_s)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open += [writer, back]
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer), return_exceptions=True)
        for end in (writer, back):
            end.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                loop.call_later(self.rtt_s / 2, self._write, sink, data)
        await asyncio.sleep(self.rtt_s / 2)

    def _write(self, sink: asyncio.StreamWriter, data: bytes) -> None:
        if not sink.is_closing() and not self.is_deaf:
            sink.write(data)


def free_port() -> int:
    """A port that nobody held a moment ago."""
    return free_ports(1)[0]
