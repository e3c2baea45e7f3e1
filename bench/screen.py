"""The table on the screen, and progress above it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

FILE_WIDTH = 156
"""Of a table that goes to a file or a pipe."""
NOTES = (
    "tok/s of all sequences and ms/token of one: medians, +- half of p10 to p90. floor: delays + raw payload on the wires +"
    " device time, once round. +/hop: ms that a token takes beyond it, a hop. predicted: tok/s by the cost model. idle: of the"
    " bottleneck.",
    "cpu: ours + other programs' share of all cores; !: contended, our own CPU use is the limit. flips: tokens that one process"
    " would have chosen otherwise (ties in bf16); WRONG: not by rounding. Peers: what does not apply is left empty.",
)


class Screen:
    """Progress is drawn between runs only: nothing of it runs while something is measured."""

    def __init__(self) -> None:
        self.console = Console()
        if not self.console.is_terminal:
            self.console.width = FILE_WIDTH
        self._progress = Progress(
            TextColumn("{task.description:<40}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def show(self, done: int, total: int, what: str) -> None:
        self._progress.update(self._task, completed=done, total=total, description=what, refresh=True)


def table(lines: Sequence[dict[str, Any]]) -> Table:
    """All lines of one model."""
    first = lines[0]
    simulated = "simulated_tokens_per_s" in first
    shown = Table(
        title=title(first),
        caption="\n".join(NOTES),
        caption_justify="left",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    for name in ("profile", "technique"):
        shown.add_column(name, no_wrap=True)
    names = ["B", "M x rows", "tok/s", "+-", "ms/token", "+-", "floor", "+/hop", "predicted"]
    for name in [*names, *(["simulated"] if simulated else []), "prefill/s", "first ms", "idle", "cpu", "flips"]:
        shown.add_column(name, justify="right", no_wrap=True)
    for before, line in zip([first, *lines], lines, strict=False):
        if line["profile"] != before["profile"]:
            shown.add_section()
        shown.add_row(*_cells(line, simulated))
    return shown


def title(line: dict[str, Any]) -> str:
    """What all rows share; says ``standin`` where nothing is computed."""
    model = f"standin {line['model'].removeprefix('standin:')}" if line["standin"] else line["model"]
    pace = f", pace {line['pace']} ms" if line["pace"] and line["pace"] != "data sheet" else ""
    pace = ", pace from a data sheet" if line["pace"] == "data sheet" else pace
    return f"{model}, {line['dtype']}, {line['workers']} workers{pace}, {line['repeats']} runs a row"


def _cells(line: dict[str, Any], simulated: bool) -> list[str]:
    speed, gap = line["decode_tokens_per_s"], line["time_per_token_s"]
    cells = [
        line["profile"],
        line["technique"],
        str(line["batch"]),
        f"{line['microbatches']} x {line['microbatch_rows']}" if line["microbatches"] else "",
        f"{speed['p50']:.1f}",
        _half(speed),
        f"{1e3 * gap['p50']:.1f}",
        _half(gap),
        _ms(line["loop_floor_s"], 1),
        _ms(line["excess_per_hop_s"], 2),
        _beside(line["predicted_tokens_per_s"], speed["p50"]),
    ]
    if simulated:
        cells.append(_beside(line["simulated_tokens_per_s"], speed["p50"]))
    cells += [
        f"{line['prefill_tokens_per_s']:.0f}",
        f"{1e3 * line['time_to_first_token_s']:.0f}",
        "" if line["bubble"] is None else f"{line['bubble']:.0%}",
        f"{line['cpu_share']:.0%}{'!' if line['contended'] else ''}+{line['others_cpu_share']:.0%}",
        str(line["flips"]) if line["exact"] else "[bold red]WRONG[/]",
    ]
    return cells


def _half(spread: dict[str, float]) -> str:
    """Half of the distance between the percentiles 10 and 90, of the median."""
    return f"{(spread['p90'] - spread['p10']) / 2 / spread['p50']:.0%}"


def _ms(value: float | None, digits: int) -> str:
    return "" if value is None else f"{1e3 * value:.{digits}f}"


def _beside(value: float | None, measured: float) -> str:
    return "" if value is None else f"{value:.1f} ({value / measured - 1:+.0%})"
