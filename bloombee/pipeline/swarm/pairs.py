"""The links between workers: one for each pair, whoever feeds whom. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bloombee.pipeline.swarm.member import Member
from bloombee.types import WorkerId
from bloombee.wire.messages import Peer


@dataclass(frozen=True, slots=True)
class Pair:
    """A link by its id, and which of its two ends dials."""

    link: bytes
    dialler: WorkerId
    listener: WorkerId

    @property
    def ends(self) -> tuple[WorkerId, WorkerId]:
        return self.dialler, self.listener

    def other(self, end: WorkerId) -> WorkerId | None:
        """Who is at the other end; None: that is no end of it."""
        return {self.dialler: self.listener, self.listener: self.dialler}.get(end)

    def peer(self, member: Member) -> Peer:
        """``member``, one of its ends, as the other one is told of it."""
        return Peer(
            worker=member.id,
            endpoint=member.endpoint,
            key=member.key,
            link=self.link,
            dials=member.id == self.listener,
            through=None,
        )


class Pairs:
    """Of one swarm.

    Args:
        links: fresh unguessable link ids.
    """

    def __init__(self, links: Iterator[bytes]) -> None:
        self.closed: frozenset[WorkerId] = frozenset()
        """Workers that nobody gets through to when they are dialled, as far as is known: they dial."""
        self._links = links
        self._of: dict[frozenset[WorkerId], Pair] = {}

    def of(self, dialler: WorkerId, listener: WorkerId) -> Pair:
        """The link between the two; a new one if there is none, which ``dialler`` dials if that is of use."""
        known = self._of.get(frozenset((dialler, listener)))
        if known is not None:
            return known
        is_turned = listener in self.closed and dialler not in self.closed
        return self.anew(listener, dialler) if is_turned else self.anew(dialler, listener)

    def anew(self, dialler: WorkerId, listener: WorkerId) -> Pair:
        """Another link in place of what there was between the two."""
        pair = self._of[frozenset((dialler, listener))] = Pair(next(self._links), dialler, listener)
        return pair

    def part(self, pair: Pair) -> None:
        """That link could not be made."""
        if self._of.get(frozenset(pair.ends)) == pair:
            del self._of[frozenset(pair.ends)]

    def forget(self, worker: WorkerId) -> None:
        """It is gone: its links will never be again."""
        self._of = {ends: pair for ends, pair in self._of.items() if worker not in ends}
