"""How full the pipe is: throughput against the links' latency, and against the microbatches under way.

    python -m bench.pipes                                          # flat: 1G-512ms over 1G-2ms, ten interleaved pairs, 6 minutes
    python -m bench.pipes knee --profiles 125M-60ms                # every M from 1 to 32, and what the runtime chooses
    python -m bench.pipes knee --profiles lan,home --microbatches 1,2,4,8,16,32 --batch 128 --json knee.jsonl --plot knee.png

flat   One ring of self-tuning workers; its links change between a short and a long latency. Each pair is one run of either, the
       order alternating. A ratio of 1 says that latency costs no throughput. Goal: 0.97.
knee   A ring for each M (microbatches under way at most), over all profiles; beside it the cost model's throughput for that M,
       and the runtime without a flag. Goals: 0.95 of the model at every M; what the runtime chooses 0.95 of the best M.

Real workers behind emulated links, encryption on, devices paced (asleep for the time asked), models that compute nothing: the
rows say ``standin``. Decode is measured as in bench/pipeline.py. Exit status 1: a goal was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.arguments import OptionError, Parser, names, shown, whole, wholes, writable
from bench.load import Run, measure, settle, warm_up
from bench.predict import Setting, predict_by_cost
from bench.preflight import Ground, kv_tokens, tokens_each
from bench.profiles import load_profile
from bench.program import machine, program
from bench.ring import Ring, RingSpec
from bench.spread import interval
from bench.texts import prompts
from bloombee.models.standin import is_standin, standin_card
from bloombee.pace import parse_pace

FLAT_GOAL, MODEL_GOAL, CHOICE_GOAL = 0.97, 0.95, 0.95
Line = dict[str, Any]


def keep(line: Line, options: argparse.Namespace) -> Line:
    """``line``, appended to the file that was asked for as soon as it is measured."""
    if options.json:
        facts = {**machine(), "model": options.model, "pace": options.pace, "batch": options.batch, "standin": True}
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, **facts}) + "\n")
    return line


async def flat(options: argparse.Namespace, console: Console) -> list[Line]:
    """A line a pair."""
    near, far = (load_profile(name) for name in options.profiles)
    lines: list[Line] = []
    async with Ring(_spec(options, None, near.name)) as ring:
        await warm_up(ring)
        for pair in range(-1, options.pairs):
            speeds = {}
            for profile in (near, far) if pair % 2 else (far, near):
                ring.shape(profile)
                run = await measure(ring, _texts(options), options.tokens, prefill=False, limit=options.limit)
                speeds[profile.name] = run
                console.print(f"pair {pair + 1} of {options.pairs}, {profile.name}: {_says(run, options.batch)}")
            if pair >= 0:  # the first one finds out what the devices take
                line = {
                    "mode": "flat",
                    "pair": pair,
                    "tokens_per_s": {name: run.decode_tokens_per_s for name, run in speeds.items()},
                    "ratio": speeds[far.name].decode_tokens_per_s / speeds[near.name].decode_tokens_per_s,
                    "cpu_share": max(run.cpu_share for run in speeds.values()),
                }
                lines.append(keep(line, options))
    return lines


def report_flat(lines: Sequence[Line], options: argparse.Namespace, console: Console) -> bool:
    """Whether the goal is met."""
    ratios = [line["ratio"] for line in lines]
    median, (low, high) = statistics.median(ratios), interval([[ratio] for ratio in ratios])
    near, far = options.profiles
    speeds = ", ".join(f"{name} {statistics.median(one['tokens_per_s'][name] for one in lines):.1f}" for name in (near, far))
    console.print(f"{_title(options)}\ntokens/s, medians: {speeds}")
    console.print(
        f"{far} over {near}: median {median:.3f}, 90 % interval {low:.3f} to {high:.3f}, {len(ratios)} pairs; goal {FLAT_GOAL}"
    )
    return bool(median >= FLAT_GOAL)


async def knee(options: argparse.Namespace, console: Console) -> list[Line]:
    """A line for each M and profile, and one for what the runtime chooses (``asked`` None)."""
    lines: list[Line] = []
    fixed: list[tuple[int | None, tuple[str, ...]]] = [(asked, options.profiles) for asked in options.microbatches]
    # What tunes itself gets a ring of its own for each profile: it is to know links as they are, not as they were before.
    for asked, profiles in fixed + [(None, (name,)) for name in options.profiles]:
        async with Ring(_spec(options, asked, profiles[0])) as ring:
            await warm_up(ring)
            for name in profiles:
                ring.shape(load_profile(name))
                await settle(ring, _texts(options), options.tokens, limit=options.limit)
                runs = [
                    await measure(ring, _texts(options), options.tokens, prefill=False, limit=options.limit)
                    for _ in range(options.repeats)
                ]
                lines.append(keep(_knee_line(options, ring, asked, name, runs), options))
                console.print(
                    f"{name}, M = {asked or 'chosen'}: {_says(runs[-1], options.batch)} (model {lines[-1]['predicted']:.1f})"
                )
    return lines


def _knee_line(options: argparse.Namespace, ring: Ring, asked: int | None, name: str, runs: Sequence[Run]) -> Line:
    rows = math.ceil(statistics.median(run.microbatch_rows for run in runs) - 0.01)
    card, plan = ring.runtime.card, ring.runtime.plan
    setting = Setting(
        links=tuple((link.forward, link.backward) for link in ring.links()),
        paces=tuple(parse_pace(options.pace).for_layers(len(stage.span)) for stage in plan.stages),
        layers=tuple(len(stage.span) for stage in plan.stages),
        hidden=card.hidden_size,
        row_bytes=card.hidden_size * plan.dtype.num_bytes,
        batch=options.batch,
        microbatches=asked or math.ceil(options.batch / rows),
        prompt_tokens=options.prompt_tokens,
        tokens=options.tokens,
    )
    return {
        "mode": "knee",
        "profile": name,
        "asked": asked,
        "microbatches": math.ceil(options.batch / rows),
        "microbatch_rows": rows,
        "tokens_per_s": statistics.median(run.decode_tokens_per_s for run in runs),
        "predicted": predict_by_cost(setting).tokens_per_s,
        "cpu_share": max(run.cpu_share for run in runs),
        "others_cpu_share": max(run.others_cpu_share for run in runs),
    }


def report_knee(lines: Sequence[Line], options: argparse.Namespace, console: Console) -> bool:
    """Whether both goals are met everywhere."""
    table = Table(title=_title(options), title_justify="left")
    for column in ("profile", "M", "M x rows", "tok/s", "model", "of model", "of best", "cpu"):
        table.add_column(column, justify="left" if column == "profile" else "right")
    is_met = True
    for name in options.profiles:
        mine = [line for line in lines if line["profile"] == name]
        best = max(line["tokens_per_s"] for line in mine)
        for line in mine:
            of_model, of_best = line["tokens_per_s"] / line["predicted"], line["tokens_per_s"] / best
            is_good = of_model >= MODEL_GOAL if line["asked"] else of_best >= CHOICE_GOAL
            is_met = is_met and is_good
            table.add_row(
                name,
                str(line["asked"] or "chosen"),
                f"{line['microbatches']} x {line['microbatch_rows']}",
                f"{line['tokens_per_s']:.1f}",
                f"{line['predicted']:.1f}",
                f"{of_model:.1%}",
                f"{of_best:.1%}",
                f"{line['cpu_share']:.0%}+{line['others_cpu_share']:.0%}",
                style="" if is_good else "bold red",
            )
        table.add_section()
    console.print(table)
    return is_met


def draw_knee(lines: Sequence[Line], options: argparse.Namespace, path: Path) -> None:
    """Throughput over M, a panel a profile: measured, by the cost model, and what was chosen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    count = len(options.profiles)
    columns = min(4, count)
    figure, axes = plt.subplots(-(-count // columns), columns, figsize=(5 * columns, 4 * -(-count // columns)), squeeze=False)
    for axis, name in zip(axes.flat, options.profiles, strict=False):
        fixed = [line for line in lines if line["profile"] == name and line["asked"]]
        asked = [line["asked"] for line in fixed]
        axis.plot(asked, [line["predicted"] for line in fixed], color="black", linewidth=1, label="cost model")
        axis.plot(asked, [line["tokens_per_s"] for line in fixed], "o", markersize=4, label="measured")
        chosen = next(line for line in lines if line["profile"] == name and not line["asked"])
        axis.plot(chosen["microbatches"], chosen["tokens_per_s"], "*", color="#d62728", markersize=14, label="chosen, no flag")
        axis.set(title=name, xlabel="microbatches under way (M)", ylabel="decode tokens/s", ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    for axis in axes.flat[count:]:
        axis.remove()
    figure.suptitle(_title(options))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _spec(options: argparse.Namespace, microbatches: int | None, profile: str) -> RingSpec:
    kv = kv_tokens(_ground(options), options.batch, options.limit)
    return RingSpec(options.model, "auto", options.workers, microbatches, "off", options.pace, kv, load_profile(profile))


def _texts(options: argparse.Namespace) -> list[list[int]]:
    return prompts(options.batch, options.prompt_tokens, None)


def _says(run: Run, batch: int) -> str:
    rows = math.ceil(run.microbatch_rows - 0.01)
    return f"{run.decode_tokens_per_s:.1f} tokens/s with {math.ceil(batch / rows)} x {rows}"


def _title(options: argparse.Namespace) -> str:
    return (
        f"standin {options.model.removeprefix('standin:')}, pace {options.pace} ms, {options.workers} workers,"
        f" {options.batch} sequences"
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="bench.pipes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True, parser_class=Parser)
    for mode, about in (("flat", "throughput at a long latency over that at a short one"), ("knee", "throughput over M")):
        add = modes.add_parser(mode, help=about, description=about).add_argument
        is_flat = mode == "flat"
        add("--model", default="standin:6656x60" if is_flat else "standin:llama-30b", help="a stand-in; default %(default)s")
        add("--pace", default="0,8,0.5" if is_flat else "13,0.05,0.5", help="F,R,P in milliseconds; default %(default)s")
        add("--workers", type=whole(2, 64), default=3, help="default %(default)s")
        add("--batch", type=whole(1, 1024), default=128 if is_flat else 32, help="sequences; default %(default)s")
        add("--tokens", type=whole(2, 4096), default=8, help="that each decodes in the window; default %(default)s")
        add("--prompt-tokens", type=whole(1, 1024), default=4, help="default %(default)s")
        add(
            "--profiles",
            type=names(),
            default="1G-2ms,1G-512ms" if is_flat else "125M-60ms",
            help="with commas; default %(default)s",
        )
        add("--json", type=writable, metavar="FILE", help="append one JSON line a row")
        if is_flat:
            add("--pairs", type=whole(1, 1000), default=10, help="default %(default)s")
        else:
            add("--microbatches", type=wholes(1, 1024), default="1-32", help="A-B or with commas; default %(default)s")
            add("--repeats", type=whole(1, 100), default=1, help="runs a row; default %(default)s")
            add("--plot", type=writable, metavar="FILE.png")
    options = parser.parse_args((sys.argv[1:] if arguments is None else arguments) or ["flat"])
    if options.mode == "flat" and len(options.profiles) != 2:
        raise OptionError(f"--profiles {shown(','.join(options.profiles))}: flat compares two, the short latency first")
    for name in options.profiles:
        if load_profile(name).lasts_s:
            raise OptionError(f"--profiles {shown(name)}: links that change over time have no one best M")
    if not is_standin(options.model):
        raise OptionError(f"--model {shown(options.model)}: a stand-in, such as standin:llama-30b")
    options.limit = max(tokens_each(_ground(options), load_profile(name), options.batch) for name in options.profiles)
    return options


def _ground(options: argparse.Namespace) -> Ground:
    return Ground(
        card=standin_card(options.model),
        dtype="auto",
        workers=options.workers,
        prompt_tokens=options.prompt_tokens,
        tokens=options.tokens,
        pace=parse_pace(options.pace),
        rings=1,
    )


@program("pipes")
def main(arguments: Sequence[str] | None = None) -> int:
    """0: every goal met; 1: missed."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    options = _parse(arguments)
    lines = asyncio.run(flat(options, console) if options.mode == "flat" else knee(options, console))
    is_met = report_flat(lines, options, console) if options.mode == "flat" else report_knee(lines, options, console)
    if options.mode == "knee" and options.plot:
        draw_knee(lines, options, options.plot)
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
