"""When another plan is worth the change to it. Pure: time is passed in, in seconds.

Nobody knows how long a link that has become slow stays so. Who waits loses a share of the work for as long as it lasts; who
changes at once pays again with every swing. So the plan that runs is left once it has lost as much as the change costs
(ski rental): that is at most twice what who knows the future would have paid, as long as the change pays for itself.

- *Loss* a second: the share of the other plan's value that is missing, less than nothing while the other one is worse. Regret is
  its sum, never below 0. A loss within MARGIN is none: figures scatter, and a search always finds what flatters them.
- A change that did not earn what it cost (the most by which the plan that was left had been outdone, all in all) doubles what the
  next one must have lost; that fades in FADE_S. So swings that are only just long enough for a change are soon sat out.

Ski rental: A. R. Karlin, M. S. Manasse, L. Rudolph, D. D. Sleator, Competitive snoopy caching, Algorithmica 3 (1988).
"""

from __future__ import annotations

from dataclasses import dataclass

MARGIN = 0.1
"""A plan that is better by no more is not changed to."""
FADE_S = 600.0
"""In so long the factor on what a change costs falls back by half of what it is above 1."""
MOST_FACTOR = 64.0
LONGEST_LOOK_S = 5.0
"""Nobody looked for longer than that: nothing ran, or nothing could be changed, and nothing was lost."""


@dataclass(slots=True)
class Regret:
    """Of the plan that runs, against the best other one known. To be asked every few seconds while there is something to run.

    Attributes:
        regret_s: seconds of the other plan's work that were lost. factor: on what a change costs.
    """

    regret_s: float = 0.0
    factor: float = 1.0
    _at: float | None = None
    _paid_s: float = 0.0
    """By the last change; 0: it has been judged, or there was none."""
    _earned_s: float = 0.0
    _most_earned_s: float = 0.0

    def look(self, now: float, running: float, other: float, cost_s: float) -> bool:
        """True: change now; the plan that is left is the other one from then on.

        Args:
            running, other: what the plans are worth by the figures as they are now, > 0; any unit.
            cost_s: of the change, in seconds of work.
        """
        passed_s = now - self._at if self._at is not None and now - self._at <= LONGEST_LOOK_S else 0.0
        self._fade(now)
        loss = 1.0 - running / other if other >= running else other / running - 1.0
        self._earn(-loss * passed_s)
        self.regret_s = max(0.0, self.regret_s + (loss if loss > MARGIN else loss - MARGIN) * passed_s)
        is_due = loss > MARGIN and self.regret_s + loss * passed_s >= self.factor * cost_s  # before the next look
        if is_due:
            self._change(cost_s)
        return is_due

    def begin(self) -> None:
        """Another plan runs for another reason: nothing was lost yet, and there is nothing to be earned."""
        self.regret_s = self._paid_s = self._earned_s = self._most_earned_s = 0.0

    def _fade(self, now: float) -> None:
        if self._at is not None:
            self.factor = 1.0 + (self.factor - 1.0) * 0.5 ** ((now - self._at) / FADE_S)
        self._at = now

    def _earn(self, seconds: float) -> None:
        self._earned_s += seconds
        self._most_earned_s = max(self._most_earned_s, self._earned_s)

    def _change(self, cost_s: float) -> None:
        if self._most_earned_s < self._paid_s:
            self.factor = min(MOST_FACTOR, 2.0 * self.factor)
        self._paid_s, self._earned_s, self._most_earned_s, self.regret_s = cost_s, 0.0, 0.0, 0.0
