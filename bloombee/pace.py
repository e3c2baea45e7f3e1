"""How long a work takes a device that is emulated, or one that is simulated.

A paced stage keeps its device busy until its pace has passed since the forward began, asleep and not computing. So several
workers on a few cores behave like as many machines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bloombee.errors import ConfigError
from bloombee.quote import quoted
from bloombee.types import Phase

RULE = (
    "three numbers of milliseconds from 0 to 1000000, F,R,P: fixed, for each decode row, for each prefill row; as 13,0.05,0.5,"
    " or 13,0.05,0.5/20 if these are for 20 layers and a stage of n takes n/20 of them"
)
MAX_MS = 1e6
MAX_LAYERS = 2**16


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of one work: ``fixed_s + decode_row_s * rows`` in decode, ``fixed_s + prefill_row_s * rows`` in prefill.

    Args:
        layers: that these times are for, a stage of n takes n / layers of them; None: of a stage, whatever its layers.
    """

    fixed_s: float
    decode_row_s: float
    prefill_row_s: float
    layers: int | None = None

    def seconds(self, phase: Phase, num_rows: int, num_layers: int) -> float:
        """Of a stage of ``num_layers``."""
        row_s = self.prefill_row_s if phase is Phase.PREFILL else self.decode_row_s
        return (self.fixed_s + row_s * num_rows) * (num_layers / self.layers if self.layers else 1.0)

    def for_layers(self, num_layers: int) -> Pace:
        """The same for a stage of ``num_layers``, as a pace that no longer asks how many."""
        if self.layers is None:
            return self
        share = num_layers / self.layers
        return Pace(self.fixed_s * share, self.decode_row_s * share, self.prefill_row_s * share)

    def scaled(self, factor: float) -> Pace:
        """The same of a device that takes ``factor`` times as long."""
        return Pace(self.fixed_s * factor, self.decode_row_s * factor, self.prefill_row_s * factor, self.layers)

    def __str__(self) -> str:
        """As :func:`parse_pace` reads it."""
        times = ",".join(f"{seconds * 1e3:.6g}" for seconds in (self.fixed_s, self.decode_row_s, self.prefill_row_s))
        return times if self.layers is None else f"{times}/{self.layers}"


def parse_pace(text: str) -> Pace:
    """A pace from ``F,R,P`` or ``F,R,P/LAYERS``, in milliseconds.

    Raises:
        ConfigError: not three numbers, or one that is negative or not finite; a number of layers below 1.
    """
    times, slash, layers = text.partition("/")
    try:
        numbers = [float(part) for part in times.split(",")]
        per = int(layers) if slash else None
    except ValueError:
        numbers, per = [], None
    fits = len(numbers) == 3 and all(math.isfinite(number) and 0 <= number <= MAX_MS for number in numbers)
    if not fits or not (per is None or 1 <= per <= MAX_LAYERS):
        raise ConfigError(f"pace = {quoted(text)}: must be {RULE}", field="pace", value=quoted(text), allowed=RULE)
    fixed, decode_row, prefill_row = (number / 1e3 for number in numbers)
    return Pace(fixed, decode_row, prefill_row, per)
