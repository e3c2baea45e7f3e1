"""Simulated swarms whose speculator decides for itself what it sends, with a drafter in a process of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from bench.synthetic_drafter import Synthetic
from bloombee.pace import Pace
from bloombee.pipeline.commands import AskDraft
from bloombee.pipeline.scheduler import SchedulerCore
from bloombee.plan.topology import Cores
from bloombee.sim.cluster import SimCluster, SimRequest
from bloombee.sim.device import VOCAB, oracle
from bloombee.sim.drafter import SimDrafter
from bloombee.sim.network import LinkShape
from bloombee.spec.speculator import Speculator
from bloombee.spec.tree import Draft
from bloombee.types import SequenceId
from bloombee.wire import messages as wire

STAGES = 4
PACE = Pace(fixed_s=0.004, decode_row_s=0.00005, prefill_row_s=0.0001)
ROW_BYTES = 13312
A80 = (0.80, 0.08, 0.04, 0.02)


class Foresight:
    """What follows on the tokens of requests that were submitted, as far as it is to be known."""

    num_tokens = VOCAB

    def __init__(self, knows: Callable[[int], bool] = lambda _: True) -> None:
        self.texts: dict[tuple[int, ...], list[int]] = {}
        """By prompt, all of one length."""
        self._knows = knows

    def after(self, tokens: Sequence[int], _: int, depth: int) -> int | None:
        place = len(tokens) + depth
        length = len(next(iter(self.texts)))
        text = self.texts[tuple(tokens[:length])]
        return text[place] if place < len(text) and self._knows(place - length) else None


@dataclass(slots=True)
class Process:
    """What a drafter's process answers with: as good as ``acceptance`` says, and sure of that.

    Args:
        level_s: that each level of a tree takes; ask_s: each question.
    """

    foresight: Foresight
    acceptance: tuple[float, ...] = A80
    level_s: float = 0.001
    ask_s: float = 0.0
    _synthetic: Synthetic = field(init=False)

    def __post_init__(self) -> None:
        self._synthetic = Synthetic(self.foresight, self.acceptance, self.level_s)  # type: ignore[arg-type]

    def answer(self, asked: AskDraft) -> tuple[Draft, float]:
        draft = self._synthetic.draft({**asdict(asked.query), "seed": asked.seed})
        return draft, self.ask_s + self._synthetic.seconds(draft)

    def closed(self, sequence: SequenceId) -> None:
        self._synthetic.closed(sequence)


class Guarded(SimCluster):
    """Four stages over slow links, run as the control core chooses.

    Args:
        process: that drafts besides n-grams; None: nothing drafts at all.
        one_way_s, mbit: of each hop, and of the way home; the scheduler is beside the first stage as far as links go.
    """

    prefix_cache = False

    def __init__(
        self,
        process: Process | None,
        *,
        one_way_s: float = 0.125,
        mbit: float = 100.0,
        pace: Pace = PACE,
        cores: Cores | None = None,
        num_microbatches: int = 64,
    ) -> None:
        self.foresight = process.foresight if process is not None else Foresight()
        self.sent: list[tuple[float, int, int]] = []
        """Of each frame that decodes: when, sequences in it, drafted rows."""
        self.make_speculator = (lambda: None) if process is None else Speculator  # type: ignore[method-assign]
        near, far = LinkShape(0.00005), LinkShape(one_way_s, mbit * 1e6 / 8)
        super().__init__(
            seed=1, num_stages=STAGES, num_pages=8192, page_size=16, max_rows=512, num_microbatches=num_microbatches,
            pace=pace, shape=far, shapes={("scheduler", "stage0"): near, ("stage0", "scheduler"): near}, row_bytes=ROW_BYTES,
            resend_after_s=60.0, tuned=True, cores=cores,
        )  # fmt: skip
        if process is not None:
            core = self.head
            drafter = SimDrafter(
                self.clock,
                process,
                lambda event: core.schedule(core.scheduler.handle(event)),
                self.devices._pool if cores is not None else None,
            )
            core.drafter = drafter
            self.clock.call_later(0.01, drafter.start)

    def to_stage(self, stage: int, send: object) -> None:
        message = send.message  # type: ignore[attr-defined]
        if isinstance(message, wire.Forward) and any(item.num_picks for item in message.items):
            firsts = sum(item.tree is None or item.tree.first == 1 for item in message.items)
            self.sent.append((self.clock.now, firsts, sum(item.num_rows for item in message.items) - firsts))
        super().to_stage(stage, send)  # type: ignore[arg-type]

    def ask(self, number: int, tokens: int, *, at: float = 0.0, prompt: int = 3) -> SimRequest:
        """A request like no other, of ``tokens``."""
        ids = [1000 + number, *range(prompt - 1)]
        self.foresight.texts[tuple(ids)] = [*ids, *oracle(ids, number, STAGES, tokens)]
        return self.requests[self.submit(ids, max_new_tokens=tokens, seed=number, at=at)]

    def finish(self) -> None:
        """Run to the end; every token is the model's."""
        assert isinstance(self.scheduler, SchedulerCore)
        assert self.run()
        for request in self.requests.values():
            length = len(request.prompt)
            assert request.error is None
            assert request.tokens == self.foresight.texts[tuple(request.prompt)][length:]


def time_per_token(request: SimRequest, since: int = 0) -> float:
    times = request.token_times[since:]
    return (times[-1] - times[0]) / (len(times) - 1)


def gaps(request: SimRequest) -> list[float]:
    return [b - a for a, b in itertools.pairwise(request.token_times)]
