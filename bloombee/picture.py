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
from bloombee.plan.account import Account, StageAccount, end_name
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
APART = 0.11
"""No two workers are drawn closer."""
ROUNDS = 200
MOST_SIGNS = 40
"""Of a name."""
IDLE, INK = "#9a9a9a", "#222222"
PAPER = {"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}
"""Behind what is written."""
Points = NDArray[np.float64]


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
        figure = Figure(figsize=(11, 8), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, found, places(found, problem.topology))
        axes.set_title(headline(found), fontsize=11)
        file = io.BytesIO()
        figure.savefig(
            file, format=kind, dpi=120, bbox_inches="tight", metadata={"Date": None} if kind == "svg" else {"Software": None}
        )
    return file.getvalue()


# -- where -------------------------------------------------------------------------------------


def places(found: Account, topology: Topology) -> dict[str, tuple[float, float]]:
    """Of the head and each worker, in a square of side 1: by their delays if those tell them apart, else in ring order."""
    ends = [HEAD, *topology.devices]
    names = [end_name(topology, end) for end in ends]
    points = _by_delay(topology, ends)
    if points is None:
        order = [HEAD_NODE, *(stage.worker for ring in found.pipelines for stage in ring.stages), *found.spares]
        angles = [2 * math.pi * order.index(name) / len(order) for name in names]
        points = np.array([(math.sin(angle), math.cos(angle)) for angle in angles])
    points = _pushed_apart(_in_square(points))
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


def _pushed_apart(points: Points) -> Points:
    """Whoever is too close to another is moved away from it, a little at a time."""
    count = len(points)
    spread = np.array([(math.cos(2.4 * index), math.sin(2.4 * index)) for index in range(count)])
    points = points + 1e-3 * spread  # none on top of another
    for _ in range(ROUNDS):
        way = points[:, None] - points[None]
        distance = np.sqrt((way**2).sum(axis=2)) + np.eye(count)
        short = np.maximum(APART - distance, 0.0) * (1 - np.eye(count))
        if not short.any():
            break
        points = points + 0.25 * (way / distance[..., None] * short[..., None]).sum(axis=1)
    return points


# -- what --------------------------------------------------------------------------------------


def _draw(axes: Axes, found: Account, where: dict[str, tuple[float, float]]) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(0, 1), colormaps["YlOrRd"])
    stages = {stage.worker: stage for ring in found.pipelines for stage in ring.stages}
    num_layers = max(stage.layers[1] for stage in stages.values())
    shapes = {name: _draw_end(axes, place, name, stages.get(name), num_layers, scale) for name, place in where.items()}
    for ring in found.pipelines:
        for link in ring.links:
            ends = (shapes[link.source], shapes[link.target])
            _draw_link(axes, where[link.source], where[link.target], ends, link.busy, scale)
    (left, bottom), (right, top) = (np.array(list(where.values())).min(axis=0), np.array(list(where.values())).max(axis=0))
    axes.set(xlim=(left - 0.2, right + 0.2), ylim=(bottom - 0.12, top + 0.12), aspect="equal")
    axes.axis("off")
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(scale, ax=axes, shrink=0.5, label="busy: share of a step")


def _draw_end(
    axes: Axes, place: tuple[float, float], name: str, stage: StageAccount | None, num_layers: int, scale: ScalarMappable
) -> Patch:
    """A bar as wide as the stage has layers; of the head a disc, of a spare a small grey square."""
    from matplotlib.patches import Circle, Rectangle

    x, y = place
    shape: Patch
    shown = "".join(sign if sign.isprintable() else "?" for sign in name[:MOST_SIGNS])
    label, ink = shown, INK
    if stage is not None:
        start, stop = stage.layers
        width = NARROWEST + WIDEST * (stop - start) / num_layers
        colour = scale.to_rgba(np.array(min(1.0, stage.busy)))
        shape = Rectangle((x - width / 2, y - HEIGHT / 2), width, HEIGHT, facecolor=colour, edgecolor=INK, zorder=3)
        label = f"{shown}: {start}-{stop - 1}, {stage.busy:.0%}"
    elif name == HEAD_NODE:
        shape = Circle(place, 0.4 * HEIGHT, facecolor=INK, zorder=3)
    else:
        side, ink, label = HEIGHT / 2, IDLE, f"{shown}: spare"
        shape = Rectangle((x - side / 2, y - side / 2), side, side, facecolor=IDLE, zorder=3)
    axes.add_patch(shape)
    axes.annotate(
        label,
        (x, y + HEIGHT / 2),
        (0, 4),
        textcoords="offset points",
        ha="center",
        color=ink,
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
) -> None:
    """An arrow from edge to edge, bent so that a way back does not hide it."""
    from matplotlib.patches import FancyArrowPatch

    bend = 0.12
    arrow = FancyArrowPatch(
        source,
        target,
        patchA=ends[0],
        patchB=ends[1],
        arrowstyle="-|>",
        mutation_scale=14,
        connectionstyle=f"arc3,rad={bend}",
        color=scale.to_rgba(np.array(min(1.0, max(PALEST, busy)))),
        linewidth=2.2,
        zorder=2,
    )
    axes.add_patch(arrow)
    (x, y), (u, v) = source, target
    middle = ((x + u) / 2 + bend / 2 * (v - y), (y + v) / 2 - bend / 2 * (u - x))
    axes.annotate(f"{busy:.0%}", middle, fontsize=8, ha="center", va="center", color=INK, zorder=4, bbox=PAPER)
