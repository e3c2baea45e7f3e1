"""ZAP: who may finish a CURVE handshake with our ROUTER.

ZeroMQ asks at ``inproc://zeromq.zap.01`` of the socket's own context (RFC 27). The answer's User-Id is the
peer's public key in Z85; ZeroMQ then attaches it to every message of that connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq
from zmq.utils import z85

from bloombee.transport.sockets import ZAP_DOMAIN, Reader

_BUDGET = 64


class ZapHandler:
    """Answers ZAP requests on ``loop``.

    Args:
        may_enter: public key (32 bytes) -> whether it may connect.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], loop: asyncio.AbstractEventLoop, may_enter: Callable[[bytes], bool]
    ) -> None:
        self._may_enter = may_enter
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind("inproc://zeromq.zap.01")
        self._reader = Reader(loop, self._socket, self._drain)

    def close(self) -> None:
        self._reader.close()

    def _drain(self) -> bool:
        for _ in range(_BUDGET):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._answer(frames)
        return True

    def _answer(self, frames: list[bytes]) -> None:
        """[client, b"", version, request id, domain, address, routing id, mechanism, credentials...]."""
        if len(frames) != 9 or frames[2] != b"1.0":
            return
        request_id, domain, mechanism, key = frames[3], frames[4], frames[7], frames[8]
        if domain == ZAP_DOMAIN and mechanism == b"CURVE" and len(key) == 32 and self._may_enter(key):
            verdict = [b"200", b"OK", z85.encode(key), b""]
        else:
            verdict = [b"400", b"this key is not expected here", b"", b""]
        self._socket.send_multipart([frames[0], b"", b"1.0", request_id, *verdict], zmq.NOBLOCK)
