"""Plots of a run's lines: speed against the links, where a token's time goes, measured against predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.screen import title

Line = dict[str, Any]
PLAIN_NUMBERS = FuncFormatter(lambda value, _: f"{value:g}")
TWO_AND_FIVE = FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
COLOURS = {"plain": "#888888", "microbatch": "#1f77b4", "codec": "#2ca02c", "microbatch+codec": "#9467bd", "all": "#d62728"}
COLOURS |= {"transformers": "#000000", "llama.cpp-rpc": "#ff7f0e", "petals": "#17becf"}
PARTS = (
    ("device", "floor_compute_s", "#4c78a8"),
    ("wire, raw payload", "floor_wire_s", "#f58518"),
    ("delay", "floor_delay_s", "#bab0ac"),
)


def of_ours(lines: Sequence[Line]) -> list[Line]:
    """Lines that have a floor and a prediction: peers have none."""
    return [line for line in lines if line["loop_floor_s"] is not None]


def draw_overview(lines: Sequence[Line], path: Path) -> None:
    """The three plots as one picture."""
    figure, axes = plt.subplots(1, 4, figsize=(22, 5.5), width_ratios=(1, 1, 1.6, 1))
    draw_throughput(axes[0], lines)
    draw_time_per_token(axes[1], lines)
    draw_parts(axes[2], of_ours(lines))
    draw_predicted(axes[3], of_ours(lines))
    _save(figure, lines, path)


def draw_each(lines: Sequence[Line], folder: Path) -> list[Path]:
    """One file each: speed.png, parts.png, predicted.png."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("speed.png", "parts.png", "predicted.png")]
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.5))
    draw_throughput(axes[0], lines)
    draw_time_per_token(axes[1], lines)
    _save(figure, lines, files[0])
    single: Sequence[Callable[[Any, Sequence[Line]], None]] = (draw_parts, draw_predicted)
    for draw, file, width in zip(single, files[1:], (max(7.0, 0.7 * len(lines) + 3), 6.5), strict=True):
        figure, axis = plt.subplots(figsize=(width, 5.5))
        draw(axis, of_ours(lines))
        _save(figure, lines, file)
    return files


def draw_throughput(axis: Any, lines: Sequence[Line]) -> None:
    _against_profiles(axis, lines, "decode_tokens_per_s", 1.0, "decode tokens/s, all sequences")


def draw_time_per_token(axis: Any, lines: Sequence[Line]) -> None:
    _against_profiles(axis, lines, "time_per_token_s", 1e3, "ms between tokens of a sequence")


def draw_parts(axis: Any, lines: Sequence[Line]) -> None:
    """Stacked: device, wire and delay of one microbatch's loop, the rest of the time per token, and the bottleneck's idleness."""
    places = range(len(lines))
    base = [0.0] * len(lines)
    for name, field, colour in PARTS:
        heights = [1e3 * line[field] for line in lines]
        axis.bar(places, heights, bottom=base, label=name, color=colour)
        base = [low + height for low, height in zip(base, heights, strict=True)]
    rest = [max(0.0, 1e3 * line["time_per_token_s"]["p50"] - low) for line, low in zip(lines, base, strict=True)]
    axis.bar(places, rest, bottom=base, label="beyond the floor", color="#e45756")
    for place, line, low, more in zip(places, lines, base, rest, strict=True):
        if line["bubble"] is not None:
            axis.annotate(f"{line['bubble']:.0%}", (place, low + more), ha="center", va="bottom", fontsize=8)
    names = [f"{line['profile']}\n{line['technique']} B={line['batch']}" for line in lines]
    axis.set_xticks(list(places), names, rotation=60, ha="right", fontsize=8)
    axis.set_ylabel("ms once round the ring")
    axis.set_title("where a token's time goes (above: idle share of the bottleneck)")
    axis.legend(fontsize=8)


def draw_predicted(axis: Any, lines: Sequence[Line]) -> None:
    """Cost model (and simulator) against measurement, with the 10 % band."""
    lines = [line for line in lines if line["predicted_tokens_per_s"] is not None]
    if not lines:
        axis.set_title("nothing to predict: the links change")
        return
    measured = [line["decode_tokens_per_s"]["p50"] for line in lines]
    kinds = [("cost model", "predicted_tokens_per_s", "o"), ("simulated cluster", "simulated_tokens_per_s", "x")]
    for name, field, marker in kinds:
        points = [(at, line[field]) for at, line in zip(measured, lines, strict=True) if line.get(field) is not None]
        if points:
            axis.scatter(*zip(*points, strict=True), marker=marker, label=name)
    ends = [0.8 * min(measured), 1.25 * max(measured)]
    axis.plot(ends, ends, color="black", linewidth=0.8)
    axis.fill_between(ends, [0.9 * end for end in ends], [1.1 * end for end in ends], alpha=0.15, label="within 10 %")
    axis.set_xscale("log")
    axis.set_yscale("log")
    is_narrow = ends[1] < 10 * ends[0]
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(PLAIN_NUMBERS)
        side.set_minor_formatter(TWO_AND_FIVE if is_narrow else NullFormatter())
    axis.tick_params(which="minor", labelsize=7)
    axis.set_xlabel("measured tokens/s")
    axis.set_ylabel("predicted tokens/s")
    axis.set_title("measured against predicted")
    axis.legend(fontsize=8)


def _against_profiles(axis: Any, lines: Sequence[Line], field: str, scale: float, label: str) -> None:
    profiles = list(dict.fromkeys(line["profile"] for line in lines))
    batches = list(dict.fromkeys(line["batch"] for line in lines))
    styles = ("-", "--", ":", "-.")
    for technique in dict.fromkeys(line["technique"] for line in lines):
        for number, batch in enumerate(batches):
            chosen = [line for line in lines if line["technique"] == technique and line["batch"] == batch]
            if not chosen:
                continue
            middle = [scale * line[field]["p50"] for line in chosen]
            below = [m - scale * line[field]["p10"] for m, line in zip(middle, chosen, strict=True)]
            above = [scale * line[field]["p90"] - m for m, line in zip(middle, chosen, strict=True)]
            axis.errorbar(
                [profiles.index(line["profile"]) for line in chosen],
                middle,
                yerr=[below, above],
                label=f"{technique}, B = {batch}",
                color=COLOURS.get(technique),
                linestyle=styles[number % len(styles)],
                marker="o",
                capsize=3,
            )
    axis.set_xticks(range(len(profiles)), profiles, rotation=20)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(PLAIN_NUMBERS)
    axis.yaxis.set_minor_formatter(TWO_AND_FIVE)
    axis.tick_params(which="minor", labelsize=7)
    axis.set_ylabel(label)
    axis.set_xlabel("bandwidth-round trip of every link")
    axis.set_title(label)
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)


def _save(figure: Any, lines: Sequence[Line], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.suptitle(title(lines[0]))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
