"""What ``bloombee status`` shows of a swarm, and what it makes of a head that says something else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from reception_kit import TOLD, always, reception
from rich.console import Console

from bloombee.cli import main
from bloombee.errors import RemoteProtocolError, VersionMismatch
from bloombee.operating import MOST_REQUESTS, shown
from bloombee.roles.running_heads import running_heads
from bloombee.roles.speed import WINDOW_S, Speed
from bloombee.roles.status import VERSION, Figures, LinkStatus, PlanStatus, RequestStatus, SwarmStatus, WorkerStatus

SERVING = WorkerStatus(1, "near", "tcp://10.0.0.1:7701", "serving", 0, (0, 24), 8 * 10**9, 6 * 10**9, 0.0031, 0.04, "")
SPARE = WorkerStatus(2, "far\x1b[2J", "", "spare", None, None, 10**9, 0, None, 12.0, "its line is too slow")
SWARM = SwarmStatus(
    version=VERSION,
    process=4711,
    model="some/model",
    state="up",
    reason="",
    missing=0,
    plan=PlanStatus(3, "throughput", "head", Figures(4, 8, 81.26), Figures(4, 7, 77.7)),
    workers=(SERVING, SPARE),
    links=(LinkStatus("head", "near", 0.0123, 2.5e6, "on: it pays", 0.674), LinkStatus("near", "head", None, None, "", None)),
    requests=(RequestStatus(9, "[bold]", "decode", 5, 12, 128, 11.5, 1.25), RequestStatus(8, "", "waiting", 7, 0, 1, None, 3.0)),
)


def text(swarm: SwarmStatus) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(shown(swarm))
    return captured.get()


def lines_of(swarm: SwarmStatus) -> list[str]:
    """Words apart by one space."""
    return [" ".join(found.split()) for found in text(swarm).splitlines()]


def test_everything_is_shown_and_nothing_that_a_worker_says_moves_the_cursor() -> None:
    lines = lines_of(SWARM)
    for wanted in (
        "head 4711 serves some/model: up",
        "plan 3, planned for throughput; scheduler with head",
        "runs with M = 4 microbatches of b = 7 sequences: 77.7 tokens/s",
        "predicted M = 4 microbatches of b = 8 sequences: 81.3 tokens/s",
        "near 1 serving 0 0-23 8.00 GB 6.00 GB 3.1 ms 0.0 s tcp://10.0.0.1:7701",
        "far\ufffd[2J 2 spare 1.00 GB 12.0 s its line is too slow",
        "head near 12.3 ms 2.50 0.67 on: it pays",
        "near head",
        "9 [bold] decode 5 12 128 11.5 1.2 s",
        "8 waiting 7 0 1 3.0 s",
    ):
        assert wanted in lines
    assert "\x1b" not in text(SWARM)


def test_of_many_requests_the_oldest_are_shown() -> None:
    request = SWARM.requests[0]
    many = tuple(msgspec.structs.replace(request, id=100 + number, age_s=float(number)) for number in range(MOST_REQUESTS + 3))
    lines = lines_of(msgspec.structs.replace(SWARM, requests=many))
    assert "and 3 more requests (--json has them all)" in lines
    shown_numbers = [line.split()[0] for line in lines if "[bold]" in line]
    assert shown_numbers == [str(number) for number in range(122, 102, -1)]


def test_a_swarm_that_is_not_up_says_what_it_waits_for() -> None:
    waits = msgspec.structs.replace(SWARM, state="waiting", missing=2, plan=None, links=(), requests=())
    assert text(waits).splitlines()[0].strip() == "head 4711 serves some/model: waiting for 2 workers"
    assert "0 requests" in text(waits)
    down = msgspec.structs.replace(SWARM, state="down", reason="worker 'x' is gone")
    assert "down (worker 'x' is gone)" in text(down)


def test_a_head_of_another_version_or_that_says_nonsense_is_told_apart(tmp_path: Path) -> None:
    told: Mapping[str, Any] = {**TOLD, "swarm": always({**msgspec.to_builtins(SWARM), "version": VERSION + 1})}
    with reception([tmp_path], told):
        (head,) = running_heads([tmp_path])
        with pytest.raises(VersionMismatch, match="version 2; this program reads 1"):
            head.swarm()
    for nonsense, error in (({"version": VERSION}, RemoteProtocolError), (7, VersionMismatch)):
        with reception([tmp_path], {**TOLD, "swarm": always(nonsense)}):
            (head,) = running_heads([tmp_path])
            with pytest.raises(error):
                head.swarm()


def test_fields_of_a_newer_program_are_no_hindrance(tmp_path: Path) -> None:
    with reception([tmp_path], {**TOLD, "swarm": always({**msgspec.to_builtins(SWARM), "weather": "fair"})}):
        (head,) = running_heads([tmp_path])
        assert head.swarm() == SWARM


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user's heads answer, and none does yet."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "bloombee"


@pytest.mark.parametrize("command", ["status", "token"])
def test_without_a_head_it_is_said_how_to_start_one(command: str, session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command]) == 2
    assert "no head answers; none of this user runs here: start one (bloombee head)" in capsys.readouterr().err
    with reception([session]):
        assert main([command, "--head", "1x"]) == 2
    assert "no head '1x' answers; there are" in capsys.readouterr().err


def test_the_json_is_one_line_with_a_version(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with reception([session], {**TOLD, "swarm": always(SWARM)}):
        assert main(["status", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out)["version"] == VERSION
    assert msgspec.json.decode(out, type=SwarmStatus) == SWARM
    assert out.count("\n") == 1


def test_a_speed_is_of_the_last_seconds_and_of_no_pause_before_them() -> None:
    speed = Speed()
    assert speed.tokens_per_s(0.0) is None
    for at in range(5):
        speed.add(10 * at, float(at))
        speed.add(10 * at, float(at))
    assert speed.tokens_per_s(4.5) == 10.0
    assert speed.tokens_per_s(4.0 + WINDOW_S + 1) is None
    for at in (100, 101, 102):
        speed.add(40 + 3 * (at - 99), float(at))
    assert speed.tokens_per_s(102.0) == 3.0
    speed.add(1, 103.0)
    assert speed.tokens_per_s(103.0) is None
    speed.add(1, 104.0 + WINDOW_S)
    assert speed.tokens_per_s(104.0 + WINDOW_S) is None, "all was long ago, and nothing has come since"
