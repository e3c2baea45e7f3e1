"""A link's watch at work: questions go out over the endpoint, and what that knows of the link helps to judge."""

from __future__ import annotations

from bloombee.transport.endpoint import Endpoint
from bloombee.types import Lane
from bloombee.wire.liveness import LinkWatch
from bloombee.wire.messages import Heartbeat

LOADING_SILENCE_S = 30.0
"""A worker that loads may be silent for so long, and not until load_deadline_s."""


def look(
    endpoint: Endpoint, link: bytes, watch: LinkWatch, now: float, *, asks: bool = True, patience_s: float = 0.0
) -> str | None:
    """Ask over ``link`` if it is time, and judge.

    Args:
        asks: not while the peer does not know the swarm yet.
        patience_s: it may be silent for so long at least.

    Returns:
        Why the peer must be taken for lost; None: it need not be.

    Raises:
        LinkDown: no such link at this endpoint.
    """
    if asks and watch.is_due(now):
        waiting = endpoint.pending_bytes(link, Lane.CONTROL)  # bulk that waits is in nobody's way
        count = watch.ask(now, waiting + sum(endpoint.counters(link, lane).bytes_out for lane in Lane))
        if count is not None:
            endpoint.send(link, Lane.CONTROL, Heartbeat(count=count))
    return watch.why_lost(now, lambda: endpoint.estimator(link).facts().bandwidth_bytes_per_s, patience_s)
