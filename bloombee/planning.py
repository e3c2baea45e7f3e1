"""``bloombee plan``: the best plan for a topology, what binds it, and what would come of changes."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bloombee.config import socket_folders
from bloombee.errors import ConfigError
from bloombee.models.card import ModelCard
from bloombee.models.standin import is_standin, standin_card
from bloombee.options import whole_number
from bloombee.plan.account import Account, LinkAccount, PipelineAccount, StageAccount, account
from bloombee.plan.document import Document, read
from bloombee.plan.network import HEAD_NODE
from bloombee.plan.problem import Problem, named_model, problem_of
from bloombee.plan.solve import Objective, solve
from bloombee.quote import quoted
from bloombee.roles.running_heads import RunningHead, running_heads
from bloombee.roles.spawner_client import SpawnerClient
from bloombee.terminal import write_line_of_json

Flag = Parameter(negative=(), show_default=False)


def plan(
    file: Annotated[
        str | None, Parameter(help="A topology with a model, in the format of docs/topology.md; default: that of a running head.")
    ] = None,
    *,
    head: Annotated[
        str | None, Parameter(help="Without a file: the running head to ask, by its process, if there are several.")
    ] = None,
    objective: Annotated[
        str | None, Parameter(help="latency, throughput, target:SECONDS or balance; default: the file's, else balance.")
    ] = None,
    pipelines: Annotated[int | None, Parameter(help="How many there may be.", converter=whole_number)] = None,
    context: Annotated[
        int | None, Parameter(help="Tokens that each sequence has cached, on average.", converter=whole_number)
    ] = None,
    time: Annotated[float, Parameter(help="Seconds that the search may take.")] = 1.0,
    save: Annotated[str | None, Parameter(help="Also write what is planned for to this file, as it was read or asked.")] = None,
    json: Annotated[bool, Flag, Parameter(help="Print one line of JSON on stdout and nothing else.")] = False,
) -> int:
    """Say who should run which layers, in which order and with which microbatches, and how far from the best that is."""
    if file is not None and head is not None:
        raise ConfigError("a file and --head: both say what to plan for; give one of them", field="head")
    document = read(file) if file is not None else running_head(head).topology()
    if save is not None:
        write_file(save, document.to_json().encode())
    problem = _asked(load(document), objective, pipelines, context)
    if not 0 < time < 1e6:
        raise ConfigError(f"time = {time:g}: must be seconds > 0", field="time")
    found = planned(problem, time)
    if json:
        write_line_of_json(found)
    else:
        print(text(found))
    return 0


def running_head(name: str | None) -> RunningHead:
    """The head of this user that is meant; without a name the only one there is.

    Raises:
        ConfigError: there is none of that name, none at all, or several; says which.
    """
    heads = running_heads(socket_folders())
    found = [head for head in heads if name in (None, head.name)]
    if len(found) == 1:
        return found[0]
    there = f"there are {', '.join(map(str, heads))}" if heads else "none of this user runs here"
    if name is not None:
        raise ConfigError(f"no head {quoted(name)} answers; {there}", field="head", value=quoted(name))
    if found:
        raise ConfigError(f"several heads run; say which with --head: {there}", field="head")
    raise ConfigError(f"no head answers; {there}: start one (bloombee head), or give a file (docs/topology.md)", field="head")


def load(document: Document) -> Problem:
    """What a document asks. Raises ConfigError: it is no problem, or its model cannot be read."""
    name = named_model(document)
    return problem_of(document, None if name is None else card_of(name))


def card_of(model: str) -> ModelCard:
    """Facts of a model, read by a process of its own: this one never imports torch.

    Raises:
        ConfigError, ModelUnsupported: there is no such model, or it cannot be served.
    """
    return standin_card(model) if is_standin(model) else asyncio.run(_described(model))


async def _described(model: str) -> ModelCard:
    spawner = SpawnerClient(on_exit=lambda pid, status: None, on_lost=lambda: None)
    spawner.start()
    try:
        return ModelCard.from_json(await spawner.ask("describe", model=model))
    finally:
        await spawner.close()


def write_file(path: str, data: bytes) -> None:
    """Raises ConfigError: it cannot be written."""
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot write this file: {error.strerror}", path=path) from error


def _asked(problem: Problem, objective: str | None, pipelines: int | None, context: int | None) -> Problem:
    """With what stood on the command line."""
    space = problem.space
    if pipelines is not None:
        space = dataclasses.replace(space, pipelines=pipelines)
    if context is not None:
        space = dataclasses.replace(space, context=context)
    aim = problem.objective if objective is None else Objective.parse(objective)
    return dataclasses.replace(problem, space=space, objective=aim)


def planned(problem: Problem, budget_s: float) -> Account:
    """The best plan that was found in time. Raises Infeasible, PlanError and ConfigError as :func:`solve`."""
    start = time.perf_counter()
    solution = solve(problem.topology, problem.model, problem.space, problem.objective, budget_s=budget_s)
    return account(solution, problem, time.perf_counter() - start)


# -- for people --------------------------------------------------------------------------------


def text(found: Account) -> str:
    """A table of each ring, the result, and who is left out."""
    lines = [headline(found)]
    for number, pipeline in enumerate(found.pipelines, 1):
        title = [f"pipeline {number}"] if len(found.pipelines) > 1 else []
        lines += ["", *title, *_ring(pipeline), "", *_summary(pipeline)]
    if found.spares:
        lines += ["", "left as spares:", *(f"  {name}: {why}" for name, why in found.spares.items())]
    return "\n".join(lines)


def headline(found: Account) -> str:
    """The result in one line."""
    speed, alone = f"{found.tokens_per_s:.1f} tokens/s", f"{_ms(found.value)} a token at B = 1"
    value = {"latency": alone, "balance": f"{speed}, {alone}"}.get(found.objective, speed)
    how = "proven best" if found.proven else f"no plan is more than {found.gap:.2%} better"
    return f"{found.objective}: {value}; {how}"


def _ring(pipeline: PipelineAccount) -> list[str]:
    """A row for the head and each stage with the link to the next."""
    header = ("worker", "layers", "compute", "stream", "memory", "of", "busy", "to", "wire", "latency", "codec", "busy", "binds")
    rows: list[Sequence[str]] = [header, (HEAD_NODE, "", "", "", "", "", "", *_link_cells(pipeline.links[0]), "")]
    for stage, link in zip(pipeline.stages, pipeline.links[1:], strict=True):
        binds = [*stage.binds, *(["link"] if link.binds else [])]
        rows.append((*_stage_cells(stage), *_link_cells(link), ", ".join(binds)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    texts = {0, 1, 7, len(header) - 1}
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
        _ms(stage.compute_s),
        _ms(stage.stream_s) if stage.stream_s else "",
        _size(stage.memory_bytes),
        "" if stage.memory_limit_bytes is None else _size(stage.memory_limit_bytes),
        f"{stage.busy:.0%}",
    )


def _link_cells(link: LinkAccount) -> Sequence[str]:
    codec = "" if link.ratio is None else f"x{link.ratio:.2g}"
    return link.target, _ms(link.wire_s), _ms(link.latency_s), codec, f"{link.busy:.0%}"


def _summary(pipeline: PipelineAccount) -> list[str]:
    return [
        f"M = {pipeline.microbatches} microbatches of b = {pipeline.sequences} sequences: {pipeline.tokens_per_s:.1f} tokens/s,"
        f" {_ms(pipeline.time_per_token_s)} a token",
        f"loop {_ms(pipeline.loop_s)}, bottleneck {_ms(pipeline.bottleneck_s)} ({pipeline.bottleneck});"
        f" step {_ms(pipeline.step_s)}, set by {pipeline.set_by}",
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.2f} MB"
