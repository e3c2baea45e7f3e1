"""The requests that the application has, each with its text and where that goes.

What one request's text or sink raises ends that request, with a typed error and its memory freed, and no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from bloombee.errors import BloomBeeError, LocalProtocolError
from bloombee.pipeline.commands import Deliver
from bloombee.pipeline.journal import Gave, Given, given
from bloombee.roles.served import ServedCount
from bloombee.roles.text import TextStream
from bloombee.types import FinishReason, Token
from bloombee.wire.messages import Pick

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where the tokens of a request go; called on the head's loop, must not block.

    What it raises ends its request. After :meth:`end` nothing more comes.
    """

    def token(self, token: Token) -> None: ...
    def end(self, error: BloomBeeError | None) -> None: ...


@contextlib.contextmanager
def typed() -> Iterator[None]:
    """Whatever is raised in here is a BloomBeeError."""
    try:
        yield
    except (BloomBeeError, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a library's panic is no Exception
        log.exception("a request failed by itself")
        raise LocalProtocolError(f"internal error, please report it: {type(error).__name__}: {error}") from error


class Requests:
    """By number.

    Args:
        free: called with the number of each request that has ended, however it did, and whether its text is whole: its sequence
            must end, if it has not.
        keep: told of each token.
    """

    def __init__(self, free: Callable[[int, bool], None], keep: Callable[[Gave], None] = lambda gave: None) -> None:
        self._free = free
        self._keep = keep
        self.served = ServedCount()
        self._running: dict[int, tuple[Sink, TextStream]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def add(self, number: int, sink: Sink, text: TextStream, num_prompt_tokens: int = 0, made_at: float | None = None) -> None:
        """``made_at``: by time.monotonic; None: a head before this one did its prompt."""
        self._running[number] = sink, text
        self.served.began(number, num_prompt_tokens, made_at, time.monotonic())

    def deliver(self, given_out: Deliver) -> None:
        """A token, the last one if it says so or completes a stop string; none for a request that has ended."""
        number, pick = given_out.request, given_out.pick
        if number not in self._running:
            return
        sink, text = self._running[number]
        try:
            with typed():
                drafted, was_drafted, num_cached = given_out.drafted, given_out.was_drafted, given_out.num_cached
                token = shown(text, pick, given_out.finish, drafted, was_drafted=was_drafted, num_cached=num_cached)
                self._keep(Gave(number, (given(pick.token, pick.logprob, pick.top, token.finish_reason),)))
                self.served.token(number, token, time.monotonic())
                sink.token(token)
        except BloomBeeError as error:
            self.end(number, error)
        else:
            if token.finish_reason is not None:
                self.end(number, None, token.finish_reason)

    def end(self, number: int, error: BloomBeeError | None, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Tell its sink, unless the request has ended before; ``reason``: where there is no error."""
        if number in self._running:
            self._tell(number, error, reason)
            self._free(number, error is None and reason is not FinishReason.CANCELLED)

    def end_all(self, error: BloomBeeError) -> None:
        """Each is told, whatever comes of freeing it."""
        numbers = list(self._running)
        for number in numbers:
            self._tell(number, error, FinishReason.CANCELLED)
        for number in numbers:
            try:
                self._free(number, False)
            except Exception:
                log.exception("request %d could not be freed", number)

    def _tell(self, number: int, error: BloomBeeError | None, reason: FinishReason) -> None:
        sink, _ = self._running.pop(number)
        self.served.ended(number, str(reason) if error is None else error.code, time.monotonic())
        try:
            sink.end(error)
        except Exception:
            log.exception("the sink of request %d raised at its end", number)

    def cancel(self, number: int) -> None:
        """End it; nothing more goes to its sink."""
        if self._running.pop(number, None) is not None:
            self.served.ended(number, str(FinishReason.CANCELLED), time.monotonic())
            self._free(number, False)


def shown(
    text: TextStream,
    pick: Pick | Given,
    finish: FinishReason | None,
    drafted: int = 0,
    *,
    was_drafted: bool = False,
    num_cached: int = 0,
) -> Token:
    """The next token of ``text``, the last one if ``finish`` says so or a stop string is met."""
    piece = text.push(pick.token)
    if text.stopped:
        finish = FinishReason.STOP
    elif finish is not None:
        piece += text.finish()
    return Token(piece, pick.token, pick.logprob, tuple(pick.top), finish, drafted, was_drafted, num_cached)
