"""Carries kills of real workers out (bench/kills.py), each in a swarm that has what its cell is to go on with."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial

from bench.exact import Reference
from bench.fault_cells import Cell, Moment, Way, Who
from bench.kills import MODEL, REQUESTS, Kill, KillLog, Series
from bench.mesh import Mesh, MeshSpec
from bench.program import BenchError
from bench.same import Comparison, Request, compare
from bloombee.config import LocalWorker
from bloombee.errors import BloomBeeError
from bloombee.plan.plan import Plan
from bloombee.types import Dtype, SwarmEventKind, WorkerId
from tools.wan_native import WanError

STAGES = {Way.SPARE: 3, Way.SHARE: 4, Way.NEITHER: 3, Way.WAITS: 3}
"""Where layers are shared out more of the others are left."""
SPARES = 3
WORKERS_A_SWARM = {Way.SPARE: SPARES, Way.SHARE: 1, Way.NEITHER: 1, Way.WAITS: 3}
"""That may be lost before a swarm has done its part; the first kill may take more."""
LOAD_BYTES_PER_S = 20e6
"""Loading a stage takes half a second or so, in which somebody can be killed."""
WAITS_S = 60.0
LIMIT_S = 180.0
"""Requests that have not ended so long after a kill hang."""


class Killer:
    """Of a series.

    Args:
        say: called with each kill that is done.
    """

    def __init__(self, series: Series, log: KillLog, say: Callable[[Kill], None]) -> None:
        self._series = series
        self._log = log
        self._say = say
        self._requests = series.requests()
        self._expected: list[list[int]] = []
        self._prefill_s = 0.0
        self._reference: Reference

    async def run(self, budget_s: float) -> None:
        """All kills that are not in the log; none is begun ``budget_s`` after the first.

        Cancelled: those that are done are in the log.

        Raises:
            BloomBeeError, WanError: the swarm without a kill cannot be started or does not answer.
        """
        waiting = [kill for kill in self._series.kills() if kill.number not in self._log.done]
        if not waiting:
            return
        async with Mesh(self._mesh(Cell(Who.FIRST, Moment.DECODE, Way.NEITHER))) as mesh:
            await self._undisturbed(mesh)
        until_s = time.monotonic() + budget_s
        with Reference(MODEL, Dtype.FLOAT32) as self._reference:
            while waiting and time.monotonic() < until_s:
                await self._one_swarm(waiting, until_s)

    async def _undisturbed(self, mesh: Mesh) -> None:
        began, times = time.monotonic(), list[float]()
        asked = self._ask(mesh, times)
        self._expected = await asyncio.gather(*asked.tasks)
        self._prefill_s = sorted(times)[REQUESTS - 1] - began

    def _ask(self, mesh: Mesh, times: list[float]) -> Asked:
        return Asked(mesh, self._requests, self._series.new, times)

    async def _kill(self, mesh: Mesh, kill: Kill) -> None:
        num_tokens = self._series.new * REQUESTS
        deed = Deed(mesh, kill, partial(self._ask, mesh), num_tokens=num_tokens, prefill_s=self._prefill_s)
        for number, (tokens, end) in enumerate(zip(*await deed.do(), strict=True)):
            is_error = isinstance(end, BloomBeeError)
            if is_error:
                kill.reasons.append(str(end))
            elif isinstance(end, BaseException):
                raise end
            is_whole = isinstance(end, list)
            kill.lost += not (is_whole or (is_error and kill.cell.ends_typed))
            kill.same.add(await asyncio.to_thread(self._compare, number, tokens, is_whole))

    def _compare(self, number: int, tokens: list[int], is_whole: bool) -> Comparison:
        """With the undisturbed answer, or the beginning of it. Blocks."""
        expected = self._expected[number] if is_whole else self._expected[number][: len(tokens)]
        return compare(self._reference, self._requests[number], expected, tokens)

    # -- swarms ----------------------------------------------------------------------------

    async def _one_swarm(self, waiting: list[Kill], until_s: float) -> None:
        """The first of ``waiting``, and others for which the same swarm is as good."""
        kill: Kill | None = waiting.pop(0)
        assert kill is not None
        cell, left = kill.cell, WORKERS_A_SWARM[Way(kill.way)]
        try:
            if _is_starting(cell):
                await self._kill_at_the_start(kill)
                self._done(kill)
                return
            async with Mesh(self._mesh(cell)) as mesh:
                while kill is not None and time.monotonic() < until_s:
                    left -= kill.cost
                    await self._kill(mesh, kill)
                    self._done(kill)
                    if not kill.is_good:
                        return  # the next one is to begin with a swarm that is whole
                    kill = self._another(waiting, cell, left)
                if kill is not None:
                    waiting.insert(0, kill)
        except (BloomBeeError, WanError, BenchError) as error:
            assert kill is not None
            kill.failed = str(error)
            self._done(kill)

    @staticmethod
    def _another(waiting: list[Kill], cell: Cell, left: int) -> Kill | None:
        """Of those that wait, the first for which a swarm like that of ``cell`` has workers left."""
        for kill in waiting:
            is_alike = (kill.way, kill.who is Who.SUCCESSOR) == (cell.way, cell.who is Who.SUCCESSOR)
            if is_alike and kill.cost <= left and not _is_starting(kill.cell):
                waiting.remove(kill)
                return kill
        return None

    def _done(self, kill: Kill) -> None:
        self._log.add(kill)
        self._say(kill)

    def _mesh(self, cell: Cell) -> MeshSpec:
        spares = (SPARES if cell.way is Way.SPARE else 0) + (cell.who is Who.SUCCESSOR)
        settings = {"dtype": "float32", "threads": 1, "device": self._series.device, "share_out": cell.way is Way.SHARE}
        if cell.way is Way.WAITS:
            settings |= {"wait_for_worker_s": WAITS_S, "restarts": 100}
        slow = LocalWorker(load_bytes_per_s=LOAD_BYTES_PER_S)
        is_slow = cell.way in (Way.SHARE, Way.WAITS) or _is_starting(cell)
        stage = slow if is_slow else LocalWorker()
        return MeshSpec(MODEL, STAGES[cell.way], spares, self._series.profile, settings, spare=slow, stage=stage)

    async def _kill_at_the_start(self, kill: Kill) -> None:
        """While the first plan's stages load: who starts the swarm is told."""
        killed_at: list[float] = []

        async def meanwhile(mesh: Mesh) -> None:
            await mesh.until(SwarmEventKind.PLANNED, 1)
            await asyncio.sleep(kill.at * 0.4)
            killed_at.append(end_workers(mesh, targets(kill.cell, mesh.runtime.plan, random.Random(kill.number))))

        kill.load = os.getloadavg()[0]
        swarm = Mesh(self._mesh(kill.cell), meanwhile)
        try:
            async with swarm:
                kill.lost = 1
        except BloomBeeError as error:
            if not killed_at:
                raise
            kill.typed_s = swarm.failed_at - killed_at[0]
            kill.reasons.append(str(error))


def _is_starting(cell: Cell) -> bool:
    return cell.moment is Moment.LOADING and cell.way is Way.NEITHER and cell.who is not Who.SUCCESSOR


class Asked:
    """All requests of a series, at once.

    Args:
        times: gets when each token came.
    """

    def __init__(self, mesh: Mesh, requests: Sequence[Request], new: int, times: list[float]) -> None:
        self.tokens: list[list[int]] = [[] for _ in requests]
        self.ended_at = 0.0
        """The last of those that have."""
        self._mesh, self._new, self._times = mesh, new, times
        self.tasks = [asyncio.ensure_future(self._ask(*one)) for one in zip(requests, self.tokens, strict=True)]

    async def _ask(self, request: Request, tokens: list[int]) -> list[int]:
        stream = self._mesh.runtime.stream(request.prompt, max_new_tokens=self._new, ignore_eos=True, **request.fields)
        try:
            async for token in stream:
                tokens.append(token.token_id)
                self._times.append(time.monotonic())
        finally:
            self.ended_at = time.monotonic()
        return tokens

    async def ends(self, limit_s: float) -> list[list[int] | BaseException | None]:
        """What each came to; None: it did not end. Cancelled: none goes on."""
        try:
            await asyncio.wait(self.tasks, timeout=limit_s)
        finally:
            late = [task for task in self.tasks if task.cancel()]
            await asyncio.gather(*self.tasks, return_exceptions=True)
        return [None if task in late else task.exception() or task.result() for task in self.tasks]


class Deed:
    """One kill, in a swarm that is up: all is asked, somebody is ended meanwhile, and ``kill`` is filled in.

    Args:
        ask: asks everything at once.
        num_tokens, prefill_s: of all answers together, and until each has its first token, undisturbed.
    """

    def __init__(self, mesh: Mesh, kill: Kill, ask: Callable[[list[float]], Asked], *, num_tokens: int, prefill_s: float) -> None:
        self._mesh, self._kill, self._cell = mesh, kill, kill.cell
        self._ask, self._num_tokens, self._prefill_s = ask, num_tokens, prefill_s
        self._rng = random.Random(kill.number)
        self._times: list[float] = []
        self._killed_at = 0.0

    async def do(self) -> tuple[list[list[int]], list[list[int] | BaseException | None]]:
        """The tokens of each request, and what it came to."""
        kill, is_idle = self._kill, self._cell.moment is Moment.IDLE
        kill.load = os.getloadavg()[0]
        asked = None if is_idle else self._ask(self._times)
        try:
            if asked is not None:
                await self._moment(asked)
            replanning = await self._strike()
            if asked is None:
                await asyncio.sleep(0.5 * kill.at)
                asked = self._ask(self._times)
            begun_at = time.monotonic() if is_idle else self._killed_at
            up_at = None if self._cell.ends_typed or replanning is not None else await self._recovered()
            ends = await asked.ends(LIMIT_S)
        finally:
            if asked is not None:
                await asked.ends(0.0)
        if replanning is not None:
            await asyncio.gather(replanning, return_exceptions=True)  # whatever came of it, requests are to go on
        if self._cell.ends_typed:
            kill.typed_s = asked.ended_at - begun_at
        first = next((at for at in self._times if up_at is not None and at >= up_at), None)
        kill.first_token_s = between(up_at, first)
        return asked.tokens, ends

    async def _moment(self, asked: Asked) -> None:
        """Wait until it is time for it."""
        if self._cell.moment is Moment.PREFILL:
            await asyncio.sleep(self._kill.at * self._prefill_s)
            return
        wanted = self._kill.at * self._num_tokens
        while len(self._times) < wanted and not all(task.done() for task in asked.tasks):
            await asyncio.wait(asked.tasks, timeout=0.001)

    async def _strike(self) -> asyncio.Future[Plan] | None:
        """The hand-over that was begun for it, if any."""
        if self._cell.who is Who.SUCCESSOR:
            return await self._strike_successor()
        if self._cell.has_a_loss_before:
            stages = self._mesh.runtime.plan.stages
            at = end_workers(self._mesh, [self._rng.choice(stages).worker])
            await self._mesh.after(SwarmEventKind.PLANNED, at)
            await asyncio.sleep(0.2 * self._kill.at)
        self._killed_at = end_workers(self._mesh, targets(self._cell, self._mesh.runtime.plan, self._rng))
        return None

    async def _strike_successor(self) -> asyncio.Future[Plan]:
        runtime, began = self._mesh.runtime, time.monotonic()
        stages = [stage.worker for stage in runtime.plan.stages]
        successor = next(worker for worker in runtime.worker_pids if worker not in stages)
        replaced = self._rng.choice(stages)
        replanning = asyncio.ensure_future(runtime.replan([successor, *(set(stages) - {replaced})]))
        await self._mesh.after(SwarmEventKind.REPLANNING, began)
        if self._cell.moment is not Moment.LOADING:
            await self._mesh.after(SwarmEventKind.LOADED, began)
        await asyncio.sleep(0.4 * self._kill.at)
        self._killed_at = end_workers(self._mesh, [successor])
        return replanning

    async def _recovered(self) -> float | None:
        """When the swarm was up again."""
        mesh, kill = self._mesh, self._kill
        lost_at = await mesh.after(SwarmEventKind.LOST, self._killed_at)
        up_at = await mesh.after(SwarmEventKind.UP, self._killed_at)
        loaded = [event.at_s for event in mesh.events if event.kind is SwarmEventKind.LOADED and event.at_s >= self._killed_at]
        loaded_at = loaded[-1] if loaded else None
        kill.detect_s = between(self._killed_at, lost_at)
        kill.load_s, kill.wire_s = between(lost_at, loaded_at), between(loaded_at, up_at)
        return up_at


def end_workers(mesh: Mesh, workers: Sequence[WorkerId]) -> float:
    """By SIGKILL; when."""
    pids = mesh.runtime.worker_pids
    at = time.monotonic()
    for worker in workers:
        if worker in pids:
            os.kill(pids[worker], signal.SIGKILL)
    return at


def targets(cell: Cell, plan: Plan, rng: random.Random) -> list[WorkerId]:
    """Whom a cell means."""
    stages = [stage.worker for stage in plan.stages]
    match cell.who:
        case Who.FIRST:
            return stages[:1]
        case Who.MIDDLE:
            return [rng.choice(stages[1:-1] or stages)]
        case Who.LAST:
            return stages[-1:]
        case Who.ADJACENT:
            first = rng.randrange(max(1, len(stages) - 1))
            return stages[first : first + 2]
    raise AssertionError(f"{cell}: none of a plan's workers")


def between(start: float | None, stop: float | None) -> float | None:
    return None if start is None or stop is None else stop - start
