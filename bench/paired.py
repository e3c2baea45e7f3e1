"""Ratios of interleaved pairs: their median and how sure it is. Pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

NUM_DRAWS = 2000


def interval(rounds: Sequence[Sequence[float]], share: float = 0.9) -> tuple[float, float]:
    """Of the median of all ratios, by bootstrap over rounds (seeded).

    Args:
        rounds: [rounds][pairs]; what is alike within a round (the same processes) is drawn together.
        share: that the interval is to hold.
    """
    rng = random.Random(0)
    draws = ([ratio for one in rng.choices(rounds, k=len(rounds)) for ratio in one] for _ in range(NUM_DRAWS))
    medians = sorted(statistics.median(draw) for draw in draws)
    edge = round((1 - share) / 2 * len(medians))
    return medians[edge], medians[-1 - edge]
