"""A simulated ring that knows of its links only what its own frames have shown, behind the links of a named profile."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.profiles import load_profile
from bloombee.links.estimator import LinkEstimator
from bloombee.links.frames import LinkMeter
from bloombee.pace import Pace
from bloombee.plan.topology import LOCAL, Link
from bloombee.sim.carrier import HEADER_BYTES, SimCarrier
from bloombee.sim.cluster import SimCluster
from bloombee.sim.network import PIECE_BYTES, LinkShape, SimLink
from bloombee.types import Lane
from bloombee.wire.messages import Ack, AnyMessage, Forward, Verdict

STAGES = 3
NAMES = ("stage0", "stage1", "stage2", "scheduler")
ROW_BYTES = 13312


@dataclass(slots=True)
class _Message:
    left: int
    deliver: Callable[[], None]


class MeteredLink(SimLink):
    """Its latency varies by +- ``jitter_s``, nothing overtakes within a lane, and an estimator sees the pieces of bulk.

    Its wire is its own: it changes while it runs, and lanes take turns there.

    A piece counts as sent when the one before it begins: that much of bulk waits for the wire, as with a real window.
    """

    jitter_s = 0.0
    estimator: LinkEstimator | None = None
    back: SimLink | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._jitter = random.Random(len(args))
        self._last = dict.fromkeys(Lane, 0.0)
        self._turn = Lane.BULK
        self._waiting: dict[Lane, deque[_Message]] = {lane: deque() for lane in Lane}
        self._is_busy = False
        self._num_shown = self._num_begun = self._control_bytes = 0

    def send(self, num_bytes: int, deliver: Callable[[], None], *, lane: Lane = Lane.CONTROL, reliable: bool = False) -> None:
        self._control_bytes += num_bytes * (lane is Lane.CONTROL)
        self.num_bytes += num_bytes
        rate = self.shape.bandwidth_bytes_per_s
        if not rate:
            self._came(Lane.CONTROL, deliver)
            return
        self._waiting[lane].append(_Message(num_bytes, deliver))
        if not self._is_busy:
            self._begin_piece(rate)

    def _begin_piece(self, rate: float) -> None:
        waiting = [lane for lane in Lane if self._waiting[lane]]
        self._is_busy = bool(waiting)
        if not waiting:
            return
        lane = self._turn = waiting[0] if waiting[0] is not self._turn else waiting[-1]  # two connections share a wire
        message = self._waiting[lane][0]
        size = min(message.left, PIECE_BYTES) if lane is Lane.BULK else message.left
        message.left -= size
        if lane is Lane.BULK:
            self._num_begun += 1
            self._show(size, upto=self._num_begun)
        following = message.left if lane is Lane.BULK and message.left else sum(one.left for one in self._waiting[Lane.BULK])
        if following:
            self._show(min(following, PIECE_BYTES), upto=self._num_begun + 1)

        def end() -> None:
            if lane is Lane.BULK:
                self._came(lane, partial(self._acknowledge, self._num_begun))
            if message.left == 0:
                self._waiting[lane].popleft()
                self._came(lane, message.deliver)
            self._begin_piece(rate)

        self._clock.call_later(size / rate, end)

    def _show(self, size: int, *, upto: int) -> None:
        if self.estimator is not None and self._num_shown < upto:
            self.estimator.piece_sent(self._num_shown, size, self._control_bytes, self._clock.now)
            self._num_shown += 1

    def _acknowledge(self, upto: int) -> None:
        estimator = self.estimator
        if estimator is not None and self.back is not None:
            self.back.send(HEADER_BYTES, lambda: estimator.pieces_acked(upto, self._clock.now))

    def _came(self, lane: Lane, deliver: Callable[[], None]) -> None:
        at = self._clock.now + self.shape.latency_s + self._jitter.uniform(-self.jitter_s, self.jitter_s)
        self._last[lane] = max(at, self._last[lane])
        self._clock.call_at(self._last[lane], deliver)


class MeasuredCarrier(SimCarrier):
    """Of three stages; what is known of their links is what meters have seen."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.profile = load_profile("lan")
        self._meters = [LinkMeter() for _ in range(STAGES)]

    def reshape(self, profile: str) -> None:
        """Other links, from now on."""
        self.profile = load_profile(profile)
        for (source, target), link in self.links.items():
            self._give_shape(link, source, target)

    def seen(self, source: str, target: str) -> Link | None:
        """The head is beside the first stage."""
        return self._meters[NAMES.index(source)].facts().as_expected() if source in NAMES[:-1] else LOCAL

    def _make_link(self, source: str, target: str) -> SimLink:
        link = MeteredLink(self._clock, self._rng, self._shape, self._faults)
        if _is_hop(source, target):
            link.estimator, link.back = self._meters[NAMES.index(source)].estimator, self.link(target, source)
        self._give_shape(link, source, target)
        return link

    def _give_shape(self, link: SimLink, source: str, target: str) -> None:
        assert isinstance(link, MeteredLink)
        if not _is_hop(source, target) and not _is_hop(target, source):
            return
        hop = min(NAMES.index(source), NAMES.index(target))
        profile = self.profile.link(hop)
        shape = profile.forward if source == NAMES[hop] else profile.backward
        bits = shape.bandwidth_bits_per_s
        link.shape = LinkShape(shape.delay_s, bits and bits / 8)
        link.jitter_s = shape.jitter_s

    def carry(
        self,
        source: str,
        target: str,
        message: AnyMessage,
        deliver: Callable[[], None],
        *,
        reliable: bool,
        lane: Lane = Lane.CONTROL,
    ) -> None:
        if isinstance(message, Ack) and _is_hop(target, source):
            deliver = self._hearing(self._meters[NAMES.index(target)], message, deliver)
        elif isinstance(message, Forward | Verdict) and _is_hop(source, target):
            size = self.num_bytes(source, message)
            self._meters[NAMES.index(source)].sent(lane, message.frame, size, 0, self._clock.now)
        super().carry(source, target, message, deliver, reliable=reliable, lane=lane)

    def _hearing(self, meter: LinkMeter, ack: Ack, deliver: Callable[[], None]) -> Callable[[], None]:
        def hear() -> None:
            meter.acked(ack, self._clock.now)
            deliver()

        return hear


def _is_hop(source: str, target: str) -> bool:
    return source in NAMES[:-1] and target == NAMES[NAMES.index(source) + 1]


class MeasuredCluster(SimCluster):
    """Three stages whose links are chosen by as meters have seen them, as in a runtime."""

    carrier_type = MeasuredCarrier

    def __init__(self, profile: str, pace: Pace, batch: int, *, microbatches: int | None = None) -> None:
        super().__init__(
            seed=0,
            num_stages=STAGES,
            num_microbatches=microbatches or 128,
            num_pages=20 * batch,
            page_size=16,
            max_rows=512,
            pace=pace,
            shape=LinkShape(0.0),
            row_bytes=ROW_BYTES,
            resend_after_s=60.0,
            tuned=microbatches is None,
        )
        self.reshape(profile)

    def reshape(self, profile: str) -> None:
        """Other links, from now on."""
        assert isinstance(self.carrier, MeasuredCarrier)
        self.carrier.reshape(profile)
