"""The parts alone: every probe that needs no second process gives sound rows; bad arguments are refused at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import micro
from bench.probes import row


def test_parts_give_rows_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "micro.json"
    parts = ["device", "pages", "cores", "text"]
    words = [word for part in parts for word in ("--only", part)]
    monkeypatch.setattr(sys, "argv", ["micro", *words, "--rounds", "10", "--json", str(file)])
    assert micro.main() == 0
    found = json.loads(file.read_text())
    assert {line["part"] for line in found["rows"]} == set(parts)
    assert all(0 < line["p10"] <= line["median"] <= line["p90"] for line in found["rows"])
    assert found["commit"]
    out = capsys.readouterr().out
    assert all(line["what"] in out for line in found["rows"])


def test_a_row_is_of_its_samples() -> None:
    got = row("x", "us", [float(n) for n in range(11)][::-1])
    assert (got.p10, got.median, got.p90) == (1.0, 5.0, 9.0)
    with pytest.raises(ValueError, match="no samples"):
        row("x", "us", [])
