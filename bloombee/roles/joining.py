"""A worker's way in: Join over the link to a head until that has answered, and Hello once it has."""

from __future__ import annotations

import asyncio

from bloombee.config import WorkerConfig
from bloombee.roles.greeting import Greeter
from bloombee.roles.head_search import Found
from bloombee.roles.neighbours import CODECS
from bloombee.transport.endpoint import Endpoint
from bloombee.types import VERSION, Lane
from bloombee.wire.join import Joiner
from bloombee.wire.messages import PROTOCOL_VERSION, AnyMessage, Hello, Join, Joined

TICK_S = 0.1


class Joining:
    """Says Join from its making on.

    Args:
        head: where.
    """

    def __init__(self, endpoint: Endpoint, head: Found, join: Join, deadline_s: float) -> None:
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._joiner = Joiner(join, peer=head.endpoint, deadline_ns=int(deadline_s * 1e9))
        self._greeter = Greeter(
            endpoint, head.link, self._joiner, on_open=lambda _: self._done.set_result(None), on_error=self._done.set_exception
        )

    def received(self, lane: Lane, message: AnyMessage) -> None:
        """Joined, or Refused."""
        self._greeter.received(lane, message)

    async def run(self, over: asyncio.Future[None]) -> Joined:
        """What the head answers.

        Args:
            over: done, it is of no use to go on; what it raises is raised.

        Raises:
            AuthenticationError, VersionMismatch: it is not let in. DeadlineExceeded: no answer.
        """
        while not self._done.done():
            await asyncio.wait([self._done, over], timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                over.result()
            self._greeter.tick()
        self._done.result()
        assert self._joiner.joined is not None
        return self._joiner.joined


def join_of(config: WorkerConfig, *, secret: bytes, name: str, endpoint: str, memory_bytes: int) -> Join:
    """Of a worker that others dial at ``endpoint``."""
    return Join(PROTOCOL_VERSION, secret, name, VERSION, endpoint, config.device, memory_bytes, CODECS)


def hello_of(joined: Joined) -> Hello:
    """The first that a worker which was let in says on each lane."""
    return Hello(PROTOCOL_VERSION, joined.swarm, joined.worker, VERSION, CODECS, sent_ns=0)
