"""Workers that are killed while requests run: nothing may be lost, doubled or changed, and what recovering takes and costs.

    python bench/faults.py                                   all five below, at most 20 minutes
    python bench/faults.py --kills 60 --json kills.jsonl     the same command goes on where it was interrupted, or --budget ended
    python bench/faults.py --simulate 1000
    python bench/faults.py --recovery 3
    python bench/faults.py --stalls 1
    python bench/faults.py --log-cost 20
    python bench/faults.py --kill-head 10
    python bench/faults.py --shadow 3

--kills: a Runtime of three workers of the demo model (fp32) behind emulated links answers 16 requests at once; workers are ended
by SIGKILL, every cell of bench/fault_cells.py in turn (the head's apart, by --kill-head). Every answer
is compared with the undisturbed run's (bench/same.py has the rule, and how many tokens a claim needs). --simulate: the same
cores under a virtual clock, with frames and orders lost, doubled and late: every cell of bench/fault_cells.py in turn; tokens
must be the oracle's, and where nobody can take a lost worker's place requests end typed in 2 s. --recovery: the parts
of a recovery against their bounds (bench/recovery.py). --stalls: what must cost nothing, and a hop that stays dark, which
must be found (bench/stalls.py). --log-cost: throughput and memory with the log of activations and without
(bench/log_cost.py). --kill-head: the head is ended by SIGKILL while prompts are read, all decode, nothing runs, or its workers
load, and another is started with its state; workers are from elsewhere (bench/heads.py). --shadow: stages are lost that a
spare follows, and others; what following costs (bench/shadow_rows.py).

Exit status 1: something is beyond its bound, could not be measured, or is not done yet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.arguments import OptionError, Parser, check_file, seconds, whole
from bench.exact import Reference
from bench.fault_cells import TYPED_S
from bench.fault_sim import simulate, simulated_table
from bench.heads import HeadKill, HeadKiller, heads_table
from bench.killer import Killer
from bench.kills import MODEL as KILLED_MODEL
from bench.kills import MOST_TOKENS, Kill, KillLog, Series, kills_table, tokens_for
from bench.log_cost import LEAST_RATIO, MODEL, PACE, measure_log
from bench.mesh import require_steady
from bench.profiles import load_profile
from bench.program import BenchError, machine, program
from bench.recovery import Recovery, measure_alone, recover, recovery_table, weights_on_disk
from bench.same import TOKENS_A_FLIP, Comparison, Request
from bench.shadow_rows import run_shadows
from bench.stalls import DARK_LINKS, DEEDS, DarkHop, Stall, darken, disturb, expected_of, hops_table, stalls_table
from bench.stalls import MODEL as STALLED_MODEL
from bloombee.config import RuntimeConfig
from bloombee.errors import BloomBeeError
from bloombee.pipeline.log import LOG_BYTES
from bloombee.types import Dtype
from tools.wan_native import WanError, build

KILLS, SIMULATED, RECOVERIES, STALLS, PAIRS = 12, 100, 3, 1, 20
"""Without arguments."""
KILLS_BUDGET_S = 480.0
"""Without arguments no kill is begun so long after the first."""
STALLED_REQUESTS = 4
FAILURES = (BenchError, BloomBeeError, WanError, OSError)
Keep = Callable[[dict[str, Any]], None]


def run_kills(series: Series, log: KillLog, budget_s: float, progress: Progress, console: Console) -> bool:
    """Whether all went well."""
    task = progress.add_task("kills", total=series.count, completed=len(log.done))

    def say(kill: Kill) -> None:
        progress.advance(task)
        if not kill.is_good:
            reasons = kill.failed or "; ".join(dict.fromkeys(kill.reasons)) or f"{kill.same.num_wrong} answers differ"
            console.print(f"kill {kill.number}, {kill.cell}: {reasons}")

    try:
        asyncio.run(Killer(series, log, say).run(budget_s))
    except FAILURES as error:
        console.print(f"kills: {error}")
    kills = list(log.done.values())
    same = Comparison()
    for kill in kills:
        same.add(kill.same)
    lost, failed = sum(kill.lost for kill in kills), sum(bool(kill.failed) for kill in kills)
    console.print(kills_table(kills))
    late = sum(kill.is_late for kill in kills)
    flips = max(1, same.num_tokens // TOKENS_A_FLIP)
    claim = "" if same.is_claim else f"; fewer than {TOKENS_A_FLIP}, which is no claim"
    console.print(
        f"{len(kills)} of {series.count} kills, {failed} failed (bound: 0): {lost} requests lost (0), {same.num_wrong} wrong (0),"
        f" {same.num_flips} flipped within 2^-18 ({flips}); {late} errors later than {TYPED_S:g} s (0);"
        f" {same.num_tokens} tokens compared{claim}"
    )
    if len(kills) < series.count:
        console.print("not done: the same command goes on from here" if log.path else "not done; with --json it could go on")
    return len(kills) == series.count and not failed and not lost and not late and same.is_same


def run_simulated(count: int, seed: int, keep: Keep, progress: Progress, console: Console) -> bool:
    """As :func:`run_kills`."""
    task = progress.add_task("simulated", total=count)
    found = simulate(count, seed, lambda: progress.advance(task))
    recoveries, wrong = sum(one.recoveries for one in found), [one for one in found if one.wrong]
    lines = [f"seed {one.seed}, {one.cell or 'several'}: {one.wrong}" for one in wrong]
    keep({"mode": "simulate", "seed": seed, "swarms": count, "recoveries": recoveries, "wrong": lines})
    console.print(simulated_table(found))
    console.print(f"{count} simulated swarms, {recoveries} recoveries: {len(wrong)} wrong (bound: 0)")
    for line in lines[:20]:
        console.print(line)
    return not wrong


def run_recoveries(count: int, profile_name: str, seed: int, keep: Keep, progress: Progress, console: Console) -> bool:
    """As :func:`run_kills`; stages in turn."""
    profile = load_profile(profile_name)
    task = progress.add_task("recoveries", total=count + 1)
    found: list[Recovery] = []
    is_whole = True
    with weights_on_disk() as directory:
        alone = measure_alone(directory, profile)
        progress.advance(task)
        for number in range(count):
            stage = number % len(alone)
            try:
                found.append(asyncio.run(recover(directory, profile, stage, alone[stage], seed + number)))
            except FAILURES as error:
                console.print(f"recovery of stage {stage}: {error}")
                keep({"mode": "recovery", "links": profile_name, "stage": stage, "failed": str(error)})
                is_whole = False
            else:
                keep({"mode": "recovery", "links": profile_name, **found[-1].to_json()})
            progress.advance(task)
    console.print(recovery_table(found, profile))
    return is_whole and not any(one.failed or one.reasons or one.over for one in found)


def run_stalls(rounds: int, seed: int, keep: Keep, progress: Progress, console: Console) -> bool:
    """As :func:`run_kills`."""
    task = progress.add_task("stalls", total=rounds * len(DEEDS))
    requests = Series(seed, 0, 0, load_profile("lan"), "cpu").requests()[:STALLED_REQUESTS]
    found: list[Stall] = []
    is_whole = True
    with Reference(STALLED_MODEL, Dtype.FLOAT32) as reference:
        expected = asyncio.run(expected_of(requests))
        for number in list(range(len(DEEDS))) * rounds:
            try:
                found.append(asyncio.run(disturb(number, requests, expected, reference)))
            except FAILURES as error:
                console.print(f"{DEEDS[number][0]}: {error}")
                keep({"mode": "stall", "what": DEEDS[number][0], "failed": str(error)})
                is_whole = False
            else:
                keep({"mode": "stall", **found[-1].to_json()})
                for reason in dict.fromkeys(found[-1].reasons):
                    console.print(f"{DEEDS[number][0]}: {reason}")
            progress.advance(task)
    console.print(stalls_table(found))
    return _run_dark(rounds, requests, keep, console) and is_whole and all(one.is_good for one in found)


def _run_dark(rounds: int, requests: Sequence[Request], keep: Keep, console: Console) -> bool:
    hops: list[DarkHop] = []
    is_whole = True
    for links in DARK_LINKS * rounds:
        try:
            hops.append(asyncio.run(darken(links, requests)))
        except FAILURES as error:
            console.print(f"a dark hop, {links}: {error}")
            is_whole = False
        else:
            keep({"mode": "dark", **asdict(hops[-1])})
    console.print(hops_table(hops))
    return is_whole and all(hop.is_good for hop in hops)


def run_log_cost(pairs: int, keep: Keep, progress: Progress, console: Console) -> bool:
    """As :func:`run_kills`."""
    task = progress.add_task("log on and off", total=pairs)
    try:
        cost = asyncio.run(measure_log(pairs, lambda: progress.advance(task)))
    except FAILURES as error:
        console.print(f"cost of the log: {error}")
        keep({"mode": "log-cost", "failed": str(error)})
        return False
    keep({"mode": "log-cost", "model": MODEL, "pace": PACE, "ratios": cost.ratios, "grown": cost.grown})
    low, high = cost.interval
    console.print(
        f"log on / off, {pairs} pairs: {cost.median:.4f} of the throughput, 90 % interval {low:.4f} to {high:.4f} (bound:"
        f" {LEAST_RATIO}); {cost.grown / 2**20:.0f} MiB of memory when it is full (its budget: {LOG_BYTES / 2**20:.0f})"
    )
    return cost.is_good


def run_head_kills(series: Series, keep: Keep, progress: Progress, console: Console) -> bool:
    """As :func:`run_kills`."""
    task = progress.add_task("heads", total=series.count)
    kills: list[HeadKill] = []

    def say(kill: HeadKill) -> None:
        progress.advance(task)
        kills.append(kill)
        keep({"mode": "kill-head", **series.to_json(), **kill.to_json()})
        for reason in dict.fromkeys(kill.reasons):
            console.print(f"head {kill.number}, {kill.moment}: {reason}")

    try:
        with Reference(KILLED_MODEL, Dtype.FLOAT32) as reference:
            HeadKiller(series, say).run(reference)
    except FAILURES as error:
        console.print(f"heads: {error}")
    console.print(heads_table(kills))
    return len(kills) == series.count and all(kill.is_good for kill in kills)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--kills", type=whole(0, 10**4), metavar="N", help=f"of real workers; without any of these five: {KILLS}")
    add("--simulate", type=whole(0, 10**6), metavar="N", help=f"simulated swarms; {SIMULATED}")
    add("--recovery", type=whole(0, 1000), metavar="N", help=f"recoveries that are timed, stage by stage; {RECOVERIES}")
    add("--stalls", type=whole(0, 1000), metavar="ROUNDS", help=f"of all that must cost nothing; {STALLS}")
    add(
        "--log-cost",
        type=whole(0, 10**4),
        metavar="PAIRS",
        help=f"of runs with the log and without; {PAIRS}, the least for a claim",
    )
    add("--kill-head", type=whole(0, 1000), metavar="N", help="times that the head is killed; by itself")
    add("--shadow", type=whole(0, 1000), metavar="N", help="losses of stages that a spare follows, and as many others; by itself")
    add("--seed", type=whole(0, 2**31), default=0)
    add("--tokens", type=whole(8, MOST_TOKENS), help="of each answer beside a kill; default: so many that the kills make a claim")
    add("--links", default="500M-10ms", metavar="BANDWIDTH-RTT", help="between any two, of --kills; default 500M-10ms")
    add("--recovery-links", default="100M-60ms", metavar="BANDWIDTH-RTT", help="of --recovery and --shadow; default 100M-60ms")
    add("--budget", type=seconds(1, 1e6), metavar="SECONDS", help="begin no kill this long after the first")
    add("--device", default="cpu", help="of the workers that are killed: cpu (default), cuda, cuda:N")
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="append a line for each kill, recovery and result; kills that are there are done",
    )
    return parser


def _parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Raises OptionError, ConfigError or WanError for what cannot be run."""
    options = _parser().parse_args(words)
    modes = ("kills", "simulate", "recovery", "stalls", "log_cost", "kill_head", "shadow")
    options.is_bare = all(getattr(options, mode) is None for mode in modes)
    for mode, count in zip(modes, (KILLS, SIMULATED, RECOVERIES, STALLS, PAIRS, 0, 0), strict=True):
        if getattr(options, mode) is None:
            setattr(options, mode, count if options.is_bare else 0)
    if not any(getattr(options, mode) for mode in modes):
        asked = "--kills, --simulate, --recovery, --stalls, --log-cost, --kill-head or --shadow"
        raise OptionError(f"nothing is asked for: {asked} with a number above 0")
    for links in (options.links, options.recovery_links):
        require_steady(load_profile(links))
    RuntimeConfig(device=options.device)
    if options.json is not None:
        check_file(options.json)
    if options.kills or options.recovery or options.stalls or options.shadow:
        build()
    return options


@program("faults", interrupted="interrupted; with --json the same command goes on from here")
def main() -> int:
    options, facts = _parse(), machine()
    logging.getLogger("bloombee").setLevel(logging.ERROR)  # it warns of each kill
    console = Console()

    def keep(row: dict[str, Any]) -> None:
        if options.json is not None:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**row, **facts}) + "\n")

    verdicts = []
    with Progress(console=Console(stderr=True)) as progress:
        if options.kills:
            new = options.tokens or tokens_for(options.kills, TOKENS_A_FLIP)
            series = Series(options.seed, options.kills, new, load_profile(options.links), options.device)
            budget_s = options.budget or (KILLS_BUDGET_S if options.is_bare else float("inf"))
            verdicts.append(run_kills(series, KillLog(options.json, series, facts), budget_s, progress, console))
        if options.simulate:
            verdicts.append(run_simulated(options.simulate, options.seed, keep, progress, console))
        if options.recovery:
            verdicts.append(run_recoveries(options.recovery, options.recovery_links, options.seed, keep, progress, console))
        if options.stalls:
            verdicts.append(run_stalls(options.stalls, options.seed, keep, progress, console))
        if options.log_cost:
            verdicts.append(run_log_cost(options.log_cost, keep, progress, console))
        if options.kill_head:
            new = options.tokens or tokens_for(options.kill_head, TOKENS_A_FLIP)
            heads = Series(options.seed, options.kill_head, new, load_profile(options.links), options.device)
            verdicts.append(run_head_kills(heads, keep, progress, console))
        if options.shadow:
            profile = load_profile(options.recovery_links)
            verdicts.append(run_shadows(options.shadow, profile, options.seed, keep, progress, console))
    return int(not all(verdicts))


if __name__ == "__main__":
    sys.exit(main())
