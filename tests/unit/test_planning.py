"""``bloombee plan``: what it prints of a file, and that what is wrong with one is a sentence."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
import re
import shlex
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest

from bloombee.cli import main
from bloombee.models.shape import ModelShape
from bloombee.objective import Objective
from bloombee.picture import _box, places
from bloombee.plan.account import account
from bloombee.plan.problem import Problem
from bloombee.plan.solve import Space, solve
from bloombee.plan.topology import Device, Link, RowTime, Topology
from bloombee.types import HEAD

ROOT = Path(__file__).parents[2]
GOLDEN = str(ROOT / "tests" / "golden" / "topology.json")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["plan", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def saved(tmp_path: Path, **changes: Any) -> str:
    """The golden file with other sections."""
    record = json.loads(Path(GOLDEN).read_text()) | changes
    file = tmp_path / "topology.json"
    file.write_text(json.dumps(record))
    return str(file)


def test_the_documented_table_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "topology.md").read_text()
    documented = page.split("$ bloombee plan topology.json\n")[1].split("```")[0]
    assert run(capsys, GOLDEN) == (0, documented, "")


def test_json_is_one_line_with_everything(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, GOLDEN, "--json", "--objective", "throughput")
    assert (code, err, out.count("\n")) == (0, "", 1)
    plan = json.loads(out)
    assert plan["objective"] == "throughput"
    assert plan["value"] == plan["tokens_per_s"] == pytest.approx(sum(p["tokens_per_s"] for p in plan["pipelines"]))
    assert plan["proven"]
    ring = plan["pipelines"][0]
    assert ring["stages"][-1]["layers"][1] == 60
    ends = [(link["from"], link["to"]) for link in ring["links"]]
    assert ends == list(itertools.pairwise(["head", *(stage["worker"] for stage in ring["stages"]), "head"]))
    assert all(0 <= part["busy"] <= 1 + 1e-9 for part in ring["stages"] + ring["links"])
    assert max(part["busy"] for part in ring["stages"] + ring["links"]) == pytest.approx(
        ring["microbatches"] * ring["bottleneck_s"] / ring["step_s"]
    )


def test_the_place_of_the_scheduler_is_searched_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    ring = json.loads(run(capsys, GOLDEN, "--objective", "latency", "--json")[1])["pipelines"][0]
    assert (ring["scheduler"], ring["scheduler_name"]) == ("stage0", "rented")
    assert [(link["from"], link["to"]) for link in ring["links"]] == [("rented", "rented")] * 2
    fixed = json.loads(run(capsys, GOLDEN, "--objective", "latency", "--scheduler", "head", "--json")[1])["pipelines"][0]
    assert (fixed["scheduler"], fixed["scheduler_name"]) == ("head", "head")
    assert ring["step_s"] < fixed["step_s"]
    assert ring["step_elsewhere_s"] >= fixed["step_s"]
    code, out, _ = run(capsys, GOLDEN, "--objective", "latency", "--explain")
    assert code == 0
    assert out.count("\nscheduler beside the first stage, on rented; with the head a step would take") == 2
    assert run(capsys, GOLDEN, "--scheduler", "moon")[2] == "bloombee: scheduler = 'moon': must be auto, head or stage0\n"


def test_a_scheduler_is_beside_no_stage_that_the_head_does_not_reach(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, saved(tmp_path, pairs="listed", links=[]))
    assert (code, out) == (1, "")
    assert "the workers' links allow no ring" in err


def test_who_is_left_out_is_said_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, GOLDEN, "--objective", "latency", "--scheduler", "head")
    assert code == 0
    assert "left as spares:\n  flat: with one layer on it a token would take" in out


def test_names_that_no_line_can_hold_are_escaped_in_tables_and_kept_in_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name, shown = "a\n\x1b[31m\u202eb", r"a\n\x1b[31m\u202eb"
    nodes = {"head": {}, name: {"up_bytes_per_s": 1e6, "worker": {"pace": "1,0,0/4"}}, "c": {"worker": {"pace": "1,0,0/4"}}}
    file = saved(tmp_path, nodes=nodes, links=[], model={"hidden": 512, "num_layers": 4}, space={"order": [name, "c"]})
    code, out, err = run(capsys, file, "--explain", "--what-if", "-c", "--what-if", f"{shown} speed=2x", "--what-if", f"-{name}")
    assert (code, err) == (0, "")
    assert out.count(shown) > 3
    assert all(line.isprintable() for line in out.splitlines())
    assert len(out.splitlines()) == out.count("\n")
    code, out, _ = run(capsys, file, "--json")
    plan = json.loads(out)
    assert {stage["worker"] for stage in plan["pipelines"][0]["stages"]} | set(plan["spares"]) == {name, "c"}
    code, out, err = run(capsys, file, "--what-if", f"{name}->c rtt=1s,-c,-c")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err[:-1].isprintable()


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": {"w": {"worker": {"pace": "1,0,0"}}}, "links": []},
        {"nodes": {"head": {}}, "links": []},
        {"nodes": {"head": {}, "w": {"worker": {"kinds": [{}, {}, {}]}}}, "links": []},
        {"model": "standin:many"},
        {"model": None},
    ],
)
def test_what_is_wrong_with_a_file_begins_with_its_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, changes: dict[str, Any]
) -> None:
    file = saved(tmp_path, **changes)
    code, out, err = run(capsys, file)
    assert (code, out) == (2, "")
    assert err.startswith(f"bloombee: {file}: ")


def test_options_stand_above_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sizes = {"hidden": 512, "num_layers": 4, "layer_bytes": 10**6, "kv_token_bytes": 10**6}
    workers = {name: {"worker": {"pace": "1,0,0/4", "memory_bytes": 10**9}} for name in ("a", "b")}
    apart = [{"from": a, "to": b, "reachable": False} for a, b in (("a", "b"), ("b", "a"))]
    file = saved(tmp_path, nodes={"head": {}, **workers}, links=apart, model=sizes, space={}, objective="throughput")
    two = json.loads(run(capsys, file, "--json", "--pipelines", "2")[1])
    one = json.loads(run(capsys, file, "--json")[1])
    assert [len(plan["pipelines"]) for plan in (one, two)] == [1, 2]
    long = json.loads(run(capsys, file, "--json", "--context", "100")[1])
    stages = long["pipelines"][0]["stages"]
    assert sum(stage["memory_bytes"] for stage in stages) > 4 * 100 * 10**6
    assert all(stage["memory_bytes"] <= 10**9 for stage in stages)


@pytest.mark.parametrize(
    ("changes", "words", "code", "says"),
    [
        ({"version": 3}, (), 2, "version = 3: must be 1"),
        ({"nodes": {"head": {"delay_s": -1}}}, (), 2, "nodes.head.delay_s = -1: must be a number >= 0"),
        ({"model": "standin:many"}, (), 2, "no stand-in 'standin:many'"),
        ({}, ("--objective", "fast"), 2, "target:SECONDS"),
        ({}, ("--time", "0"), 2, "time = 0: must be seconds > 0"),
        ({}, ("--pipelines", "0"), 2, "pipelines = 0"),
        ({}, ("--context", "1.5"), 2, "no whole number"),
        ({}, ("--objective", "target:0.001"), 1, "no plan takes 0.001 s or less"),
        ({"pairs": "listed"}, (), 1, "the workers' links allow no ring; worker 'flat'"),
        ({"nodes": {"head": {}, "w": {"worker": {"memory_bytes": 2**20}}}, "links": []}, (), 1, "60 layers and room for 0"),
    ],
)
def test_what_is_wrong_is_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...], code: int, says: str
) -> None:
    outcome, out, err = run(capsys, saved(tmp_path, **changes), *words)
    assert (outcome, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("bloombee: ")
    assert says in err


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(capsys, str(tmp_path / "none.json"))[0] == 2


# -- changes, explanations, pictures -----------------------------------------------------------


def test_what_would_come_of_changes_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    changes = ("-office", "-rented", "rented speed=2x,flat speed=2x", "*<->head rtt=1x")
    code, out, err = run(capsys, GOLDEN, *(word for change in changes for word in ("--what-if", change)))
    assert (code, err) == (0, "")
    table = out.split("\nwhat if ")[1].splitlines()
    rows = {line[:29].strip(): line[29:].split() for line in table[1:5]}
    assert list(rows) == ["as it is", "-office", "rented speed=2x,flat speed=2x", "*<->head rtt=1x"]
    assert rows["as it is"][:3] == ["251.3", "127", "ms"]
    assert rows["*<->head rtt=1x"][:5] == ["251.3", "1.00x", "127", "ms", "1.00x"]
    assert float(rows["rented speed=2x,flat speed=2x"][1][:-1]) > 1.2
    assert table[6].startswith("without a plan:")
    assert "  -rented: 60 layers and room for" in out


def test_the_documented_changes_come_out_as_documented(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "topology.md").read_text()
    words, documented = page.split("$ bloombee plan topology.json --what-if")[1].split("\n...\n")
    _, out, _ = run(capsys, GOLDEN, "--what-if", *shlex.split(words))
    assert documented.startswith("what if ")
    assert out.endswith(documented.split("```")[0])


def test_json_has_changes_and_what_would_help_besides(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, GOLDEN, "--json", "--explain", "--what-if=-rented", "--what-if", "rented speed=2x")
    plan = json.loads(out)
    assert (code, out.count("\n")) == (0, 1)
    without, faster = plan["what_if"]
    assert (without["what_if"], without["plan"]) == ("-rented", None)
    assert "fit nowhere" in without["error"]
    assert faster["plan"]["tokens_per_s"] > plan["tokens_per_s"]
    assert faster["error"] is None
    assert "rented speed=2x" in [one["what_if"] for one in plan["would_help"]]


def test_an_explanation_says_how_times_come_about_and_what_would_help_most_first(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, GOLDEN, "--explain", "--objective", "throughput")
    assert code == 0
    assert "step = max(M T, L) =" in out
    helps = re.findall(r"^  (.*): ([0-9.]+)x the tokens/s, [0-9.]+x the time per token$", out, re.MULTILINE)
    gains = [float(gain) for _, gain in helps]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 1.1
    assert "rented memory=2x" in dict(helps)


def test_of_a_stage_that_streams_it_is_said_how_many_layers_and_what_that_costs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    layer = {"fixed_s": 0.020, "decode_row_s": 0.0, "prefill_row_s": 0.0, "context_s": 0.0}
    model = {"hidden": 64, "num_layers": 8, "layer_bytes": 10**8, "streaming_bytes": 10**8}

    def said(rate: float) -> str:
        worker = {"layer": layer, "memory_bytes": 6 * 10**8, "stream_bytes_per_s": rate}
        nodes = {"head": {}, "a": {"beside": "head", "worker": worker}}
        file = tmp_path / "topology.json"
        space = {"streamed": [part / 8 for part in range(9)]}
        file.write_text(json.dumps({"version": 1, "nodes": nodes, "model": model, "space": space}))
        code, out, err = run(capsys, str(file), "--explain", "--objective", "latency")
        assert code == 0, err
        return next(line for line in out.splitlines() if line.startswith("a: "))

    assert said(3e9) == "a: 3 of 8 layers stream, 0.30 GB a pass; hidden: compute 160 ms >= copy 100 ms"
    assert said(1e9) == "a: 3 of 8 layers stream, 0.30 GB a pass; copy 300 ms > compute 160 ms: a pass waits 140 ms for the disk"


def test_where_nothing_helps_it_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sizes = {"hidden": 64, "num_layers": 1}
    file = saved(tmp_path, nodes={"head": {}, "w": {"worker": {"output": {}}}}, links=[], model=sizes, space={})
    assert "none of what it uses, twice as good by itself" in run(capsys, file, "--explain", "--objective", "latency")[1]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--what-if", "office faster"), 2, "must be -NAME"),
        (("--what-if", "-nobody"), 2, "no worker 'nobody'"),
        (("--picture", "plan.jpg"), 2, "must end in .png or .svg"),
        (("--picture", "/nowhere/plan.svg"), 2, "/nowhere/plan.svg: cannot write this file"),
    ],
)
def test_a_change_or_picture_that_cannot_be_is_a_sentence(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, says: str
) -> None:
    if "--picture" in words:
        pytest.importorskip("matplotlib")
    outcome, _, err = run(capsys, GOLDEN, *words)
    assert (outcome, err.count("\n")) == (code, 1)
    assert says in err


def test_without_matplotlib_it_is_said_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(capsys, GOLDEN, "--picture", "plan.svg") == (
        1,
        "",
        "bloombee: a picture needs matplotlib: pip install matplotlib\n",
    )


def test_a_picture_shows_everybody_and_is_the_same_each_time(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    first, second, raster = (tmp_path / name for name in ("a.svg", "b.svg", "c.png"))
    for file in (first, second, raster):
        assert run(capsys, GOLDEN, "--objective", "latency", "--picture", str(file))[0] == 0
    drawn = first.read_text()
    assert drawn == second.read_text()
    for label in ("head", "rented", "0-", "flat", "spare", "proven best"):
        assert f">{label}" in drawn or f"{label}<" in drawn
    assert raster.read_bytes().startswith(b"\x89PNG")


def test_names_are_drawn_as_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = ("$x_", "<b>&amp;", "a\x1b[2Jb", "y" * 250)
    workers = {name: {"worker": {"pace": "1,0,0/4", "memory_bytes": 10**8}} for name in names}
    sizes = {"hidden": 64, "num_layers": 4, "layer_bytes": 9 * 10**7}
    file, drawn = saved(tmp_path, nodes={"head": {}, **workers}, links=[], model=sizes, space={}), tmp_path / "names.svg"
    assert run(capsys, file, "--picture", str(drawn))[0] == 0
    root = xml.etree.ElementTree.fromstring(drawn.read_text())
    shown = {"".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"$x_", "<b>&amp;", r"a\x1b[2Jb", "y" * 12 + "\u2026" + "y" * 11} <= shown


def test_places_keep_who_is_near_near_and_nobody_on_top_of_another() -> None:
    near, far = Link(1e9, 0.001), Link(1e9, 0.1)
    sides = {HEAD: 0, 1: 0, 2: 1, 3: 1, 4: 1}
    links = {(a, b): near if sides[a] == sides[b] else far for a in sides for b in sides if a != b}
    topology = Topology({worker: Device(f"w{worker}", layer=RowTime(1e-3)) for worker in (1, 2, 3, 4)}, links)
    problem = Problem(topology, ModelShape(64, 8), Space(), Objective.parse("latency"))
    found = account(solve(topology, problem.model, problem.space, problem.objective), problem)
    where = places(found, topology)
    apart = {(a, b): math.dist(where[a], where[b]) for a in where for b in where if a < b}
    boxes = [_box(found, name, place) for name, place in where.items()]
    for one, other in itertools.combinations(boxes, 2):
        assert one[2] <= other[0] + 1e-3 or other[2] <= one[0] + 1e-3 or one[3] <= other[1] + 1e-3 or other[3] <= one[1] + 1e-3
    assert max(apart["w2", "w3"], apart["w3", "w4"], apart["head", "w1"]) < min(apart["head", "w2"], apart["w1", "w4"])
    alike = dataclasses.replace(topology, links=dict.fromkeys(links, near))
    circle = places(found, alike)
    assert len({round(math.dist(place, (0.5, 0.5)), 2) for place in circle.values()}) <= 3
