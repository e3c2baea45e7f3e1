"""A status as Prometheus reads it: every figure where it belongs, none that nobody has seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from bloombee.roles.status import (
    UPTO_S,
    VERSION,
    Figures,
    Forwards,
    LinkStatus,
    PlanStatus,
    RequestStatus,
    Served,
    StageStatus,
    SwarmStatus,
    Times,
    WorkerStatus,
)
from bloombee.serve.metrics import SwarmFigures

ODD = 'odd "name"\n\\'
STAGE = StageStatus(Forwards(10, 40, 1.5), Forwards(2, 64, 0.5), bubble_s=0.75, pages_free=9, pages=12)
FIRST = Times((0,) * 6 + (3,) + (0,) * 8 + (1,), 61.2)
SWARM = SwarmStatus(
    version=VERSION,
    process=1,
    model="some/model",
    state="up",
    reason="",
    missing=0,
    plan=PlanStatus(3, "throughput", "head", Figures(4, 8, 81.25), Figures(2, 7, None)),
    workers=(
        WorkerStatus(1, ODD, "", "serving", 0, (0, 4), 8000, 6000, None, 0.0, "", STAGE),
        WorkerStatus(2, ODD, "", "serving", 1, (4, 8), 8000, 5000, None, 0.0, "", STAGE),
        WorkerStatus(3, ODD, "", "spare", None, None, 4000, 0, None, 0.0, ""),
    ),
    links=(
        LinkStatus("head", ODD, 0.012, None, "", None, 100, 0, 0, 0, 1),
        LinkStatus(ODD, ODD, 0.02, 2.5e6, "on", 0.5, 2000, 4000, 2000, 1, 2),
    ),
    requests=(RequestStatus(1, "", "decode", 1, 2, 3, None, 0.0), RequestStatus(2, "", "waiting", 1, 0, 3, None, 0.0)),
    served=Served({"stop": 2, "LinkDown": 1}, 12, 34, FIRST, Times((0,) * 16, 0.0), 5.5, 7, 30, 20),
    recoveries=1,
    now_s=1.0,
)
Labels = frozenset[tuple[str, str]]


def samples(status: SwarmStatus) -> dict[tuple[str, Labels], float]:
    """By name and labels; none is there twice."""
    registry, figures = CollectorRegistry(), SwarmFigures()
    registry.register(figures)
    figures.status = status
    found: dict[tuple[str, Labels], float] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            key = sample.name.removeprefix("bloombee_"), frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def value(found: dict[tuple[str, Labels], float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_figures_of_a_status_are_where_they_belong() -> None:
    found = samples(SWARM)
    assert value(found, "requests_total", outcome="LinkDown") == 1
    assert value(found, "open_requests", phase="waiting") == 1
    assert value(found, "open_requests", phase="prefill") == 0
    assert value(found, "generated_tokens_total") == 34
    assert (value(found, "prompt_tokens_total"), value(found, "cached_prompt_tokens_total")) == (12, 7)
    assert (value(found, "drafted_tokens_total"), value(found, "accepted_tokens_total")) == (30, 20)
    assert value(found, "recoveries_total") == 1
    assert value(found, "plan_epoch") == 3
    assert value(found, "workers", state="serving") == 2
    assert value(found, "state", bloombee_state="up") == 1
    assert value(found, "stage_busy_seconds_total", stage="1", worker=ODD, phase="decode") == 1.5
    assert value(found, "stage_bubble_seconds_total", stage="0", worker=ODD) == 0.75
    assert value(found, "stage_kv_pages_free", stage="0", worker=ODD) == 9
    coded = {"link": "1-2", "source": ODD, "target": ODD}
    assert value(found, "link_codec_ratio", **coded) == 0.5
    assert value(found, "link_activation_bytes_total", form="raw", **coded) == 4000
    assert value(found, "link_bandwidth_bytes_per_second", **coded) == 2.5e6
    assert value(found, "link_round_trip_seconds", link="0-1", source="head", target=ODD) == 0.012
    assert value(found, "link_bytes_total", link="0-1", source="head", target=ODD) == 100


def test_times_are_a_histogram_that_counts_up() -> None:
    found = samples(SWARM)
    name = "time_to_first_token_seconds"
    assert value(found, f"{name}_bucket", le="0.05") == 0
    assert value(found, f"{name}_bucket", le=str(UPTO_S[6])) == 3
    assert value(found, f"{name}_bucket", le="60.0") == 3
    assert value(found, f"{name}_bucket", le="+Inf") == value(found, f"{name}_count") == 4
    assert value(found, f"{name}_sum") == 61.2


def test_what_nobody_has_seen_has_no_sample() -> None:
    bare = msgspec.structs.replace(SWARM, state="waiting", plan=None, workers=(), links=SWARM.links[:1], requests=(), served=None)
    names = {name for name, _ in samples(bare)}
    assert names & {"link_bandwidth_bytes_per_second", "link_codec_ratio", "link_activation_bytes_total"} == set()
    assert names & {"plan_epoch", "generated_tokens_total", "stage_busy_seconds_total", "time_per_token_seconds_sum"} == set()
    assert value(samples(bare), "state", bloombee_state="waiting") == 1


def _expressions(board: object) -> Iterator[str]:
    if isinstance(board, dict):
        yield from ([board["expr"]] if "expr" in board else [])
        board = list(board.values())
    if isinstance(board, list):
        for one in board:
            yield from _expressions(one)


def test_the_example_board_asks_for_what_there_is() -> None:
    board = json.loads((Path(__file__).parents[2] / "examples" / "grafana.json").read_text("utf-8"))
    asked = {word for expression in _expressions(board) for word in _words(expression) if word.startswith("bloombee_")}
    known = {f"bloombee_{name}" for name, _ in samples(SWARM)}
    assert len(asked) > 15
    assert asked <= known


def _words(expression: str) -> list[str]:
    return "".join(letter if letter.isalnum() or letter == "_" else " " for letter in expression).split()


def test_a_stage_that_has_said_nothing_has_no_figures() -> None:
    silent = msgspec.structs.replace(SWARM.workers[0], figures=None)
    found = samples(msgspec.structs.replace(SWARM, workers=(silent,)))
    assert not any(name.startswith("stage_") for name, _ in found)
