"""Real workers that are killed while requests run, and what becomes of the requests and of the swarm."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.exact import Reference
from bench.mesh import Mesh, MeshSpec
from bench.profiles import Profile
from bench.program import BenchError
from bench.same import Comparison, Request, compare
from bloombee.config import LocalWorker
from bloombee.errors import BloomBeeError
from bloombee.types import Dtype, SwarmEventKind
from bloombee.wire.messages import Sampling
from tools.wan_native import WanError

MODEL = "demo"
STAGES = 3
SPARES = 3
"""As many kills a swarm; the next needs a new one."""
REQUESTS, PROMPT = 16, 160
LEAST_TOKENS, MOST_TOKENS = 48, 1800
"""Of an answer. The demo model has 2,048 positions."""
LOAD_BYTES_PER_S = 20e6
"""Of a spare: loading a stage takes it half a second or so, in which it can be killed."""
MOMENTS = ("prefill", "decode", "loading")
"""Loading: its successor is killed while it loads."""
PARTS = ("detect_s", "load_s", "wire_s", "first_token_s")
LIMIT_S = 180.0
"""Requests that have not ended so long after a kill hang."""


@dataclass
class Kill:
    """One kill and what came of it.

    Args:
        at: how far everything was when it happened, as a share of the prompts' time or of the tokens.
        detect_s, load_s, wire_s, first_token_s: one after the other; None: it did not happen.
        lost: requests that ended with an error, or not at all.
        reasons: the errors.
        failed: why nothing came of it, if nothing did.
    """

    number: int
    stage: int
    moment: str
    at: float
    detect_s: float | None = None
    load_s: float | None = None
    wire_s: float | None = None
    first_token_s: float | None = None
    lost: int = 0
    reasons: list[str] = field(default_factory=list)
    same: Comparison = field(default_factory=Comparison)
    failed: str = ""

    @property
    def cost(self) -> int:
        """Spares that it takes."""
        return 2 if self.moment == "loading" else 1

    @property
    def is_good(self) -> bool:
        return not (self.failed or self.lost or self.same.num_wrong)


@dataclass(frozen=True, slots=True)
class Series:
    """What makes kills comparable. ``new``: tokens of each answer."""

    seed: int
    count: int
    new: int
    profile: Profile
    device: str

    def kills(self) -> list[Kill]:
        """Each stage at each moment in turn, in an order of chance."""
        rng = random.Random(self.seed)
        every = itertools.cycle(itertools.product(range(STAGES), MOMENTS))
        chosen = list(itertools.islice(every, self.count))
        rng.shuffle(chosen)
        return [Kill(number, stage, moment, rng.uniform(0.1, 0.8)) for number, (stage, moment) in enumerate(chosen)]

    def requests(self) -> list[Request]:
        """A third greedy, a third sampled, a third sampled with a filter and a penalty."""
        rng = random.Random(self.seed + 1)
        return [Request([rng.randrange(1, 4096) for _ in range(PROMPT)], _sampling(number)) for number in range(REQUESTS)]

    def to_json(self) -> dict[str, Any]:
        return {"seed": self.seed, "kills": self.count, "tokens": self.new, "links": self.profile.name, "device": self.device}


def _sampling(number: int) -> Sampling:
    kind = number % 3
    return Sampling(
        temperature=(0.0, 0.8, 0.7)[kind],
        top_k=0,
        top_p=0.95 if kind == 2 else 1.0,
        min_p=0.0,
        repetition_penalty=1.1 if kind == 2 else 1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        seed=number,
        logprobs=-1,
    )


def tokens_for(count: int, wanted: int) -> int:
    """Of each answer, so that ``count`` kills compare ``wanted`` tokens, as far as the model has positions."""
    return max(LEAST_TOKENS, min(MOST_TOKENS, -(-wanted // (max(1, count) * REQUESTS))))


class KillLog:
    """Kills that are done, a line of JSON each, so that a series can be run in pieces.

    Args:
        path: None: they are kept nowhere.
        facts: of the machine and the code; kills of others are not gone on with.
    """

    def __init__(self, path: Path | None, series: Series, facts: dict[str, str]) -> None:
        self.path = path
        self._asked = {**facts, **series.to_json()}
        self.done = {kill.number: kill for kill in self._read()}

    def add(self, kill: Kill) -> None:
        """On disk before this returns.

        Raises:
            OSError: it cannot be written.
        """
        self.done[kill.number] = kill
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"mode": "kill", "asked": self._asked, "kill": asdict(kill)}) + "\n")

    def _read(self) -> list[Kill]:
        """A line that an interruption cut short is none. What failed is tried again."""
        kills = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path and self.path.is_file() else []:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if row.get("mode") == "kill" and row["asked"] == self._asked and not row["kill"]["failed"]:
                kills.append(Kill(**{**row["kill"], "same": Comparison(**row["kill"]["same"])}))
        return kills


class Killer:
    """Carries a series out.

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

    async def run(self, budget_s: float) -> None:
        """All kills that are not in the log; none is begun ``budget_s`` after the first.

        Cancelled: those that are done are in the log.

        Raises:
            BloomBeeError, WanError: the swarm without a kill cannot be started or does not answer.
        """
        waiting = [kill for kill in reversed(self._series.kills()) if kill.number not in self._log.done]
        if not waiting:
            return
        async with Mesh(self._mesh(spares=0)) as mesh:
            await self._undisturbed(mesh)
        until_s = time.monotonic() + budget_s
        with Reference(MODEL, Dtype.FLOAT32) as reference:
            while waiting and time.monotonic() < until_s:
                await self._one_swarm(waiting, reference, until_s)

    async def _undisturbed(self, mesh: Mesh) -> None:
        began, firsts = time.monotonic(), []  # type: tuple[float, list[float]]
        self._expected = await asyncio.gather(*(self._ask(mesh, number, firsts) for number in range(REQUESTS)))
        self._prefill_s = sorted(firsts)[REQUESTS - 1] - began

    async def _one_swarm(self, waiting: list[Kill], reference: Reference, until_s: float) -> None:
        """As many of ``waiting``, from its end, as a swarm has spares for."""
        first, left = waiting[-1], SPARES
        try:
            async with Mesh(self._mesh(SPARES)) as mesh:
                while waiting and waiting[-1].cost <= left and time.monotonic() < until_s:
                    kill = waiting.pop()
                    left -= kill.cost
                    await self._kill(mesh, kill, reference)
                    self._log.add(kill)
                    self._say(kill)
                    if not kill.is_good:
                        return  # the next one is to begin with a swarm that is whole
        except (BloomBeeError, WanError, BenchError) as error:
            if waiting and waiting[-1] is first:
                waiting.pop()
                first.failed = str(error)
                self._log.add(first)
                self._say(first)

    async def _kill(self, mesh: Mesh, kill: Kill, reference: Reference) -> None:
        """Ask everything, end a worker meanwhile, and fill in ``kill``."""
        times: list[float] = []
        asked = [asyncio.ensure_future(self._ask(mesh, number, times)) for number in range(REQUESTS)]
        try:
            await self._moment(kill, times, asked)
            up_at = await self._end_worker(mesh, kill)
            _, late = await asyncio.wait(asked, timeout=LIMIT_S)
        finally:
            for task in asked:
                task.cancel()
            answers = await asyncio.gather(*asked, return_exceptions=True)
        first = next((at for at in times if up_at is not None and at >= up_at), None)
        kill.first_token_s = None if first is None or up_at is None else first - up_at
        kill.lost = len(late)
        for number, answer in enumerate(answers):
            if isinstance(answer, list):
                kill.same.add(await asyncio.to_thread(self._compare, reference, number, answer))
            elif isinstance(answer, BloomBeeError):
                kill.lost += 1
                kill.reasons.append(str(answer))
            elif not isinstance(answer, asyncio.CancelledError):
                raise answer

    def _compare(self, reference: Reference, number: int, answer: list[int]) -> Comparison:
        return compare(reference, self._requests[number], self._expected[number], answer)

    async def _moment(self, kill: Kill, times: list[float], asked: Sequence[asyncio.Future[list[int]]]) -> None:
        """Wait until it is time for it."""
        if kill.moment == "prefill":
            await asyncio.sleep(kill.at * self._prefill_s)
            return
        wanted = kill.at * self._series.new * REQUESTS
        while len(times) < wanted and not all(task.done() for task in asked):
            await asyncio.wait(asked, timeout=0.001)

    async def _end_worker(self, mesh: Mesh, kill: Kill) -> float | None:
        """When the swarm was up again."""
        runtime = mesh.runtime
        before = {kind: mesh.count(kind) for kind in SwarmEventKind}
        lost_at = killed_at = None
        for number in range(1, kill.cost + 1):
            killed_at = time.monotonic()
            os.kill(runtime.worker_pids[runtime.plan.stages[kill.stage].worker], signal.SIGKILL)
            lost_at = await mesh.until(SwarmEventKind.LOST, before[SwarmEventKind.LOST] + number)
            await mesh.until(SwarmEventKind.PLANNED, before[SwarmEventKind.PLANNED] + number)
        up_at = await mesh.until(SwarmEventKind.UP, before[SwarmEventKind.UP] + 1)
        kill.detect_s = _between(killed_at, lost_at)
        loaded_at = mesh.loaded_at(runtime.plan.stages[kill.stage].worker)
        kill.load_s = _between(lost_at, loaded_at)
        kill.wire_s = _between(loaded_at, up_at)
        return up_at

    async def _ask(self, mesh: Mesh, number: int, times: list[float]) -> list[int]:
        """Tokens of one request; when each came goes to ``times``."""
        request, tokens = self._requests[number], []
        stream = mesh.runtime.stream(request.prompt, max_new_tokens=self._series.new, ignore_eos=True, **request.fields)
        async for token in stream:
            tokens.append(token.token_id)
            times.append(time.monotonic())
        return tokens

    def _mesh(self, spares: int) -> MeshSpec:
        settings = {"dtype": "float32", "threads": 1, "device": self._series.device}
        return MeshSpec(MODEL, STAGES, spares, self._series.profile, settings, LocalWorker(load_bytes_per_s=LOAD_BYTES_PER_S))


def _between(start: float | None, stop: float | None) -> float | None:
    return None if start is None or stop is None else stop - start


def kills_table(kills: Sequence[Kill]) -> Table:
    table = Table(title="kills of real workers; milliseconds, one after the other, medians")
    for column in ("stage", "moment", "kills", "lost", "wrong", "flips", "detect", "load", "wire", "token"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage, moment in itertools.product(range(STAGES), MOMENTS):
        own = [kill for kill in kills if (kill.stage, kill.moment) == (stage, moment)]
        if own:
            counts = (len(own), *(sum(one) for one in zip(*map(_counts, own), strict=True)))
            table.add_row(
                str(stage), moment, *map(str, counts), *(_median_ms([getattr(kill, name) for kill in own]) for name in PARTS)
            )
    return table


def _counts(kill: Kill) -> tuple[int, int, int]:
    return kill.lost, kill.same.num_wrong, kill.same.num_flips


def _median_ms(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{1e3 * statistics.median(known):.0f}" if known else "-"
