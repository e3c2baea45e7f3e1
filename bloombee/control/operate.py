"""How a plan is run: how many microbatches under way, how many sequences in each, prompts in which chunks.

For the sequences there are, every way to spread them over microbatches is put to the cost model, and the best is taken. The
scheduler keeps sizes a little apart (:func:`apart`) while there is something to learn, and a step lasts as long as the largest of
them is on its way: so M is never the very least that would fill the pipeline, where any unevenness leaves gaps. Among ways
that differ by less than a percent one is taken that has room for a loop that takes longer than the model knows, as it does on
machines that do other things too; and of those the one with the fewest microbatches. Cheap enough to do again whenever the
measured figures move. Source: docs/design.md section 6; ``plan/cost.py`` has the arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bloombee.control.chunks import SMALLEST_CHUNK, Chunks, chunks_by_position
from bloombee.models.shape import ModelShape
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import Cost, evaluate, prefill_s
from bloombee.plan.topology import Topology

CLOSE = 0.01
"""Costs within this share of each other count as the same."""
APART = 4
"""Sizes of decode microbatches that are apart differ from their mean by one in so many, at least by one."""
UNEVEN = 0.125
"""The largest microbatch is reckoned to be larger by that: remainders, sequences that come and go, times that scatter."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How to run.

    Args:
        num_microbatches, microbatch_sequences: under way at once, and decoding sequences in each.
        max_sequences: more than these would break the target; None: no limit.
        chunks: of prompts, by position.
        cost: what the model expects of microbatches of one size; step_s: of uneven ones.
    """

    num_microbatches: int
    microbatch_sequences: int
    max_sequences: int | None
    chunks: tuple[Chunks, ...]
    cost: Cost
    step_s: float


@dataclass(frozen=True, slots=True)
class _Way:
    """To spread sequences: ``turn_s`` until every one had its turn, ``roomy_s`` if loops take longer."""

    cost: Cost
    step_s: float
    turn_s: float
    roomy_s: float


def apart(size: int) -> int:
    """By how much decode microbatches of ``size`` on average are larger and smaller by turns, while that is asked for.

    From microbatches of one size nobody could tell what a device takes for each row (``control/observed.py``).
    """
    return -(-size // APART) if size > 1 else 0


def step_s(cost: Cost, topology: Topology, model: ModelShape, sequences: int) -> float:
    """Of the cost's candidate: the bottleneck sees the mean of sizes that are uneven, the loop is that of the largest.

    Args:
        sequences: in all; where they are no multiple of the candidate's microbatches some of these are smaller by one.
    """
    chosen = cost.candidate
    count, size = chosen.num_microbatches, chosen.microbatch_sequences
    if count == 1:
        return cost.step_s
    largest = evaluate(replace(chosen, microbatch_sequences=size + math.ceil(UNEVEN * size)), topology, model)
    smaller = min(count, count * size - sequences)
    if smaller <= 0:
        return max(cost.step_s, largest.loop_s)
    less_s = cost.bottleneck_s - evaluate(replace(chosen, microbatch_sequences=size - 1), topology, model).bottleneck_s
    return max(count * cost.bottleneck_s - smaller * less_s, cost.loop_s + cost.core_wait_s, largest.loop_s)


def tune(
    base: Candidate,
    topology: Topology,
    model: ModelShape,
    *,
    sequences: int,
    most_microbatches: int,
    most_rows: int,
    target_s: float | None = None,
    prompt_tokens: int = 512,
    least_microbatches: int = 1,
    room_s: float = 0.0,
) -> Tuning:
    """The best way to run ``sequences`` decoding sequences on the plan of ``base``.

    Args:
        base: workers, layers, codec ratios and context; its microbatches are replaced.
        most_microbatches: credit there is; most_rows: in one microbatch; least_microbatches: as far as sequences go round.
        target_s: time per token to keep, giving up throughput by running fewer sequences at once; None: none to keep.
            If not even one sequence keeps it, one is run.
        prompt_tokens: for which the chunk is chosen.
        room_s: by so much a loop should be able to take longer without leaving the bottleneck idle, where that costs less than
            CLOSE.

    Time: about 2 * sqrt(sequences) evaluations of the cost model, log2(sequences) times that with a target.
    """
    limit = None
    allowed = range(least_microbatches, most_microbatches + 1)
    best, seconds = _spread(base, topology, model, sequences, allowed, most_rows, room_s)
    if target_s is not None and best.time_per_token_s > target_s:
        low, high = 1, sequences
        while low < high:
            middle = (low + high + 1) // 2
            if _spread(base, topology, model, middle, allowed, most_rows, room_s)[0].time_per_token_s <= target_s:
                low = middle
            else:
                high = middle - 1
        limit = low
        best, seconds = _spread(base, topology, model, low, allowed, most_rows, room_s)
    chunk = best_chunk(base, topology, model, prompt_tokens=prompt_tokens, most_rows=most_rows)
    chosen = best.candidate
    chunks = chunks_by_position(base, topology, model, step_s=best.step_s, fastest=chunk)
    return Tuning(chosen.num_microbatches, chosen.microbatch_sequences, limit, chunks, best, seconds)


def best_chunk(base: Candidate, topology: Topology, model: ModelShape, *, prompt_tokens: int, most_rows: int) -> int:
    """Rows of a chunk that bring the first token of a prompt soonest: SMALLEST_CHUNK or half as much again, times a power of two.

    The first chunk pays the whole path, every further one only the bottleneck; each pays its fixed costs. So neither the
    whole prompt nor single rows are best.
    """
    best_s, best = float("inf"), SMALLEST_CHUNK
    chunk, larger = SMALLEST_CHUNK, SMALLEST_CHUNK * 3 // 2
    while True:
        chunk = min(chunk, most_rows)
        seconds = prefill_s(base, topology, model, tokens=prompt_tokens, chunk=chunk)
        if seconds < best_s * (1 - CLOSE):
            best_s, best = seconds, chunk
        if chunk >= min(prompt_tokens, most_rows):
            return best
        chunk, larger = larger, 2 * chunk


def _spread(
    base: Candidate, topology: Topology, model: ModelShape, sequences: int, allowed: range, most_rows: int, room_s: float
) -> tuple[Cost, float]:
    """The cheapest spread of ``sequences`` over as many microbatches as are ``allowed``, and its step."""
    most = allowed[-1]
    counts = range(min(allowed[0], sequences), min(most, sequences) + 1)
    ways = []
    for size in sorted({min(most_rows, -(-sequences // count)) for count in counts}, reverse=True):
        count = min(most, -(-sequences // size))
        cost = evaluate(replace(base, num_microbatches=count, microbatch_sequences=size), topology, model)
        seconds = step_s(cost, topology, model, sequences)
        # Whole or in several rounds of microbatches: until every sequence had its turn.
        turns = max(1.0, sequences / (count * size))
        ways.append(_Way(cost, seconds, seconds * turns, max(seconds, cost.loop_s + room_s) * turns))
    least_s = min(way.turn_s for way in ways)
    close = [way for way in ways if way.turn_s <= (1 + CLOSE) * least_s]
    least_roomy_s = min(way.roomy_s for way in close)
    best = next(way for way in close if way.roomy_s <= (1 + CLOSE) * least_roomy_s)
    return best.cost, best.step_s
