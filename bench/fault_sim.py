"""Simulated swarms that lose what a cell says: the real cores under a virtual clock, with messages lost, doubled and late.

Where the head is lost another one begins, with the journal that the first had written so far, cut somewhere in its last moments,
and the workers that are left.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from bench.fault_cells import CELLS, TYPED_S, Cell, Moment, Way, Who
from bench.several import FAULTS, simulate_several
from bloombee.pipeline.events import Submit
from bloombee.pipeline.journal import MAGIC, Asked, Gave, Kept, Record, given, pack, read
from bloombee.sim.cluster import sim_card
from bloombee.sim.device import oracle
from bloombee.sim.head import SimRequest
from bloombee.sim.moving import MovingCluster
from bloombee.types import WorkerId
from bloombee.wire.messages import Sampling

STAGES, LAYERS = 4, 8
LAYER_LOAD_S = 0.05
SPARES = 3
REQUESTS, MOST_PROMPT, MOST_NEW = 10, 80, 40
ASKED_AT_S, WITHIN_S, IDLE_S = 0.5, 0.2, 0.5
"""When requests come, and within what time; after a kill while nothing ran, within what."""
LOOK_S = 0.001
WRITTEN_S = 0.05
"""Of a head's last moments, so much is not in its journal."""
WAITS_S, JOINS_S = 20.0, 1.5
LIMIT_S = 600.0
SEVERAL_EVERY = 10


class _Waiting(MovingCluster):
    waits_s = WAITS_S


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of one swarm. ``cell``: None: several at any time. ``wrong``: what should not have; empty: all was right."""

    cell: Cell | None
    seed: int
    recoveries: int
    wrong: str


def simulate(count: int, seed: int, on_swarm: Callable[[], None] = lambda: None) -> list[Simulated]:
    """So many swarms, of seeds from ``seed`` on: cells in turn, and now and then one that loses several at any time."""
    found = []
    for number in range(count):
        turn, place = divmod(number, SEVERAL_EVERY)
        if place == SEVERAL_EVERY - 1:
            found.append(Simulated(None, seed + number, *simulate_several(seed + number)))
        else:
            found.append(simulate_cell(CELLS[(number - turn) % len(CELLS)], seed + number))
        on_swarm()
    return found


def simulate_cell(cell: Cell, seed: int) -> Simulated:
    """An exception of a core is something that went wrong: other seeds are still to be seen."""
    swarm = _Swarm(cell, seed)
    try:
        wrong = next(swarm.run(), "")
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    return Simulated(cell, seed, swarm.cluster.head.num_recoveries, wrong)


class _Swarm:
    """Of one cell; after the loss of a head ``cluster`` is that of the next."""

    def __init__(self, cell: Cell, seed: int) -> None:
        self._cell, self._rng = cell, random.Random(seed)
        self._seed = seed
        self._is_harsh = self._rng.random() < 0.7
        spares = SPARES if cell.way is Way.SPARE else 0
        self.cluster = self._make(STAGES + spares + (cell.who is Who.SUCCESSOR))
        self._killed_at: float | None = None
        self._is_starting = cell.moment is Moment.LOADING and cell.way is Way.NEITHER and cell.who is not Who.SUCCESSOR
        begin_s, within_s = (0.0, LAYER_LOAD_S * LAYERS / STAGES) if self._is_starting else (ASKED_AT_S, WITHIN_S)
        self._at = begin_s + self._rng.uniform(0, within_s)
        """Of a moment that is not told by what is said."""

    def _make(self, num_workers: int) -> MovingCluster:
        kind = _Waiting if self._cell.way is Way.WAITS else MovingCluster
        return kind(
            seed=self._seed, card=sim_card((0,) * LAYERS), num_stages=min(STAGES, num_workers), num_workers=num_workers,
            num_pages=512, num_microbatches=self._rng.choice([1, 3]), faults=FAULTS if self._is_harsh else None,
            lossy_orders=self._is_harsh, layer_load_s=LAYER_LOAD_S, shares_out=self._cell.way is Way.SHARE,
            log_bytes=self._rng.choice([64, 2048, 1 << 20]),
        )  # fmt: skip

    def run(self) -> Iterator[str]:
        """What is wrong."""
        self._ask(0.0 if self._is_starting else ASKED_AT_S, WITHIN_S)
        if self._cell.moment is Moment.IDLE:
            self.cluster.run(deadline_s=LIMIT_S)
            self._strike()
            self._ask(self.cluster.clock.now, IDLE_S)
        else:
            self._when(self._has_come, self._strike)
        self._until(lambda: self._killed_at is not None)
        if self._killed_at is None:
            yield "the moment did not come"
            return
        if self._cell.who is Who.HEAD:
            yield from self._next_head()
        elif not self._ended():
            yield "no end"
        yield from self._judge()

    def _ended(self) -> bool:
        """Every request has; and where the swarm goes on, nothing of them is left."""
        if self._cell.ends_typed:
            return self._until(lambda: all(request.ended for request in self.cluster.requests.values()))
        return self.cluster.run(deadline_s=LIMIT_S)

    # -- what is asked ---------------------------------------------------------------------

    def _ask(self, begin_s: float, within_s: float) -> None:
        for _ in range(REQUESTS):
            prompt = [self._rng.randrange(50_000) for _ in range(self._rng.randint(1, MOST_PROMPT))]
            self.cluster.submit(
                prompt,
                max_new_tokens=self._rng.randint(1, MOST_NEW),
                seed=self._rng.randrange(2**64),
                at=begin_s + self._rng.uniform(0, within_s),
            )

    # -- when ------------------------------------------------------------------------------

    def _when(self, holds: Callable[[], bool], act: Callable[[], None]) -> None:
        """``act`` happens once, a little after something holds."""

        def look() -> None:
            if holds():
                self.cluster.clock.call_later(self._rng.choice([0.0, 0.001, 0.02, 0.05]), act)
            else:
                self.cluster.clock.call_later(LOOK_S, look)

        look()

    def _until(self, holds: Callable[[], bool]) -> bool:
        return self.cluster.clock.run(holds, deadline_s=LIMIT_S)

    def _has_come(self) -> bool:
        """The moment; of a cell with another loss before, that of the first."""
        is_time = self.cluster.clock.now >= self._at and (self._is_starting or self.cluster.head.up)
        is_decode = self._cell.moment is Moment.DECODE
        return is_time and (not is_decode or all(request.tokens for request in self.cluster.requests.values()))

    # -- what happens ----------------------------------------------------------------------

    def _strike(self) -> None:
        if self._cell.who is Who.SUCCESSOR:
            self._hand_over()
        elif self._cell.has_a_loss_before:
            self._kill(self._rng.choice(self._stages()))
            self._when(self._is_loading, self._end)
        else:
            self._end()

    def _is_loading(self) -> bool:
        """For a stage that was lost."""
        head, plan = self.cluster.head, self.cluster.plan
        assert plan is not None
        there = all(self.cluster.workers[stage.worker].is_alive for stage in plan.stages)
        return head.num_recoveries > 0 and not head.up and there

    def _hand_over(self) -> None:
        workers, layers = list(self._stages()), [LAYERS // STAGES] * STAGES
        successor = STAGES + 1
        workers[self._rng.randrange(STAGES)] = successor
        self.cluster.hand_over(workers, layers, at=self.cluster.clock.now)
        loads_s = LAYER_LOAD_S * LAYERS / STAGES
        after_s = self._rng.uniform(0, loads_s) if self._cell.moment is Moment.LOADING else loads_s + self._rng.uniform(0, 0.3)

        def act() -> None:
            self._kill(successor)
            self._killed_at = self.cluster.clock.now

        self._when(lambda: bool(self.cluster.head.swarm.handovers.plans), lambda: self.cluster.clock.call_later(after_s, act))

    def _end(self) -> None:
        stages = self._stages()
        match self._cell.who:
            case Who.FIRST:
                self._kill(stages[0])
            case Who.MIDDLE:
                self._kill(self._rng.choice(stages[1:-1] or stages))
            case Who.LAST:
                self._kill(stages[-1])
            case Who.ADJACENT:
                first = self._rng.randrange(len(stages) - 1)
                for worker in stages[first : first + 2]:
                    self._kill(worker)
        self._killed_at = self.cluster.clock.now

    def _stages(self) -> Sequence[WorkerId]:
        assert self.cluster.plan is not None
        return [stage.worker for stage in self.cluster.plan.stages]

    def _kill(self, worker: WorkerId) -> None:
        cluster = self.cluster
        cluster.kill(worker, at=cluster.clock.now)
        if self._cell.way is Way.WAITS:
            cluster.clock.call_later(self._rng.uniform(0, JOINS_S), lambda: cluster.join(max(cluster.workers) + 1))

    def _next_head(self) -> Iterator[str]:
        """Goes on with the requests that the first had, and what it had told anybody does not come again otherwise."""
        before, killed_at = self.cluster, self.cluster.clock.now
        known = _journal(before, killed_at - self._rng.uniform(0, WRITTEN_S), self._rng)
        self.cluster = self._make(sum(worker.is_alive for worker in before.workers.values()))
        for number, request in before.requests.items():
            if number in known:
                _go_on(self.cluster, number, known[number], request)
            else:  # whoever asked has not been told anything
                self.cluster.requests[number] = SimRequest(request.prompt, request.seed, request.max_new_tokens)
                _submit(self.cluster, number, request, b"")
        if not self.cluster.run(deadline_s=LIMIT_S):
            yield "no end"
        for number, request in before.requests.items():
            if self.cluster.requests[number].tokens[: len(request.tokens)] != request.tokens:
                yield f"request {number} is told something else than by the head before"

    # -- what came of it -------------------------------------------------------------------

    def _judge(self) -> Iterator[str]:
        for number, request in self.cluster.requests.items():
            want = oracle(request.prompt, request.seed, LAYERS, request.max_new_tokens)
            if request.tokens != want[: len(request.tokens)]:
                yield f"request {number} has other tokens"
            if not request.ended:
                yield f"request {number} has no end"
            if request.error is None and len(request.tokens) != len(want):
                yield f"request {number} has lost tokens"
            if request.error is not None and not self._cell.ends_typed:
                yield f"request {number}: {request.error}"
        if self._cell.ends_typed:
            assert self._killed_at is not None
            last = max(self._killed_at, *(request.submitted_at for request in self.cluster.requests.values()))
            if self.cluster.head.down is None:
                yield "nobody said that the swarm is down"
            if self.cluster.clock.now > last + TYPED_S:
                yield f"requests ended {self.cluster.clock.now - last:.1f} s after the loss"


# -- heads -------------------------------------------------------------------------------------


def _journal(cluster: MovingCluster, until: float, rng: random.Random) -> dict[int, Kept]:
    """What the next head reads: all until then, and perhaps a part of what followed."""
    told: list[tuple[float, int, Record]] = [
        (request.submitted_at, number, _asked(number, request)) for number, request in cluster.requests.items()
    ]
    told += [
        (at, number, Gave(number, (given(token, None, (), request.finish if index == len(request.tokens) - 1 else None),)))
        for number, request in cluster.requests.items()
        for index, (token, at) in enumerate(zip(request.tokens, request.token_times, strict=True))
    ]
    told.sort(key=lambda one: one[:2])
    data = MAGIC + b"".join(pack(record) for at, _, record in told if at <= until)
    torn = b"".join(pack(record) for at, _, record in told if at > until)
    return read(data + torn[: rng.randint(0, len(torn))], "simulated").journal.requests


def _asked(number: int, request: SimRequest) -> Asked:
    prompt = b"".join(token.to_bytes(4, "little") for token in request.prompt)
    return Asked(number, prompt, _sampling(request), request.max_new_tokens, (), (), "", 0, None, request.submitted_at)


def _sampling(request: SimRequest) -> Sampling:
    return Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, request.seed, -1)


def _go_on(cluster: MovingCluster, number: int, kept: Kept, request: SimRequest) -> None:
    tokens = [one.token for one in kept.given]
    cluster.requests[number] = SimRequest(request.prompt, request.seed, request.max_new_tokens, tokens, finish=kept.finish)
    if kept.finish is None:
        _submit(cluster, number, request, kept.output)
    else:
        cluster.requests[number].ended = True


def _submit(cluster: MovingCluster, number: int, request: SimRequest, output: bytes) -> None:
    asked = _asked(number, request)
    event = Submit(
        number, asked.prompt, asked.sampling, asked.max_new_tokens, frozenset(), cluster.clock.now, output=output or None
    )
    cluster.head.do(cluster.head.request_core.handle(event))


# -- tables ------------------------------------------------------------------------------------


def simulated_table(found: Sequence[Simulated]) -> Table:
    table = Table(title="simulated swarms: those that were right, of all")
    for column in ("who", "when", *Way):
        table.add_column(column, justify="left" if column in ("who", "when") else "right")
    for who, moment in itertools.product(Who, Moment):
        ways = [[one for one in found if one.cell == Cell(who, moment, way)] for way in Way]
        table.add_row(who, moment, *(f"{sum(not one.wrong for one in own)} of {len(own)}" for own in ways))
    several = [one for one in found if one.cell is None]
    table.add_row("several", "any", f"{sum(not one.wrong for one in several)} of {len(several)}", *[""] * (len(Way) - 1))
    return table
