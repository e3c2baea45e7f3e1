"""A model measured with the engine that serves it, and what was found kept on disk."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bloombee
from bloombee import config
from bloombee.engine import profile as profiling
from bloombee.engine.checkpoint import resolve
from bloombee.types import Phase


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bloombee" / "profiles"


def test_a_profile_is_measured_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = profiling.profile("demo", dtype="float32")
    assert found.model_digest == resolve("demo").config_digest.hex()
    assert {(p.phase, p.layers) for p in found.points if not p.picks} == {
        (phase, layers) for phase in (Phase.DECODE, Phase.PREFILL) for layers in (1, 3)
    }
    assert found.layer_bytes == 2 * profiling.profile("demo", dtype="bfloat16").layer_bytes
    assert found.fit.layer.fixed_s + found.fit.stage.fixed_s + found.fit.layer.decode_row_s > 0
    monkeypatch.setattr(profiling, "measure", lambda *_, **__: pytest.fail("measured again"))
    assert profiling.profile("demo", dtype="float32").points == found.points
    (cache / sorted(os.listdir(cache))[0]).write_text("broken")
    (cache / sorted(os.listdir(cache))[1]).write_text("broken")
    with pytest.raises(pytest.fail.Exception):
        profiling.profile("demo", dtype="float32")


def test_caches_go_where_the_system_keeps_them(tmp_path: Path) -> None:
    assert config.cache_dir({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "bloombee"
    assert config.cache_dir({"XDG_CACHE_HOME": "relative"}) == config.cache_dir({}) == Path.home() / ".cache" / "bloombee"


def test_a_runtime_knows_its_machine_if_asked(cache: Path) -> None:
    async def start() -> bloombee.Runtime:
        async with bloombee.Runtime("demo", workers=2, threads=1, profile=True) as runtime:
            await runtime.generate("x", max_new_tokens=2)
            assert runtime.profile is not None
            assert runtime.profile.threads == 1
            assert runtime.profile.dtype == runtime.plan.dtype
            return runtime

    asyncio.run(start())
    assert len(os.listdir(cache)) == 1


def test_doctor_prints_points_and_fit(cache: Path) -> None:
    command = [sys.executable, "-m", "bloombee", "doctor", "--profile", "demo", "--threads", "1"]
    table = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "errors of the fit" in table
    assert table.count("decode ") >= 10
    text = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120, check=True).stdout
    assert json.loads(text)["threads"] == 1
    assert len(os.listdir(cache)) == 1
