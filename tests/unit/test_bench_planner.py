"""bench/planner.py: small instances against all plans, and how its rows are judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import planner
from bench.topologies import MOST_CANDIDATES, small, wan
from bloombee.objective import Objective
from bloombee.plan.solve import solve


def test_small_instances_are_held_against_all_plans(capsys: pytest.CaptureFixture[str]) -> None:
    assert planner.main(["--instances", "12", "--seed", "3"]) == 0
    assert "12 instances" in capsys.readouterr().out


def test_a_wrong_value_is_a_failure_with_its_seed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    best = planner.enumerator.best
    monkeypatch.setattr(planner.enumerator, "best", lambda *words: (best(*words) or 0.0) * 1.01 or None)
    assert planner.main(["--instances", "4"]) == 1
    assert "wrong: seeds [" in capsys.readouterr().out


def test_small_instances_are_as_mixed_as_they_should_be() -> None:
    cases = [small(seed) for seed in range(200)]
    assert {len(case.topology.devices) for case in cases} == {3, 4, 5}
    assert sum(case.space.pipelines == 2 for case in cases) == 50
    assert any(len(set(case.model.kind_of)) > 1 and case.model.kinds[1].window for case in cases)
    assert any(1.0 in case.space.streamed for case in cases)
    for case in cases:
        assert planner.enumerator.count(len(case.topology.devices), case.model.num_layers, case.space) <= MOST_CANDIDATES


def test_a_size_without_goals_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert planner.main(["--sizes", "17"]) == 2
    assert "--sizes 17" in capsys.readouterr().err


def test_a_row_says_times_gaps_and_what_a_longer_search_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "GOALS", {16: (60.0, 1e9)})
    monkeypatch.setattr(planner, "PROVEN_S", 2.0)
    monkeypatch.setattr(planner, "PROVEN_GAP", 1e9)
    file = tmp_path / "rows.json"
    words = ["--sizes", "16", "--objectives", "latency", "--plans", "1", "--seed", "1", "--json", str(file)]
    assert planner.main(words) == 0
    first, second = map(json.loads, file.read_text().splitlines())
    assert (first["workers"], first["objective"], first["plans"]) == (16, "latency", 1)
    assert 0 < first["plan_p50_s"] <= first["plan_p99_s"]
    assert first["behind_worst"] == 0.0
    assert second["behind_worst"] is None
    assert first["met"]
    assert second["met"]


def test_how_far_a_plan_is_behind_counts_in_its_objective() -> None:
    topology, model = wan(1, 6, 12)
    fast = solve(topology, model, planner.SPACE, Objective.parse("latency"))
    assert planner.behind(fast, fast) == 0.0
