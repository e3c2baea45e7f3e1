"""Commands of a core, acted on one by one, and in order."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


def each(act: Callable[[T], None], commands: Iterable[T]) -> None:
    """Act on every command, whatever one of them raises; raises that of the first in the end."""
    errors: list[Exception] = []
    for command in commands:
        try:
            act(command)
        except Exception as error:
            errors.append(error)
    for another in errors[1:]:
        log.error("another command failed as well: %s", another, exc_info=another)
    if errors:
        raise errors[0]


class InTurn(Generic[T]):
    """Acts on what a core asks for in the order in which its events were handled. Acting on a command may bring the core's next
    event, before the rest of what the one before has led to: what the next one leads to waits for that. Else frames that were
    numbered later would leave earlier, and rows ahead of the Commit that tells of them."""

    def __init__(self, act: Callable[[T], None]) -> None:
        self._act = act
        self._waiting: deque[T] = deque()
        self._is_acting = False

    def __call__(self, commands: Iterable[T]) -> None:
        """As :func:`each`; from within an act it only puts ``commands`` behind those that wait."""
        self._waiting.extend(commands)
        if self._is_acting:
            return
        self._is_acting = True
        try:
            each(self._act, self._drain())
        finally:
            self._is_acting = False

    def _drain(self) -> Iterator[T]:
        while self._waiting:
            yield self._waiting.popleft()
