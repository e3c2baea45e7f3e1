"""How a plan is run: how many microbatches under way, how many sequences in each, prompts in which chunks.

For the sequences there are, every way to spread them over microbatches is put to the cost model, and the best is taken; among
ways that differ by less than a percent the one with the fewest microbatches. Cheap enough to do again whenever the
measured figures move. Source: docs/design.md section 6; ``plan/cost.py`` has the arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bloombee.plan.candidate import Candidate, ModelShape
from bloombee.plan.cost import Cost, evaluate, prefill_pass, prefill_s
from bloombee.plan.topology import Topology

CLOSE = 0.01
"""Costs within this share of each other count as the same."""
SMALLEST_CHUNK = 16


@dataclass(frozen=True, slots=True)
class Tuning:
    """How to run.

    Args:
        num_microbatches, microbatch_sequences: under way at once, and decoding sequences in each.
        max_sequences: more than these would break the target; None: no limit.
        chunk_rows: most rows of a prefill chunk; num_chunks: of them under way, as many as fill the ring.
        cost: what the model expects of it.
    """

    num_microbatches: int
    microbatch_sequences: int
    max_sequences: int | None
    chunk_rows: int
    num_chunks: int
    cost: Cost


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
) -> Tuning:
    """The best way to run ``sequences`` decoding sequences on the plan of ``base``.

    Args:
        base: workers, layers, codec ratios and context; its microbatches are replaced.
        most_microbatches: credit there is; most_rows: in one microbatch.
        target_s: time per token to keep, giving up throughput by running fewer sequences at once; None: none to keep.
            If not even one sequence keeps it, one is run.
        prompt_tokens: for which the chunk is chosen.

    Time: about 2 * sqrt(sequences) evaluations of the cost model, log2(sequences) times that with a target.
    """
    limit = None
    best = _spread(base, topology, model, sequences, most_microbatches, most_rows)
    if target_s is not None and best.time_per_token_s > target_s:
        low, high = 1, sequences
        while low < high:
            middle = (low + high + 1) // 2
            if _spread(base, topology, model, middle, most_microbatches, most_rows).time_per_token_s <= target_s:
                low = middle
            else:
                high = middle - 1
        limit = low
        best = _spread(base, topology, model, low, most_microbatches, most_rows)
    chunk = best_chunk(base, topology, model, prompt_tokens=prompt_tokens, most_rows=most_rows)
    chosen = best.candidate
    return Tuning(
        chosen.num_microbatches, chosen.microbatch_sequences, limit, chunk, filling_chunks(base, topology, model, chunk), best
    )


def best_chunk(base: Candidate, topology: Topology, model: ModelShape, *, prompt_tokens: int, most_rows: int) -> int:
    """Rows of a chunk that bring the first token of a prompt soonest; a power of two times SMALLEST_CHUNK.

    The first chunk pays the whole path, every further one only the bottleneck; each pays its fixed costs. So neither the
    whole prompt nor single rows are best.
    """
    best_s, best = float("inf"), SMALLEST_CHUNK
    chunk = SMALLEST_CHUNK
    while True:
        chunk = min(chunk, most_rows)
        seconds = prefill_s(base, topology, model, tokens=prompt_tokens, chunk=chunk)
        if seconds < best_s * (1 - CLOSE):
            best_s, best = seconds, chunk
        if chunk >= min(prompt_tokens, most_rows):
            return best
        chunk *= 2


def filling_chunks(base: Candidate, topology: Topology, model: ModelShape, chunk: int) -> int:
    """Chunks of ``chunk`` rows that leave the bottleneck no idle moment, and one that waits there."""
    once_round_s, bottleneck_s = prefill_pass(base, topology, model, chunk=chunk)
    return 1 + (math.ceil(once_round_s / bottleneck_s - 1e-9) if bottleneck_s > 0 else len(base.workers))


def _spread(base: Candidate, topology: Topology, model: ModelShape, sequences: int, most: int, most_rows: int) -> Cost:
    """The cheapest spread of ``sequences`` over at most ``most`` microbatches."""
    best: Cost | None = None
    for size in sorted({min(most_rows, -(-sequences // count)) for count in range(1, min(most, sequences) + 1)}, reverse=True):
        count = min(most, -(-sequences // size))
        cost = evaluate(replace(base, num_microbatches=count, microbatch_sequences=size), topology, model)
        if best is None or _per_sequence(cost, sequences) < _per_sequence(best, sequences) * (1 - CLOSE):
            best = cost
    assert best is not None
    return best


def _per_sequence(cost: Cost, sequences: int) -> float:
    """Seconds of a step in which every sequence had its turn, whole or in several rounds of microbatches."""
    at_once = cost.candidate.num_microbatches * cost.candidate.microbatch_sequences
    return cost.step_s * max(1.0, sequences / at_once)
