"""Connections that cost no more than they should: bounded in number, and closed where nobody speaks or listens."""

from __future__ import annotations

import asyncio
import math
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from bloombee.serve.refusals import Refusal, not_now

HEAD_S = 20.0
"""In which a request's headers must have come, from the first byte of the connection or the end of the answer before."""
UNREAD_S = 60.0
"""An answer of which nothing is taken for so long has no reader."""
SEND_BYTES = 64 << 10
"""Of a connection that the system may hold back for a slow reader (Linux doubles it); what it takes from us is what was read,
but for so much."""
_ALIVE_S = 30


class Connection(H11Protocol):
    """One connection.

    ``most`` connections may be open at once; one more is told to come again.
    """

    most: int

    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    @classmethod
    def bounded(cls, most: int) -> type[Connection]:
        """Of one server."""
        return type("BoundedConnection", (cls,), {"most": most})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _watch(transport.get_extra_info("socket"))
        if len(self.connections) > self.most:
            self._refuse(not_now(f"{self.most} connections are open; try again", HEAD_S))  # by then the silent ones are closed
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        self._await_head()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._found_reader()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._found_reader()

    def send_400_response(self, msg: str) -> None:
        """Of what is no HTTP. Whoever was to answer the request that it belongs to finds nobody there any more."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(Refusal(400, msg))
        else:  # an answer has begun: nothing else can be said
            self.transport.close()

    def _await_head(self) -> None:
        self._stop_waiting()
        self._head = self.loop.call_later(HEAD_S, self._is_silent, math.inf)

    def _is_silent(self, untaken_before: float) -> None:
        """Nobody has asked for anything; but whoever still takes the answer before may go on with that."""
        untaken = self.transport.get_write_buffer_size()
        if 0 < untaken < untaken_before:
            self._head = self.loop.call_later(UNREAD_S, self._is_silent, untaken)
        else:
            self.transport.abort()

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _await_reader(self) -> None:
        self._unread = self.loop.call_later(UNREAD_S, self._is_deaf, self.transport.get_write_buffer_size())

    def _is_deaf(self, untaken_before: int) -> None:
        if self.transport.get_write_buffer_size() < untaken_before:
            self._await_reader()
        else:
            self.transport.abort()

    def _found_reader(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _refuse(self, refusal: Refusal) -> None:
        body = refusal.body
        told = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close", **refusal.headers}
        parts: list[Any] = [
            h11.Response(status_code=refusal.status, headers=list(told.items())),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        self.transport.write(b"".join(self.conn.send(part) or b"" for part in parts))
        self.transport.close()


def _watch(connection: Any) -> None:
    """Have the system give up a peer that is gone without a word, or takes nothing."""
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    for name, value in (("TCP_KEEPIDLE", _ALIVE_S), ("TCP_KEEPINTVL", 10), ("TCP_USER_TIMEOUT", int(UNREAD_S * 1e3))):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
