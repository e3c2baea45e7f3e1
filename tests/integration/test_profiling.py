"""A model measured with the engine that serves it, and what was found kept on disk."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest

import bloombee
from bloombee import config
from bloombee.config import WorkerConfig
from bloombee.engine.checkpoint import resolve
from bloombee.engine.model import SpanModel
from bloombee.engine.profiling import full as profiling
from bloombee.engine.profiling import idle
from bloombee.engine.profiling.idle import idle_profile
from bloombee.engine.profiling.kept import device_name
from bloombee.errors import ConfigError, RuntimeClosed
from bloombee.models.rules import LogitsRules, Watermark
from bloombee.pipeline.swarm import rules_message
from bloombee.plan.profile import Hardware, Profile
from bloombee.roles.worker import WorkerRole
from bloombee.types import Dtype, Lane, PageGroup, Phase, Span
from bloombee.wire.messages import Profile as Question


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
    for path in cache.glob("*.json"):
        path.write_text("broken")
    with pytest.raises(pytest.fail.Exception):
        profiling.profile("demo", dtype="float32")


def test_a_cuda_device_is_named_by_torch_and_refused_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"the one at {device}")
    assert device_name("cuda:1") == "the one at cuda:1"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        profiling.profile("demo", device="cuda:1")


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
    assert len(list(cache.glob("*.json"))) == 1


def test_workers_tell_the_head_how_fast_they_are(cache: Path) -> None:
    """Measured once they have been idle, then from the cache; what they answer stays the same."""
    answers = []

    async def profiles() -> dict[int, Profile]:
        async with bloombee.Runtime("demo", workers=2, dtype="float32", threads=1) as runtime:
            async with asyncio.timeout(60):
                answers.append((await runtime.generate("def f", max_new_tokens=20)).token_ids)
                while len(runtime.profiles) < 2:
                    assert len(set(await runtime.pages_free())) == 1
                    await asyncio.sleep(0.02)
                answers.append((await runtime.generate("def f", max_new_tokens=20)).token_ids)
            assert [device.layer for device in runtime.topology.devices.values()] == [
                runtime.profiles[worker].fit.layer for worker in runtime.topology.devices
            ]
            assert set(runtime.topology.links) == set(runtime.plan.hops)
            return runtime.profiles

    first = asyncio.run(profiles())
    digest = resolve("demo").config_digest.hex()
    assert {found.model_digest for found in first.values()} == {digest}
    assert all(found.fit.stage.decode_s(1) + 2 * found.fit.layer.decode_s(1, 16) > 0 for found in first.values())
    assert {found.layer_bytes for found in first.values()} == {profiling.profile("demo", dtype="float32", threads=1).layer_bytes}
    assert len(list(cache.glob("*.json"))) == 3  # of a stage in between, of the last, and the one just measured
    again = asyncio.run(profiles())
    assert {found.fit for found in again.values()} == {profiling.profile("demo", dtype="float32", threads=1).fit}
    assert all(answer == answers[0] for answer in answers)


def test_a_remote_worker_tells_it_too(cache: Path) -> None:
    async def use() -> None:
        runtime = bloombee.Runtime("demo", remote_workers=1, split=(8,), dtype="float32")
        await runtime.prepare()
        worker = WorkerRole(WorkerConfig(join=runtime.join_token, pace="2,1,1"))
        serving = asyncio.ensure_future(worker.serve())
        try:
            async with asyncio.timeout(60):
                await runtime.ready()
                while not runtime.profiles:
                    assert len(await runtime.pages_free()) == 1
                    await asyncio.sleep(0.02)
            (found,) = runtime.profiles.values()
            whole = (found.fit.stage.decode_s(2), 4 * found.fit.layer.decode_s(2), found.output.decode_s(2))
            assert sum(whole) == pytest.approx(0.004)
        finally:
            await runtime.close()
            await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(use())


def test_a_worker_is_asked_before_there_is_a_plan(cache: Path) -> None:
    """One of two has joined; the other is still awaited."""

    async def use() -> None:
        runtime = bloombee.Runtime("demo", remote_workers=2, split=(4, 4), dtype="float32")
        await runtime.prepare()
        worker = WorkerRole(WorkerConfig(join=runtime.join_token, threads=1, memory_bytes=10**9))
        serving = asyncio.ensure_future(worker.serve())
        question = Question("demo", bytes.fromhex(runtime.card.config_digest), "float32")

        async def ask() -> None:
            runtime._head.members.send(1, Lane.CONTROL, question)

        try:
            async with asyncio.timeout(60):
                while worker._stages is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                await runtime._there(ask())
                while not runtime.profiles:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            (found,) = runtime.profiles.values()
            assert found.hardware.memory_bytes == 10**9
            assert found.hardware.cores > 0
            assert found.fit.layer.prefill_s(32) > 0
            with pytest.raises(RuntimeClosed, match="not up yet"):
                _ = runtime.plan
        finally:
            await runtime.close()
            await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(use())


def test_a_span_is_measured_pass_by_pass_and_left_as_it_was(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("TOTAL_S", "LONG_S"):
        monkeypatch.setattr(idle, bound, float("inf"))  # a busy machine leaves passes out
    model = SpanModel.load(resolve("demo"), Span(1, 4), dtype=Dtype.FLOAT32, groups=[PageGroup(0, 64)], page_size=16)
    *steps, found = idle_profile(model, "digest", "cpu")
    assert found is not None
    assert set(steps) == {None}
    assert {(point.layers, point.phase) for point in found.points if not point.picks} == {
        (layers, phase) for layers in (1, 3) for phase in Phase
    }
    assert all(not held[:, :400].any() for layer in range(1, 4) for held in model.kv.rows(layer))
    assert len(steps) > len(found.points)
    assert list(idle_profile(model, "digest", "cpu")) == [dataclasses.replace(found, hardware=Hardware(memory_bytes=ANY))]
    small = SpanModel.load(resolve("demo"), Span(0, 1), dtype=Dtype.FLOAT32, groups=[PageGroup(0, 1)], page_size=8)
    assert list(idle_profile(small, "another", "cpu")) == [None]


def test_a_last_stage_is_measured_with_the_rules_of_its_checkpoint() -> None:
    """They are part of what a token costs there; those that look back find the tokens that a pass pretends to have."""
    rules = LogitsRules(no_repeat_ngram_size=3, bad_words_ids=((1, 1),), watermark=Watermark(0.25, 2.0, 15485863, False, 2))
    model = SpanModel.load(
        resolve("demo"), Span(7, 8), dtype=Dtype.FLOAT32, groups=[PageGroup(0, 64)], page_size=16, rules=rules_message(rules)
    )
    assert idle._pass_s(model, 1, Phase.DECODE, rows=3, context=5, picks=3) > 0


def test_doctor_prints_points_and_fit(cache: Path) -> None:
    command = [sys.executable, "-m", "bloombee", "doctor", "--profile", "demo", "--threads", "1"]
    table = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "errors of the fit" in table
    assert table.count("decode ") >= 10
    text = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120, check=True).stdout
    assert json.loads(text)["threads"] == 1
    assert len(list(cache.glob("*.json"))) == 1
