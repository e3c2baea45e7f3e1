"""A worker's links that no plan needs yet: made when the head introduces a peer, measured when it asks, kept whatever epochs come
and go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial

from bloombee.errors import BloomBeeError, LinkDown, QueueFull, to_wire
from bloombee.links.estimator import LinkFacts
from bloombee.links.gauge import link_report
from bloombee.roles.neighbours import Neighbour, Neighbours
from bloombee.transport.endpoint import Endpoint
from bloombee.types import HEAD, Lane, WorkerId
from bloombee.wire.messages import AnyMessage, Introduce, Introduced, LinkReport, MeasureLink
from bloombee.wire.spoken import check_spoken

log = logging.getLogger(__name__)


class Introductions:
    """Of one worker; a user of its neighbours.

    Args:
        is_serving: whether a stage here has a seat: then no link is kept full for a measurement.
    """

    def __init__(self, endpoint: Endpoint, head_link: bytes, neighbours: Neighbours, is_serving: Callable[[], bool]) -> None:
        self._endpoint = endpoint
        self._head_link = head_link
        self._neighbours = neighbours
        self._is_serving = is_serving
        self._link_to: dict[WorkerId, bytes] = {}
        self._asked: dict[WorkerId, MeasureLink] = {}
        """What is being measured, or was last."""
        self._reports: dict[WorkerId, LinkReport] = {}
        """What came of that."""
        neighbours.users.append(self)

    # -- orders ----------------------------------------------------------------------------

    def introduce(self, order: Introduce) -> None:
        """Make a link to a peer. Said again it is answered again.

        Raises:
            NotSpoken: through another worker. RemoteProtocolError: that link is another's, or leads to this worker.
        """
        check_spoken(order)
        peer = order.peer
        try:
            neighbour = self._neighbours.meet(peer)
        except LinkDown as error:
            self._say(Introduced(peer.link, *to_wire(error)))
            return
        if self._link_to.get(peer.worker) != peer.link:
            self._link_to[peer.worker] = peer.link
            self._neighbours.leave()
        if neighbour.is_open:
            self._say(Introduced(peer.link, "", {}))

    def measure(self, order: MeasureLink) -> None:
        """Find out what a link is like, and report it; what is not there any more is reported with nothing known. Said again it
        is reported again."""
        if self._asked.get(order.target) == order:
            if order.target in self._reports:
                self._say(self._reports[order.target])
            return
        self._asked[order.target] = order
        self._reports.pop(order.target, None)
        link = self._head_link if order.target == HEAD else self._link_to.get(order.target, b"")
        if order.fills and self._is_serving():
            self._report(link, order)
            return
        try:
            self._endpoint.measure(link, fills=order.fills, done=partial(self._report, link, order))
        except LinkDown:
            self._report(link, order)

    def _report(self, link: bytes, order: MeasureLink) -> None:
        if self._asked.get(order.target) != order:
            return  # it was asked for something else meanwhile
        facts = LinkFacts()
        with contextlib.suppress(LinkDown):
            facts = self._endpoint.estimator(link).facts()
        said = self._reports[order.target] = link_report(order, facts)
        self._say(said)

    def _say(self, message: AnyMessage) -> None:
        try:
            self._endpoint.send(self._head_link, Lane.CONTROL, message)
        except (LinkDown, QueueFull) as error:
            log.warning("not sent: %s", error.message)  # it will be asked for again

    # -- as a user of neighbours -----------------------------------------------------------

    @property
    def links(self) -> list[bytes]:
        """That were introduced and are not lost."""
        return list(self._link_to.values())

    def opened(self, neighbour: Neighbour) -> None:
        """Greeted."""
        self._say(Introduced(neighbour.peer.link, "", {}))

    def complain(self, error: BloomBeeError) -> None:
        """A peer cannot be reached, or is gone."""
        peer = error.fields.get("peer")
        link = self._link_to.pop(peer, None) if isinstance(peer, int) else None
        if link is not None:
            self._say(Introduced(link, *to_wire(error)))
            # Whoever calls this is not done with the neighbour yet.
            asyncio.get_running_loop().call_soon(self._neighbours.leave)

    def restored(self, link: bytes) -> None:
        """Nothing was under way that would not be asked for again."""

    def moved(self, now: float) -> None:
        """Nothing here waits for frames."""
