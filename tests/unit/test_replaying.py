"""``bloombee plan --replay``: a log whose decisions come out again, and one that was changed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from bloombee.cli import main
from bloombee.control.events import Decision
from bloombee.control.log import from_line, replay
from bloombee.roles.decision_file import DecisionFile
from tests.drift_kit import drifting, topology
from tests.sim_kit import log_lines

DROP_AT = 2.0


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    """Of a run in which a link becomes slow, and another plan is taken over."""
    cluster = drifting(topology(), "throughput")
    assert cluster.plan is not None
    cluster.narrow(*[stage.worker for stage in cluster.plan.stages[:2]], 0.1, at=DROP_AT)
    cluster.run_for(DROP_AT + 6.0)
    return log_lines(cluster)


def run(capsys: pytest.CaptureFixture[str], path: Path, lines: list[bytes], *words: str) -> tuple[int, str]:
    path.write_bytes(b"".join(lines))
    code = main(["plan", "--replay", str(path), *words])
    said = capsys.readouterr()
    assert not said.err
    return code, said.out


def test_every_decision_is_made_again(capsys: pytest.CaptureFixture[str], tmp_path: Path, lines: list[bytes]) -> None:
    decisions = [record for record in map(from_line, lines) if isinstance(record, Decision)]
    events, path = len(lines) - len(decisions), tmp_path / "log"
    code, out = run(capsys, path, lines)
    assert (code, out) == (0, f"{events} events: {len(decisions)} decisions, the same byte for byte\n")
    code, out = run(capsys, path, lines, "--explain")
    assert (code, out.count("\n")) == (0, len(decisions) + 1)
    assert "epoch 1, replan: layers of w" in out
    code, out = run(capsys, path, lines, "--json")
    assert (code, json.loads(out)) == (0, {"events": events, "decisions": len(decisions), "is_same": True, "is_cut": False})


def test_any_changed_byte_of_a_decision_is_found_at_its_line(lines: list[bytes]) -> None:
    (at,) = [number for number, line in enumerate(lines) if b'"what":"replan"' in line]
    for position in range(0, len(lines[at]), 7):
        line = bytearray(lines[at])
        line[position] ^= 1
        found = replay(io.BytesIO(b"".join([*lines[:at], bytes(line), *lines[at + 1 :]])))
        assert found.difference is not None
        assert found.difference.line == at + 1


def test_what_an_event_said_is_found_where_it_decides_something_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, lines: list[bytes]
) -> None:
    """Here the comparison that was one too many: without what it said nothing would have been changed."""
    (at,) = [number for number, line in enumerate(lines) if b'"what":"replan"' in line]
    event = json.loads(lines[at - 1])
    assert event["type"] == "PlansCompared"
    event["other_worth"] = event["running_worth"]
    calm = json.dumps(event, separators=(",", ":")).encode() + b"\n"
    code, out = run(capsys, tmp_path / "log", [*lines[: at - 1], calm, *lines[at:]])
    assert code == 1
    assert f"line {at + 1}: what is written there is not what is decided again" in out
    assert "now:     no decision" in out
    code, out = run(capsys, tmp_path / "log", [*lines[: at - 1], calm, *lines[at:]], "--json")
    assert (code, json.loads(out)["difference"]["line"]) == (1, at + 1)


def test_a_decision_that_is_missing_is_found_and_an_end_that_is_cut_off_is_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, lines: list[bytes]
) -> None:
    (at,) = [number for number, line in enumerate(lines) if b'"what":"replan"' in line]
    found = replay([*lines[:at], *lines[at + 1 :]])
    assert found.difference is not None
    assert (found.difference.line, found.difference.made.encode() + b"\n") == (at + 1, lines[at])
    for cut in ([*lines[:at]], [*lines[:at], lines[at][:-9]]):
        code, out = run(capsys, tmp_path / "log", cut)
        assert code == 0
        assert out.endswith("; the log is cut off at its end\n")


@pytest.mark.parametrize("said", [b"\xff\n", b"[]\n", b"[" * 100_000 + b"\n", b"x" * (1 << 21), b'{"type":"Looked"}\n'])
def test_what_is_no_log_is_said_at_its_line(
    said: bytes, capsys: pytest.CaptureFixture[str], tmp_path: Path, lines: list[bytes]
) -> None:
    code, out = run(capsys, tmp_path / "log", [lines[0], said])
    assert code == 1
    assert "line 2" in out
    assert len(out) < 10_000


@pytest.mark.parametrize("said", [b"", b"{}"])
def test_a_file_without_an_event_is_bad_input(said: bytes, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(said)
    assert main(["plan", "--replay", str(path)]) == 2
    assert "no decision log" in capsys.readouterr().err
    assert main(["plan", "--replay", str(tmp_path / "none")]) == 2
    assert "cannot read this file" in capsys.readouterr().err
    assert main(["plan", "--replay", str(path), "--objective", "latency"]) == 2
    assert "only --explain and --json go with it" in capsys.readouterr().err


def test_a_log_that_is_as_large_as_it_may_be_ends_with_a_whole_line(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "log"
    file = DecisionFile(str(path), most_bytes=2000)
    for line in lines:
        file.write(from_line(line))
    file.close()
    written = path.read_bytes()
    assert 1000 < len(written) <= 2000
    assert b"".join(lines).startswith(written)
    assert replay(written.splitlines(keepends=True)).difference is None
