"""How large the chunks of a prompt are, by position and beside decode, and how many rows of prompts should be under way.

On the way round a decode microbatch finds each stage, and each wire, at work for a prompt with the probability that the
prompt keeps it busy, and then waits for the rest of what has begun: of a chunk on a device, of a piece on a wire (decode
passes between pieces: docs/wire.md section 9). The rest of a time c is uniform on [0, c], so a wait has the mean u c / 2 and
the second moment u c^2 / 3; the waits are independent, and their sum is taken for normal.

Rows that come later attend to more, so chunks beside decode shrink with their position, as far as it takes to hold nobody up
more than at the start. Others do not: with o fixed seconds a chunk and a seconds that a row costs on the stages and hops that
are filled first and emptied last, sqrt(P o / a) rows are best for a prompt of P, and who is far on has a large P.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bloombee.models.shape import ModelShape
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import prefill_passes
from bloombee.plan.topology import Topology

MOST_INFLATION = 0.1
"""Of a decode step, at the 99th percentile."""
P99 = 2.33
"""Standard deviations of a normal distribution."""
PIECE_BYTES = 16 << 10
"""Of bulk that is on a wire at once."""
SMALLEST_CHUNK = 16
LEAST_ROWS = 4
"""Of chunks far on in a prompt, which are smaller yet if they take as long as the smallest at its start."""
BAND_GROWTH = 2**0.25
"""By how much a chunk of a size takes longer at the end of a band of positions than at its start."""
MOST_BANDS = 20
LAST_POSITION = 1 << 20


@dataclass(frozen=True, slots=True)
class Chunks:
    """How a prompt is cut from ``position`` on.

    Args:
        fast: most rows of a chunk while nothing decodes; gentle: while sequences do.
        under_way: rows of prompts while nothing decodes, twice what fills the ring; inf: any number.
    """

    position: int
    fast: int
    gentle: int
    under_way: float


def chunks_at(chunks: Sequence[Chunks], position: int) -> Chunks:
    """Those of ``chunks``, the first of which begin at 0, that hold at ``position``."""
    return next(one for one in reversed(chunks) if one.position <= position)


def chunks_by_position(
    base: Candidate, topology: Topology, model: ModelShape, *, step_s: float, fastest: int
) -> tuple[Chunks, ...]:
    """In rising order of position, the first at 0; further ones only where attention to more tokens takes longer.

    Args:
        step_s: of decode; fastest: rows of a chunk at position 0 while nothing decodes.

    Time: two evaluations of :func:`decode_wait_s` and of :func:`filling_rows` a band, MOST_BANDS bands at most.
    """
    found: list[Chunks] = []
    at_start_s = _slowest_stage_s(base, topology, model, SMALLEST_CHUNK)
    for position in _bands(base, topology, model, fastest):
        here = replace(base, context=base.context + position)
        here_s = _slowest_stage_s(here, topology, model, SMALLEST_CHUNK)
        smallest = max(LEAST_ROWS, math.ceil(SMALLEST_CHUNK * at_start_s / here_s)) if here_s > 0 else SMALLEST_CHUNK
        most = found[-1].gentle if found else fastest
        gentle = gentle_chunk(here, topology, model, step_s=step_s, fastest=most, smallest=smallest)
        under_way = max(filling_rows(here, topology, model, size) for size in (fastest, gentle))
        chunks = Chunks(position, fastest, gentle, under_way)
        if not found or replace(chunks, position=found[-1].position) != found[-1]:
            found.append(chunks)
    return tuple(found)


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


def gentle_chunk(
    base: Candidate, topology: Topology, model: ModelShape, *, step_s: float, fastest: int, smallest: int = SMALLEST_CHUNK
) -> int:
    """The largest chunk up to ``fastest`` rows that makes a decode step of ``step_s`` at most a tenth longer.

    Where none does, the smallest of which at least half the time goes into its rows: smaller ones would cost the prompt
    more than they give to decode.
    """
    chunk = fastest
    while chunk > smallest and decode_wait_s(base, topology, model, chunk) > MOST_INFLATION * step_s:
        smaller = max(smallest, chunk // 2)
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


def _slowest_stage_s(base: Candidate, topology: Topology, model: ModelShape, chunk: int) -> float:
    return max(prefill_passes(base, topology, model, chunk=chunk)[0])


def _bands(base: Candidate, topology: Topology, model: ModelShape, chunk: int) -> list[int]:
    """First positions of bands over which no stage's time for a chunk grows by more than BAND_GROWTH."""
    now, later = (
        prefill_passes(replace(base, context=base.context + more), topology, model, chunk=chunk)[0] for more in (0, LAST_POSITION)
    )
    growth = max((after - before) / before if before > 0 else 0.0 for before, after in zip(now, later, strict=True))
    if growth <= 0:
        return [0]
    doubling = LAST_POSITION / growth
    return sorted({min(LAST_POSITION, round(doubling * (BAND_GROWTH**k - 1))) for k in range(MOST_BANDS)})


def _is_mostly_fixed(base: Candidate, topology: Topology, model: ModelShape, chunk: int) -> bool:
    """On the slowest stage, of chunks of ``chunk`` and of twice as many rows."""
    once, twice = (_slowest_stage_s(base, topology, model, rows) for rows in (chunk, 2 * chunk))
    return twice < 1.5 * once and decode_wait_s(base, topology, model, chunk) > 0
