"""What a ring's parts take by themselves, measured before anything is predicted: devices, hops, and the CPU time of either. Only
real devices are measured: the pace of others is given.

A ring of its own, one microbatch under way, unshaped links: at any moment one stage computes and nothing waits for a core. What
is then predicted of a row comes from here and from the links asked for, and from nothing that was measured in the row.
"""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.load import Run, measure, warm_up
from bench.ring import Ring
from bench.texts import prompts

TOKENS, RUNS = 12, 3
"""Of a run, and how many of each size: the quickest counts, for others may be busy on this machine meanwhile."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Of a decode microbatch of ``rows`` sequences.

    Args:
        computes_s: of a forward, of each stage.
        hop_s: what a hop takes besides device, wire and delay.
        hop_cpu_s: CPU time of a hop, everything but the devices' forwards.
    """

    rows: int
    computes_s: tuple[float, ...]
    hop_s: float
    hop_cpu_s: float


def rows_to_measure(most: int) -> list[int]:
    """Powers of two below ``most``, and that."""
    return [*(1 << power for power in range((most - 1).bit_length())), most]


async def measure_apart(ring: Ring, most_rows: int, prompt_tokens: int) -> list[Parts]:
    """In ascending order of rows, up to ``most_rows``. The ring has one microbatch and unshaped links."""
    await warm_up(ring)
    found = []
    for rows in rows_to_measure(most_rows):
        texts = prompts(rows, prompt_tokens, ring.runtime.card.tokenizer_json)
        runs = [await measure(ring, texts, TOKENS, prefill=False) for _ in range(RUNS)]
        found.append(parts_of(runs, rows, hops=len(ring.runtime.plan.stages)))
    return found


def parts_of(runs: Sequence[Run], rows: int, *, hops: int) -> Parts:
    """From runs with ``rows`` sequences in one microbatch: of each figure the least."""
    computes = tuple(min(times) for times in zip(*(run.computes_s for run in runs), strict=True))
    hop_s = min(statistics.median(run.gaps_s) - sum(run.computes_s) for run in runs) / hops
    cpu_s = min(run.cpu_s_per_token * rows - sum(run.computes_s) for run in runs) / hops
    return Parts(rows, computes, max(0.0, hop_s), max(0.0, cpu_s))


def parts_at(parts: Sequence[Parts], rows: int) -> Parts:
    """Along a line between the nearest two sizes that were measured, or beyond the last two; never below zero."""
    if len(parts) == 1:
        return parts[0]
    place = min(max(1, bisect.bisect_left([one.rows for one in parts], rows)), len(parts) - 1)
    low, high = parts[place - 1], parts[place]
    share = (rows - low.rows) / (high.rows - low.rows)

    def between(a: float, b: float) -> float:
        return max(0.0, a + share * (b - a))

    computes = tuple(map(between, low.computes_s, high.computes_s))
    return Parts(rows, computes, between(low.hop_s, high.hop_s), between(low.hop_cpu_s, high.hop_cpu_s))
