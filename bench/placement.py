"""Whether it pays to place a pipeline by the planner: against Petals' own rule, and against the best order there is.

Worlds are drawn by seed (bench/worlds.py): 4 to 8 workers, devices that take 1x, 2x and 4x the time, links 10x apart,
stand-ins of LLaMA-30B; or read from files in the planner's format (docs/topology.md). At B = 128 the planner's placement for
throughput and the rule's (bench/petals_rule.py) run with the same tuner and codec, and the rule's once more with one microbatch
and no codec. At B = 1 the planner's placement for latency runs, the rule's, and the best of every order. All run in simulation:
the runtime's own cores on a virtual clock. ``--wall N`` runs the first N worlds as real processes on emulated links as well, a
minute a run or less; when it was interrupted, or ``--budget`` has ended it, the same command on the same code goes on.

The bounds are named at the end; exit status 1 if one is missed, if a run failed, or if some are still to come.

Examples:
  python bench/placement.py                                     # some 2 minutes
  python bench/placement.py --wall 6 --json runs/placement.jsonl --budget 60
  python bench/placement.py --topologies bench/topologies/two-near-six-far.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import petals_rule
from bench.arguments import Parser, out_file, seconds, whole
from bench.cells import Cell, RunLog
from bench.choose import choose, quickest
from bench.placed import Demand, Way, simulate, tuned
from bench.placed_ring import on_wall
from bench.predict import Prediction
from bench.program import BenchError, headline, machine, program
from bench.spread import quantile
from bench.summary import CONTENDED_SHARE
from bench.worlds import Placement, World, drawn, read
from bloombee.errors import BloomBeeError
from bloombee.objective import Objective
from tools.wan_native import WanError

ROOT = Path(__file__).resolve().parent.parent
BATCH = 128
PROMPT_TOKENS, TOKENS, SIMULATED_TOKENS = 8, 8, 24
"""Of each sequence; few on the wall, where a step takes a second, more where they cost little: edges of the window blur."""
MOST_TRIED = 9
"""Workers whose every order is tried."""
SAME = 0.001
"""Of two that are equal by the cost model, what a simulation may tell between them."""
PLAN, RULE, RULE_PLAIN, BEST = "plan", "rule", "rule, plain", "best order"
WHO = (PLAN, RULE, RULE_PLAIN, BEST)
"""In the order in which they are measured."""
SIMULATED, FORETOLD, WALL = 0, 1, 2
"""Numbers of a cell's runs in the log. Foretold: by the swarm itself, before it was measured."""
FAILURES = (BenchError, BloomBeeError, WanError, OSError)


@dataclass(frozen=True, slots=True)
class Entry:
    """A placement to be run in one way, for so many sequences."""

    world: World
    who: str
    placement: Placement
    way: Way
    demand: Demand

    @property
    def cell(self) -> Cell:
        return Cell(self.world.name, self.who, self.demand.batch)


@dataclass(frozen=True, slots=True)
class Bound:
    """What was found over all worlds, and what it must be."""

    name: str
    found: float
    limit: float
    is_least: bool

    @property
    def met(self) -> bool:
        return self.found >= self.limit if self.is_least else self.found <= self.limit

    def __str__(self) -> str:
        told = f"{'>=' if self.is_least else '<='} {self.limit:<5g} {'met' if self.met else 'missed'}"
        return f"{self.name:<76}{self.found:>8.3f}  {told}"


BOUNDS = {
    "tokens/s": "B = 128, plan over rule, both tuned and with a codec: the median world",
    "plain": "B = 128, plan over rule with one microbatch and no codec: the median world",
    "time": "B = 1, time per token, plan over rule: the median world",
    "best": "B = 1, time per token, plan over the best of every order: the worst world",
    "less": "B = 128, plan over rule: the worst world",
    "longer": "B = 1, time per token, plan over rule: the worst world",
    "wall": "simulated over measured: furthest from 1, of all runs on the wall",
    "foretold": "foretold by the swarm over measured: furthest from 1, p90 of all such runs",
    "foretold worst": "foretold by the swarm over measured: furthest from 1, the worst run",
}


def entries(world: World) -> list[Entry]:
    """All that is run in ``world``.

    Raises:
        Infeasible: nothing fits there, or the rule leaves a block to nobody.
    """
    many, one = (Demand(batch, PROMPT_TOKENS, TOKENS) for batch in (BATCH, 1))
    ruled = petals_rule.place(world, rows=BATCH)
    most, least = choose(world, Objective.parse("throughput"), BATCH), choose(world, Objective.parse("latency"), 1)
    found = [
        Entry(world, PLAN, most.placement, most.way, many),
        Entry(world, RULE, ruled, Way(), many),
        Entry(world, RULE_PLAIN, ruled, Way(1, codec=False), many),
        Entry(world, PLAN, least.placement, least.way, one),
        Entry(world, RULE, ruled, Way(), one),
    ]
    if len(world.joined) <= MOST_TRIED:
        found.append(Entry(world, BEST, quickest(world), Way(), one))
    return found


class Contest:
    """All entries of all worlds, and what is known of them so far."""

    def __init__(self, worlds: Sequence[World], log: RunLog) -> None:
        self.failed: dict[str, str] = {}
        self.entries: list[Entry] = []
        self._log = log
        for world in worlds:
            try:
                self.entries += entries(world)
            except BloomBeeError as error:
                self.failed[world.name] = str(error)

    def run(self, wall: Sequence[str], until: float) -> bool:
        """What is not in the log yet: simulations, then until that time real runs in the worlds ``wall``; whether that is all."""
        for entry in self.entries:
            if not self._log.has(entry.cell, SIMULATED):
                self._keep(entry, SIMULATED, _simulated)
        for entry in sorted(self.entries, key=lambda entry: (entry.demand.batch == 1, WHO.index(entry.who))):
            if entry.world.name in wall and entry.who != BEST and not self._log.has(entry.cell, WALL):
                if time.monotonic() > until:
                    return False
                print(f"on the wall: {entry.world.name} {entry.who} B = {entry.demand.batch}, {entry.placement}", flush=True)
                self._keep(entry, WALL, self._measured)
        return True

    def _keep(self, entry: Entry, number: int, run: Callable[[Entry], dict[str, Any]]) -> None:
        try:
            self._log.add(entry.cell, number, run(entry))
        except FAILURES as error:
            self.failed[f"{entry.world.name} {entry.who} B = {entry.demand.batch}"] = str(error)

    def _measured(self, entry: Entry) -> dict[str, Any]:
        def keep(expected: Prediction) -> None:
            self._log.add(entry.cell, FORETOLD, figures("foretold", expected))

        found, run = asyncio.run(on_wall(entry.world, entry.placement, entry.way, entry.demand, keep))
        return {
            **figures("measured", found),
            "microbatch_rows": run.microbatch_rows,
            "codec_ratios": run.codec_ratios,
            "cpu_share": run.cpu_share,
            "others_cpu_share": run.others_cpu_share,
            **machine(),
        }

    def lines(self) -> list[dict[str, Any]]:
        """One an entry."""
        return [self._line(entry) for entry in self.entries]

    def _line(self, entry: Entry) -> dict[str, Any]:
        found = {name: value for run in self._log.runs(entry.cell) for name, value in run.items()}
        return {
            "world": entry.world.name,
            "who": entry.who,
            "batch": entry.demand.batch,
            "placement": str(entry.placement),
            "microbatches": entry.way.microbatches,
            "codec": entry.way.codec,
            **found,
        }


def _simulated(entry: Entry) -> dict[str, Any]:
    by_cost = tuned(entry.world, entry.placement, entry.way, entry.demand.batch)
    demand = replace(entry.demand, tokens=SIMULATED_TOKENS)
    found = simulate(entry.world, entry.placement, entry.way, demand)
    return {**figures("predicted", Prediction(by_cost.tokens_per_s, by_cost.time_per_token_s)), **figures("simulated", found)}


def figures(how: str, found: Prediction) -> dict[str, float]:
    """Under the names that lines have."""
    return {f"{how}_tokens_per_s": found.tokens_per_s, f"{how}_time_per_token_s": found.time_per_token_s}


def bounds(lines: Sequence[dict[str, Any]]) -> list[Bound]:
    """Of what is there."""
    most = _ratios(lines, BATCH, PLAN, RULE, "simulated_tokens_per_s")
    plain = _ratios(lines, BATCH, PLAN, RULE_PLAIN, "simulated_tokens_per_s")
    time_s = _ratios(lines, 1, PLAN, RULE, "simulated_time_per_token_s")
    best = _ratios(lines, 1, PLAN, BEST, "simulated_time_per_token_s")
    wall = list(_over_measured(lines, "simulated"))
    foretold = [abs(ratio - 1) for ratio in _over_measured(lines, "foretold")]
    found = []
    if most and plain and time_s:
        found += [
            Bound(BOUNDS["tokens/s"], statistics.median(most), 1.5, True),
            Bound(BOUNDS["plain"], statistics.median(plain), 2.5, True),
            Bound(BOUNDS["time"], statistics.median(time_s), 0.80, False),
            Bound(BOUNDS["less"], min(most), 1 - SAME, True),
            Bound(BOUNDS["longer"], max(time_s), 1 + SAME, False),
        ]
    if best:
        found.append(Bound(BOUNDS["best"], max(best), 1.03, False))
    if wall:
        found.append(Bound(BOUNDS["wall"], max(abs(ratio - 1) for ratio in wall), 0.05, False))
    if foretold:
        found.append(Bound(BOUNDS["foretold"], quantile(foretold, 0.9), 0.05, False))
        found.append(Bound(BOUNDS["foretold worst"], max(foretold), 0.12, False))
    return found


def _ratios(lines: Sequence[dict[str, Any]], batch: int, who: str, other: str, field: str) -> list[float]:
    """Of every world that has both."""
    values = {(line["world"], line["who"]): line[field] for line in lines if line["batch"] == batch and field in line}
    worlds = dict.fromkeys(world for world, _ in values)
    return [values[w, who] / values[w, other] for w in worlds if (w, who) in values and (w, other) in values]


def _over_measured(lines: Sequence[dict[str, Any]], how: str) -> Iterator[float]:
    """Tokens/s of many, time per token of one, of all rows that were measured and not contended."""
    for line in lines:
        what = "tokens_per_s" if line["batch"] > 1 else "time_per_token_s"
        if f"measured_{what}" in line and f"{how}_{what}" in line and line["cpu_share"] <= CONTENDED_SHARE:
            yield line[f"{how}_{what}"] / line[f"measured_{what}"]


def show(line: dict[str, Any]) -> str:
    def figure(name: str, digits: int) -> str:
        return f"{line[name]:>9.{digits}f}" if name in line else " " * 9

    speeds = figure("simulated_tokens_per_s", 1) + figure("measured_tokens_per_s", 1)
    times = figure("simulated_time_per_token_s", 4) + figure("measured_time_per_token_s", 4)
    return f"{line['world']:<10}{line['batch']:>4} {line['who']:<12}{speeds}{times}  {line['placement']}"


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="placement.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--worlds", type=whole(1, 1000), default=30, help="that are drawn; default %(default)s")
    add("--seed", type=whole(0, 10**9), default=0, help="of the first of them")
    add("--topologies", nargs="+", type=Path, default=[], metavar="FILE", help="worlds from files instead")
    add("--wall", type=whole(0, 1000), default=0, metavar="N", help="the first N worlds as real processes as well")
    add("--budget", type=seconds(0, 1e7), default=1e7, metavar="SECONDS", help="begin no real run after this long")
    add(
        "--json",
        type=out_file,
        default=ROOT / "runs" / "placement.jsonl",
        metavar="FILE",
        help="a line a run; default %(default)s",
    )
    return parser.parse_args(words)


@program("placement.py", interrupted="interrupted; the same command goes on from here")
def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    worlds = [read(path, BATCH * 1024) for path in options.topologies]
    worlds = worlds or [drawn(seed, BATCH) for seed in range(options.seed, options.seed + options.worlds)]
    asked = {"worlds": [world.name for world in worlds], **machine()}
    contest = Contest(worlds, RunLog(options.json, asked))
    print(f"{headline()}\n{'world':<10}{'B':>4} {'':<12}{'tok/s sim':>9}{'wall':>9}{'s/tok sim':>9}{'wall':>9}  worker:layers")
    is_done = contest.run([world.name for world in worlds[: options.wall]], time.monotonic() + options.budget)
    return report(contest, options.json, is_done=is_done)


def report(contest: Contest, file: Path, *, is_done: bool) -> int:
    """What came of it; 0: every bound is met, and nothing is missing."""
    lines = contest.lines()
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for line in lines:
        print(show(line))
    found = bounds(lines)
    for bound in found:
        print(bound)
    for name, why in contest.failed.items():
        print(f"placement.py: {name}: {why}", file=sys.stderr)
    if not is_done:
        print("the budget is spent; the same command goes on from here")
    return 0 if is_done and not contest.failed and all(bound.met for bound in found) else 1


if __name__ == "__main__":
    sys.exit(main())
