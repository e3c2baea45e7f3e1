"""From the runs of a cell to its line: medians, floors, roofline, predictions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.apart import Parts, parts_at
from bench.cells import Cell
from bench.floors import (
    bubble,
    excess_per_hop_s,
    floors,
    roofline_tokens_per_s,
)
from bench.peers.kinds import BY_TECHNIQUE
from bench.predict import Setting, fit_paces, predict_by_cost, simulate
from bench.profiles import LinkProfile
from bench.spread import spread
from bench.usage import num_cores
from bloombee.pace import Pace
from bloombee.plan.topology import Cores

CONTENDED_SHARE = 0.6
DISTURBED_SHARE = 0.3
CHANGELESS = {
    "bubble",
    "predicted_tokens_per_s",
    "predicted_time_per_token_s",
    "simulated_tokens_per_s",
    "simulated_time_per_token_s",
}
"""Fields that hold for links that stay as they are."""
RING_FIELDS = (
    "floor_delay_s", "floor_wire_s", "floor_compute_s", "loop_floor_s", "stage_compute_s", "apart", "excess_per_hop_s",
    "roofline_tokens_per_s", "bubble", "predicted_tokens_per_s", "predicted_time_per_token_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Subject:
    """What is the same in all cells of a model.

    Args:
        pace: as asked, or a stand-in's own; then ``paces`` has one a stage. None: real devices.
        row_bytes: raw activations of one row.
        apart: what real devices and their hops take by themselves, by rows; empty of paced devices.
    """

    model: str
    dtype: str
    workers: int
    layers: tuple[int, ...]
    hidden: int
    row_bytes: int
    pace: str | None
    paces: tuple[Pace, ...] | None
    prompt_tokens: int
    tokens: int
    apart: tuple[Parts, ...] = ()


def cell_line(
    cell: Cell,
    runs: Sequence[dict[str, Any]],
    subject: Subject,
    links: Sequence[LinkProfile],
    *,
    simulated: bool,
) -> dict[str, Any]:
    """The JSON line of ``cell`` from its runs (as :meth:`bench.load.Run.to_json`, with ``exact`` and ``flips``)."""
    rows = math.ceil(_median(runs, "microbatch_rows") - 0.01)
    microbatches = math.ceil(cell.batch / rows)
    computes = [statistics.median(one) for one in zip(*(run["computes_s"] for run in runs), strict=True)]
    floor = floors([link.forward for link in links], rows=rows, row_bytes=subject.row_bytes, computes_s=computes)
    speed = spread([run["decode_tokens_per_s"] for run in runs])
    gap = spread([value for run in runs for value in run["gaps_s"]])
    ratios = [statistics.median(one) for one in zip(*(run["codec_ratios"] for run in runs), strict=True)]
    as_sent = replace(floor, wires_s=tuple(wire * ratio for wire, ratio in zip(floor.wires_s, ratios, strict=True)))
    parts = parts_at(subject.apart, rows) if subject.apart else None
    setting = Setting(
        links=tuple((link.forward, link.backward) for link in links),
        paces=subject.paces or fit_paces(None, parts.computes_s if parts else computes, rows),
        layers=subject.layers,
        hidden=subject.hidden,
        row_bytes=subject.row_bytes,
        batch=cell.batch,
        microbatches=microbatches,
        prompt_tokens=subject.prompt_tokens,
        tokens=subject.tokens,
        ratios=tuple(ratios),
        cores=Cores(num_cores(), parts.hop_s, parts.hop_cpu_s) if parts else None,
    )
    predicted = predict_by_cost(setting)
    own_share = _median(runs, "cpu_share")
    contended = own_share > CONTENDED_SHARE
    roofline = roofline_tokens_per_s(cell.batch, microbatches, floor)
    if contended:
        roofline = num_cores() / _median(runs, "cpu_s_per_token")
    hops = len(links)
    line: dict[str, Any] = {
        "profile": cell.profile,
        "technique": cell.technique,
        "model": subject.model,
        "standin": subject.model.startswith("standin:"),
        "dtype": subject.dtype,
        "workers": subject.workers,
        "batch": cell.batch,
        "microbatches": microbatches,
        "microbatch_rows": rows,
        "pace": subject.pace,
        "repeats": len(runs),
        "decode_tokens_per_s": speed,
        "time_per_token_s": gap,
        "prefill_tokens_per_s": _median(runs, "prefill_tokens_per_s"),
        "time_to_first_token_s": _median(runs, "time_to_first_token_s"),
        "codec_ratios": ratios,
        "bytes_per_token": [statistics.median(one) for one in zip(*(run["link_bytes_per_token"] for run in runs), strict=True)],
        "floor_delay_s": floor.delay_s,
        "floor_wire_s": floor.wire_s,
        "floor_compute_s": floor.compute_s,
        "loop_floor_s": floor.loop_s,
        "stage_compute_s": computes,
        "apart": parts and asdict(parts),
        "excess_per_hop_s": excess_per_hop_s(gap["p50"], floor, hops),
        "roofline_tokens_per_s": roofline,
        "bubble": bubble(speed["p50"], cell.batch, microbatches, as_sent),
        "predicted_tokens_per_s": predicted.tokens_per_s,
        "predicted_time_per_token_s": predicted.time_per_token_s,
        "cpu_share": own_share,
        "others_cpu_share": _median(runs, "others_cpu_share"),
        "cpu_s_per_token": _median(runs, "cpu_s_per_token"),
        "contended": contended,
        "disturbed": _median(runs, "others_cpu_share") > DISTURBED_SHARE,
        "exact": all(run["exact"] for run in runs),
        "flips": max(run["flips"] for run in runs),
    }
    if simulated:
        simulation = simulate(setting)
        line["simulated_tokens_per_s"] = simulation and simulation.tokens_per_s
        line["simulated_time_per_token_s"] = simulation and simulation.time_per_token_s
    if any(link.schedule is not None for link in links):  # no one figure holds for links that change meanwhile
        line |= dict.fromkeys(line.keys() & CHANGELESS)
    return line


def peer_line(cell: Cell, runs: Sequence[dict[str, Any]], subject: Subject, *, simulated: bool) -> dict[str, Any]:
    """The line of another program: the same fields, None where the field is about the way the project works.

    ``bytes_per_token``: of each machine's relay, both ways; none for one process.
    """
    own_share = _median(runs, "cpu_share")
    line: dict[str, Any] = {
        "profile": cell.profile,
        "technique": cell.technique,
        "model": subject.model,
        "standin": False,
        "dtype": subject.dtype,
        "workers": subject.workers if BY_TECHNIQUE[cell.technique].is_split else 1,
        "batch": cell.batch,
        "microbatches": None,
        "microbatch_rows": None,
        "pace": None,
        "repeats": len(runs),
        "decode_tokens_per_s": spread([run["decode_tokens_per_s"] for run in runs]),
        "time_per_token_s": spread([value for run in runs for value in run["gaps_s"]]),
        "prefill_tokens_per_s": _median(runs, "prefill_tokens_per_s"),
        "time_to_first_token_s": _median(runs, "time_to_first_token_s"),
        "codec_ratios": None,
        "bytes_per_token": [statistics.median(one) for one in zip(*(run["link_bytes_per_token"] for run in runs), strict=True)],
        **dict.fromkeys(RING_FIELDS),
        "cpu_share": own_share,
        "others_cpu_share": _median(runs, "others_cpu_share"),
        "cpu_s_per_token": _median(runs, "cpu_s_per_token"),
        "contended": own_share > CONTENDED_SHARE,
        "disturbed": _median(runs, "others_cpu_share") > DISTURBED_SHARE,
        "exact": all(run["exact"] for run in runs),
        "flips": max(run["flips"] for run in runs),
        "peer_version": runs[-1]["version"],
    }
    if simulated:
        line |= {"simulated_tokens_per_s": None, "simulated_time_per_token_s": None}
    return line


def failed_line(cell: Cell, model: str, reason: str) -> dict[str, Any]:
    """The line of a cell without a measurement."""
    return {"profile": cell.profile, "technique": cell.technique, "model": model, "batch": cell.batch or "auto", "failed": reason}


def _median(runs: Sequence[dict[str, Any]], name: str) -> float:
    return float(statistics.median(run[name] for run in runs))
