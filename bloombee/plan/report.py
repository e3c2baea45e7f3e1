"""A plan as text for people: a table of each ring, what would come of changes, what would help. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bloombee.plan.account import Account, LinkAccount, PipelineAccount, StageAccount
from bloombee.plan.network import HEAD_NODE
from bloombee.types import SchedulerPlace


@dataclass(frozen=True, slots=True)
class Outcome:
    """What comes of a scenario: a plan, or why there is none."""

    what_if: str
    plan: Account | None
    error: str | None = None


def text(found: Account) -> str:
    """A table of each ring, the result, and who is left out."""
    lines = [headline(found)]
    for number, pipeline in enumerate(found.pipelines, 1):
        title = [f"pipeline {number}"] if len(found.pipelines) > 1 else []
        streams = [stream_line(stage) for stage in pipeline.stages if stage.streamed_bytes]
        lines += ["", *title, *_ring(pipeline), "", *_summary(pipeline), *streams]
    if found.spares:
        lines += ["", "left as spares:", *(f"  {name}: {why}" for name, why in found.spares.items())]
    return "\n".join(lines)


def headline(found: Account) -> str:
    """The result in one line."""
    speed, alone = f"{found.tokens_per_s:.1f} tokens/s", f"{milliseconds(found.value)} a token at B = 1"
    value = {"latency": alone, "balance": f"{speed}, {alone}"}.get(found.objective, speed)
    how = "proven best" if found.proven else f"no plan is more than {found.gap:.2%} better"
    return f"{found.objective}: {value}; {how}"


def _ring(pipeline: PipelineAccount) -> list[str]:
    """A row for the scheduler's place and each stage, with the link to the next."""
    header = ("worker", "layers", "compute", "stream", "memory", "of", "busy", "to", "wire", "latency", "codec", "busy", "binds")
    rows: list[Sequence[str]] = [header]
    if pipeline.scheduler is SchedulerPlace.HEAD:
        rows.append((HEAD_NODE, "", "", "", "", "", "", *_link_cells(pipeline.links[0]), ""))
    for stage, link in zip(pipeline.stages, pipeline.links[1:], strict=True):
        binds = [*stage.binds, *(["link"] if link.binds else [])]
        rows.append((*_stage_cells(stage), *_link_cells(link), ", ".join(binds)))
    return _columns(rows, {0, 1, 7, len(header) - 1})


def _columns(rows: Sequence[Sequence[str]], texts: set[int]) -> list[str]:
    """Rows as lines; columns of ``texts`` begin at the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _stage_cells(stage: StageAccount) -> Sequence[str]:
    start, stop = stage.layers
    return (
        stage.worker,
        f"{start}-{stop - 1} ({stop - start})",
        milliseconds(stage.compute_s),
        milliseconds(stage.stream_s) if stage.stream_s else "",
        size(stage.memory_bytes),
        "" if stage.memory_limit_bytes is None else size(stage.memory_limit_bytes),
        f"{stage.busy:.0%}",
    )


def _link_cells(link: LinkAccount) -> Sequence[str]:
    codec = "" if link.ratio is None else f"x{link.ratio:.2g}"
    return link.target, milliseconds(link.wire_s), milliseconds(link.latency_s), codec, f"{link.busy:.0%}"


def _summary(pipeline: PipelineAccount) -> list[str]:
    return [
        f"M = {pipeline.microbatches} microbatches of b = {pipeline.sequences} sequences: {pipeline.tokens_per_s:.1f} tokens/s,"
        f" {milliseconds(pipeline.time_per_token_s)} a token",
        f"loop {milliseconds(pipeline.loop_s)}, bottleneck {milliseconds(pipeline.bottleneck_s)} ({pipeline.bottleneck});"
        f" step {milliseconds(pipeline.step_s)}, set by {pipeline.set_by}",
        scheduler_line(pipeline),
    ]


def scheduler_line(pipeline: PipelineAccount) -> str:
    """Where it is, and what a step would take if it were in the other place."""
    beside, head = "beside the first stage", "with the head"
    is_head = pipeline.scheduler is SchedulerPlace.HEAD
    where, other = (head, beside) if is_head else (f"{beside}, on {pipeline.scheduler_name}", head)
    if pipeline.step_elsewhere_s is None:
        return f"scheduler {where}; {other} it cannot be: a link for that is missing"
    return f"scheduler {where}; {other} a step would take {milliseconds(pipeline.step_elsewhere_s)}"


def stream_line(stage: StageAccount) -> str:
    """Of a stage some of whose layers come from disk on every pass: how many, and whether that costs anything."""
    count, copy, compute = stage.layers[1] - stage.layers[0], milliseconds(stage.stream_s), milliseconds(stage.compute_s)
    what = f"{stage.worker}: {stage.streamed_layers:.3g} of {count} layers stream, {size(stage.streamed_bytes)} a pass"
    if stage.stream_s <= stage.compute_s:
        return f"{what}; hidden: compute {compute} >= copy {copy}"
    return f"{what}; copy {copy} > compute {compute}: a pass waits {milliseconds(stage.stream_s - stage.compute_s)} for the disk"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


def size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.2f} MB"


# -- changes -----------------------------------------------------------------------------------


def outcomes(before: Account, after: Sequence[Outcome]) -> str:
    """A row for each scenario, held against the plan as it is."""
    rows = [("what if", "tokens/s", "", _time_title(before), "", "layers"), _outcome_cells("as it is", before, None)]
    errors = [f"  {outcome.what_if}: {outcome.error}" for outcome in after if outcome.plan is None]
    rows += [_outcome_cells(outcome.what_if, outcome.plan, before) for outcome in after if outcome.plan is not None]
    return "\n".join([*_columns(rows, {0, 5}), *(["", "without a plan:", *errors] if errors else [])])


def _outcome_cells(name: str, plan: Account, before: Account | None) -> Sequence[str]:
    layers = " | ".join(
        ", ".join(f"{stage.worker} {stage.layers[1] - stage.layers[0]}" for stage in pipeline.stages)
        for pipeline in plan.pipelines
    )
    speed, time = ("", "") if before is None else (f"{ratio:.2f}x" for ratio in ratios(before, plan))
    return name, f"{plan.tokens_per_s:.1f}", speed, milliseconds(_time_s(plan)), time, layers


def ratios(before: Account, after: Account) -> tuple[float, float]:
    """(tokens per second, time per token) after over before."""
    return ratio(after.tokens_per_s, before.tokens_per_s), ratio(_time_s(after), _time_s(before))


def ratio(after: float, before: float) -> float:
    """1 of two that are the same, be they nothing or without limit."""
    if after == before:
        return 1.0
    return after / before if before else math.inf


def helps(before: Account, after: Sequence[Outcome]) -> str:
    """What would help, the most first."""
    found = [(outcome.what_if, *ratios(before, outcome.plan)) for outcome in after if outcome.plan is not None]
    gains = {what: _gain(before, speed, time) for what, speed, time in found}
    lines = [
        f"  {what}: {speed:.2f}x the tokens/s, {time:.2f}x the time per token"
        for what, speed, time in sorted(found, key=lambda one: -gains[one[0]])
        if gains[what] > LEAST_GAIN
    ]
    return "\n".join(["what would help, planned anew:", *(lines or ["  none of what it uses, twice as good by itself"])])


LEAST_GAIN = 1.005


def _gain(before: Account, speed: float, time: float) -> float:
    """By what it is to be best at."""
    if before.objective == "latency":
        return ratio(1.0, time)
    return max(speed, ratio(1.0, time)) if before.objective == "balance" else speed


def _is_alone(plan: Account) -> bool:
    return plan.objective in ("latency", "balance")


def _time_s(plan: Account) -> float:
    """Between two tokens of a sequence, by itself where the objective asks for that."""
    return plan.value if _is_alone(plan) else plan.time_per_token_s


def _time_title(plan: Account) -> str:
    return "a token, B = 1" if _is_alone(plan) else "a token"
