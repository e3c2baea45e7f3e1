"""The control core: one owner of every choice that has a time scale. Pure: events in, commands out, time in events.

Today: how many microbatches are under way and how large, whether their sizes differ, how prompts are cut, how many sequences
run at once, when stages are asked what they have done, and when another plan is worth the change. Each choice is told as a
:class:`~bloombee.control.events.Decision` with the figures it was made from; the same events give the same decisions
(``log.py``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from bloombee.control.events import (
    Answer,
    Asked,
    CodecSeen,
    Command,
    Decision,
    DeviceSeen,
    Event,
    Figures,
    LinkSeen,
    Looked,
    PlanEnded,
    PlanRuns,
    PlansCompared,
    Price,
    Replan,
    Run,
    ShadowSeen,
    StageBack,
    StageMeasured,
)
from bloombee.control.observed import Shown
from bloombee.control.replanning import Regret
from bloombee.control.steering import Demand, Steering
from bloombee.control.survey import Survey
from bloombee.errors import LocalProtocolError
from bloombee.models.shape import ModelShape
from bloombee.plan.plan import Prediction
from bloombee.plan.topology import LOCAL, Device, Link
from bloombee.types import Epoch, WorkerId

LOOK_EVERY_S = 0.5
"""Between two looks at what stages have done, while there is something to run."""


class ControlCore:
    """events: see ``control/events.py``. commands: likewise."""

    def __init__(self) -> None:
        self._plan: PlanRuns | None = None
        self._steering: Steering | None = None
        """Of the plan; None where the number of microbatches is not ours to choose."""
        self._survey = Survey()
        self._askers: dict[int, int] = {}
        """Whose question is whose: number -> the asker's."""
        self._own: int | None = None
        """The question of the last look."""
        self._looked: Looked | None = None
        self._look_at = -math.inf
        self._ran = 0
        """Sequences at the last look."""
        self._devices: dict[WorkerId, DeviceSeen] = {}
        """What workers claim."""
        self._shown: dict[WorkerId, Shown] = {}
        """What they have shown in plans that have ended."""
        self._links: dict[tuple[WorkerId, WorkerId], Link] = {}
        self._codecs: dict[tuple[WorkerId, WorkerId], str] = {}
        """Of each link, on or off; figures that explain it change all the time."""
        self._last: Run | None = None
        self._regret = Regret()
        self._changes_plan = False
        """Another plan was asked for, and nothing has come of it yet."""

    def handle(self, event: Event) -> list[Command]:
        """Raises nothing that events of a plan's own workers could cause."""
        match event:
            case Looked():
                return self._look(event)
            case StageMeasured():
                return self._measured(event)
            case LinkSeen(source=source, target=target):
                bandwidth = math.inf if event.bandwidth_bytes_per_s is None else event.bandwidth_bytes_per_s
                self._links[source, target] = Link(bandwidth, event.latency_s)
                return []
            case CodecSeen():
                return self._coded(event)
            case DeviceSeen(worker=worker):
                self._devices[worker] = event
                return self._begin(event.now)
            case Asked():
                return self._ask(event)
            case PlansCompared():
                return self._compare(event)
            case ShadowSeen():
                return [] if self._plan is None else [_shadow(event, self._plan.epoch)]
            case StageBack(stage=stage, now=now):
                return [ask for ask in self._survey.again(now, older_than_s=0.0) if ask.stage == stage]
            case PlanRuns():
                return self._start(event)
            case PlanEnded():
                self._end(event)
                return []
        raise LocalProtocolError(f"{event!r} is not an event of the control core")

    # -- what people ask -------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """How the present load is run has been measured and found right, or is not ours to choose."""
        return self._steering is None or self._steering.is_settled

    @property
    def running(self) -> Run | None:
        """What was chosen last, if there was anything to choose."""
        return self._last

    @property
    def shown(self) -> Mapping[WorkerId, Shown]:
        """What workers have shown, in the plan that runs or in one before."""
        if self._plan is None or self._steering is None:
            return self._shown
        return self._shown | dict(zip(self._plan.workers, self._steering.shown(), strict=False))

    # -- plans -----------------------------------------------------------------------------

    def _start(self, plan: PlanRuns) -> list[Command]:
        if not self._changes_plan:
            self._regret.begin()
        self._changes_plan = False
        self._shown = dict(self.shown)
        self._plan, self._last, self._look_at, self._ran = plan, None, plan.now, 0
        open_questions = [Asked(question, plan.now) for question in self._askers.values()]
        self._forget_questions()
        told: list[Command] = [] if plan.prediction is None else [_planned(plan, plan.prediction)]
        told += [ask for question in open_questions for ask in self._ask(question)]
        told.append(Decision(plan.now, plan.epoch, "codec", plan.codec, "as asked for"))
        if plan.microbatches is not None:
            self._steering = None
            return [*told, Decision(plan.now, plan.epoch, "run", f"{plan.microbatches} microbatches", "as asked for")]
        self._steering = Steering(
            plan.names,
            plan.layers,
            ModelShape(plan.hidden, sum(plan.layers), activation_bytes=plan.activation_bytes),
            most_microbatches=plan.most_microbatches,
            most_rows=plan.most_rows,
            target_s=plan.target_s,
        )
        return [*told, *self._begin(plan.now)]

    def _end(self, ended: PlanEnded) -> None:
        """What was seen of the ring that had the worker is of no use."""
        self._shown = dict(self.shown)
        self._plan = self._steering = None
        self._forget_questions()
        self._shown = {worker: shown for worker, shown in self._shown.items() if worker != ended.worker}
        self._devices = {worker: seen for worker, seen in self._devices.items() if worker != ended.worker}
        self._links = {ends: link for ends, link in self._links.items() if ended.worker not in ends}
        self._codecs = {ends: choice for ends, choice in self._codecs.items() if ended.worker not in ends}

    def _compare(self, seen: PlansCompared) -> list[Command]:
        plan, self._changes_plan = self._plan, False
        if plan is None or not self._regret.look(seen.now, seen.running_worth, seen.other_worth, seen.cost_s):
            return []
        self._changes_plan = True
        gain = seen.other_worth / seen.running_worth
        why = f"{gain:.3g} times as good by now; what was lost has come up to the {seen.cost_s:.3g} s that the change costs"
        return [Replan(why), Decision(seen.now, plan.epoch, "replan", seen.other, why)]

    def _forget_questions(self) -> None:
        self._survey.forget()
        self._askers.clear()
        self._own = None

    def _coded(self, seen: CodecSeen) -> list[Command]:
        ends = seen.source, seen.target
        verdict = seen.choice.partition(":")[0]
        before = self._codecs.get(ends, "")
        self._codecs[ends] = verdict
        if self._plan is None or verdict == before:
            return []
        link = f"link {seen.source} -> {seen.target}"
        return [Decision(seen.now, self._plan.epoch, "codec", link, seen.choice)]

    # -- questions -------------------------------------------------------------------------

    def _ask(self, asked: Asked) -> list[Command]:
        if self._plan is None:
            return []
        number, questions = self._survey.ask(len(self._plan.workers), asked.now)
        self._askers[number] = asked.question
        return list(questions)

    def _measured(self, said: StageMeasured) -> list[Command]:
        answers = self._survey.answered(said)
        if answers is None:
            return []
        if said.number != self._own:
            return [Answer(self._askers.pop(said.number), tuple(answers))]
        if self._steering is None:
            return []
        self._steering.report([one.use for one in answers])
        return self._choose(said.now)

    # -- looks -----------------------------------------------------------------------------

    def _look(self, looked: Looked) -> list[Command]:
        self._looked = looked
        commands: list[Command] = list(self._survey.again(looked.now))
        plan, steering = self._plan, self._steering
        if plan is None or steering is None or looked.now < self._look_at:
            return commands
        self._look_at = looked.now + LOOK_EVERY_S
        if not steering.is_known:
            commands += self._begin(looked.now)
        before, self._ran = self._ran, self._num_sequences(plan, looked)
        if (self._ran or before) and not self._survey.is_open(self._own):
            self._own, questions = self._survey.ask(len(plan.workers), looked.now)
            commands += questions
        return commands

    @staticmethod
    def _num_sequences(plan: PlanRuns, looked: Looked) -> int:
        """That want to run: those that a limit of ours keeps waiting as well."""
        return looked.num_open if plan.target_s is None else looked.num_open + looked.num_waiting

    # -- choices ---------------------------------------------------------------------------

    def _begin(self, now: float) -> list[Command]:
        """Before anything has run: by what workers say of themselves."""
        plan, steering = self._plan, self._steering
        if plan is None or steering is None or steering.is_known:
            return []
        devices = [self._device(worker, name) for worker, name in zip(plan.workers, plan.names, strict=True)]
        chunks = (steering.begin(devices, self._ring_links(plan)),)
        count = len(plan.workers) if plan.prediction is None else plan.prediction.num_microbatches
        run = Run(count, chunks, None, sizes_apart=True)
        why = "nothing has run yet; workers have measured themselves" if all(devices) else "nothing is known yet"
        if plan.prediction is not None:
            why = f"as planned; {why}"
        return self._decide(plan, run, why, None, now)

    def _choose(self, now: float) -> list[Command]:
        plan, steering, looked = self._plan, self._steering, self._looked
        if plan is None or steering is None or looked is None or not self._ran:
            return []
        demand, links = Demand(self._ran, looked.quickest_loop, looked.decoded), self._ring_links(plan)
        choice = steering.choose(demand, links, now)
        load = steering.load(self._ran, looked.quickest_loop, links)
        price: list[Command] = [] if load is None else [Price(load)]
        if choice is None:
            return price
        best = choice.tuning
        run = Run(best.num_microbatches, best.chunks, best.max_sequences, sizes_apart=steering.sizes_apart)
        return [*self._decide(plan, run, choice.why, choice.figures, now), *price]

    def _decide(self, plan: PlanRuns, run: Run, why: str, figures: Figures | None, now: float) -> list[Command]:
        if run == self._last:
            return []
        self._last = run
        return [run, Decision(now, plan.epoch, "run", _told(run), why, figures)]

    def _device(self, worker: WorkerId, name: str) -> Device | None:
        """As it claims to be, within what it has shown."""
        seen, shown = self._devices.get(worker), self._shown.get(worker)
        if seen is None:
            return None
        claimed = Device(name, stage=seen.stage, layer=seen.layer, output=seen.output)
        return claimed if shown is None else shown.correct(claimed)

    def _ring_links(self, plan: PlanRuns) -> Sequence[Link] | None:
        """From the scheduler on; None until every one of them has shown its round trip."""
        ring = [plan.scheduler, *plan.workers, plan.scheduler]
        links = [LOCAL if ends[0] == ends[1] else self._links.get(ends) for ends in itertools.pairwise(ring)]
        known = [link for link in links if link is not None]
        return known if len(known) == len(links) else None


def _shadow(seen: ShadowSeen, epoch: Epoch) -> Decision:
    why = f"its loss would cost {seen.loss_s:.3g} s without, with all KV memory held"
    return Decision(seen.now, epoch, "shadow", f"stage {seen.stage} by {seen.name}: {seen.what}", why)


def _planned(plan: PlanRuns, prediction: Prediction) -> Decision:
    stages = ", ".join(f"{name} {layers}" for name, layers in zip(plan.names, plan.layers, strict=True))
    return Decision(plan.now, plan.epoch, "plan", f"layers of {stages}", str(prediction))


def _told(run: Run) -> str:
    chunks = run.chunks[0]
    sizes = ", of different sizes" if run.sizes_apart else ""
    limit = "" if run.max_sequences is None else f", at most {run.max_sequences} sequences"
    count = f"{run.num_microbatches} microbatch{'es' * (run.num_microbatches != 1)}"
    return f"{count}{sizes}; prompts by {chunks.fast} rows, {chunks.gentle} beside decode{limit}"
