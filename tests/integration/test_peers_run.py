"""Peers measured for real; BENCH_PEER_LLAMA_CPP and BENCH_PEER_PETALS name the environments of those that need one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from bench.pipeline import main

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the emulator is built on epoll")


def _rows(file: Path, *more: str) -> list[dict[str, object]]:
    arguments = ["--models", "llama:128x3", "--dtype", "float32", "--profiles", "200M-4ms", "--batches", "1,3", "--workers", "2"]
    arguments += ["--techniques", "plain", "--tokens", "6", "--prompt-tokens", "16", "--repeats", "1", "--peers"]
    assert main([*arguments, "--json", str(file), "--plots", str(file.parent / "plots"), *more]) == 0
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_transformers_stands_beside_us_with_the_same_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _rows(tmp_path / "out.jsonl")
    assert [(line["technique"], line["batch"]) for line in lines] == [
        ("plain", 1), ("transformers", 1), ("plain", 3), ("transformers", 3),
    ]  # fmt: skip
    assert all(line["exact"] for line in lines)
    assert lines[0].keys() <= lines[1].keys()
    assert lines[1]["loop_floor_s"] is None
    assert "transformers 5" in str(lines[1]["peer_version"])
    assert "rows of petals and llama.cpp need --peer-env" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "technique"), [("llama.cpp", "llama.cpp-rpc"), ("petals", "petals")])
def test_a_peer_from_its_own_environment_gives_the_reference_tokens(name: str, technique: str, tmp_path: Path) -> None:
    variable = f"BENCH_PEER_{name.replace('.', '_').upper()}"
    if variable not in os.environ:
        pytest.skip(f"{variable} names no environment (bench/peers/README.md)")
    lines = _rows(tmp_path / "out.jsonl", "--peer-env", f"{name}={os.environ[variable]}")
    mine = [line for line in lines if line["technique"] == technique]
    assert [line["batch"] for line in mine] == [1, 3]
    for line in mine:
        assert line["exact"]
        assert isinstance(line["bytes_per_token"], list)
        assert line["bytes_per_token"][1] > 128 * 4  # a row of activations crosses the second machine's relay
