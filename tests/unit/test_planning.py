"""``bloombee plan``: what it prints of a file, and that what is wrong with one is a sentence."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from bloombee.cli import main

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


def test_who_is_left_out_is_said_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, GOLDEN, "--objective", "latency")
    assert code == 0
    assert "left as spares:\n  flat: with one layer on it a step would take" in out


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
