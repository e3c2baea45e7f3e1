"""bench/choices.py: what a choice is held against, and how rounds are judged."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from bench import choices
from bench.choices import CHOICE, Point, judge, world_of
from bench.placed import Way
from bench.worlds import Placement


def test_the_choice_stands_among_fixed_points_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"DRAWN": 20, "CLIMBS": 1, "KEPT": 2, "SIMULATED": 3, "BEST": 2, "RANDOM": 2}.items():
        monkeypatch.setattr(choices, name, value)
    file = tmp_path / "choices.jsonl"
    status = choices.main(["--settings", "20M-100ms", "--json", str(file)])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["point"] for line in lines] == [CHOICE, "best 1", "best 2", "random 1", "random 2"]
    assert "M tuned" in lines[0]["is"]
    assert all(line["runs"][0]["simulated_tokens_per_s"] > 0 for line in lines)
    (_, ratio, low), *others = judge(lines)
    assert (low, others, status) == (None, [], 0 if ratio >= choices.LEAST else 1)
    assert "20M-100ms, simulated" in capsys.readouterr().out


def test_what_is_drawn_fits_and_neighbours_are_near() -> None:
    world = world_of("three-regions")
    for one in itertools.islice(choices._drawn(world, random.Random(0)), 20):
        assert sum(one.layers) == 60
        assert one.workers[0] == 1
        assert max(one.layers) <= 21
    near = set(choices._near(Placement((1, 2), (30, 30))))
    assert near == {
        Placement((1, 2), (29, 31)),
        Placement((1, 2), (31, 29)),
        Placement((1, 2), (27, 33)),
        Placement((1, 2), (33, 27)),
        Placement((2, 1), (30, 30)),
    }


def test_a_profile_is_a_world_with_the_head_beside_the_first() -> None:
    world = world_of("three-regions")
    links = world.topology.links
    assert links[0, 1].latency_s == links[1, 0].latency_s == 0
    assert (links[1, 2].latency_s, links[2, 1].bandwidth_bytes_per_s) == (0.0325, 12.5e6)
    assert links[3, 0] == links[3, 1]
    assert (0, 2) not in links


def test_rounds_are_compared_one_by_one_with_the_best_point() -> None:
    def line(point: str, simulated: float, measured: list[float]) -> dict[str, object]:
        runs = [{"simulated_tokens_per_s": simulated}, *({"measured_tokens_per_s": speed} for speed in measured)]
        return {"setting": "s", "point": point, "is": "", "runs": runs}

    lines = [
        line(CHOICE, 97.0, [96.0, 99.0, 98.0]),
        line("best 1", 100.0, [100.0, 100.0, 100.0]),
        line("random 1", 50.0, [101.0, 1.0, 1.0]),
    ]
    assert judge(lines) == [("s, simulated", 0.97, None), ("s, measured", 0.98, 0.96)]
    assert [name for name, *_ in judge([line(CHOICE, 97.0, []), line("best 1", 100.0, [])])] == ["s, simulated"]


def test_a_point_says_how_it_is_run() -> None:
    assert str(Point(Placement((2, 1), (20, 40)), Way(4, codec=False))) == "2:20 1:40, M 4, codec off"
