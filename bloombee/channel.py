"""Tokens of one request on their way from a head's loop, and its thread, to whoever reads them."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from bloombee.errors import BloomBeeError
from bloombee.loop_thread import LoopThread
from bloombee.roles.head import HeadRole
from bloombee.types import FinishReason, Generation, SamplingParams, Token

_END = object()
T = TypeVar("T")
Begin = Callable[[HeadRole, int, "Channel"], Coroutine[Any, Any, T]]
"""Starts, or takes up, a request by its number; its tokens go to the channel."""


class Channel:
    """Both ends of the way.

    Args:
        notify: called from the Runtime's thread after each item; must wake the reader.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self._items: collections.deque[Token | BloomBeeError | object] = collections.deque()
        self._notify = notify

    def token(self, token: Token) -> None:
        self._items.append(token)
        self._notify()

    def end(self, error: BloomBeeError | None) -> None:
        self._items.append(_END if error is None else error)
        self._notify()

    def take(self) -> Token | BloomBeeError | object | None:
        """The next item, None if there is none now."""
        return self._items.popleft() if self._items else None


async def tokens_of(
    number: int, home: LoopThread, head: HeadRole, begin: Begin[T], begun: Callable[[T], None]
) -> AsyncGenerator[Token, None]:
    """What comes of request ``number``; ``begin`` it on the head's loop, which is ``home``. ``begun`` gets what that returns."""
    caller = asyncio.get_running_loop()
    arrived = asyncio.Event()

    def notify() -> None:
        with contextlib.suppress(RuntimeError):  # the caller's loop has ended
            caller.call_soon_threadsafe(arrived.set)

    channel = Channel(notify)
    has_begun = True
    try:
        try:
            begun(await asyncio.wrap_future(home.run(begin(head, number, channel))))
        except BloomBeeError:
            has_begun = False  # it was refused: what runs under that number is somebody else's
            raise
        while True:
            item = channel.take()
            if item is None:
                await arrived.wait()
                arrived.clear()
            elif isinstance(item, Token):
                yield item
            elif isinstance(item, BloomBeeError):
                raise item
            else:
                return
    finally:
        if has_begun:
            home.soon(head.desk.cancel, number, channel)


class Collected:
    """Tokens of one request, becoming a Generation."""

    def __init__(self) -> None:
        self._prompt: tuple[int, ...] = ()
        self._tokens: list[Token] = []
        self._started = self._first = self._last = time.monotonic()

    def opened(self, prompt: tuple[int, ...]) -> None:
        self._prompt = prompt

    def add(self, token: Token) -> None:
        self._last = time.monotonic()
        if not self._tokens:
            self._first = self._last
        self._tokens.append(token)

    def generation(self, params: SamplingParams) -> Generation:
        tokens = self._tokens
        count = len(tokens)
        seconds = self._last - (self._first if count > 1 else self._started)
        return Generation(
            text="".join(token.text for token in tokens),
            token_ids=tuple(token.token_id for token in tokens),
            prompt_token_ids=self._prompt,
            finish_reason=(tokens[-1].finish_reason if tokens else None) or FinishReason.CANCELLED,
            logprobs=tuple(t.logprob for t in tokens if t.logprob is not None) if params.logprobs is not None else None,
            top_logprobs=tuple(t.top_logprobs for t in tokens) if params.logprobs else None,
            time_to_first_token_s=self._first - self._started,
            tokens_per_s=max(1, count - 1) / max(seconds, 1e-9),
            drafted=sum(token.drafted for token in tokens),
            accepted=sum(token.was_drafted for token in tokens),
            num_cached_tokens=sum(token.num_cached_tokens for token in tokens),
            rounds=sum(not token.was_drafted for token in tokens) + bool(tokens and tokens[-1].was_drafted),
        )
