"""What drafting costs links and stages: frames, and rows that are computed though they are known to be dead."""

from __future__ import annotations

from collections import Counter

from bloombee.pipeline.commands import Send
from bloombee.pipeline.work import Outcome, Work
from bloombee.sim.device import SimDevice
from bloombee.wire import messages as wire
from tests.guard_kit import STAGES, Foresight, Guarded, Process

ONE_WAY_S = 0.125
A60 = (0.6, 0.1, 0.05)


class _Watched(SimDevice):
    def __init__(self, swarm: _Swarm, stage: int, load: wire.Load) -> None:
        super().__init__(stage=stage, is_last=stage == STAGES - 1, groups=load.groups, page_size=load.page_size)
        self._swarm = swarm

    def run(self, work: Work) -> Outcome:
        for segment in work.segments:
            self._swarm.begun[self._swarm.clock.now, segment.sequence, segment.generation] += segment.num_rows
        return super().run(work)


class _Swarm(Guarded):
    """``begun``: rows of stages, by when, sequence and generation. ``refused``: when the scheduler told that a generation is
    over."""

    def __init__(self, process: Process) -> None:
        self.begun = Counter[tuple[float, int, int]]()
        self.refused: dict[tuple[int, int], float] = {}
        super().__init__(process)

    def make_device(self, stage: int, load: wire.Load) -> SimDevice:
        return _Watched(self, stage, load)

    def to_stage(self, stage: int, send: Send) -> None:  # type: ignore[override]
        if isinstance(send.message, wire.Commit):
            for cut in send.message.cuts:
                self.refused.setdefault((cut.sequence, cut.generation - 1), self.clock.now)
        super().to_stage(stage, send)

    def begun_after(self, seconds: float) -> float:
        """The share of all rows that a stage began more than ``seconds`` after the scheduler knew that their round is over."""
        late = sum(
            rows
            for (at, sequence, generation), rows in self.begun.items()
            if at > self.refused.get((sequence, generation), at) + seconds
        )
        return late / self.begun.total()


def _decoded() -> _Swarm:
    swarm = _Swarm(Process(Foresight(), A60))
    swarm.ask(1, 300)
    swarm.finish()
    return swarm


def test_few_rows_are_begun_that_are_known_to_be_dead() -> None:
    swarm = _decoded()
    assert len(swarm.refused) > 40
    assert swarm.begun_after(-ONE_WAY_S) <= 0.25  # since the verdict was made
    assert swarm.begun_after(ONE_WAY_S + 0.005) <= 0.01  # since a Commit could be there


def test_a_fragment_is_one_message_on_each_link_and_a_round_has_two_more_at_most() -> None:
    swarm = _decoded()
    frames = [line for line in swarm.trace if " Forward(" in line]
    sent = sum("scheduler->stage0 " in line for line in frames)
    for stage in range(STAGES - 1):
        assert sum(f"stage{stage}->stage{stage + 1} " in line for line in frames) <= sent
    for stage in range(STAGES):
        told = sum(f"scheduler->stage{stage} " in line and " Commit(" in line for line in swarm.trace)
        assert told <= len(swarm.refused) + 1
