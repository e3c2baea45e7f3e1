"""``bloombee status``, ``bloombee token`` and ``bloombee drain``: a head that runs, asked over its socket."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

from cyclopts import Parameter
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bloombee.errors import ConfigError, PlanError
from bloombee.plan.report import milliseconds, size
from bloombee.quote import quoted
from bloombee.roles.running_heads import running_head
from bloombee.roles.status import Figures, LinkStatus, PlanStatus, RequestStatus, SwarmStatus, WorkerStatus
from bloombee.terminal import count, joining_command, plain, say, where_to_join, write, write_line_of_json
from bloombee.types import WorkerId
from bloombee.utf8 import surrogate_at

WATCH_EVERY_S = 1.0
DRAIN_LOOK_S = 0.1
PLAIN_WIDTH = 240
"""Of tables that go to no terminal: nobody folds or cuts them there."""
MOST_REQUESTS = 20
"""That are shown; the oldest."""
HeadName = Annotated[str | None, Parameter(help="Which running head, by its process, if there are several.")]
Flag = Parameter(negative=(), show_default=False)


def status(
    *,
    head: HeadName = None,
    watch: Annotated[bool, Flag, Parameter(help="Show it again every second, until Ctrl-C.")] = False,
    json: Annotated[bool, Flag, Parameter(help="Print one line of JSON on stdout; with --watch, one a second.")] = False,
) -> int:
    """Show the workers, links, plan and requests of a head that runs."""
    moments = _moments(running_head(head).swarm, watch)
    if json:
        for now in moments:
            write_line_of_json(now)
        return 0
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    if not (watch and console.is_terminal):
        for now in moments:
            console.print(shown(now))
        return 0
    with Live(console=console, auto_refresh=False, screen=True) as live:
        for now in moments:
            live.update(shown(now), refresh=True)
    return 0


def token(*, head: HeadName = None) -> int:
    """Print the command that joins one more worker to a head that runs."""
    issued: str = running_head(head).ask("token")
    say(f"lets one worker in; run it once, {where_to_join(issued)}:")
    write(f"{joining_command(issued)}\n")
    return 0


def drain(
    worker: Annotated[str, Parameter(help="The worker's name, or its number, as 'bloombee status' shows them.")],
    *,
    head: HeadName = None,
) -> int:
    """Have a worker hand over what it serves, and end."""
    asked = running_head(head)
    leaver: dict[str, Any] = asked.ask("drain", _text(worker))
    name, number = leaver["name"], leaver["id"]
    say(f"worker {plain(name)} hands over what it serves")
    while (state := _state(asked.swarm(), number)) is not None:
        if state not in ("draining", "away"):
            raise PlanError(f"worker {plain(name)} stays: whoever could take its stage is gone", worker=name)
        time.sleep(DRAIN_LOOK_S)
    say(f"worker {plain(name)} has left")
    return 0


def _text(worker: str) -> str:
    """Raises ConfigError: it is none, and so no name that a worker has."""
    if (at := surrogate_at(worker)) is not None:
        raise ConfigError(f"worker {quoted(worker)} is not text at character {at}", field="worker")
    return worker


def _state(swarm: SwarmStatus, number: WorkerId) -> str | None:
    """Of a worker; None: it is not in. Raises PlanError: nothing runs any more."""
    if swarm.state == "down":
        raise PlanError(f"nothing runs any more: {swarm.reason}")
    return next((worker.state for worker in swarm.workers if worker.id == number), None)


def _moments(ask: Callable[[], SwarmStatus], watch: bool) -> Iterator[SwarmStatus]:
    """Now, and if so wanted again every second. Raises as ``ask`` does."""
    yield ask()
    while watch:
        time.sleep(WATCH_EVERY_S)
        yield ask()


# -- for people --------------------------------------------------------------------------------


def shown(swarm: SwarmStatus) -> Group:
    """All of it, as tables."""
    parts: list[Text | Table] = [Text(_headline(swarm)), _table(WORKERS, [_worker_cells(one) for one in swarm.workers])]
    if swarm.links:
        parts.append(_table(LINKS, [_link_cells(one) for one in swarm.links]))
    if swarm.requests:
        oldest = sorted(swarm.requests, key=lambda one: -one.age_s)
        parts.append(_table(REQUESTS, [_request_cells(one) for one in oldest[:MOST_REQUESTS]]))
        if len(oldest) > MOST_REQUESTS:
            parts.append(Text(f" and {len(oldest) - MOST_REQUESTS} more requests (--json has them all)"))
    return Group(*parts)


def _headline(swarm: SwarmStatus) -> str:
    what = f"waiting for {count(swarm.missing, 'worker')}" if swarm.state == "waiting" else swarm.state
    lines = [f"head {swarm.process} serves {plain(swarm.model)}: {what}{f' ({swarm.reason})' if swarm.reason else ''}"]
    if swarm.plan is not None:
        lines += _plan_lines(swarm.plan)
    lines.append(count(len(swarm.requests), "request"))
    return "\n".join(lines)


def _plan_lines(plan: PlanStatus) -> Iterator[str]:
    how = "cut as asked" if plan.objective is None else f"planned for {plan.objective}"
    yield f"plan {plan.epoch}, {how}; scheduler with {plain(plan.scheduler)}"
    yield f"runs with {_figures(plan.measured)}"
    if plan.predicted is not None:
        yield f"predicted {_figures(plan.predicted)}"


def _figures(figures: Figures) -> str:
    speed = "" if figures.tokens_per_s is None else f": {figures.tokens_per_s:.1f} tokens/s"
    return f"M = {figures.microbatches} microbatches of b = {figures.sequences} sequences{speed}"


WORKERS = ("worker", "number", "state", "stage", "layers", "memory", "used", "a layer", "silent", "address", "")
LINKS = ("from", "to", "round trip", "MB/s", "ratio", "codec")
REQUESTS = ("request", "client", "phase", "prompt", "tokens", "of", "tokens/s", "age")
_LEFT = {"worker", "state", "layers", "address", "", "from", "to", "codec", "client", "phase"}


def _worker_cells(worker: WorkerStatus) -> Sequence[str]:
    layers = "" if worker.layers is None else f"{worker.layers[0]}-{worker.layers[1] - 1}"
    return (
        worker.name,
        str(worker.id),
        worker.state,
        "" if worker.stage is None else str(worker.stage),
        layers,
        size(worker.memory_bytes),
        size(worker.used_bytes) if worker.used_bytes else "",
        "" if worker.layer_s is None else milliseconds(worker.layer_s),
        f"{worker.silent_s:.1f} s",
        worker.address,
        worker.reason,
    )


def _link_cells(link: LinkStatus) -> Sequence[str]:
    return (
        link.source,
        link.target,
        "" if link.rtt_s is None else milliseconds(link.rtt_s),
        "" if link.bandwidth_bytes_per_s is None else f"{link.bandwidth_bytes_per_s / 1e6:.2f}",
        "" if link.ratio is None else f"{link.ratio:.2f}",
        link.codec,
    )


def _request_cells(request: RequestStatus) -> Sequence[str]:
    return (
        str(request.id),
        request.client,
        request.phase,
        str(request.prompt_tokens),
        str(request.tokens),
        str(request.max_new_tokens),
        "" if request.tokens_per_s is None else f"{request.tokens_per_s:.1f}",
        f"{request.age_s:.1f} s",
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in columns:
        table.add_column(title, justify="left" if title in _LEFT else "right")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    return table
