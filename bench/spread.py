"""What many samples come to: quantiles, and how sure a median of ratios is. Pure."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

NUM_DRAWS = 2000


def quantile(samples: Sequence[float], share: float) -> float:
    """Linear between the two nearest samples; NaN of none."""
    ordered = sorted(samples)
    if not ordered:
        return math.nan
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def spread(samples: Sequence[float]) -> dict[str, float]:
    """The quantiles that lines hold."""
    return {name: quantile(samples, share) for name, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9))}


def interval(rounds: Sequence[Sequence[float]], share: float = 0.9) -> tuple[float, float]:
    """Of the median of all ratios of interleaved pairs, by bootstrap over rounds (seeded).

    Args:
        rounds: [rounds][pairs]; what is alike within a round (the same processes) is drawn together.
        share: that the interval is to hold.
    """
    rng = random.Random(0)
    draws = ([ratio for one in rng.choices(rounds, k=len(rounds)) for ratio in one] for _ in range(NUM_DRAWS))
    medians = sorted(statistics.median(draw) for draw in draws)
    edge = round((1 - share) / 2 * len(medians))
    return medians[edge], medians[-1 - edge]
