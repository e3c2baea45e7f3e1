"""What the tests of the transport share: an endpoint that records, waiting on conditions, raw attackers."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import zmq
from zmq.utils import z85

from bloombee.transport import Endpoint, KeyPair, LinkEvent, LinkEventKind
from bloombee.transport.keys import generate
from bloombee.types import Dtype, Kind, Lane, Priority
from bloombee.wire.envelope import HIDDEN, Envelope, TensorHeader, encode_envelope
from bloombee.wire.messages import Forward, Item, Join, Message

SWARM = 77
TIMEOUT_S = 20.0


class Side:
    """An endpoint, its keys, and all that it was told."""

    def __init__(self, *, head: bool = False, **options: Any) -> None:
        self.keys: KeyPair = options.pop("keys", None) or generate()
        self.messages: list[tuple[bytes, Lane, Envelope, list[bytes]]] = []
        self.events: list[LinkEvent] = []
        self.joins: list[tuple[bytes, bytes, Join]] = []
        self.address = ""
        self.react: Callable[[Any], None] = lambda message: None
        """Called with each message after it was noted."""
        self._changed = asyncio.Event()
        self.endpoint = Endpoint(
            self.keys,
            swarm=SWARM,
            on_message=self._on_message,
            on_event=self._on_event,
            on_join=self._on_join if head else None,
            **options,
        )

    def _on_message(self, link: bytes, lane: Lane, envelope: Envelope, payloads: list[memoryview]) -> None:
        self.messages.append((link, lane, envelope, [bytes(payload) for payload in payloads]))
        self._changed.set()
        self.react(envelope.message)

    def _on_event(self, event: LinkEvent) -> None:
        self.events.append(event)
        self._changed.set()

    def _on_join(self, link: bytes, key: bytes, join: Join) -> None:
        self.joins.append((link, key, join))
        self._changed.set()

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until ``condition`` holds; it is looked at after each message and event, and now and then."""
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 0.05)
        assert condition(), what

    def kinds(self, link: bytes | None = None) -> list[LinkEventKind]:
        return [event.kind for event in self.events if link is None or event.link == link]

    def event(self, kind: LinkEventKind) -> LinkEvent | None:
        return next((event for event in self.events if event.kind is kind), None)

    def said(self, kind: type[Message]) -> list[Any]:
        return [envelope.message for _, _, envelope, _ in self.messages if type(envelope.message) is kind]


@contextlib.asynccontextmanager
async def sides(*specs: dict[str, Any]) -> AsyncIterator[list[Side]]:
    """Sides, closed at the end; ``bind`` in a spec makes it listen."""
    made: list[Side] = []
    try:
        for spec in specs:
            bind = spec.pop("bind", False)
            made.append(Side(**spec))
            if bind:
                made[-1].address = await made[-1].endpoint.bind()
        yield made
    finally:
        for side in made:
            await side.endpoint.close(0)


async def linked(listener: Side, dialler: Side) -> bytes:
    """A link between the two, both lanes up on the dialling side."""
    link = os.urandom(16)
    listener.endpoint.allow(link, dialler.keys.public, 1)
    dialler.endpoint.dial(link, listener.address, listener.keys.public)
    await dialler.until(lambda: dialler.kinds(link).count(LinkEventKind.CONNECTED) == 2, "both lanes connect")
    return link


def forward(frame: int, num_bytes: int, codec: int = 1) -> tuple[Forward, tuple[TensorHeader, ...]]:
    """A one-row Forward whose payload is ``num_bytes`` long."""
    item = Item(1, 0, Kind.DECODE, 5, bytes(4), 1, None, None)
    tensor = TensorHeader(HIDDEN, Dtype.BFLOAT16, (1, 4096), codec, 8192, num_bytes, 0)
    return Forward(0, 1, frame, frame, Lane.CONTROL, Priority.NOW, (item,)), (tensor,)


class _Raw:
    """A raw socket with a context of its own."""

    socket: zmq.Socket[bytes]

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    async def hear(self, timeout_s: float = TIMEOUT_S) -> list[bytes] | None:
        """The next multipart, or None if there is none within the time."""
        found = await asyncio.to_thread(self.socket.poll, int(timeout_s * 1000))
        return self.socket.recv_multipart() if found else None

    def close(self) -> None:
        self._context.destroy(0)


class EvilListener(_Raw):
    """A raw ROUTER with a key of its own, for others to dial."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = generate()
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.CURVE_SERVER, 1)
        self.socket.setsockopt(zmq.CURVE_SECRETKEY, z85.encode(self.keys.secret))
        self.address = f"tcp://127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"


class Attacker(_Raw):
    """A raw DEALER with a key and routing id of its choice."""

    def __init__(self, address: str, server_key: bytes | None, *, routing_id: bytes, keys: KeyPair | None = None) -> None:
        super().__init__()
        self.keys = keys or generate()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.ROUTING_ID, routing_id)
        if server_key is not None:
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, z85.encode(self.keys.public))
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, z85.encode(self.keys.secret))
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, z85.encode(server_key))
        self.socket.connect(address)

    def say(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def say_message(self, message: Any, *, swarm: int = SWARM) -> None:
        self.say(encode_envelope(swarm, message))
