"""What a stage of the plan that runs has done, as it says now and then."""

from __future__ import annotations

from dataclasses import dataclass, field

from bloombee.control.events import StageMeasured
from bloombee.types import StageUse


@dataclass(slots=True)
class StageRecord:
    """Of one stage of one plan."""

    use: StageUse = field(default_factory=StageUse)
    """Since it was loaded."""
    pages_free: int = 0
    bubble_s: float = 0.0
    """Of the time in which there were requests, since the first report, without a forward; never less than before."""
    _first_s: tuple[float, float] | None = None
    """For how long there had been requests, and a forward, at that report."""

    def add(self, said: StageMeasured, active_s: float) -> None:
        """A report; ``active_s``: for how long there have been requests by now."""
        before_s, busy_s = self.use.busy_s, said.use.busy_s
        self.use, self.pages_free = said.use, said.pages_free
        if self._first_s is None or busy_s < before_s:  # the latter: it counts anew
            self._first_s = active_s - self.bubble_s, busy_s
        self.bubble_s = max(self.bubble_s, active_s - self._first_s[0] - (busy_s - self._first_s[1]))
