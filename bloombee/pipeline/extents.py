"""Room in a file of bounded size, handed out as contiguous extents. Pure."""

from __future__ import annotations

from bisect import bisect_left


class Extents:
    """Of [0, size). First fit, from where the last one was found: what is given back in the order in which it was taken is
    found again at once."""

    def __init__(self, size: int) -> None:
        self._starts = [0] if size > 0 else []
        self._sizes = [size] if size > 0 else []
        self._at = 0

    def take(self, size: int) -> int | None:
        """Where ``size`` >= 1 bytes are free together; None: nowhere."""
        count = len(self._starts)
        for step in range(count):
            index = (self._at + step) % count
            if self._sizes[index] >= size:
                start = self._starts[index]
                self._starts[index] += size
                self._sizes[index] -= size
                if not self._sizes[index]:
                    del self._starts[index], self._sizes[index]
                self._at = index
                return start
        return None

    def give(self, start: int, size: int) -> None:
        """Bytes that were taken are free again."""
        index = bisect_left(self._starts, start)
        if index and self._starts[index - 1] + self._sizes[index - 1] == start:
            index -= 1
            self._sizes[index] += size
        else:
            self._starts.insert(index, start)
            self._sizes.insert(index, size)
        if index + 1 < len(self._starts) and self._starts[index] + self._sizes[index] == self._starts[index + 1]:
            self._sizes[index] += self._sizes.pop(index + 1)
            del self._starts[index + 1]
