"""The benchmark with real processes: a paced stand-in through relays, interrupted and gone on with; the reference process."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import bench.runner
from bench.exact import Reference
from bench.load import Run, measure, warm_up
from bench.pipeline import main
from bench.profiles import load_profile
from bench.ring import Ring, RingSpec
from bench.texts import prompts
from bloombee.models.standin import standin_token
from bloombee.types import Dtype, Span

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the emulator is built on epoll")


def test_a_paced_standin_through_relays_gives_every_token_in_its_place() -> None:
    async def run() -> None:
        profile = load_profile("200M-4ms")
        async with Ring(RingSpec("standin:512x7", "auto", 3, 2, "off", "1,0.01,0.001", 4096, profile)) as ring:
            assert [stage.span for stage in ring.runtime.plan.stages] == [Span(0, 3), Span(3, 5), Span(5, 7)]
            assert [stage.name for stage in ring.runtime.plan.stages] == ["local-0", "local-1", "local-2"]
            await warm_up(ring)
            texts = prompts(5, 40, None)
            before = await ring.link_bytes()
            measured = await measure(ring, texts, 8)
            sent = [late - early for early, late in zip(before, await ring.link_bytes(), strict=True)]
            for seed, (prompt, tokens) in enumerate(zip(texts, measured.tokens, strict=True)):
                assert len(tokens) >= 9
                assert list(tokens) == [standin_token(seed, len(prompt) + index) for index in range(len(tokens))]
            rows = sum(2 * len(prompt) for prompt in texts)  # of both prefills; decoded rows come on top
            assert min(sent[:2]) > rows * 512 * 2
            assert 0 < sent[2] < rows * 512
            assert min(measured.computes_s) >= 0.001
            assert len(measured.gaps_s) > 20
            ring.shape(load_profile("lan"))
            assert (await ring.runtime.generate([1, 2], max_new_tokens=3, seed=7)).token_ids == tuple(
                standin_token(7, position) for position in (2, 3, 4)
            )

    asyncio.run(run())


def test_the_front_door_measures_judges_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, plots = tmp_path / "out.jsonl", tmp_path / "plots"
    arguments = ["--models", "standin:256x2", "--pace", "1,0,0", "--profiles", "400M-2ms", "--batches", "1,3", "--workers", "2"]
    arguments += ["--tokens", "6", "--prompt-tokens", "16", "--simulate", "--json", str(file), "--plots", str(plots)]
    calls = 0

    async def interrupted(ring: Ring, texts: list[list[int]], tokens: int, **how: Any) -> Run:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return await measure(ring, texts, tokens, **how)

    monkeypatch.setattr(bench.runner, "measure", interrupted)
    assert main([*arguments, "--repeats", "1"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["technique"], line["batch"]) for line in kept] == [("plain", 1), ("all", 1)]
    assert main([*arguments, "--repeats", "1"]) == 0
    assert calls == 5
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["technique"], line["batch"]) for line in lines] == [("plain", 1), ("all", 1), ("plain", 3), ("all", 3)]
    assert all(line["exact"] and line["standin"] and line["flips"] == 0 for line in lines)
    assert all(line["floor_delay_s"] == pytest.approx(0.002) for line in lines)
    assert all(line["simulated_tokens_per_s"] > 0 and line["commit"] and line["machine"] for line in lines)
    assert sorted(path.name for path in plots.iterdir()) == ["parts.png", "predicted.png", "speed.png"]
    out = capsys.readouterr().out
    assert "standin 256x2" in out
    assert "2 runs are of an earlier start" in out
    assert not file.with_name("out.jsonl.part").exists()


def test_one_process_finds_the_wrong_token_and_judges_it_by_the_logits() -> None:
    prompt = prompts(2, 12, None)
    with Reference("llama:64x2", Dtype.FLOAT32) as reference:
        first = reference.judge(prompt, [[0], [0]])
        assert not first.exact
        assert first.flips == 2
