"""Workers that are killed while requests run: nothing may be lost, doubled or changed, and how long each recovery took.

    python bench/faults.py                       12 real kills and 100 simulated ones, a few minutes
    python bench/faults.py --kills 60 --simulate 1000 --json faults.jsonl

Real: a Runtime of three workers of the demo model (fp32) with spares answers requests without a pause; a worker with a stage is
ended by SIGKILL while prompts are being read, while all decode, or while its successor still loads. Every answer is compared
with the same request's in an undisturbed run; where one leaves it, the first differing position is judged by its margin
(teacher-forced by one process). A recovery is told in parts: until the loss was known, until the spare had loaded, until all
were wired, and until the first token after it. Simulated: the very same cores under a virtual clock with control messages and
frames lost, doubled and late; tokens must equal the oracle's. Exit status 1 if anything was lost, doubled or changed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bloombee
from bench.arguments import Parser, check_file, whole
from bench.exact import Reference
from bench.program import machine, program
from bloombee.config import RuntimeConfig
from bloombee.errors import BloomBeeError
from bloombee.sim.cluster import SimCluster
from bloombee.sim.device import oracle
from bloombee.sim.network import Faults
from bloombee.types import Dtype, SwarmEvent, SwarmEventKind

STAGES = 3
SPARES = 3
"""As many kills a Runtime; the next needs a new one."""
REQUESTS, PROMPT, NEW = 6, 160, 48
MOMENTS = ("prefill", "decode", "loading")
"""Loading: its successor is killed while it loads."""
PARTS = ("detect_s", "load_s", "wire_s", "first_token_s")
MARGIN = 2.0**-18
"""Of the row's largest logit: a token that was this near to another may flip between kernels."""
FAULTS = Faults(lose=0.1, duplicate=0.1, delay=0.3, max_extra_delay_s=0.3)


@dataclass
class Kill:
    """One kill and what came of it. Seconds; None where it did not happen."""

    stage: int
    moment: str
    detect_s: float | None = None
    load_s: float | None = None
    wire_s: float | None = None
    first_token_s: float | None = None
    lost: int = 0
    differing: int = 0
    """Answers that left the undisturbed run."""


def main_table(kills: Sequence[Kill]) -> Table:
    table = Table(title="kills of real workers: milliseconds, medians")
    for column in ("stage", "moment", "kills", "lost", "changed", "detect", "load", "wire", "first token after"):
        table.add_column(column, justify="right")
    for stage, moment in itertools.product(range(STAGES), MOMENTS):
        own = [kill for kill in kills if (kill.stage, kill.moment) == (stage, moment)]
        if own:
            parts = [_median_ms([getattr(kill, name) for kill in own]) for name in PARTS]
            lost, changed = sum(kill.lost for kill in own), sum(kill.differing for kill in own)
            table.add_row(str(stage), moment, str(len(own)), str(lost), str(changed), *parts)
    return table


def _median_ms(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{1e3 * statistics.median(known):.0f}" if known else "-"


class Swarm:
    """A Runtime under fire, and what it says of itself."""

    def __init__(self, runtime: bloombee.Runtime) -> None:
        self.runtime = runtime
        self.events: list[SwarmEvent] = []
        self.changed = asyncio.Event()

    async def listen(self) -> None:
        async for event in self.runtime.events():
            self.events.append(event)
            self.changed.set()

    async def until(self, kind: SwarmEventKind, count: int, limit_s: float = 30.0) -> float | None:
        """When the ``count``-th event of a kind happened; None: it did not within the limit."""
        deadline = time.monotonic() + limit_s
        while True:
            found = [event.at_s for event in self.events if event.kind is kind]
            if len(found) >= count:
                return found[count - 1]
            self.changed.clear()
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            try:
                await asyncio.wait_for(self.changed.wait(), left)
            except TimeoutError:
                return None

    def count(self, kind: SwarmEventKind) -> int:
        return sum(event.kind is kind for event in self.events)


async def ask(runtime: bloombee.Runtime, prompt: list[int], seed: int, times: list[float]) -> list[int]:
    """Tokens of one request; when each came goes to ``times``."""
    tokens = []
    temperature = 0.8 if seed % 3 == 0 else 0.0
    async for token in runtime.stream(prompt, max_new_tokens=NEW, ignore_eos=True, temperature=temperature, seed=seed):
        tokens.append(token.token_id)
        times.append(time.monotonic())
    return tokens


async def one_kill(swarm: Swarm, prompts: list[list[int]], kill: Kill) -> list[list[int] | BloomBeeError]:
    """Answers of all prompts, with a worker killed meanwhile."""
    runtime, times = swarm.runtime, []  # type: tuple[bloombee.Runtime, list[float]]
    victim = runtime.plan.stages[kill.stage].worker
    before = {kind: swarm.count(kind) for kind in SwarmEventKind}
    asked = [asyncio.ensure_future(ask(runtime, prompt, seed, times)) for seed, prompt in enumerate(prompts)]
    wanted = 0 if kill.moment == "prefill" else 2 * len(prompts)
    while len(times) < wanted and not all(task.done() for task in asked):
        await asyncio.wait(asked, timeout=0.001)
    killed_at = time.monotonic()
    os.kill(runtime.worker_pids[victim], signal.SIGKILL)
    lost_at = await swarm.until(SwarmEventKind.LOST, before[SwarmEventKind.LOST] + 1)
    if kill.moment == "loading":
        successor = runtime.plan.stages[kill.stage].worker
        if successor != victim:
            os.kill(runtime.worker_pids[successor], signal.SIGKILL)
            lost_at = await swarm.until(SwarmEventKind.LOST, before[SwarmEventKind.LOST] + 2)
    loaded_at = await swarm.until(SwarmEventKind.WIRING, before[SwarmEventKind.WIRING] + 1)
    up_at = await swarm.until(SwarmEventKind.UP, before[SwarmEventKind.UP] + 1)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    first = next((at for at in times if up_at is not None and at >= up_at), None)
    kill.detect_s = None if lost_at is None else lost_at - killed_at
    kill.load_s = None if lost_at is None or loaded_at is None else loaded_at - lost_at
    kill.wire_s = None if loaded_at is None or up_at is None else up_at - loaded_at
    kill.first_token_s = None if first is None or up_at is None else first - up_at
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, BloomBeeError):
            raise answer
    return answers  # type: ignore[return-value]


def plan_kills(count: int, rng: random.Random) -> list[Kill]:
    every = itertools.cycle(list(itertools.product(range(STAGES), MOMENTS)))
    kills = [Kill(stage, moment) for stage, moment in itertools.islice(every, count)]
    rng.shuffle(kills)
    return kills


def _cost(kill: Kill) -> int:
    """Spares that it takes."""
    return 2 if kill.moment == "loading" else 1


async def real(
    kills: list[Kill], prompts: list[list[int]], device: str, progress: Progress
) -> tuple[list[list[int]], list[tuple[int, list[int]]]]:
    """Answers of the undisturbed run, and (prompt, answer) of those that left it."""
    strays: list[tuple[int, list[int]]] = []
    task = progress.add_task("kills", total=len(kills))
    async with bloombee.Runtime("demo", workers=STAGES, dtype="float32", threads=1, device=device) as runtime:
        expected = list(await asyncio.gather(*(ask(runtime, prompt, seed, []) for seed, prompt in enumerate(prompts))))
    waiting = list(kills)
    while waiting:
        left = SPARES
        async with bloombee.Runtime("demo", workers=STAGES, spares=SPARES, dtype="float32", threads=1, device=device) as runtime:
            swarm = Swarm(runtime)
            listening = asyncio.ensure_future(swarm.listen())
            await swarm.until(SwarmEventKind.JOINED, STAGES + SPARES)
            await swarm.until(SwarmEventKind.UP, 1)
            while waiting and _cost(waiting[-1]) <= left:
                kill = waiting.pop()
                left -= _cost(kill)
                for number, answer in enumerate(await one_kill(swarm, prompts, kill)):
                    if isinstance(answer, BloomBeeError):
                        kill.lost += 1
                        progress.console.print(f"lost: stage {kill.stage}, {kill.moment}: {answer}")
                    elif answer != expected[number]:
                        kill.differing += 1
                        strays.append((number, answer))
                progress.advance(task)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
    return expected, strays


def judge(prompts: list[list[int]], expected: list[list[int]], strays: list[tuple[int, list[int]]]) -> tuple[int, int]:
    """(answers that may not be, answers that flipped where two tokens were as good as each other)."""
    if not strays:
        return 0, 0
    reference = Reference("demo", Dtype.FLOAT32)
    wrong = flips = 0
    for number, answer in strays:
        want = expected[number]
        at = next((i for i, (a, b) in enumerate(zip(answer, want, strict=False)) if a != b), None)
        if at is None or number % 3 == 0:  # another length, or a sampled one: its margin has noise in it
            wrong += 1
            continue
        verdict = reference.judge([prompts[number]], [answer[: at + 1]])
        wrong, flips = wrong + (verdict.worst > MARGIN), flips + (verdict.worst <= MARGIN)
    return wrong, flips


def simulate(count: int, seed: int, progress: Progress) -> tuple[int, list[str]]:
    """(recoveries, what went wrong) of ``count`` simulated swarms that lose one to three workers each."""
    task = progress.add_task("simulated", total=count)
    recoveries, wrong = 0, []
    for number in range(seed, seed + count):
        rng = random.Random(number)
        stages, kills = rng.randint(1, 4), rng.randint(1, 3)
        harsh = FAULTS if rng.random() < 0.7 else None
        cluster = SimCluster(
            seed=number, num_stages=stages, num_spares=kills, num_microbatches=rng.randint(1, 4), faults=harsh,
            lossy_orders=harsh is not None, log_bytes=rng.choice([64, 2048, 1 << 20]),
        )  # fmt: skip
        for _ in range(12):
            prompt = [rng.randrange(50_000) for _ in range(rng.randint(1, 60))]
            cluster.submit(prompt, max_new_tokens=rng.randint(1, 40), seed=rng.randrange(2**64), at=rng.uniform(0, 1.5))
        at = rng.uniform(0.0, 1.0)
        for worker in rng.sample(range(1, stages + kills + 1), min(kills, stages + kills)):
            cluster.kill(worker, at=at)
            at += rng.choice([0.0, 0.001, 0.051, 0.2, 0.5])
        ended = cluster.run()
        recoveries += cluster.head.num_recoveries
        bad = [r for r in cluster.requests.values() if r.error or r.tokens != oracle(r.prompt, r.seed, stages, r.max_new_tokens)]
        if not ended or bad:
            wrong.append(f"seed {number}: {'no end' if not ended else f'{len(bad)} requests wrong'}")
        progress.advance(task)
    return recoveries, wrong


@program("faults")
def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=whole(0, 10**4), default=12, help="of real workers (default 12)")
    parser.add_argument("--simulate", type=whole(0, 10**6), default=100, metavar="N", help="simulated swarms (default 100)")
    parser.add_argument("--seed", type=whole(0, 2**31), default=0)
    parser.add_argument("--device", default="cpu", help="of every worker: cpu (default), cuda, cuda:N")
    parser.add_argument("--json", type=Path, help="append a line with the results to this file")
    arguments = parser.parse_args()
    if arguments.json is not None:
        check_file(arguments.json)
    RuntimeConfig(device=arguments.device)
    rng = random.Random(arguments.seed)
    kills = plan_kills(arguments.kills, rng)
    prompts = [[rng.randrange(1, 4096) for _ in range(PROMPT)] for _ in range(REQUESTS)]
    console = Console()
    failed = wrong = flips = recoveries = 0
    with Progress(console=Console(stderr=True)) as progress:
        if kills:
            expected, strays = asyncio.run(real(kills, prompts, arguments.device, progress))
            wrong, flips = judge(prompts, expected, strays)
            failed = sum(kill.lost for kill in kills)
        simulated: list[str] = []
        if arguments.simulate:
            recoveries, simulated = simulate(arguments.simulate, arguments.seed, progress)
    if kills:
        console.print(main_table(kills))
        console.print(f"{len(kills)} kills: {failed} requests lost, {wrong} wrong, {flips} flipped within 2^-18 (bound: 0, 0)")
    if arguments.simulate:
        console.print(f"{arguments.simulate} simulated swarms, {recoveries} recoveries: {len(simulated)} wrong (bound: 0)")
        for line in simulated[:20]:
            console.print(line)
    if arguments.json is not None:
        row = {**machine(), "kills": [asdict(kill) for kill in kills], "lost": failed, "wrong": wrong, "flips": flips}
        row |= {"simulated": arguments.simulate, "recoveries": recoveries, "simulated_wrong": simulated}
        with arguments.json.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return 1 if failed or wrong or simulated else 0


if __name__ == "__main__":
    sys.exit(main())
