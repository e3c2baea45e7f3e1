"""Whether what is chosen without a flag is the best that could have been: order, layers, b, M and codec.

Settings are profiles (three workers, the head beside the first, any two as far apart as their places in the profile's ring, each
with room for its share of the model and a layer) and files in the planner's format. In each the planner chooses by its default
objective, and the runtime tunes the rest. Against it stand fixed points (order, layers, M, codec; b is the sequences over M): the
five best of a search that knows the cost model and the simulator but not the planner, and five drawn at random. All are
simulated. With ``--wall`` they are measured too, in interleaved rounds of real processes; when that was interrupted, or
``--budget`` has ended it, the same command on the same code goes on.

Bound: the choice makes at least 0.97 of the tokens/s of the best point, on the wall with a 90 % interval that begins at 0.95.

Examples:
  python bench/choices.py                                          # simulated, some 2 minutes
  python bench/choices.py --settings 20M-100ms --wall --rounds 3 --budget 60
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.arguments import Parser, names, out_file, seconds, whole
from bench.cells import Cell, RunLog
from bench.choose import choose
from bench.placed import Demand, Way, ratio_of, simulate
from bench.placed_ring import on_wall
from bench.placement import FAILURES, ROOT, figures
from bench.planned import ring_of
from bench.predict import Prediction
from bench.profiles import load_profile
from bench.program import headline, machine, program
from bench.spread import interval
from bench.worlds import MODEL, Placement, World, read
from bloombee.errors import Infeasible
from bloombee.models.standin import standin_card
from bloombee.objective import Objective
from bloombee.pace import parse_pace
from bloombee.plan.cost import evaluate
from bloombee.plan.topology import Device

BATCH = 32
PROMPT_TOKENS, TOKENS, SIMULATED_TOKENS = 8, 8, 24
WORKERS, PACE = 3, "13,0.05,0.5/20"
COUNTS = (1, 2, 3, 4, 5, 6, 8, 11, 16, 32)
"""M of fixed points."""
DRAWN, KEPT, CLIMBS = 1500, 12, 6
"""Placements drawn, how many are changed a little, and how often."""
SIMULATED, BEST, RANDOM = 15, 5, 5
CHOICE = "choice"
LEAST, LEAST_LOW = 0.97, 0.95
FILES = tuple(sorted((ROOT / "bench" / "networks").glob("*.json")))
SETTINGS = ("20M-100ms", "three-regions", "home", *map(str, FILES), "500M-10ms", "250M-30ms", "125M-60ms", "lan")
SIMULATION = 0
"""Number of a cell's run in the log; those on the wall are from 2 on, what was foretold of each at the odd number before it."""


@dataclass(frozen=True, slots=True)
class Point:
    """A placement and how it is run."""

    placement: Placement
    way: Way

    def __str__(self) -> str:
        count = "tuned" if self.way.microbatches is None else str(self.way.microbatches)
        return f"{self.placement}, M {count}, codec {'auto' if self.way.codec else 'off'}"


@dataclass(frozen=True, slots=True)
class Setting:
    """A world with the points that are compared there, by what they are called."""

    world: World
    points: dict[str, Point]


def world_of(name: str) -> World:
    """Of a profile, or of a file. Raises ProfileError, ConfigError: neither."""
    if name.endswith(".json"):
        return read(Path(name), BATCH * 512)
    card = standin_card(MODEL)
    devices = [Device.paced(f"w{number}", parse_pace(PACE)) for number in range(1, WORKERS + 1)]
    topology, shape = ring_of(load_profile(name, hidden=card.hidden_size), devices, card.shape())
    return World(name, topology, shape, MODEL, tuple(topology.devices), 0)


def setting_of(name: str, seed: int) -> Setting:
    """Raises Infeasible: no placement fits."""
    world, rng = world_of(name), random.Random(f"{name} {seed}")
    chosen = choose(world, Objective(), BATCH)
    points = {CHOICE: Point(chosen.placement, chosen.way)}
    found = sorted(_search(world, rng), key=lambda point: -_by_cost(world, point))[:SIMULATED]
    simulated = sorted(found, key=lambda point: -_simulated(world, point).tokens_per_s)[:BEST]
    points |= {f"best {number}": point for number, point in enumerate(simulated, 1)}
    drawn = itertools.islice(_drawn(world, rng), RANDOM)
    return Setting(world, points | {f"random {number}": Point(one, _way(rng)) for number, one in enumerate(drawn, 1)})


def _way(rng: random.Random) -> Way:
    return Way(rng.choice(COUNTS), rng.random() < 0.5)


def _drawn(world: World, rng: random.Random) -> Iterator[Placement]:
    """Placements that fit, without end."""
    workers, layers = list(world.joined), world.shape.num_layers
    for _ in itertools.count():
        order = tuple(rng.sample(workers, rng.randint(1, min(len(workers), layers))))
        cuts = sorted(rng.sample(range(1, layers), len(order) - 1))
        one = Placement(order, tuple(b - a for a, b in itertools.pairwise((0, *cuts, layers))))
        if _fits(world, one):
            yield one


def _fits(world: World, placement: Placement) -> bool:
    pairs = itertools.pairwise((0, *placement.workers, 0))
    if not all(pair in world.topology.links for pair in pairs):
        return False
    try:
        placement.candidate(world, None)
    except Infeasible:
        return False
    return True


def _search(world: World, rng: random.Random) -> list[Point]:
    """The best ways to run placements that were drawn and then changed a little, again and again."""
    pool = {one: _best_way(world, one) for one in itertools.islice(_drawn(world, rng), DRAWN)}
    for _ in range(CLIMBS):
        best = sorted(pool, key=lambda one: -pool[one][0])[:KEPT]
        near = {other for one in best for other in _near(one)} - pool.keys()
        pool |= {other: _best_way(world, other) for other in near if _fits(world, other)}
    return [Point(one, way) for one, (_, way) in pool.items()]


def _near(one: Placement) -> Iterator[Placement]:
    """With one or three layers elsewhere, or two workers in each other's place."""
    stages = range(len(one.workers))
    for a, b in itertools.permutations(stages, 2):
        for moved in (1, 3):
            if one.layers[a] > moved:
                layers = list(one.layers)
                layers[a] -= moved
                layers[b] += moved
                yield Placement(one.workers, tuple(layers))
        if a < b:
            workers, layers = list(one.workers), list(one.layers)
            workers[a], workers[b], layers[a], layers[b] = workers[b], workers[a], layers[b], layers[a]
            yield Placement(tuple(workers), tuple(layers))


def _best_way(world: World, placement: Placement) -> tuple[float, Way]:
    ways = [Way(count, codec) for count in COUNTS for codec in (True, False)]
    return max(((_by_cost(world, Point(placement, way)), way) for way in ways), key=lambda pair: pair[0])


def _by_cost(world: World, point: Point) -> float:
    """Tokens/s by the cost model, with microbatches as even as can be."""
    count = point.way.microbatches or 1
    candidate = point.placement.candidate(world, ratio_of(point.way))
    spread = dataclasses.replace(candidate, num_microbatches=count, microbatch_sequences=-(-BATCH // count))
    return BATCH / evaluate(spread, world.topology, world.shape).step_s


def _simulated(world: World, point: Point) -> Prediction:
    return simulate(world, point.placement, point.way, Demand(BATCH, PROMPT_TOKENS, SIMULATED_TOKENS))


class Trial:
    """Every point of every setting, and what is known of them so far."""

    def __init__(self, settings: Sequence[Setting], log: RunLog) -> None:
        self.settings = settings
        self.failed: dict[str, str] = {}
        self._log = log

    def simulate(self) -> None:
        for setting in self.settings:
            for name, point in setting.points.items():
                cell = _cell(setting, name)
                if not self._log.has(cell, SIMULATION):
                    self._log.add(cell, SIMULATION, figures("simulated", _simulated(setting.world, point)))

    def measure(self, rounds: int, until: float) -> bool:
        """Whether all rounds are there."""
        for setting, number in itertools.product(self.settings, range(rounds)):
            order = list(setting.points) if number % 2 == 0 else list(reversed(setting.points))
            for name in order:
                if self._log.has(_cell(setting, name), 2 * number + 2):
                    continue
                if time.monotonic() > until:
                    return False
                print(f"on the wall: {setting.world.name} {name}, round {number + 1}: {setting.points[name]}", flush=True)
                self._run(setting, name, number)
        return True

    def _run(self, setting: Setting, name: str, number: int) -> None:
        cell, point = _cell(setting, name), setting.points[name]

        def keep(expected: Prediction) -> None:
            self._log.add(cell, 2 * number + 1, figures("foretold", expected))

        try:
            found, run = asyncio.run(
                on_wall(setting.world, point.placement, point.way, Demand(BATCH, PROMPT_TOKENS, TOKENS), keep)
            )
        except FAILURES as error:
            self.failed[f"{setting.world.name} {name}"] = str(error)
            return
        self._log.add(cell, 2 * number + 2, {**figures("measured", found), "cpu_share": run.cpu_share, **machine()})

    def lines(self) -> list[dict[str, Any]]:
        """One a point."""
        return [
            {
                "setting": setting.world.name,
                "point": name,
                "is": str(point),
                "runs": self._log.runs(_cell(setting, name)),
            }
            for setting in self.settings
            for name, point in setting.points.items()
        ]


def _cell(setting: Setting, name: str) -> Cell:
    return Cell(setting.world.name, name, BATCH)


def judge(lines: Sequence[dict[str, Any]]) -> list[tuple[str, float, float | None]]:
    """(setting and how, choice over best, low end of its 90 % interval); simulated, and measured where all points were."""
    found: list[tuple[str, float, float | None]] = []
    for setting in dict.fromkeys(line["setting"] for line in lines):
        of = {line["point"]: line["runs"] for line in lines if line["setting"] == setting}
        once = {
            name: [run["simulated_tokens_per_s"] for run in runs if "simulated_tokens_per_s" in run] for name, runs in of.items()
        }
        if all(once.values()):
            found.append((f"{setting}, simulated", _over_best(once)[0], None))
        wall = {
            name: [run["measured_tokens_per_s"] for run in runs if "measured_tokens_per_s" in run] for name, runs in of.items()
        }
        if all(wall.values()):
            found.append((f"{setting}, measured", *_over_best(wall)))
    return found


def _over_best(speeds: dict[str, list[float]]) -> tuple[float, float]:
    """(median of choice over best point, round by round, low end of its interval)."""
    best = max((name for name in speeds if name != CHOICE), key=lambda name: statistics.median(speeds[name]))
    ratios = [mine / other for mine, other in zip(speeds[CHOICE], speeds[best], strict=False)]
    return statistics.median(ratios), interval([[ratio] for ratio in ratios])[0]


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="choices.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--settings",
        type=names(),
        default=",".join(SETTINGS),
        help="profiles and files, with commas; default: the ladder and all files",
    )
    add("--seed", type=whole(0, 10**9), default=0, help="of what is drawn")
    add("--wall", action="store_true", help="measure them as well")
    add("--rounds", type=whole(1, 100), default=3, help="on the wall; default %(default)s")
    add("--budget", type=seconds(0, 1e7), default=1e7, metavar="SECONDS", help="begin no real run after this long")
    add(
        "--json",
        type=out_file,
        default=ROOT / "runs" / "choices.jsonl",
        metavar="FILE",
        help="a line a point; default %(default)s",
    )
    return parser.parse_args(words)


@program("choices.py", interrupted="interrupted; the same command goes on from here")
def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    print(headline())
    settings = [setting_of(name, options.seed) for name in options.settings]
    asked = {"settings": options.settings, "seed": options.seed, **machine()}
    trial = Trial(settings, RunLog(options.json, asked))
    trial.simulate()
    is_done = trial.measure(options.rounds, time.monotonic() + options.budget) if options.wall else True
    return report(trial, options.json, is_done=is_done)


def report(trial: Trial, file: Path, *, is_done: bool) -> int:
    """What came of it; 0: every bound is met, and nothing is missing."""
    lines = trial.lines()
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for line in lines:
        speeds = [run.get("simulated_tokens_per_s") or run.get("measured_tokens_per_s") for run in line["runs"]]
        told = " ".join(f"{speed:8.1f}" for speed in speeds if speed is not None)
        print(f"{line['setting']:<20} {line['point']:<9} {told}  {line['is']}")
    met = []
    for name, ratio, low in judge(lines):
        met.append(ratio >= LEAST and (low is None or low >= LEAST_LOW))
        interval_ = "" if low is None else f", from {low:.3f}"
        print(f"{name:<40} choice over the best point {ratio:.3f}{interval_}  >= {LEAST:g} {'met' if met[-1] else 'missed'}")
    for name, why in trial.failed.items():
        print(f"choices.py: {name}: {why}", file=sys.stderr)
    if not is_done:
        print("the budget is spent; the same command goes on from here")
    return 0 if is_done and not trial.failed and all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
