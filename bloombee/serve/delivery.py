"""Answers on their way to programs, for as long as those are there: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from bloombee.errors import BloomBeeError
from bloombee.serve.refusals import ErrorBody, Refusal, refusal_of

log = logging.getLogger(__name__)
JSON, EVENTS = (b"content-type", b"application/json"), (b"content-type", b"text/event-stream; charset=utf-8")
DONE = b"data: [DONE]\n\n"
Deliver = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An answer, as Starlette takes it."""


def event(value: Any, *, name: bytes = b"") -> bytes:
    """``value`` as an event of a stream; ``name`` says which kind, where a stream has several."""
    head = b"event: " + name + b"\n" if name else b""
    return head + b"data: " + msgspec.json.encode(value) + b"\n\n"


def whole(make: Coroutine[Any, Any, Any]) -> Deliver:
    """What ``make`` comes to, as JSON. It is cancelled when the program goes."""

    async def deliver(scope: Scope, receive: Receive, send: Send) -> None:
        await _while_there(receive, _send_whole(make, send))

    return deliver


def events(make: AsyncGenerator[bytes, None]) -> Deliver:
    """What ``make`` gives, as it comes; closed when the program goes. What it raises before its first event has a status."""

    async def deliver(scope: Scope, receive: Receive, send: Send) -> None:
        await _while_there(receive, _send_events(make, scope["path"], send))

    return deliver


async def _send_whole(make: Coroutine[Any, Any, Any], send: Send) -> None:
    body = msgspec.json.encode(await make)
    await send({"type": "http.response.start", "status": 200, "headers": [JSON, (b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def _send_events(make: AsyncGenerator[bytes, None], path: str, send: Send) -> None:
    has_begun = False
    async with aclosing(make):
        try:
            async for data in make:
                if not has_begun:
                    has_begun = True
                    headers = [EVENTS, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except (Refusal, BloomBeeError) as error:
            if not has_begun:
                raise
            refusal = refusal_of(error, path) if isinstance(error, BloomBeeError) else error
            await send({"type": "http.response.body", "body": event(ErrorBody(error=refusal.fault)), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _while_there(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do ``work``, and end it when nobody is there any more.

    Cancelled: the work has ended.
    """
    tasks = [asyncio.create_task(work), asyncio.create_task(_until_gone(receive))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
