"""What a stage tells the head of itself: how far it has loaded, its device's forwards, its link to the next stage, its profile
when it idles, and what is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable

from bloombee.errors import BloomBeeError, LinkDown, to_wire
from bloombee.pipeline.events import Port
from bloombee.pipeline.profiles import to_message
from bloombee.plan.profile import Profile
from bloombee.roles.courier import Courier
from bloombee.roles.executor import SpanExecutor
from bloombee.roles.seat_host import HERE, Seating, Seatings
from bloombee.transport.endpoint import Endpoint
from bloombee.types import HEAD, Epoch, Phase
from bloombee.wire.messages import LinkReport, Load, Loaded, Loading, Measure, Measured, Profiled, StageFailed

log = logging.getLogger(__name__)
REPORT_EVERY_S = 0.5
IDLE_S = 0.5
"""A stage without work for so long may measure itself."""


class Reporter:
    """Of one span.

    Args:
        is_empty: whether no sequence has rows here.
    """

    def __init__(
        self,
        load: Load,
        endpoint: Endpoint,
        device: SpanExecutor,
        seatings: Seatings,
        courier: Courier,
        is_empty: Callable[[], bool],
    ) -> None:
        self.error: BloomBeeError | None = None
        """What the head was told when this stage could not go on."""
        self._error_epoch: Epoch = 0
        """In which a neighbour was not there; 0: it is the stage itself that cannot."""
        self.is_over = False
        """This stage has failed or been closed: nothing is said any more."""
        self._load = load
        self._endpoint = endpoint
        self._device = device
        self._seatings = seatings
        self._courier = courier
        self._is_empty = is_empty
        self._loaded: Loaded | None = None
        self._reported_at = -REPORT_EVERY_S
        self._reported_frames = 0
        self._has_moved = False
        """Pieces have come on since the last report."""
        self._codec_choice = ""
        self._worked_at = seatings.now()
        self._profile_asked = False
        self._profile_over = False
        self._profile: Profiled | None = None

    # -- loading ---------------------------------------------------------------------------

    @property
    def is_loaded(self) -> bool:
        """All of the span is there."""
        return self._loaded is not None

    def progress(self, loaded_bytes: int, total_bytes: int) -> None:
        """So much of the span is there."""
        if not self.is_over:
            self._courier.to_head(Loading(self._load.pipeline, loaded_bytes, total_bytes))

    def loaded(self, weight_bytes: int, kv_bytes: int) -> None:
        """All of it is."""
        log.info("layers %d-%d: loaded", self._load.start, self._load.stop - 1)
        self._loaded = Loaded(self._load.number, self._load.pipeline, (weight_bytes,), (kv_bytes,))
        self.say_loaded()

    def say_loaded(self) -> None:
        """Again, if it is so."""
        if self._loaded is not None and not self.is_over:
            self._courier.to_head(self._loaded)

    # -- what is wrong ---------------------------------------------------------------------

    def complain(self, error: BloomBeeError, epoch: Epoch = 0) -> None:
        """A neighbour of an epoch, or of the oldest that has it, is not there; the stage goes on with whoever takes its place."""
        epoch = epoch or self._seatings.epoch_with(error.fields.get("peer")) or self._seatings.epoch
        if not self.is_over and epoch:
            self.error, self._error_epoch = error, epoch
            self.say_failed()

    def fail(self, error: BloomBeeError) -> None:
        """This stage cannot go on; said once."""
        if not self.is_over:
            self.is_over, self.error, self._error_epoch = True, error, 0
            self.say_failed()

    def say_failed(self, epoch: Epoch = 0) -> None:
        """Again, if it is so; of a neighbour in the epoch in which it was not there, which the head knows to be over if it is, of
        this stage itself in ``epoch`` (0: the newest)."""
        if self.error is not None:
            log.debug("layers %d-%d failed: %s", self._load.start, self._load.stop - 1, self.error)
            code, fields = to_wire(self.error)
            self._courier.to_head(
                StageFailed(self._load.pipeline, self._error_epoch or epoch or self._seatings.epoch, code, fields)
            )

    # -- measurements ----------------------------------------------------------------------

    def works(self) -> None:
        """There is work, or there may soon be."""
        self._worked_at = self._seatings.now()

    def moved(self) -> None:
        """Pieces have come on."""
        self._has_moved = True

    def tick(self, now: float) -> None:
        newest = self._seatings.newest
        if newest is None or self.is_over:
            return
        self._report(newest, now)
        if newest.is_greeted and now - self._worked_at >= IDLE_S:
            self.measure_on()
            if not newest.meter.num_unacknowledged and newest.links[Port.DOWNSTREAM] != HERE:
                with contextlib.suppress(LinkDown):
                    self._endpoint.probe(newest.links[Port.DOWNSTREAM], now - self._worked_at)

    def measured(self, asked: Measure, pages_free: int) -> None:
        """The answer to Measure."""
        sender = self._device.sender
        answer = Measured(
            pipeline=asked.pipeline,
            epoch=asked.epoch,
            number=asked.number,
            decode=self._device.tally(Phase.DECODE),
            prefill=self._device.tally(Phase.PREFILL),
            pages_free=pages_free,
            encoded_frames=sender.num_encoded if sender is not None else 0,
            raw_bytes=sender.raw_bytes if sender is not None else 0,
            sent_bytes=sender.sent_bytes if sender is not None else 0,
        )
        self._courier.to_head(answer)

    def measure_on(self) -> None:
        """The next step of this stage's profile, unless a sequence has rows here."""
        if not self._profile_asked and not self._profile_over and not self.is_over and self._is_empty():
            self._profile_asked = True
            self._device.profile(self._profiled)

    def _profiled(self, found: Profile | None, is_over: bool) -> None:
        self._profile_asked, self._profile_over = False, is_over
        if found is not None and not self.is_over:
            self._profile = to_message(found)
            self.say_profile()
        elif self._seatings.now() - self._worked_at >= IDLE_S:
            self.measure_on()

    def say_profile(self) -> None:
        """Again, if there is one."""
        if self._profile is not None:
            self._courier.to_head(self._profile)

    def _report(self, newest: Seating, now: float) -> None:
        """What is known of the link to the next stage, if there is news."""
        facts = newest.meter.facts()
        sender, choice = self._device.sender, ""
        if sender is not None:
            sender.set_link(facts.bandwidth_bytes_per_s, facts.base_rtt_s or self._greeting_rtt_s(newest))
            choice = sender.explain()
        if choice[:3] != self._codec_choice[:3]:
            self._codec_choice = choice
            log.debug("codec to the next stage %s", choice)
        is_news = self._has_moved or facts.num_frames != self._reported_frames
        if not is_news or now - self._reported_at < REPORT_EVERY_S:
            return
        self._reported_at, self._reported_frames, self._has_moved = now, facts.num_frames, False
        following = newest.wire.successor or newest.wire.scheduler
        target = following.worker if following is not None else HEAD
        self._courier.to_head(LinkReport(target=target, codec=choice, number=0, **dataclasses.asdict(facts)))

    def _greeting_rtt_s(self, newest: Seating) -> float | None:
        following = self._seatings.following(newest)
        clock = following.clock if following is not None else None
        return None if clock is None else clock.round_trip_ns / 1e9
