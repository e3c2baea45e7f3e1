"""A relay with a delay whose connections can be reset: what lies between two processes of a swarm, for tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import bloombee
from bloombee.config import LocalWorker
from tools.ports import free_ports

LARGE_BYTES = 1 << 13
"""Such a write is the rows of a frame, but for some of its ends."""


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
    num_to_damage: int = 0
    """In so many large writes to come one bit is flipped."""
    _is_dark: bool = False
    _held: list[tuple[asyncio.StreamWriter, bytes]] = field(default_factory=list)
    _open: list[asyncio.StreamWriter] = field(default_factory=list)
    _server: asyncio.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def is_dark(self) -> bool:
        """What comes is held back until there is light again."""
        return self._is_dark

    @is_dark.setter
    def is_dark(self, dark: bool) -> None:
        self._is_dark = dark
        if not dark:
            held, self._held = self._held, []
            for sink, data in held:
                self._write(sink, data)

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
        if self.num_to_damage and len(data) >= LARGE_BYTES:
            self.num_to_damage -= 1
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        if self._is_dark:
            self._held.append((sink, data))
        elif not sink.is_closing() and not self.is_deaf:
            sink.write(data)


@dataclass
class RelayNetwork:
    """Relays between a head and its workers, and before the workers that are dialled."""

    heads: list[Relay]
    hops: list[Relay]

    @property
    def relays(self) -> list[Relay]:
        return [*self.heads, *self.hops]

    @property
    def ring(self) -> list[Relay]:
        """What the rows of a step cross: from stage to stage, and home."""
        return [*self.hops, self.heads[-1]]


@contextlib.asynccontextmanager
async def behind_relays(rtt_s: float, **arguments: Any) -> AsyncIterator[tuple[bloombee.Runtime, RelayNetwork]]:
    """Three workers, each link of which goes through a relay."""
    listen, ports = free_port(), [free_port() for _ in range(3)]
    network = RelayNetwork([Relay(listen, rtt_s) for _ in range(3)], [Relay(port, rtt_s) for port in ports[1:]])
    for relay in network.relays:
        await relay.listen()
    advertised = [None, *(hop.endpoint for hop in network.hops)]
    places = [
        LocalWorker(head_endpoint=head.endpoint, listen=f"tcp://127.0.0.1:{port}", advertise=advertise)
        for head, port, advertise in zip(network.heads, ports, advertised, strict=True)
    ]
    runtime = bloombee.Runtime(
        "demo", workers=3, dtype="float32", threads=1, listen=f"tcp://127.0.0.1:{listen}", local_workers=places, **arguments
    )
    try:
        async with runtime:
            yield runtime, network
    finally:
        for relay in network.relays:
            relay.close()


async def stream_tokens(runtime: bloombee.Runtime, prompt: str, count: int, begun: asyncio.Event | None = None) -> list[int]:
    """Token ids of one request; ``begun`` is set once four have come."""
    found = []
    async for token in runtime.stream(prompt, max_new_tokens=count, ignore_eos=True):
        found.append(token.token_id)
        if begun is not None and len(found) == 4:
            begun.set()
    return found


def free_port() -> int:
    """A port that nobody held a moment ago."""
    return free_ports(1)[0]
