"""How a worker finds the head that its token tells of: every endpoint is dialled at once, the best that proves the key is it.

A head that listens on all addresses of its machine cannot know which of them a worker reaches, so a token may hold several;
a private one may even be another machine's, in the worker's own network. CURVE tells: only the head has the key.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from bloombee.address import Address
from bloombee.errors import BloomBeeError, DeadlineExceeded, LinkDown
from bloombee.transport.endpoint import Endpoint
from bloombee.transport.link_events import LinkEvent, LinkEventKind
from bloombee.types import Lane
from bloombee.wire.token import JoinToken

PATIENCE_S = 0.25
"""Whoever proves the key first waits so long for an endpoint that the head prefers: workers of one network should all come
to the same one, and so tell each other addresses of one family."""


@dataclass(frozen=True, slots=True)
class Found:
    """The link to the head, how the token calls it, and the address behind that."""

    link: bytes
    endpoint: str
    address: Address


class HeadSearch:
    """Dials from its making on; to be told of every event of ``endpoint`` until it has ended."""

    def __init__(self, endpoint: Endpoint, token: JoinToken) -> None:
        self._endpoint = endpoint
        self._tried = {secrets.token_bytes(16): each for each in dict.fromkeys(token.endpoints)}
        """Link -> endpoint, best first."""
        self._up: set[bytes] = set()
        self._failed: dict[bytes, BloomBeeError] = {}
        self._changed = asyncio.Event()
        for link, each in self._tried.items():
            endpoint.dial(link, each, token.key)

    def event(self, event: LinkEvent) -> None:
        """Of any link."""
        if event.link not in self._tried or event.lane is not Lane.CONTROL:
            return
        if event.kind is LinkEventKind.CONNECTED:
            self._up.add(event.link)
        elif event.error is not None:
            self._up.discard(event.link)
            self._failed[event.link] = event.error
        self._changed.set()

    async def run(self, deadline_s: float) -> Found:
        """The head's link, the control lane up; the others are hung up. Cancelled: all are left to the endpoint's end.

        Raises:
            AuthenticationError: whoever is there does not have the head's key.
            LinkDown: the name cannot be resolved, or each endpoint has failed in its own way.
            DeadlineExceeded: nobody was there.
        """
        try:
            async with asyncio.timeout(deadline_s):
                await self._until(lambda: bool(self._up) or len(self._failed) == len(self._tried))
        except TimeoutError:
            raise self._nobody(deadline_s) from None
        if not self._up:
            raise self._all_failed()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self._until(lambda: next(iter(self._tried)) in self._up)
        return self._choose()

    def close(self) -> None:
        """Hang up on all that were dialled."""
        for link in self._tried:
            self._endpoint.hang_up(link)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def _choose(self) -> Found:
        chosen, *others = sorted(self._tried, key=lambda link: link not in self._up)
        for link in others:
            self._endpoint.hang_up(link)
        address = self._endpoint.address(chosen)
        assert address is not None
        return Found(chosen, self._tried[chosen], address)

    def _all_failed(self) -> BloomBeeError:
        first, *more = self._failed.values()
        return LinkDown(f"no endpoint of the join token is the head's: {self._reasons()}") if more else first

    def _nobody(self, deadline_s: float) -> DeadlineExceeded:
        where = " or ".join(self._tried.values())
        why = f" ({self._reasons()})" if self._failed else ""
        return DeadlineExceeded(
            f"the head at {where} did not answer for {deadline_s:g} s{why}: is it running, is the address reachable from here"
            " (docs/network.md), is the token the one it printed?",
            peer=where,
            waited_s=deadline_s,
        )

    def _reasons(self) -> str:
        """What went wrong where."""
        return "; ".join(dict.fromkeys(error.message for error in self._failed.values()))
