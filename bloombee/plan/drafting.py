"""What a round costs by the rows in it, for whoever decides how many are drafted (``spec/controller.py``)."""

from __future__ import annotations

from dataclasses import replace

from bloombee.models.shape import ModelShape
from bloombee.plan.candidate import Candidate
from bloombee.plan.cost import Cost, evaluate
from bloombee.plan.topology import Topology
from bloombee.spec.controller import Line, Load

FEW, MANY = 1, 33
"""Rows between which times are taken to be lines: all are, but for codecs, which are off for small frames."""


def load_of(candidate: Candidate, topology: Topology, model: ModelShape) -> Load:
    """Of the plan that ``candidate`` runs, for a sequence alone in its microbatch; the scheduler knows who else is in one.

    Raises:
        As :func:`~bloombee.plan.cost.evaluate`.
    """
    few, many = (
        evaluate(replace(candidate, microbatch_sequences=rows, rows_per_sequence=1, tokens_per_round=1.0), topology, model)
        for rows in (FEW, MANY)
    )
    busy = zip(_busy(few), _busy(many), strict=True)
    loop = _line(few.loop_s + few.core_wait_s, many.loop_s + many.core_wait_s)
    return Load(loop, _that_count([_line(low, high) for low, high in busy]), candidate.num_microbatches)


def _that_count(lines: list[Line]) -> tuple[Line, ...]:
    """Those that are not shorter than another one at any number of rows."""
    order = sorted(set(lines), key=lambda line: (-line.fixed_s, -line.row_s))
    return tuple(line for place, line in enumerate(order) if all(line.row_s > other.row_s for other in order[:place]))


def _busy(cost: Cost) -> list[float]:
    """Seconds of each that passes one microbatch at a time."""
    return [*(stage.busy_s for stage in cost.stages), *(link.busy_s for link in cost.links), *(s for _, s in cost.lines)]


def _line(few_s: float, many_s: float) -> Line:
    row_s = max(0.0, many_s - few_s) / (MANY - FEW)
    return Line(max(0.0, few_s - FEW * row_s), row_s)
