"""Questions to all stages of a plan, each said again until every one of them has answered. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bloombee.control.events import AskStage, StageMeasured

ASK_AGAIN_S = 1.0
"""What has not been answered for so long is asked again."""


@dataclass(slots=True)
class _Question:
    stages: int
    asked_at: float
    answers: dict[int, StageMeasured] = field(default_factory=dict)


@dataclass(slots=True)
class Survey:
    """Of one plan after another. Numbers grow with each question, so an answer is always to the question that it names."""

    _open: dict[int, _Question] = field(default_factory=dict)
    _next: int = 1

    def ask(self, stages: int, now: float) -> tuple[int, list[AskStage]]:
        """A new question to ``stages`` stages: its number, and what to ask."""
        number, self._next = self._next, self._next + 1
        self._open[number] = _Question(stages, now)
        return number, [AskStage(stage, number) for stage in range(stages)]

    def answered(self, said: StageMeasured) -> Sequence[StageMeasured] | None:
        """Everybody's answers in the order of the stages, if this was the last; an answer to nothing changes nothing."""
        question = self._open.get(said.number)
        if question is None or said.stage >= question.stages:
            return None
        question.answers[said.stage] = said
        if len(question.answers) < question.stages:
            return None
        del self._open[said.number]
        return [question.answers[stage] for stage in range(question.stages)]

    def is_open(self, number: int | None) -> bool:
        return number in self._open

    def again(self, now: float, older_than_s: float = ASK_AGAIN_S) -> list[AskStage]:
        """Ask those that have not answered once more."""
        asked: list[AskStage] = []
        for number, question in self._open.items():
            if now - question.asked_at >= older_than_s:
                question.asked_at = now
                asked += [AskStage(stage, number) for stage in range(question.stages) if stage not in question.answers]
        return asked

    def forget(self) -> None:
        """The plan has ended, and nobody will answer."""
        self._open.clear()
