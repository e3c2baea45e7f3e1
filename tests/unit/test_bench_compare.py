"""How two checkouts are compared: what is read from a run, and which figures are worse."""

from __future__ import annotations

import json

import pytest

from bench.compare import compare, read_codec, read_compute, read_pipeline, read_prefill, read_serving


def _row(profile: str, batch: int, token_s: float, rate: float) -> str:
    row = {"profile": profile, "technique": "plain", "batch": batch, "time_per_token_s": {"p50": token_s}}
    return json.dumps({**row, "decode_tokens_per_s": {"p50": rate}, "excess_per_hop_s": 0.0004})


def test_of_one_sequence_the_time_per_token_counts_and_of_many_the_throughput() -> None:
    lines = "\n".join((_row("500M-10ms", 1, 0.02, 9.0), _row("20M-100ms", 32, 0.5, 64.0)))
    assert read_pipeline("", lines) == {"500M-10ms plain B=1": 50.0, "excess a hop": 0.4, "20M-100ms plain B=32": 64.0}


def test_a_row_that_failed_is_no_figure() -> None:
    with pytest.raises(ValueError, match="no memory"):
        read_pipeline("", json.dumps({"failed": "no memory"}))


def test_what_other_benchmarks_say_is_read() -> None:
    compute = {"batches": {"1": {"engine": {"cpu_s": [0.5, 0.25, 1.0]}}}}
    assert read_compute("", json.dumps(compute)) == {"B=1": 2.0}
    rows = [{"encode_gb_per_s": 1.0, "decode_gb_per_s": 3.0}, {"encode_gb_per_s": 4.0, "decode_gb_per_s": 3.0}]
    assert read_codec("", "\n".join(map(json.dumps, rows))) == pytest.approx({"encode": 2.0, "decode": 3.0})
    said = "  own chunks   512 (64 beside decode)  2.000 s  1.10 x the\n  decode alone   99 tokens  p50  20.0 ms  p99  30.0 ms\n"
    assert read_prefill(said, "") == {"own chunks 0": 0.5, "decode 0": 0.05}
    lines = [{"mode": "burst", "what": "all", "numbers": {"seconds": 4.0}}, {"mode": "x", "what": "y", "numbers": {}}]
    lines.append({"mode": "fairness", "what": "first token, alone", "numbers": {"alone_s": [0.5, 0.25, 2.0]}})
    assert read_serving("", json.dumps({"lines": lines})) == {"burst: all": 0.25, "first token alone": 2.0}


def test_medians_of_interleaved_runs_are_held_against_the_bound_of_their_line() -> None:
    runs = [({"B=1": 10.0, "gone": 1.0}, {"B=1": 9.9}), ({"B=1": 10.0}, {"B=1": 9.7}), ({"B=1": 1.0}, {"B=1": 9.8})]
    (row,) = compare("compute", runs)
    assert (row.figure, row.before, row.now, row.is_good) == ("B=1", 10.0, 9.8, True)
    assert row.ratio == pytest.approx(0.98)
    (row,) = compare("plain", runs)
    assert not row.is_good


def test_an_excess_is_bounded_as_it_is_now() -> None:
    runs = [({"excess a hop": 0.3}, {"excess a hop": 0.45})]
    assert [row.is_good for row in compare("plain", runs)] == [True]
    runs = [({"excess a hop": 0.9}, {"excess a hop": 0.51})]
    assert [row.is_good for row in compare("plain", runs)] == [False]


def test_nothing_is_said_of_no_runs() -> None:
    assert compare("plain", []) == []
