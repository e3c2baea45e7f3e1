"""How long a work takes a device that is emulated, or one that is simulated.

A paced stage keeps its device busy until its pace has passed since the forward began, asleep and not computing. So several
workers on a few cores behave like as many machines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bloombee.errors import ConfigError
from bloombee.types import Phase

RULE = "three numbers of milliseconds from 0 to 1000000, F,R,P: fixed, for each decode row, for each prefill row; as 13,0.05,0.5"
MAX_MS = 1e6


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of one work: ``fixed_s + decode_row_s * rows`` in decode, ``fixed_s + prefill_row_s * rows`` in prefill."""

    fixed_s: float
    decode_row_s: float
    prefill_row_s: float

    def seconds(self, phase: Phase, num_rows: int) -> float:
        return self.fixed_s + (self.prefill_row_s if phase is Phase.PREFILL else self.decode_row_s) * num_rows

    def __str__(self) -> str:
        """As :func:`parse_pace` reads it."""
        return ",".join(f"{seconds * 1e3:.6g}" for seconds in (self.fixed_s, self.decode_row_s, self.prefill_row_s))


def parse_pace(text: str) -> Pace:
    """A pace from ``F,R,P`` in milliseconds.

    Raises:
        ConfigError: not three numbers, or one that is negative or not finite.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(math.isfinite(number) and 0 <= number <= MAX_MS for number in numbers):
        raise ConfigError(f"pace = {text!r}: must be {RULE}", field="pace", value=text, allowed=RULE)
    return Pace(*(number / 1e3 for number in numbers))
