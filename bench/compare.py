"""Whether anything got slower: benchmarks run in turn on two checkouts, ratios of medians against a bound each.

    python bench/compare.py --before ../before                        every line, some hours
    python bench/compare.py --before ../before --lines plain --runs 3
    python bench/compare.py --before ../before --lines codec --json codec.jsonl

Each checkout is run by its own ``.venv`` with its own native extension (``make setup`` in both); ``git worktree add ../before
COMMIT`` makes one of an earlier commit. The order within a pair of runs alternates, so that a slow minute of the machine
falls on both. A figure's ratio is that of its medians, so that above 1 is faster now.

Exit status 1: a figure is below its bound, or a run failed (the others are there).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.arguments import OptionError, Parser, check_file, names, whole
from bench.program import ROOT, machine, program

Figures = dict[str, float]
"""Of one run, by name; more is better, but in what :data:`LESS` says."""
LESS = ("excess a hop",)
"""Of these the value now is bounded, in milliseconds; there is no ratio."""
MOST_EXCESS_MS = 0.5
EXCESS_AT = "500M-10ms"
RUN_LIMIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Line:
    """A benchmark and what is read from it.

    Args:
        words: of the command; ``{json}`` stands for a file that it writes.
        read: figures from the text that it prints and from that file's.
        least: that the ratio of each figure may be.
    """

    words: tuple[str, ...]
    read: Callable[[str, str], Figures]
    least: float


def read_pipeline(_: str, lines: str) -> Figures:
    """Tokens a second of each row; of one sequence behind the shortest links, the excess a hop as well."""
    found: Figures = {}
    for row in map(json.loads, lines.splitlines()):
        if "failed" in row:
            raise ValueError(row["failed"])
        name = f"{row['profile']} {row['technique']} B={row['batch']}"
        found[name] = row["batch"] / row["time_per_token_s"]["p50"] if row["batch"] == 1 else row["decode_tokens_per_s"]["p50"]
        if row["batch"] == 1 and row["profile"] == EXCESS_AT:
            found[LESS[0]] = 1e3 * row["excess_per_hop_s"]
    return found


def read_compute(_: str, text: str) -> Figures:
    batches = json.loads(text)["batches"]
    return {f"B={batch}": 1 / statistics.median(record["engine"]["cpu_s"]) for batch, record in batches.items()}


def read_codec(_: str, lines: str) -> Figures:
    """Over all rows the geometric mean, of each direction."""
    rows = [json.loads(line) for line in lines.splitlines()]
    ways = ("encode_gb_per_s", "decode_gb_per_s")
    return {way.partition("_")[0]: math.exp(statistics.fmean(math.log(row[way]) for row in rows if row[way])) for way in ways}


def read_prefill(text: str, _: str) -> Figures:
    times = re.findall(r"own chunks .* (\d+\.\d+) s ", text)
    decode = re.findall(r"decode alone .* p50 +(\d+\.\d+) ms", text)
    found = {f"own chunks {number}": 1 / float(seconds) for number, seconds in enumerate(times)}
    return found | {f"decode {number}": 1 / float(ms) for number, ms in enumerate(decode)}


def read_serving(_: str, text: str) -> Figures:
    found: Figures = {}
    for line in json.loads(text)["lines"]:
        numbers = line["numbers"]
        if "alone_s" in numbers:
            found["first token alone"] = 1 / statistics.median(numbers["alone_s"])
        elif "seconds" in numbers:
            found[f"{line['mode']}: {line['what']}"] = 1 / numbers["seconds"]
    return found


JSON = ("--json", "{json}")
LINES = {
    "plain": Line(
        ("bench/pipeline.py", "--quick", "--techniques", "plain", "--batches", "1", "--repeats", "1", *JSON), read_pipeline, 0.99
    ),
    "standin": Line(
        (
            *("bench/pipeline.py", "--models", "standin:llama-30b", "--pace", "13,0.05,0.5", "--profiles", "20M-100ms"),
            *("--batches", "32,128", "--techniques", "plain,microbatch,codec,microbatch+codec", "--tokens", "8"),
            *("--prompt-tokens", "16", "--repeats", "1", *JSON),
        ),
        read_pipeline,
        0.98,
    ),
    "compute": Line(("-m", "bench.compute", "--only", "--rounds", "3", *JSON), read_compute, 0.98),
    "codec": Line(("bench/codec.py", *JSON), read_codec, 0.98),
    "prefill": Line(("-m", "bench.prefill", "--repeats", "1"), read_prefill, 0.98),
    "serving": Line(("bench/serving.py", "--modes", "fairness,burst", "--repeats", "2", *JSON), read_serving, 0.98),
}


def run(line: Line, tree: Path) -> Figures:
    """One run in ``tree``.

    Raises:
        OSError, ValueError, KeyError: it failed, or says what was not expected; the message is its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "run.json")
        words = [word.replace("{json}", str(file)) for word in line.words]
        command = [str(tree / ".venv/bin/python"), *words]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=RUN_LIMIT_S, check=False)
        if done.returncode not in (0, 1):  # 1: a goal of its own is missed, which is for it to say
            raise ValueError(f"{' '.join(words)}: status {done.returncode}: {(done.stderr.strip() or '?').splitlines()[-1]}")
        found = line.read(done.stdout, file.read_text(encoding="utf-8") if file.exists() else "")
        if not found:
            raise ValueError(f"{' '.join(words)}: no figures: {(done.stderr.strip() or '?').splitlines()[-1]}")
        return found


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure, medians. ``ratio`` None: the value now is what counts."""

    line: str
    figure: str
    before: float
    now: float
    ratio: float | None
    bound: float

    @property
    def is_good(self) -> bool:
        return self.now <= self.bound if self.ratio is None else self.ratio >= self.bound


def compare(name: str, runs: Sequence[tuple[Figures, Figures]]) -> list[Compared]:
    """Of (before, now) pairs, the figures that all of them have."""
    common = set.intersection(*(set(one) for pair in runs for one in pair)) if runs else set()
    found = []
    for figure in [figure for figure in runs[0][0] if figure in common] if runs else []:
        before, now = (statistics.median(pair[side][figure] for pair in runs) for side in (0, 1))
        is_less = figure in LESS
        bound = MOST_EXCESS_MS if is_less else LINES[name].least
        found.append(Compared(name, figure, before, now, None if is_less else now / before, bound))
    return found


def table(rows: Sequence[Compared]) -> Table:
    shown = Table(title="now against before, medians")
    for column in ("line", "figure", "before", "now", "ratio", "bound", ""):
        shown.add_column(column, justify="left" if column in ("line", "figure") else "right")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.4f}"
        verdict = "" if row.is_good else "worse"
        shown.add_row(row.line, row.figure, f"{row.before:.4g}", f"{row.now:.4g}", ratio, f"{row.bound:g}", verdict)
    return shown


def _interleaved(name: str, before: Path, count: int, keep: Callable[[dict[str, Any]], None], console: Console) -> list[Compared]:
    pairs: list[tuple[Figures, Figures]] = []
    for number in range(count):
        found: dict[Path, Figures] = {}
        for tree in (before, ROOT) if number % 2 == 0 else (ROOT, before):
            try:
                found[tree] = run(LINES[name], tree)
            except (OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
                console.print(f"{name} in {tree}: {error}")
                keep({"line": name, "pair": number, "failed": str(error)})
        if len(found) == 2:
            pairs.append((found[before], found[ROOT]))
            keep({"line": name, "pair": number, "before": found[before], "now": found[ROOT]})
            console.print(f"{name}: pair {number + 1} of {count}")
    return compare(name, pairs)


def _parse() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, metavar="PATH", help="the checkout to compare with")
    parser.add_argument(
        "--lines", type=names(*LINES), default=",".join(LINES), help=f"with commas: {', '.join(LINES)}; default all"
    )
    parser.add_argument("--runs", type=whole(1, 1000), default=5, help="pairs of runs; default 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a line for each pair")
    options = parser.parse_args()
    options.before = options.before.resolve()
    for tree in (options.before, ROOT):
        if not (tree / ".venv/bin/python").exists() or not list((tree / "bloombee").glob("_native*.so")):
            raise OptionError(f"{tree}: no checkout that has been set up: run make setup there")
    if options.before == ROOT:
        raise OptionError(f"--before {options.before}: it is this checkout")
    if options.json is not None:
        check_file(options.json)
    return options


@program("compare")
def main() -> int:
    options, facts, console = _parse(), machine(), Console()

    def keep(row: dict[str, Any]) -> None:
        if options.json is not None:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**row, **facts}) + "\n")

    found = {name: _interleaved(name, options.before, options.runs, keep, Console(stderr=True)) for name in options.lines}
    rows = [row for line in found.values() for row in line]
    console.print(table(rows))
    missing = [name for name, line in found.items() if not line]
    if missing:
        console.print(f"nothing could be compared of {', '.join(missing)}")
    return int(bool(missing) or not all(row.is_good for row in rows))


if __name__ == "__main__":
    sys.exit(main())
