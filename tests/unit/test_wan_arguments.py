"""What tools/wan.py says to arguments that cannot be, and to a counters file that cannot be written."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from tools import wan

LINK = ["--link", "0=:1"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--link", "0=:" + "9" * 5000], "port from 0 to 65535"),
        (["--link", "٣=:1"], "port from 0 to 65535"),
        (["--link", "0=" + "x" * 300 + ":1"], "not a host name"),
        (["--link", "1" * 5000], "must be [HOST:]PORT=[HOST:]PORT"),
        ([*LINK, "--stats", "1e300"], "must be seconds from 0.01 to 86400"),
        ([*LINK, "--stats", "nan"], "must be seconds"),
        ([*LINK, "--stats", "-1"], "must be seconds"),
        ([*LINK, "--stats", "soon"], "must be seconds"),
        ([*LINK, "--hidden", "9" * 400], "must be a whole number"),
        ([*LINK, "--profile", "٣M-60ms"], "not a bandwidth"),
        ([*LINK, "--json", ""], "a file's path is needed"),
        ([*LINK, "--json", "/proc/x/y"], "cannot write '/proc/x/y'"),
        ([*LINK, "--json", "/"], "a file's path is needed"),
        ([*LINK, "--frobnicate"], "unrecognized arguments"),
        ([], "give at least one --link, or --network"),
        ([*LINK, "--network", "network.json"], "give at least one --link, or --network"),
        (["--network", "/no/such/file.json"], "/no/such/file.json: cannot read this file"),
        (["--network", "/dev/null"], "/dev/null: not a JSON file"),
        (["--network", "network.json", "--node", "w0"], "--node 'w0': must be NAME=PORT"),
        (["--network", "network.json", "--node", "w0=0"], "must be NAME=PORT with a port from 1"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wan.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("wan: ")
    assert says in err
    assert err.count("\n") == 1
    assert len(err) < 300


class Counters:
    """A :class:`wan.Wan` that relays nothing."""

    def __init__(self, links: list[wan.Link]) -> None:
        self.links = links

    def __enter__(self) -> Counters:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def address(self, name: str) -> str:
        return name

    def stats(self) -> dict[str, wan.LinkStats]:
        return {}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serving ends as soon as it begins."""
    stopped = threading.Event()
    stopped.set()
    monkeypatch.setattr(wan, "Wan", Counters)
    monkeypatch.setattr("tools.wan.signal.signal", lambda *_: None)
    monkeypatch.setattr("tools.wan.threading.Event", lambda: stopped)


@pytest.mark.usefixtures("served")
def test_counters_are_written_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "counters.json"
    assert wan.main([*LINK, "--json", str(file)]) == 0
    assert json.loads(file.read_text()) == {}


@pytest.mark.usefixtures("served")
def test_counters_that_cannot_be_written_at_the_end_are_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert wan.main([*LINK, "--json", "/dev/full"]) == 1
    assert capsys.readouterr().err == "wan: the counters could not be written to /dev/full: No space left on device\n"
