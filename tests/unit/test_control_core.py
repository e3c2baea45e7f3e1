"""What is chosen while a plan runs: from which figures, told how, and what becomes of questions that nobody answers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from msgspec import structs

from bloombee.control.core import LOOK_EVERY_S, ControlCore
from bloombee.control.events import (
    Answer,
    Asked,
    AskStage,
    CodecSeen,
    Command,
    Decision,
    DeviceSeen,
    Event,
    LinkSeen,
    Looked,
    PlanEnded,
    PlanRuns,
    Run,
    StageBack,
    StageMeasured,
)
from bloombee.control.log import Replayed, from_line, replay, to_line
from bloombee.control.survey import ASK_AGAIN_S
from bloombee.errors import ConfigError
from bloombee.plan.plan import Prediction
from bloombee.plan.topology import RowTime
from bloombee.types import DeviceUse, StageUse

ROW_S = 0.008
PLAN = PlanRuns(1, (1, 2, 3), ("a", "b", "c"), (2, 2, 2), 1024, 2, 64, 512, None, None, "auto", 0.0)
WIDE = 125e6


class Driven:
    """A core whose stages take ROW_S a row, and who answers what it asks, save what ``deaf`` stages are asked."""

    def __init__(self, plan: PlanRuns = PLAN, deaf: tuple[int, ...] = ()) -> None:
        self.core, self.events, self.commands = ControlCore(), list[Event](), list[Command]()
        self.lines = list[bytes]()
        """Of its log."""
        self.now, self.deaf = 0.0, set(deaf)
        self.use = StageUse()
        self.tell(plan)

    def tell(self, event: Event) -> list[Command]:
        self.events.append(event)
        commands = self.core.handle(event)
        self.commands += commands
        records = [event, *(command for command in commands if isinstance(command, Decision))]
        self.lines += [to_line(record) + b"\n" for record in records]
        for asked in commands:
            if isinstance(asked, AskStage) and asked.stage not in self.deaf:
                self.tell(StageMeasured(asked.stage, asked.number, self.use, 0, self.now))
        return commands

    def links(self, first_s: float, others_s: float) -> None:
        ring = [0, *PLAN.workers, 0]
        for ends in itertools.pairwise(ring):
            self.tell(LinkSeen(*ends, first_s if ends[0] == 0 else others_s, WIDE, self.now))

    def decode(self, rows: int) -> None:
        """Microbatches of ``rows``, and others half as large, have run."""
        uses = [DeviceUse(8, 8 * r, 8 * r * ROW_S, 8 * r * r, 8 * r * r * ROW_S) for r in (rows, max(1, rows // 2))]
        self.use = replace(self.use, decode=self.use.decode + uses[0] + uses[1])

    def look(self, num_open: int) -> list[Command]:
        self.now += LOOK_EVERY_S
        return self.tell(Looked(num_open, 0, None, (self.use.decode.num_rows, self.now), self.now))

    @property
    def runs(self) -> list[Run]:
        return [command for command in self.commands if isinstance(command, Run)]

    @property
    def decisions(self) -> list[Decision]:
        return [command for command in self.commands if isinstance(command, Decision)]


def _settled(first_s: float, others_s: float, sequences: int = 128) -> Run:
    driven = Driven()
    driven.links(first_s, others_s)
    for _ in range(4):
        driven.decode(16)
        driven.look(sequences)
    return driven.runs[-1]


def test_a_head_far_away_is_part_of_the_loop_that_microbatches_fill() -> None:
    near, far = _settled(0.0, 0.005), _settled(0.4, 0.005)
    assert far.num_microbatches >= 1.5 * near.num_microbatches
    assert far.num_microbatches == _settled(0.0, 0.005 + 0.4 / 3).num_microbatches, "as if the others were as much longer"


def test_each_choice_says_from_what_figures_it_was_made_and_why() -> None:
    driven = Driven()
    driven.links(0.010, 0.020)
    driven.decode(16)
    driven.look(32)
    last = driven.decisions[-1]
    assert (last.what, last.epoch, last.at_s) == ("run", 1, driven.now)
    assert last.chosen.startswith(f"{driven.runs[-1].num_microbatches} microbatches")
    assert last.why == "the first figures"
    assert last.figures is not None
    assert last.figures.sequences == 32
    assert last.figures.links == ((0.010, WIDE), *[(0.020, WIDE)] * 3)
    assert [device.decode_row_s for device in last.figures.devices] == [pytest.approx(ROW_S, rel=0.01)] * 3


def test_the_same_events_give_the_same_decisions_byte_for_byte_also_after_they_were_written_down() -> None:
    driven = Driven()
    driven.tell(DeviceSeen(1, RowTime(0.1 / 3, ROW_S), RowTime(), RowTime(), 0.0))
    driven.tell(LinkSeen(1, 2, 1 / 3, None, 0.0))
    driven.links(0.01, 0.02)
    driven.tell(CodecSeen(1, 2, "on: it pays", 0.1))
    for rows in (4, 16, 7, 11):
        driven.decode(rows)
        driven.look(32)
    driven.tell(PlanEnded(2, driven.now))
    driven.tell(replace_epoch(PLAN, 2))
    driven.look(8)
    assert [from_line(line) for line in driven.lines if b"Decision" not in line] == driven.events
    again = replay(driven.lines)
    assert again == Replayed(len(driven.events), driven.decisions)
    assert len(again.decisions) > 4


def replace_epoch(plan: PlanRuns, epoch: int) -> PlanRuns:
    return PlanRuns(epoch, *(getattr(plan, name) for name in plan.__struct_fields__[1:]))


@pytest.mark.parametrize("line", [b"", b"{}", b'{"type":"Looked"}', b'{"type":"Nonsense","now":1}', b"[1]", b"\xff"])
def test_what_is_no_line_of_a_log_is_refused(line: bytes) -> None:
    with pytest.raises(ConfigError, match="decision log"):
        from_line(line)


def test_an_answer_that_is_lost_is_asked_for_again_and_tuning_goes_on() -> None:
    driven = Driven(deaf=(1,))
    driven.links(0.0, 0.02)
    driven.decode(16)
    asked = [command for command in driven.look(32) if isinstance(command, AskStage)]
    assert [one.stage for one in asked] == [0, 1, 2]
    before = len(driven.runs)
    driven.deaf.clear()
    for _ in range(math.ceil(ASK_AGAIN_S / LOOK_EVERY_S)):
        again = driven.look(32)
    assert asked[1] in again, "the same question, to nobody who has answered"
    assert asked[0] not in again
    assert len(driven.runs) > before


def test_an_answer_to_a_question_of_before_is_no_answer_to_this_one() -> None:
    driven = Driven(deaf=(0, 1, 2))
    (first, *_) = (command for command in driven.look(4) if isinstance(command, AskStage))
    driven.tell(PlanEnded(1, driven.now))
    driven.tell(replace_epoch(PLAN, 2))
    (second, *_) = (command for command in driven.look(4) if isinstance(command, AskStage))
    assert second.number != first.number
    driven.decode(8)
    for stage in range(3):
        assert driven.tell(StageMeasured(stage, first.number, driven.use, 0, driven.now)) == []
    assert driven.tell(StageMeasured(7, second.number, driven.use, 0, driven.now)) == []


def test_whoever_asks_how_stages_stand_is_answered_though_a_message_was_lost_with_its_connection() -> None:
    driven = Driven(deaf=(2,))
    assert [command for command in driven.tell(Asked(41, 0.0)) if isinstance(command, Answer)] == []
    driven.deaf.clear()
    driven.tell(StageBack(2, 0.1))
    (answer,) = (command for command in driven.commands if isinstance(command, Answer))
    assert answer.question == 41
    assert [said.stage for said in answer.measured] == [0, 1, 2]


@pytest.mark.parametrize("use", [DeviceUse(8, 0, 1.0), DeviceUse(0, 8, 1.0), DeviceUse(8, 8, 0.0)])
def test_forwards_without_rows_or_time_end_no_tuning(use: DeviceUse) -> None:
    driven = Driven()
    driven.use = StageUse(decode=use, prefill=use)
    driven.look(4)
    driven.decode(8)
    driven.look(4)
    driven.decode(8)
    driven.look(4)
    assert driven.decisions[-1].figures is not None


def test_a_stage_that_counts_anew_is_believed_from_then_on() -> None:
    driven = Driven()
    for _ in range(3):
        driven.decode(16)
        driven.look(32)
    driven.use = StageUse()
    for _ in range(8):
        driven.decode(8)
        driven.look(32)
    figures = driven.decisions[-1].figures
    assert figures is not None
    assert figures.devices[0].decode_row_s == pytest.approx(ROW_S, rel=0.05)


def test_nobody_is_asked_while_nothing_runs_or_nothing_is_to_be_chosen() -> None:
    idle = Driven()
    assert not [command for command in idle.look(0) + idle.look(0) if isinstance(command, AskStage)]
    fixed = Driven(PlanRuns(*(getattr(PLAN, name) if name != "microbatches" else 4 for name in PLAN.__struct_fields__)))
    assert not [command for command in fixed.look(8) if isinstance(command, AskStage)]
    assert fixed.runs == []
    assert fixed.core.is_settled
    assert [(one.what, one.why) for one in fixed.decisions] == [("codec", "as asked for"), ("run", "as asked for")]


def test_a_link_that_begins_to_code_is_told_once_whatever_figures_it_names() -> None:
    driven = Driven()
    for choice in ("off: 900 Mbit/s", "off: 901 Mbit/s", "on: 90 Mbit/s", "on: 91 Mbit/s"):
        driven.tell(CodecSeen(1, 2, choice, 1.0))
    assert [one.why for one in driven.decisions if one.chosen == "link 1 -> 2"] == ["off: 900 Mbit/s", "on: 90 Mbit/s"]


def _chunks_after_a_loss(claims: float) -> tuple[Run, Run]:
    """The first choices of a plan and of the one after it, in which worker 4 has taken the place of worker 2.

    Args:
        claims: how many times as fast as they are all workers but the last say that they are, before both.
    """
    driven = Driven()
    driven.links(0.01, 0.02)
    for plan in (PLAN, structs.replace(PLAN, epoch=2, workers=(1, 4, 3))):
        if plan.epoch > 1:
            driven.tell(PlanEnded(2, driven.now))
            driven.tell(LinkSeen(1, 4, 0.02, WIDE, driven.now))
            driven.tell(LinkSeen(4, 3, 0.02, WIDE, driven.now))
            driven.tell(plan)
        for worker in plan.workers:
            said = RowTime(0.0, 0.5 * ROW_S, 0.05 * ROW_S, 1e-7).scaled(1 if worker == 4 else 1 / claims)
            driven.tell(DeviceSeen(worker, RowTime(), said, RowTime(), driven.now))
        begun = driven.runs[-1]
        if plan.epoch == 1:
            first = begun
            for _ in range(4):
                driven.decode(16)
                driven.look(32)
    return first, begun


def test_a_worker_that_boasts_is_believed_until_it_has_shown_what_it_can() -> None:
    honest, boasting = _chunks_after_a_loss(1.0), _chunks_after_a_loss(100.0)
    assert boasting[0].chunks != honest[0].chunks
    assert boasting[1].chunks == honest[1].chunks


def test_a_chosen_plan_is_the_first_decision_and_its_microbatches_are_what_it_starts_with() -> None:
    prediction = Prediction("balance", 7, 4, 123.4, 0.227, 0.05, "worker b", 0.0, spares=(("d", "far"),))
    driven = Driven(structs.replace(PLAN, prediction=prediction))
    first, *_ = driven.decisions
    assert (first.what, first.chosen) == ("plan", "layers of a 2, b 2, c 2")
    assert "123.4 tokens/s with M = 7 microbatches of b = 4" in first.why
    assert "d left as spare (far)" in first.why
    assert driven.runs[0].num_microbatches == 7
    assert replay(driven.lines).decisions[0] == first
