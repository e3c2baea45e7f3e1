"""A plan as a picture: workers by how far they are from each other, their rings, what is busy. Needs matplotlib."""

from __future__ import annotations

import importlib.util
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bloombee.errors import BloomBeeError, ConfigError
from bloombee.plan.account import Account, StageAccount
from bloombee.plan.network import HEAD_NODE
from bloombee.plan.problem import Problem
from bloombee.plan.report import headline
from bloombee.plan.topology import Topology
from bloombee.types import HEAD, WorkerId

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.patches import Patch

FORMATS = ("png", "svg")
WIDEST, NARROWEST, HEIGHT = 0.28, 0.02, 0.035
"""Of a stage with all layers, with none, and of any: parts of the picture, which is 1 wide."""
PALEST = 0.12
"""As busy as a link looks at least: paler ones are not seen."""
INCHES, MOST_INCHES = 7.0, 60.0
"""A picture that is 1 wide; at most, of all."""
SIGN, LINE = 0.0125, 0.025
"""As wide and as high as a sign of a label is, about."""
TALL = HEIGHT + 2 * LINE + 0.02
"""A worker with its label of two lines."""
ROUNDS, MARGIN = 400, 0.02
MOST_SIGNS = 24
"""Of a name."""
ALONG = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)
"""Where on a link its share may stand, the best first."""
IDLE, INK = "#9a9a9a", "#222222"
PAPER = {"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}
"""Behind what is written."""
BEND = 0.12
"""Of a link, as a part of its length."""
Points = NDArray[np.float64]
Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


def check_picture(path: str) -> None:
    """Raises ConfigError: another kind of file; BloomBeeError: there is nothing to draw with."""
    if Path(path).suffix[1:] not in FORMATS:
        raise ConfigError(f"picture {path}: must end in .png or .svg", field="picture")
    if importlib.util.find_spec("matplotlib") is None:
        raise BloomBeeError("a picture needs matplotlib: pip install matplotlib")


def drawn(found: Account, problem: Problem, kind: str) -> bytes:
    """The file's content; the same plan gives the same.

    Args:
        kind: one of :data:`FORMATS`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "bloombee", "svg.fonttype": "none"}):
        where = places(found, problem.topology)
        figure = Figure(figsize=_size(where), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, found, where)
        axes.set_title(headline(found), fontsize=11)
        file = io.BytesIO()
        figure.savefig(
            file, format=kind, dpi=120, bbox_inches="tight", metadata={"Date": None} if kind == "svg" else {"Software": None}
        )
    return file.getvalue()


# -- where -------------------------------------------------------------------------------------


def places(found: Account, topology: Topology) -> dict[str, tuple[float, float]]:
    """Of the head and each worker, about in a square of side 1: by their delays if those tell them apart, else in ring order;
    neither they nor their labels lie on each other."""
    ends = [HEAD, *topology.devices]
    names = [topology.name(end) for end in ends]
    points = _by_delay(topology, ends)
    if points is None:
        order = [HEAD_NODE, *(stage.worker for ring in found.pipelines for stage in ring.stages), *found.spares]
        angles = [2 * math.pi * order.index(name) / len(order) for name in names]
        points = np.array([(math.sin(angle), math.cos(angle)) for angle in angles])
    points = _pushed_apart(_in_square(points), np.array([_width(found, name) for name in names]))
    return {name: (float(x), float(y)) for name, (x, y) in zip(names, points, strict=True)}


def _by_delay(topology: Topology, ends: list[WorkerId]) -> Points | None:
    """Classical scaling (Torgerson 1952) of round trips; a pair without a link is as far apart as any. None: all are alike."""
    number = {end: index for index, end in enumerate(ends)}
    delays = np.full((len(ends), len(ends)), np.nan)
    for (source, target), link in topology.links.items():
        delays[number[source], number[target]] = link.latency_s
    if len(ends) < 3 or np.isnan(delays).all():
        return None
    far = np.where(np.isnan(delays), delays.T, delays)  # one way is known
    far = (far + far.T) / 2
    far = np.where(np.isnan(far), np.nanmax(far), far)
    np.fill_diagonal(far, 0.0)
    between = far[~np.eye(len(ends), dtype=bool)]
    if between.max() <= 1.05 * between.min():
        return None
    centred = np.eye(len(ends)) - 1 / len(ends)
    values, vectors = np.linalg.eigh(-centred @ far**2 @ centred / 2)
    signs = np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(ends))] < 0, -1.0, 1.0)
    return np.asarray((vectors * signs)[:, :-3:-1] * np.sqrt(np.maximum(values[:-3:-1], 0.0)))


def _in_square(points: Points) -> Points:
    """Of side 1, in its middle, the shape about kept: what would lie on a line is drawn out to half of it."""
    low, high = points.min(axis=0), points.max(axis=0)
    longest = max(float((high - low).max()), 1e-12)
    sides = np.maximum(high - low, longest / 2)
    sides[high - low < 1e-6 * longest] = longest
    return np.asarray(0.5 + 0.8 * (points - (low + high) / 2) / sides)


def _pushed_apart(points: Points, widths: Points) -> Points:
    """Whoever lies on another is moved away from it, a little at a time, the way that it lies."""
    count = len(points)
    spread = np.array([(math.cos(2.4 * index), math.sin(2.4 * index)) for index in range(count)])
    points = points + 1e-3 * spread  # none on top of another
    room = np.stack([(widths[:, None] + widths[None]) / 2 + SIGN, np.full((count, count), TALL)], axis=2)
    for _ in range(ROUNDS):
        way = points[:, None] - points[None]
        apart = (np.abs(way) / room).max(axis=2) + np.eye(count)  # 1: side by side
        if (apart >= 1).all():
            break
        push = np.where(apart < 1, (1 + MARGIN) / np.maximum(apart, 1e-6) - 1, 0.0)
        points = points + 0.3 * (way * push[..., None]).sum(axis=1)
    return np.asarray(points)


def _width(found: Account, name: str) -> float:
    """Of what is drawn of a worker, or of the head."""
    stages = {stage.worker: stage for ring in found.pipelines for stage in ring.stages}
    text = max(map(len, _label(name, stages.get(name)).split("\n")))
    return max(SIGN * text, _bar(stages[name], _num_layers(found)) if name in stages else 0.0)


def _bar(stage: StageAccount, num_layers: int) -> float:
    start, stop = stage.layers
    return NARROWEST + WIDEST * (stop - start) / num_layers


def _num_layers(found: Account) -> int:
    return max(stage.layers[1] for ring in found.pipelines for stage in ring.stages)


def _label(name: str, stage: StageAccount | None) -> str:
    shown = "".join(sign if sign.isprintable() else "?" for sign in name)
    if len(shown) > MOST_SIGNS:
        shown = f"{shown[: MOST_SIGNS // 2]}\u2026{shown[1 - MOST_SIGNS // 2 :]}"
    if stage is not None:
        return f"{shown}\n{stage.layers[0]}-{stage.layers[1] - 1}, {stage.busy:.0%}"
    return shown if name == HEAD_NODE else f"{shown}\nspare"


def _size(where: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """In inches: labels are as large however far the picture reaches."""
    (left, bottom), (right, top) = _extent(where)
    scale = min(INCHES, MOST_INCHES / max(right - left, top - bottom))
    return scale * (right - left) + 1.5, scale * (top - bottom) + 0.5


def _extent(where: dict[str, tuple[float, float]]) -> tuple[Points, Points]:
    """Lower left, upper right."""
    points = np.array(list(where.values()))
    margin = np.array((0.2, 0.15))
    return points.min(axis=0) - margin, points.max(axis=0) + margin


# -- what --------------------------------------------------------------------------------------


def _draw(axes: Axes, found: Account, where: dict[str, tuple[float, float]]) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(0, 1), colormaps["YlOrRd"])
    stages = {stage.worker: stage for ring in found.pipelines for stage in ring.stages}
    num_layers = _num_layers(found)
    shapes = {name: _draw_end(axes, place, name, stages.get(name), num_layers, scale) for name, place in where.items()}
    taken = [_box(found, name, place) for name, place in where.items()]
    for ring in found.pipelines:
        for link in ring.links:
            if link.source == link.target:
                continue  # (the scheduler beside the first stage)
            ends = (shapes[link.source], shapes[link.target])
            _draw_link(axes, where[link.source], where[link.target], ends, link.busy, scale, taken)
    (left, bottom), (right, top) = _extent(where)
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axes.axis("off")
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(scale, ax=axes, shrink=0.5, label="busy: share of a step")


def _box(found: Account, name: str, place: tuple[float, float]) -> Box:
    """Of a worker with its label."""
    (x, y), width = place, _width(found, name)
    return x - width / 2, y - HEIGHT / 2, x + width / 2, y - HEIGHT / 2 + TALL


def _draw_end(
    axes: Axes, place: tuple[float, float], name: str, stage: StageAccount | None, num_layers: int, scale: ScalarMappable
) -> Patch:
    """A bar as wide as the stage has layers; of the head a disc, of a spare a small grey square."""
    from matplotlib.patches import Circle, Rectangle

    x, y = place
    shape: Patch
    if stage is not None:
        width, colour = _bar(stage, num_layers), scale.to_rgba(np.array(min(1.0, stage.busy)))
        shape = Rectangle((x - width / 2, y - HEIGHT / 2), width, HEIGHT, facecolor=colour, edgecolor=INK, zorder=3)
    elif name == HEAD_NODE:
        shape = Circle(place, 0.4 * HEIGHT, facecolor=INK, zorder=3)
    else:
        side = HEIGHT / 2
        shape = Rectangle((x - side / 2, y - side / 2), side, side, facecolor=IDLE, zorder=3)
    axes.add_patch(shape)
    axes.annotate(
        _label(name, stage),
        (x, y + HEIGHT / 2),
        (0, 4),
        textcoords="offset points",
        ha="center",
        color=INK if stage is not None or name == HEAD_NODE else IDLE,
        zorder=4,
        bbox=PAPER,
        parse_math=False,
    )
    return shape


def _draw_link(
    axes: Axes,
    source: tuple[float, float],
    target: tuple[float, float],
    ends: tuple[Patch, Patch],
    busy: float,
    scale: ScalarMappable,
    taken: list[Box],
) -> None:
    """An arrow from edge to edge, bent so that a way back does not hide it; its share, where it has one, on what is not taken."""
    from matplotlib.patches import FancyArrowPatch

    arrow = FancyArrowPatch(
        source,
        target,
        patchA=ends[0],
        patchB=ends[1],
        arrowstyle="-|>",
        mutation_scale=14,
        connectionstyle=f"arc3,rad={BEND}",
        color=scale.to_rgba(np.array(min(1.0, max(PALEST, busy)))),
        linewidth=2.2,
        zorder=2,
    )
    axes.add_patch(arrow)
    text = f"{busy:.0%}"
    box = _free(_along(source, target), len(text), taken) if text != "0%" else None
    if box is not None:
        taken.append(box)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        axes.annotate(text, middle, fontsize=8, ha="center", va="center", color=INK, zorder=4, bbox=PAPER)


def _along(source: tuple[float, float], target: tuple[float, float]) -> Points:
    """Places on the arrow, the best first: of the quadratic curve that it is."""
    one, other = np.array(source), np.array(target)
    control = (one + other) / 2 + BEND * (other - one)[::-1] * (1, -1)
    part = np.array(ALONG)[:, None]
    return np.asarray((1 - part) ** 2 * one + 2 * part * (1 - part) * control + part**2 * other)


def _free(places: Points, num_signs: int, taken: list[Box]) -> Box | None:
    """Room for so many signs at the first of ``places`` where nothing stands yet."""
    width, height = SIGN * num_signs, LINE
    for x, y in places:
        box = (float(x - width / 2), float(y - height / 2), float(x + width / 2), float(y + height / 2))
        if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            return box
    return None
