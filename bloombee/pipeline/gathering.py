"""Frames of rows that are said again, from when they are asked for until they are made. Pure."""

from __future__ import annotations

from bloombee.pipeline.events import Gathered, GatherFailed
from bloombee.wire.messages import Item


class Gathering(dict[int, tuple[Item, ...]]):
    """Those of one seat by number, in the order in which they were asked for.

    They go in that order, however long each takes to be made: the log may have the rows of one on disk, and those of the next in
    memory. One whose rows follow on those of another would be refused before it, and keep the credit that the other waits for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, Gathered | GatherFailed] = {}
        """What has come of such as have others before them."""

    def made(self, event: Gathered | GatherFailed) -> list[tuple[Gathered | GatherFailed, tuple[Item, ...]]]:
        """One is made, or cannot be. Returns those whose turn it is with that; they are none of these any more."""
        self._made[event.number] = event
        due = []
        while self and (number := next(iter(self))) in self._made:
            due.append((self._made.pop(number), self.pop(number)))
        return due
