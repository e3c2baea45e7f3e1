"""The page at ``/``: a swarm as a picture, and what feeds it.

The files in ``static/`` are all of it; nothing is put into them here. What is live comes as one stream of server-sent events
(``/events``), each a line of JSON: ``hello`` once, then ``status`` about every second (``roles/status.py``, what ``bloombee
status`` shows) and ``event`` for whatever happened in the swarm, first what had happened before.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from bloombee.errors import RuntimeClosed
from bloombee.runtime import Runtime
from bloombee.serve.watch import Watch
from bloombee.types import VERSION, SwarmEvent

STATIC = Path(__file__).parent / "static"
EVERY_S = 1.0
"""Between two statuses."""
SOON_S = 0.3
"""From something that happened to the next status."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Of this server's own files alone; what a worker or a request says can be nothing but text."""
PAGE_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
FEED_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def routes(runtime: Runtime) -> list[BaseRoute]:
    """The page, its files and its feed; for an application that says in its state when it ``is_ending``."""
    feed = Feed(runtime)

    async def events(request: Request) -> Response:
        return StreamingResponse(feed.stream(request.app.state), media_type="text/event-stream", headers=FEED_HEADERS)

    return [*files(), Route("/events", events, methods=["GET"])]


def files() -> list[BaseRoute]:
    """The page and its files, which know of no swarm."""

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "page.html", headers=PAGE_HEADERS)

    return [Route("/", page, methods=["GET"]), Mount("/static", StaticFiles(directory=STATIC))]


class Feed:
    """Of one swarm, to any number of pages."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._watch = Watch(runtime)

    async def stream(self, app: State) -> AsyncGenerator[bytes, None]:
        """To one page, until it goes, the Runtime is closed, or ``app.is_ending``.

        Cancelled, or left early: nothing is left behind.
        """
        news: asyncio.Queue[SwarmEvent | None] = asyncio.Queue()
        listening = asyncio.create_task(self._listen(news), name="bloombee-page")
        try:
            yield _message("hello", self._hello())
            while not app.is_ending:
                yield _message("status", await self._watch.look())
                for event in await _batch(news):
                    yield _message("event", _told(event))
        except RuntimeClosed:
            return
        finally:
            listening.cancel()

    def _hello(self) -> Mapping[str, Any]:
        """What does not change. ``chat``: the model has a template for conversations."""
        return {"version": VERSION, "every_s": EVERY_S, "chat": "default" in self._runtime.card.chat_templates}

    async def _listen(self, news: asyncio.Queue[SwarmEvent | None]) -> None:
        """None at the end."""
        async with contextlib.aclosing(self._runtime.events()) as events:
            async for event in events:
                news.put_nowait(event)
        news.put_nowait(None)


async def _batch(news: asyncio.Queue[SwarmEvent | None]) -> list[SwarmEvent]:
    """What happens until the next status is due. Raises RuntimeClosed: nothing more will.

    Cancelled: what had come is lost.
    """
    found: list[SwarmEvent] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(EVERY_S) as patience:
            while (event := await news.get()) is not None:
                if not found:
                    patience.reschedule(asyncio.get_running_loop().time() + SOON_S)
                found.append(event)
            if not found:
                raise RuntimeClosed("the Runtime was closed")
            news.put_nowait(None)  # for the next time
    return found


def _told(event: SwarmEvent) -> Mapping[str, Any]:
    """As JSON has it; ``at_ms`` by the wall clock."""
    decision = msgspec.Raw(event.decision.encode()) if event.decision else None
    return {
        "kind": event.kind,
        "at_ms": round(1e3 * (time.time() - time.monotonic() + event.at_s)),
        "epoch": event.epoch,
        "worker": event.worker,
        "name": event.name,
        "stage": event.stage,
        "reason": event.reason,
        "decision": decision,
    }


def _message(name: str, data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))
