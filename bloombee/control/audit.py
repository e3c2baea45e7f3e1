"""Whether what a number of microbatches promised has come true, by the tokens that came of it. Pure.

The cost model knows devices and links. It does not know that two workers share a box, that a laptop runs hot, or what else the
machine does; more microbatches then cost more than they give. So speed is measured under each choice while the load is
steady, and compared with what was measured under others and with what was promised:

- a choice that is measurably slower than one before it (SLOWER, and beyond the scatter) is left for that one, which is measured
  again: if it is no longer faster either, the world has moved and not the choice, and nothing is concluded;
- a choice that stays SHORT of its promise is tried with half as many microbatches, and again while that helps, if half as many
  can be quicker at all: what is missing is put down to microbatches that are in each other's way, and the model asked once more.
  Over long links half as many cannot make up for what they leave idle, whatever it is that costs;
- fewer than the model's are kept only if they were measurably faster both than its choice had been before them and than it is
  once more after them: noise that comes and goes lasts for longer than a trial.

What was found holds for the same load (sequences, links) and only while the model expects about the same of it, for a while
at first and twice as long each time that it took a trial. One trial after another, each of a few turns: nothing oscillates.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

SLOWER = 0.03
SHORT = 0.1
SAMPLES = 4
SAMPLE_TURNS, SAMPLE_S = 4, 0.4
"""A sample lasts as long as both: of each sequence so many tokens, and so many seconds."""
SETTLE_TURNS, SETTLE_S = 3, 0.9
"""After a change nothing is measured for so long."""
HOPELESS = 0.15
"""Slower by that much: half the samples do."""
LEAST_ERROR = 0.01
"""Of a mean: machines do other things too."""
HOLD_S, HOLD_TURNS, MOST_HOLD_S = 60.0, 300, 1800.0
"""What was found holds as long as both, at first."""
GIVE_UP_S, GIVE_UP_TURNS = 30.0, 60
"""A trial that finds no steady load for so long ends."""
MOVED = 0.25
"""A promise that differs by more than this share is another one."""
SAME_LOAD = 1 / 32
SAME_DELAY_S = 0.010
MOST_LOADS = 16


StepOf = Callable[[int, float], float]
"""Seconds that the model expects of a step of so many microbatches, each of which every stage takes so much longer over."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second, as most samples have it, and how far off that may be."""

    middle: float
    error: float

    @classmethod
    def of(cls, samples: list[float]) -> Speed:
        """A machine that stalls spoils one sample, not the others."""
        middle = statistics.median(samples)
        scatter = statistics.stdev(samples) / math.sqrt(len(samples)) if len(samples) > 1 else 0.0
        return cls(middle, max(scatter, LEAST_ERROR * middle))

    def is_slower(self, than: Speed) -> bool:
        """Measurably."""
        return than.middle - self.middle > max(SLOWER * than.middle, 2 * math.hypot(self.error, than.error))


@dataclass(slots=True)
class _Load:
    """What was found under one load.

    ``pin``: what to run instead of the model's choice. ``until_s``: when a trial, or what was found, ends. ``returned_from``: the
    choice that the pinned one is measured against once more.
    """

    sequences: int
    delay_s: float | None
    seen: dict[int, Speed] = field(default_factory=dict)
    own: int = 0
    """The model's choice, when it was last judged."""
    pin: int | None = None
    until_s: float = math.inf
    returned_from: int | None = None
    is_trial: bool = False
    num_held: int = 0
    """Times that what was found took a trial."""
    promised_s: float = 0.0
    why: str = ""
    """Of what is asked for now."""

    def matches(self, sequences: int, delay_s: float | None) -> bool:
        if abs(sequences - self.sequences) > SAME_LOAD * self.sequences:
            return False
        if delay_s is None or self.delay_s is None:
            return True
        return abs(delay_s - self.delay_s) <= max(MOVED * max(delay_s, self.delay_s), SAME_DELAY_S)

    def try_out(self, count: int, give_up_s: float, why: str) -> None:
        self.pin, self.until_s, self.is_trial, self.why = count, give_up_s, True, why

    def settle(self, count: int, now: float, promised_s: float, why: str) -> None:
        """Go on with ``count``; the model may choose by itself if that is what it chooses."""
        self.why = why
        self.pin = None if count == self.own else count
        hold_s = max(HOLD_S, HOLD_TURNS * promised_s) * 2**self.num_held
        self.until_s, self.promised_s = now + min(MOST_HOLD_S, hold_s), promised_s
        self.num_held += self.is_trial  # what it cost is spent half as often from now on
        self.returned_from, self.is_trial = None, False

    def expire(self, now: float) -> None:
        """A trial found no steady load, or what was found is old."""
        if self.is_trial:
            self.settle(self.own, now, self.promised_s, "the trial met no steady load")
        else:
            self.forget()

    def forget(self) -> None:
        """All but what the pinned choice has shown, which the model's next one is held against."""
        self.seen = {self.pin: self.seen[self.pin]} if self.pin in self.seen else {}
        self.pin, self.until_s, self.why = None, math.inf, "what was found is old, or was promised otherwise"


@dataclass(slots=True)
class _Run:
    """Of one choice under one load, from ``since_s`` and ``tokens`` on."""

    count: int
    load: _Load
    since_s: float
    tokens: int
    begun: tuple[int, float] | None = None
    samples: list[float] = field(default_factory=list)

    def add(self, decoded: tuple[int, float], now: float) -> bool:
        """Whether a sample came of it."""
        tokens, at_s = decoded
        turns = self.load.sequences
        if self.begun is None:
            if tokens - self.tokens >= SETTLE_TURNS * turns and now - self.since_s >= SETTLE_S:
                self.begun = decoded
            return False
        if tokens - self.begun[0] < SAMPLE_TURNS * turns or at_s - self.begun[1] < SAMPLE_S:
            return False
        self.samples = [*self.samples[1 - SAMPLES :], (tokens - self.begun[0]) / (at_s - self.begun[1])]
        self.begun = decoded
        return True


class Check:
    """Of one plan."""

    def __init__(self) -> None:
        self._loads: list[_Load] = []
        self._run: _Run | None = None

    @property
    def why(self) -> str:
        """What was measured, where :meth:`look` asks for other than the model would."""
        return self._loads[0].why if self._loads else ""

    @property
    def is_settled(self) -> bool:
        """Under the load of the last look: nothing is being tried or still to be measured."""
        return bool(self._loads) and not self._loads[0].is_trial and self._loads[0].until_s < math.inf

    def look(
        self,
        count: int,
        sequences: int,
        delay_s: float | None,
        decoded: tuple[int, float],
        step_s: StepOf,
        *,
        is_steady: bool,
        now: float,
    ) -> int | None:
        """To be asked every time before the model is.

        Args:
            count: microbatches under way now; sequences: that decode.
            delay_s: of the links, once round; None: not known.
            decoded: tokens so far, and when the last of them came.
            step_s: what the model expects.
            is_steady: nothing but decode since the last time.

        Returns:
            Microbatches to go on with; None: as the model chooses.
        """
        load = self._find(sequences, delay_s)
        if now >= load.until_s:
            load.expire(now)
        run = self._run
        if run is None or run.load is not load or run.count != count or not is_steady:
            self._run = _Run(count, load, now, decoded[0])
            return load.pin
        if run.add(decoded, now):
            self._judge(run, step_s, now)
        return load.pin

    def _find(self, sequences: int, delay_s: float | None) -> _Load:
        """The load's record, now the latest; of those not met for longest the oldest goes."""
        load = next((one for one in self._loads if one.matches(sequences, delay_s)), None) or _Load(sequences, delay_s)
        self._loads = [load, *(one for one in self._loads if one is not load)][:MOST_LOADS]
        return load

    def _judge(self, run: _Run, step_s: StepOf, now: float) -> None:
        load, count, speed = run.load, run.count, Speed.of(run.samples)
        others = {other: seen for other, seen in load.seen.items() if other != count}
        best = max(others, key=lambda other: others[other].middle, default=None)
        is_hopeless = best is not None and max(run.samples) < (1 - HOPELESS) * others[best].middle
        if len(run.samples) < SAMPLES and not (is_hopeless and 2 * len(run.samples) >= SAMPLES):
            return
        before, promised_s = load.seen.get(count), step_s(count, 0.0)
        load.seen[count] = speed
        if load.returned_from is not None:
            self._confirm(load, count, before, step_s, now)
            return
        if before is not None and not load.is_trial and load.until_s < math.inf:
            if abs(promised_s - load.promised_s) > MOVED * load.promised_s:
                load.num_held = 0
                load.forget()
            return
        if load.pin is None:
            load.own, load.promised_s = count, promised_s
        give_up_s = now + GIVE_UP_S + GIVE_UP_TURNS * promised_s
        if best is not None and not load.is_trial and speed.is_slower(others[best]):
            load.try_out(best, give_up_s, f"{_found(load, count)}, {_found(load, best)}: is that one still quicker?")
            load.returned_from = count
        elif (best is None or speed.middle >= others[best].middle) and _may_be_worth_half(load, count, step_s):
            promised = f"of {load.sequences / promised_s:.4g} promised"
            load.try_out(-(-count // 2), give_up_s, f"{_found(load, count)} {promised}: half as many are tried")
        else:
            self._conclude(load, step_s, give_up_s, now)

    @staticmethod
    def _conclude(load: _Load, step_s: StepOf, give_up_s: float, now: float) -> None:
        """No other number is worth a trial: what is best is measured against the model's choice once more."""
        best = max(load.seen, key=lambda count: load.seen[count].middle)
        if load.is_trial and load.seen[load.own].is_slower(load.seen[best]):
            load.try_out(load.own, give_up_s, f"{_found(load, load.own)}, {_found(load, best)}: and once more?")
            load.returned_from = best
        else:
            load.settle(load.own, now, step_s(load.own, 0.0), _found(load, load.own))

    @staticmethod
    def _confirm(load: _Load, count: int, before: Speed | None, step_s: StepOf, now: float) -> None:
        """Back where it was faster, or slower: still so?"""
        left = load.returned_from
        assert left is not None
        again, other = load.seen[count], load.seen[left]
        if left == load.own:
            stays = other.is_slower(again)
        else:
            stays = not (again.is_slower(other) and (before is None or before.is_slower(other)))
        chosen = count if stays else left
        load.settle(chosen, now, step_s(chosen, 0.0), f"{_found(load, left)}, {_found(load, count)} once more")


def _may_be_worth_half(load: _Load, count: int, step_s: StepOf) -> bool:
    """Whether fewer were never tried, the promise was not kept, and half as many would make up for it if what is missing is that
    microbatches are in each other's way: each takes longer by something for every other one."""
    measured_s = load.sequences / load.seen[count].middle
    if count < 2 or min(load.seen) < count or step_s(count, 0.0) >= (1 - SHORT) * measured_s:
        return False
    low, high = 0.0, measured_s
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if step_s(count, middle) < measured_s else (low, middle)
    half = -(-count // 2)
    return step_s(half, high * (half - 1) / (count - 1)) < (1 + SLOWER) * measured_s


def _found(load: _Load, count: int) -> str:
    return f"{count} under way gave {load.seen[count].middle:.4g} tokens/s"
