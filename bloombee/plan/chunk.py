"""How large a chunk of a prompt may be while sequences decode, and how many rows of prompts should be under way.

On the way round a decode microbatch finds each stage, and each wire, at work for a prompt with the probability that the
prompt keeps it busy, and then waits for the rest of what has begun: of a chunk on a device, of a piece on a wire (decode
passes between pieces: docs/wire.md section 9). The rest of a time c is uniform on [0, c], so a wait has the mean u c / 2 and
the second moment u c^2 / 3; the waits are independent, and their sum is taken for normal.
"""

from __future__ import annotations

import math

from bloombee.plan.candidate import Candidate, ModelShape
from bloombee.plan.cost import prefill_passes
from bloombee.plan.topology import Topology

MOST_INFLATION = 0.1
"""Of a decode step, at the 99th percentile."""
P99 = 2.33
"""Standard deviations of a normal distribution."""
PIECE_BYTES = 16 << 10
"""Of bulk that is on a wire at once."""
SMALLEST_CHUNK = 16


def decode_wait_s(base: Candidate, topology: Topology, model: ModelShape, chunk: int) -> float:
    """Seconds, 99th percentile, by which a prompt in chunks of ``chunk`` rows without a pause delays a decode microbatch."""
    stages, links = prefill_passes(base, topology, model, chunk=chunk)
    slowest = max(*stages, *(link.busy_s for link in links))
    if slowest <= 0:
        return 0.0
    waits = [(stage / slowest, stage) for stage in stages]
    waits += [(link.wire_s / slowest, link.wire_s * min(1.0, PIECE_BYTES / link.frame_bytes)) for link in links]
    mean = sum(share * seconds / 2 for share, seconds in waits)
    variance = sum(share * seconds**2 / 3 - (share * seconds / 2) ** 2 for share, seconds in waits)
    return mean + P99 * math.sqrt(variance)


def gentle_chunk(base: Candidate, topology: Topology, model: ModelShape, *, step_s: float, fastest: int) -> int:
    """The largest chunk up to ``fastest`` rows that makes a decode step of ``step_s`` at most a tenth longer.

    Where none does, the smallest of which at least half the time goes into its rows: smaller ones would cost the prompt
    more than they give to decode.
    """
    chunk = fastest
    while chunk > SMALLEST_CHUNK and decode_wait_s(base, topology, model, chunk) > MOST_INFLATION * step_s:
        smaller = max(SMALLEST_CHUNK, chunk // 2)
        if _is_mostly_fixed(base, topology, model, smaller):
            break
        chunk = smaller
    return chunk


def filling_rows(base: Candidate, topology: Topology, model: ModelShape, chunk: int) -> int:
    """Rows in chunks of ``chunk`` that leave the bottleneck no idle moment, and as many again: chunks also wait for decode,
    for windows that open and in queues, and a bottleneck that has run dry does not catch up."""
    stages, links = prefill_passes(base, topology, model, chunk=chunk)
    once_round_s = sum(stages) + sum(link.pass_s for link in links)
    slowest_s = max(*stages, *(link.busy_s for link in links))
    return 2 * chunk * (1 + (math.ceil(once_round_s / slowest_s - 1e-9) if slowest_s > 0 else len(base.workers)))


def _is_mostly_fixed(base: Candidate, topology: Topology, model: ModelShape, chunk: int) -> bool:
    """On the slowest stage, of chunks of ``chunk`` and of twice as many rows."""
    once = max(prefill_passes(base, topology, model, chunk=chunk)[0])
    twice = max(prefill_passes(base, topology, model, chunk=2 * chunk)[0])
    return twice < 1.5 * once and decode_wait_s(base, topology, model, chunk) > 0
