"""``bloombee plan``: the best plan for a topology, what binds it, and what would come of changes."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from bloombee.errors import ConfigError, PlanError
from bloombee.models.card import ModelCard
from bloombee.models.standin import is_standin, standin_card
from bloombee.objective import Objective
from bloombee.options import whole_number
from bloombee.picture import check_picture, drawn
from bloombee.plan.account import Account, account
from bloombee.plan.cost import evaluate
from bloombee.plan.document import Document, read
from bloombee.plan.problem import Problem, named_model, problem_of, readable
from bloombee.plan.report import Outcome, helps, outcomes, ratio, scheduler_line, text
from bloombee.plan.solve import Solution, solve_places
from bloombee.plan.whatif import Scenario, improvements, parse_scenario
from bloombee.replaying import replay_log
from bloombee.roles.running_heads import running_head
from bloombee.roles.spawner_client import SpawnerClient
from bloombee.terminal import write, write_line_of_json
from bloombee.types import SchedulerPlace

MOST_IMPROVEMENTS = 8
"""That --explain plans anew."""
GIVE_A_FILE = ", or give a file (docs/topology.md)"
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
    scheduler: Annotated[
        str, Parameter(help="Where steps are made up: head, or stage0: beside the first stage; auto: where a step is quicker.")
    ] = "auto",
    pipelines: Annotated[int | None, Parameter(help="How many there may be.", converter=whole_number)] = None,
    context: Annotated[
        int | None, Parameter(help="Tokens that each sequence has cached, on average.", converter=whole_number)
    ] = None,
    what_if: Annotated[
        list[str] | None,
        Parameter(
            name="--what-if",
            allow_leading_hyphen=True,
            consume_multiple=False,
            help="Plan anew with a change, and say what comes of it; may be repeated. As -NAME, +NEW=LIKE, 'A->B bandwidth=0.1x',"
            " 'A<->B rtt=80ms', 'NAME speed=2x'; several with commas between them.",
        ),
    ] = None,
    explain: Annotated[bool, Flag, Parameter(help="Say how the times come about, and what would help.")] = False,
    picture: Annotated[str | None, Parameter(help="Draw the plan to this file, .png or .svg.")] = None,
    time: Annotated[float, Parameter(help="Seconds that each search may take.")] = 1.0,
    replay: Annotated[
        str | None,
        Parameter(
            help="Plan nothing: make every decision of a file of --decisions again, and say whether it comes out the same, byte"
            " for byte; --explain says them."
        ),
    ] = None,
    save: Annotated[str | None, Parameter(help="Also write what is planned for to this file, as it was read or asked.")] = None,
    json: Annotated[bool, Flag, Parameter(help="Print one line of JSON on stdout and nothing else.")] = False,
) -> int:
    """Say who should run which layers, in which order and with which microbatches, and how far from the best that is."""
    if replay is not None:
        if any(value is not None for value in (file, head, objective, pipelines, context, what_if, picture, save)):
            raise ConfigError("--replay plans nothing: only --explain and --json go with it", field="replay")
        return replay_log(replay, explain=explain, as_json=json)
    if file is not None and head is not None:
        raise ConfigError("a file and --head: both say what to plan for; give one of them", field="head")
    if not 0 < time < 1e6:
        raise ConfigError(f"time = {time:g}: must be seconds > 0", field="time")
    place = _place(scheduler)
    scenarios = [parse_scenario(change) for change in what_if or ()]
    if picture is not None:
        check_picture(picture)
    document = read(file) if file is not None else running_head(head, GIVE_A_FILE).topology()
    if save is not None:
        write_file(save, document.to_json().encode())
    problem = _asked(load(document, file), objective, pipelines, context)
    if not json:
        problem = readable(problem)
    search = Search(problem, time, place)
    changes = [search.outcome(scenario) for scenario in scenarios]
    improvements = search.improvements() if explain else []
    if picture is not None:
        write_file(picture, drawn(search.found, problem, Path(picture).suffix[1:]))
    if json:
        record = msgspec.to_builtins(search.found) | ({"what_if": changes} if changes else {})
        write_line_of_json(record | ({"would_help": improvements} if explain else {}))
    else:
        write(search.text(changes, improvements, explain=explain) + "\n")
    return 0


class Search:
    """A problem's best plan, and those of what it could be.

    Args:
        budget_s: that each search may take.
        scheduler: its place; None: the best one.

    Raises:
        Infeasible, PlanError, ConfigError: as :func:`solve_places`.
    """

    def __init__(self, problem: Problem, budget_s: float, scheduler: SchedulerPlace | None = None) -> None:
        self._problem, self._budget_s, self._scheduler = problem, budget_s, scheduler
        self._solution, self.found = self._planned(problem)

    def _planned(self, problem: Problem) -> tuple[Solution, Account]:
        start = time.perf_counter()
        asked = (problem.topology, problem.model, problem.space, problem.objective)
        solution = solve_places(*asked, place=self._scheduler, budget_s=self._budget_s)
        return solution, account(solution, problem, time.perf_counter() - start)

    def outcome(self, scenario: Scenario) -> Outcome:
        """Raises ConfigError: it is of a worker or link that is not there."""
        changed = scenario.apply(self._problem)
        try:
            return Outcome(scenario.text, self._planned(changed)[1])
        except PlanError as error:
            return Outcome(scenario.text, None, error.message)

    def improvements(self) -> list[Outcome]:
        """Of whatever the plan uses, twice as good by itself: what promises most, planned anew."""
        promises = {scenario: self._promise(scenario) for scenario in improvements(self._problem, self._solution.pipelines)}
        ranked = sorted((one for one in promises if promises[one] != 1), key=lambda one: -promises[one])
        unknown = [scenario for scenario in promises if promises[scenario] == 1][: MOST_IMPROVEMENTS // 2]
        return [self.outcome(scenario) for scenario in (*ranked[: MOST_IMPROVEMENTS - len(unknown)], *unknown)]

    def _promise(self, scenario: Scenario) -> float:
        """How much better the same plan would be; 1 of memory, which changes no time."""
        changed = scenario.apply(self._problem)
        costs = [evaluate(cost.candidate, changed.topology, changed.model) for cost in self._solution.pipelines]
        speed = ratio(sum(cost.tokens_per_s for cost in costs), self._solution.tokens_per_s)
        loops = (min(cost.loop_s for cost in some) for some in (self._solution.pipelines, costs))
        return max(speed, ratio(*loops))

    def text(self, changes: Sequence[Outcome], improvements: Sequence[Outcome], *, explain: bool) -> str:
        """All of it for people."""
        parts = [text(self.found)]
        if changes:
            parts.append(outcomes(self.found, changes))
        if explain:
            explained = zip(self._solution.pipelines, self.found.pipelines, strict=True)
            parts += [f"{cost.explain()}\n{scheduler_line(pipeline)}" for cost, pipeline in explained]
            parts.append(helps(self.found, improvements))
        return "\n\n".join(parts)


def load(document: Document, file: str | None = None) -> Problem:
    """What a document asks.

    Args:
        file: where it is from; None: from no file.

    Raises:
        ConfigError: it is no problem, or its model cannot be read; the message starts with the file's name.
    """
    try:
        name = named_model(document)
        return problem_of(document, None if name is None else card_of(name))
    except ConfigError as error:
        if file is None:
            raise
        raise type(error)(f"{file}: {error.message}", **{**error.fields, "path": file}) from error


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


def _place(text: str) -> SchedulerPlace | None:
    """None: the best one."""
    if text == "auto":
        return None
    try:
        return SchedulerPlace(text)
    except ValueError:
        raise ConfigError(f"scheduler = {text!r}: must be auto, head or stage0", field="scheduler") from None


def _asked(problem: Problem, objective: str | None, pipelines: int | None, context: int | None) -> Problem:
    """With what stood on the command line."""
    space = problem.space
    if pipelines is not None:
        space = dataclasses.replace(space, pipelines=pipelines)
    if context is not None:
        space = dataclasses.replace(space, context=context)
    aim = problem.objective if objective is None else Objective.parse(objective)
    return dataclasses.replace(problem, space=space, objective=aim)
