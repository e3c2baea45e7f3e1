"""A set of numbers that mostly come one after the other. Pure."""

from __future__ import annotations

from bisect import bisect_right


class Runs:
    """Whole numbers as runs of neighbours: as large as it has gaps, however many there are."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        """Run i is [starts[i], stops[i]); runs rise and do not touch."""

    def __len__(self) -> int:
        """Runs, not numbers."""
        return len(self._starts)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and number < self._stops[at]

    def add(self, number: int) -> None:
        starts, stops = self._starts, self._stops
        at = bisect_right(starts, number)
        if at and number < stops[at - 1]:
            return
        follows = at > 0 and stops[at - 1] == number
        precedes = at < len(starts) and starts[at] == number + 1
        if follows and precedes:
            stops[at - 1] = stops[at]
            del starts[at], stops[at]
        elif follows:
            stops[at - 1] = number + 1
        elif precedes:
            starts[at] = number
        else:
            starts.insert(at, number)
            stops.insert(at, number + 1)

    def drop_below(self, floor: int) -> None:
        """Forget numbers < ``floor``."""
        gone = bisect_right(self._stops, floor)
        del self._starts[:gone], self._stops[:gone]
        if self._starts and self._starts[0] < floor:
            self._starts[0] = floor
