"""How many bytes of bulk a link may have on its way, so that no queue builds before what must overtake them.

Theory of operation. Both lanes of a link share its narrowest wire. What stands in the queue before that wire delays a
decode frame by queue / bandwidth, whichever connection it came on; so bulk goes in pieces, each acknowledged, and at most

    window = bandwidth * (gain * least round trip + extra)

is unacknowledged. The figures come from the acknowledgements: bandwidth is the largest delivery rate of the last rounds
(bytes acknowledged while one piece was on its way, over that time), the least round trip is that of the last seconds.
``extra`` is led so that the least round trip of each round shows one piece waiting, more where round trips
scatter: the wire is full, and no more than that. ``gain`` is 1; it is more at first (as much as the spacing of the first
acknowledgements allows) and after rounds in which nothing waited at all. Pieces are spaced at the pace of the wire,
since a window sent at once after a pause would stand in the queue as a whole. A piece is what the wire carries in two
milliseconds.

A link that becomes longer looks like a queue, and a window that shrinks for it does not make it go: rates fall with the window
and the window with the rates. So the wire is emptied for one round trip, to see the least one again, every ten seconds and as
soon as pieces wait although none is meant to.

No clock inside: time comes with each call, in seconds of any monotonic clock. Source of the model: BBR (Cardwell et al.,
ACM Queue 14(5), 2016; draft-cardwell-iccrg-bbr-congestion-control section 4.1 for the samples); its probing by
adding a queue for a while is what must not be here, so growth is decided by the round trip instead.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from bloombee.wire.rules import refuse

FIRST_WINDOW_BYTES = 1 << 16
FIRST_PIECE_BYTES = 1 << 13
MIN_PIECE_BYTES = 1 << 12
MAX_PIECE_BYTES = 1 << 17
"""Largest piece that is sent, and that a receiver must take."""
PIECE_S = 0.002
PACING_GAIN = 1.1
"""Pieces are spaced for a little more than the bandwidth: the window, not the pace, holds a full wire."""
BURST_S = 0.002
"""What a late timer may catch up."""
FIRST_GAIN = 2.0
FIRST_GAIN_BY_TRAIN = 8.0
"""Growth of the window in a round at first, without and with the first acknowledgements' spacing to bound it."""
GAIN = 1.25
EMPTY_ROUNDS = 3
"""After so many without a queue the window grows by that."""
TRAIN_SHARE = 0.8
LEAST_GROWTH = 1.1
FLAT_ROUNDS = 2
"""The first growth ends near what that spacing says, or with rounds that were no faster than those before."""
SCATTERS = 1.5
"""Mean deviations of the round trip that are no queue."""
ROUNDS = 6
"""Of the bandwidth's maximum."""
MIN_RTT_AGE_S = 10.0
"""After that the wire is emptied for one round trip, to see the least one again."""
LOOKING_PIECES = 4
"""On their way meanwhile."""
STUCK_ROUNDS = 2
"""And after so many rounds in which pieces still waited although none was meant to: the link may have become longer ..."""
STUCK_AGE_S = 1.0
"""... but not sooner than this after the last time, and in no fewer than ROUNDS rounds."""
LONGER = 1.05
"""Times the least round trip, and longer than those pieces take: it was no queue, and the rates since were those of too small a
window."""
STALL_S = 5.0
"""Without any acknowledgement for so long, what is on its way is taken for lost (an acknowledgement may be, with its lane)."""


@dataclass(slots=True)
class _Sent:
    """A piece on its way, and what was known when it was sent."""

    number: int
    num_bytes: int
    at: float
    delivered: int
    delivered_at: float
    first_at: float
    """When the newest piece acknowledged by then was sent: between the two the sender was sending."""
    is_limited: bool
    """Fewer bytes were on their way than might be: says nothing about the wire unless it is fast."""
    is_full: bool
    """As much had been on its way for a round trip as might be: if no queue shows, more may."""


class BulkWindow:
    """Of one link and direction. Numbers of pieces grow by one from 0.

    Attributes (to be read by anybody):
        bandwidth_bytes_per_s: estimated; 0 until the first round trip.
        min_rtt_s: least round trip lately, of a piece and its acknowledgement; infinite until the first.
        window_bytes, unacked_bytes: what may be and what is on its way.
        piece_bytes: size of the next piece.
        next_number: of the next piece.
        num_delivered: pieces of frames that were acknowledged, probes left out.
    """

    def __init__(self) -> None:
        self.next_number = 0
        self.num_delivered = 0
        self.lost()

    def lost(self) -> None:
        """The connection is gone, with all that was on its way. Numbers go on; everything is measured anew."""
        self.bandwidth_bytes_per_s = 0.0
        self.min_rtt_s = math.inf
        self.window_bytes = FIRST_WINDOW_BYTES
        self.piece_bytes = FIRST_PIECE_BYTES
        self.unacked_bytes = 0
        self._sent: deque[_Sent] = deque()
        self._delivered = 0
        self._delivered_at = self._first_at = self._heard_at = 0.0
        self._next_at = 0.0
        self._busy_since = 0.0
        self._limited_upto = 0
        self._min_rtt_at = 0.0
        self._probe_number: int | None = None
        self._rates: deque[float] = deque(maxlen=ROUNDS)
        self._round_end = 0
        self._round_rate = 0.0
        self._round_counts = False
        """Some delivery rate of this round was the wire's, not the sender's."""
        self._num_stuck = 0
        self._stuck_bandwidth = 0.0
        """Before the first of these rounds."""
        self._stuck_at = -math.inf
        self._rounds_left = 0
        """Until the least round trip may be looked at again for that."""
        self._looked: tuple[float, float] | None = None
        """The bandwidth and the least round trip before that."""
        self._extra_s = 2 * PIECE_S
        self._num_empty = 0
        self._scatter_s = 0.0
        self._rtts: list[float] = []
        self._goal = 0.0
        """Bandwidth that is tried in this round; 0: the one estimated."""
        self._is_young = True
        self._last_bandwidth = 0.0
        self._num_flat = 0
        self._first_flight: int | None = None
        self._train: tuple[float, int] | None = None
        self._train_rate = 0.0

    # -- sending -------------------------------------------------------------------------------

    def wait_s(self, now: float, num_bytes: int) -> float:
        """How long to wait before ``num_bytes`` more may go; 0: now. After a positive answer ask again then, or after
        an acknowledgement, whichever is first."""
        if self._sent:
            stall_s = self._heard_at + STALL_S - now
            if stall_s <= 0:
                self.lost()
                return 0.0
            if self.unacked_bytes + num_bytes > self.window_bytes:
                return stall_s
        return max(0.0, self._next_at - now)

    def sent(self, num_bytes: int, now: float) -> int:
        """A piece goes out; returns its number."""
        number = self.next_number
        self.next_number += 1
        if not self._sent:  # nothing was measured while nothing was on its way
            self._first_at = self._delivered_at = self._heard_at = now
        if self._probe_number is None and self._wants_probe(now) and self.unacked_bytes + num_bytes <= self.window_bytes:
            self._probe_number = number
            self._busy_since = now
        is_limited = self._limited_upto > 0
        if is_limited:
            self._busy_since = now
        is_full = now - self._busy_since > self.min_rtt_s
        self._sent.append(_Sent(number, num_bytes, now, self._delivered, self._delivered_at, self._first_at, is_limited, is_full))
        self.unacked_bytes += num_bytes
        if self._rates:
            pace = max(self.bandwidth_bytes_per_s * PACING_GAIN, self._goal)
            self._next_at = max(self._next_at, now - BURST_S) + num_bytes / pace
        return number

    def skip(self) -> int:
        """A number for what is acknowledged like a piece and is none: a probe."""
        self.next_number += 1
        return self.next_number - 1

    def ran_dry(self) -> None:
        """There was nothing more to send although more might have gone: until what is on its way has arrived,
        delivery rates are the sender's and not the wire's."""
        if self._sent or self._rates:
            self._limited_upto = self._delivered + max(self.unacked_bytes, 1)

    # -- acknowledgements ----------------------------------------------------------------------

    def acked(self, upto: int, now: float) -> None:
        """The peer has read every piece < ``upto`` that came. Repeated and late acknowledgements change nothing.

        Raises:
            RemoteProtocolError: no piece of such a number was sent.
        """
        if upto > self.next_number:
            raise refuse("PieceAck.upto", upto, f"at most the number of pieces sent ({self.next_number})")
        newest: _Sent | None = None
        while self._sent and self._sent[0].number < upto:
            newest = self._sent.popleft()
            self.unacked_bytes -= newest.num_bytes
            self._delivered += newest.num_bytes
            self.num_delivered += 1
        if newest is None:
            return
        self._heard_at = self._delivered_at = now
        if self._delivered > self._limited_upto:
            self._limited_upto = 0
        self._note_rtt(newest, now)
        self._note_train(newest, now)
        self._note_rate(newest, now)
        self._first_at = newest.at
        if self._first_flight is None:
            self._first_flight = self.next_number
        if newest.delivered >= self._round_end and newest.number + 1 >= self._first_flight:
            self._end_round()
        self._set_window(now)

    # -- the model -----------------------------------------------------------------------------

    def _note_rtt(self, piece: _Sent, now: float) -> None:
        rtt_s = max(now - piece.at, 1e-6)
        if rtt_s <= self.min_rtt_s or (self._probe_number is not None and piece.number >= self._probe_number):
            self.min_rtt_s, self._min_rtt_at = rtt_s, now
            self._probe_number = None
            self._looked_again()
        if piece.is_full:
            self._rtts.append(rtt_s)
        if self._rates and rtt_s - self.min_rtt_s > 2 * self._queue_s():
            self._goal = 0.0  # more than was meant to wait does: no more growth in this round

    def _note_train(self, piece: _Sent, now: float) -> None:
        """The first window went out at once: the wire has spaced it, the acknowledgements show how."""
        if self._rates or piece.delivered or piece.is_limited:
            return
        if self._train is None:
            self._train = (now, self._delivered)
        elif now > self._train[0]:
            self._train_rate = (self._delivered - self._train[1]) / (now - self._train[0])

    def _note_rate(self, piece: _Sent, now: float) -> None:
        elapsed_s = max(now - piece.delivered_at, piece.at - piece.first_at)
        if elapsed_s < self.min_rtt_s:  # acknowledgements that came in a heap
            return
        rate = (self._delivered - piece.delivered) / elapsed_s
        # Of what was sent at once and was all there was, the round trip tells the rate, not the wire: a bound from below.
        is_limited = piece.is_limited or self._limited_upto > 0
        self._round_counts = self._round_counts or not is_limited
        if not is_limited or (self._rates and rate > self.bandwidth_bytes_per_s):
            self._round_rate = max(self._round_rate, rate)
            self.bandwidth_bytes_per_s = max(self.bandwidth_bytes_per_s, rate)

    def _end_round(self) -> None:
        """Everything that was on its way when the last round ended has been acknowledged."""
        self._round_end = self._delivered
        if self._round_rate:
            self._rates.append(self._round_rate)
            self.bandwidth_bytes_per_s = max(self._rates)
        self._round_rate = 0.0
        if not self._rates:
            return
        rtts, self._rtts = self._rtts, []
        least_s = min(rtts) - self.min_rtt_s if rtts else 0.0
        target_s = self._queue_s() / 2 + SCATTERS * self._scatter_s
        self._num_empty = self._num_empty + 1 if rtts and least_s <= target_s / 2 else 0
        if self._is_young:
            is_empty = least_s <= max(target_s / 2, self.min_rtt_s / 16)  # pieces grow meanwhile, and their own time with them
            has_grown = self.bandwidth_bytes_per_s > LEAST_GROWTH * self._last_bandwidth
            self._num_flat = 0 if has_grown else self._num_flat + self._round_counts
            self._round_counts = False
            self._last_bandwidth = self.bandwidth_bytes_per_s
            is_near = self.bandwidth_bytes_per_s > TRAIN_SHARE * self._first_goal()
            self._is_young = is_empty and self._num_flat < FLAT_ROUNDS and not is_near
        elif rtts and not self._goal:
            self._lead(rtts, target_s - least_s)
            self._look_if_stuck(is_waiting=least_s > target_s)
        if self._is_young:
            self._goal = self._first_goal()
        else:
            self._goal = GAIN * self.bandwidth_bytes_per_s if self._num_empty >= EMPTY_ROUNDS else 0.0

    def _look_if_stuck(self, *, is_waiting: bool) -> None:
        """A queue goes when it is led to; where the least round trip is another, leading ends in a window of nothing."""
        self._rounds_left -= 1
        before = self.bandwidth_bytes_per_s if not self._num_stuck else self._stuck_bandwidth
        self._num_stuck = self._num_stuck + 1 if is_waiting and self._extra_s == 0 else 0
        self._stuck_bandwidth = before
        now = self._heard_at
        if self._num_stuck < STUCK_ROUNDS or self._rounds_left > 0 or now - self._stuck_at < STUCK_AGE_S:
            return
        self._looked = (before, self.min_rtt_s)
        self._stuck_at, self._rounds_left, self._num_stuck = now, ROUNDS, 0
        self._min_rtt_at = -math.inf

    def _looked_again(self) -> None:
        """If it was the link's length, rates since were those of too small a window."""
        if self._looked is None:
            return
        (bandwidth, least_s), self._looked = self._looked, None
        own_s = LOOKING_PIECES * self.piece_bytes / self._rates[-1]
        if self.min_rtt_s > max(LONGER * least_s, least_s + own_s):
            self._rates.append(bandwidth)
            self.bandwidth_bytes_per_s = max(self._rates)

    def _lead(self, rtts: list[float], missing_s: float) -> None:
        """Let more wait, or less."""
        mean_s = sum(rtts) / len(rtts)
        spread_s = sum(abs(rtt_s - mean_s) for rtt_s in rtts) / len(rtts)
        self._scatter_s += (spread_s - self._scatter_s) / 4
        most_s = max(FIRST_WINDOW_BYTES / self.bandwidth_bytes_per_s, self.min_rtt_s / 4)
        self._extra_s = min(max(self._extra_s + missing_s / 2, 0.0), most_s)

    def _first_goal(self) -> float:
        if not self._train_rate:
            return FIRST_GAIN * self.bandwidth_bytes_per_s
        return min(self._train_rate, FIRST_GAIN_BY_TRAIN * self.bandwidth_bytes_per_s)

    def _set_window(self, now: float) -> None:
        if not self._rates:
            return
        bandwidth = max(self.bandwidth_bytes_per_s, self._goal)
        is_looking = self._wants_probe(now)
        # While the wire is emptied, by what it has carried last: it may have become narrower.
        piece_bytes = (self._rates[-1] if is_looking else bandwidth) * PIECE_S
        self.piece_bytes = min(max(int(piece_bytes), MIN_PIECE_BYTES), MAX_PIECE_BYTES)
        window = bandwidth * (self.min_rtt_s + self._extra_s)
        if is_looking:
            window = min(window, LOOKING_PIECES * self.piece_bytes)
        self.window_bytes = max(int(window), 2 * self.piece_bytes)

    def _wants_probe(self, now: float) -> bool:
        return now - self._min_rtt_at > MIN_RTT_AGE_S

    def _queue_s(self) -> float:
        """How long the two pieces take that are meant to wait."""
        return 2 * self.piece_bytes / self.bandwidth_bytes_per_s
