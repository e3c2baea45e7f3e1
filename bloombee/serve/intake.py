"""Bodies of requests: bounded in size, all of them together too, and in time; then typed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TypeVar

import msgspec
from starlette.requests import Request

from bloombee.quote import quoted
from bloombee.serve.refusals import Refusal, not_now

T = TypeVar("T")
BODY_BYTES, POSITION_BYTES = 1 << 20, 16
"""A body may have so many, and so many more for each position of the model: a token is some 4 bytes of text, and JSON may
escape them."""
MOST_HELD = 8
"""Bodies of the largest size that may be read at once, or their bytes; small ones are taken besides."""
SMALL_BYTES = 64 << 10
READ_S = 60.0
"""In which a body must have come."""
SOON_S = 2.0
"""Large bodies that others send have mostly come by then."""


class Intake:
    """Reads bodies. Belongs to one event loop.

    Args:
        max_positions: the longest sequence that the model is served for.
    """

    def __init__(self, max_positions: int) -> None:
        self.most_bytes = BODY_BYTES + POSITION_BYTES * max_positions
        self._held_bytes = 0

    async def read(self, request: Request, kind: type[T]) -> T:
        """The body of ``request`` as ``kind``.

        Raises:
            Refusal: no JSON, not of that kind, too large, too slow, or no room for it now.
            ClientDisconnect: nobody is there any more.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # Besides: a page of another site may make a browser send any body but this one.
            raise Refusal(415, "the body must be JSON, and say so: Content-Type: application/json")
        with self._room() as taken:
            try:
                async with asyncio.timeout(READ_S):
                    body = await taken.all_of(request)
            except TimeoutError:
                raise Refusal(408, f"the body did not come within {READ_S:g} s", code="timeout") from None
            return decoded(body, kind)

    @contextlib.contextmanager
    def _room(self) -> Iterator[_Taken]:
        taken = _Taken(self)
        try:
            yield taken
        finally:
            self._held_bytes -= taken.num_bytes

    def take(self, num_bytes: int) -> None:
        """Raises Refusal."""
        if self._held_bytes + num_bytes > MOST_HELD * self.most_bytes:
            raise not_now("the requests that are being read are too large together; try again", SOON_S)
        self._held_bytes += num_bytes


class _Taken:
    """What one body holds of an intake's room."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.num_bytes = 0

    async def all_of(self, request: Request) -> bytearray:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._intake.most_bytes:
                said = f"the body is too large: at most {self._intake.most_bytes} bytes, which this model's longest prompt fits"
                raise Refusal(413, said, code="request_too_large")
            if len(body) > SMALL_BYTES:
                self._intake.take(len(body) - self.num_bytes)
                self.num_bytes = len(body)
        return body


def decoded(body: bytes | bytearray, kind: type[T]) -> T:
    """``body`` as ``kind``. Raises Refusal."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).rpartition(" - at ")
        param = where.strip("`").removeprefix("$").removeprefix(".") or None
        raise Refusal(400, str(error), param=param if what else None) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, f"the body is not JSON: {error}") from None
    except RecursionError:
        raise Refusal(400, "the body is nested too deep") from None


def refuse_if(is_wrong: bool, param: str, said: object, allowed: str) -> None:
    """Raises Refusal."""
    if is_wrong:
        raise Refusal(400, f"{param} = {quoted(said)}: {allowed}", param=param)
