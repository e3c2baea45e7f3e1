"""What has been asked of workers and not been answered yet: said again, and given up in the end. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

from bloombee.pipeline.commands import Command, MeasureHere, Send
from bloombee.types import HEAD, Lane, WorkerId
from bloombee.wire.messages import AnyMessage, MeasureLink

AGAIN_S = 1.0
Link = tuple[WorkerId, WorkerId]
"""From whom to whom."""


class Topic(enum.Enum):
    """Of a question to a worker about its link to another one, or to itself."""

    PROFILE = "profile"
    MEETING = "meeting"
    LENGTH = "length"
    WIDTH = "width"


@dataclass(slots=True)
class _Question:
    message: AnyMessage
    until: float
    said_at: float


@dataclass(slots=True)
class Questions:
    """By what they are about: a topic, who is asked, and about whom."""

    _open: dict[tuple[Topic, Link], _Question] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self._open)

    def ask(self, topic: Topic, link: Link, message: AnyMessage, now: float, *, patience_s: float) -> Command:
        """The first end of ``link``: a worker, or the head itself."""
        self._open[topic, link] = _Question(message, now + patience_s, now)
        return _say(link[0], message)

    def answered(self, topic: Topic, link: Link) -> bool:
        """False: nobody waits for that."""
        return self._open.pop((topic, link), None) is not None

    def of(self, *topics: Topic) -> Iterator[Link]:
        """What is open."""
        return (link for topic, link in self._open if topic in topics)

    def forget(self, worker: WorkerId) -> None:
        """Whatever is asked of it or about it."""
        self._open = {key: question for key, question in self._open.items() if worker not in key[1]}

    def given_up(self, now: float) -> list[tuple[Topic, Link]]:
        """Those whose patience is over; they are not open any more."""
        over = [key for key, question in self._open.items() if now >= question.until]
        for key in over:
            del self._open[key]
        return over

    def again(self, now: float) -> list[Command]:
        """Say what has not been answered for a while once more; the head forgets nothing that it asks itself."""
        commands: list[Command] = []
        for (_, (worker, _)), question in self._open.items():
            if worker != HEAD and now - question.said_at >= AGAIN_S:
                question.said_at = now
                commands.append(_say(worker, question.message))
        return commands


def _say(worker: WorkerId, message: AnyMessage) -> Command:
    if worker != HEAD:
        return Send(worker, Lane.CONTROL, message)
    assert isinstance(message, MeasureLink)
    return MeasureHere(message)
