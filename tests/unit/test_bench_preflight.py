"""A pipeline benchmark that cannot work says so before it starts; one whose row fails keeps the others."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import pipeline, runner
from bench.arguments import OptionError
from bench.cells import Cell, RunLog
from bench.load import RunError, most_tokens
from bench.options import parse
from bench.preflight import SETTLE_TOKENS, Ground, kv_tokens, tokens_each
from bench.profiles import load_profile
from bench.runner import ModelRunner
from bench.summary import Subject
from bloombee.errors import LinkDown
from bloombee.models.standin import standin_card
from bloombee.pace import parse_pace
from bloombee.types import Dtype

MODEL = "standin:llama-30b"
PACED = ["--models", MODEL, "--pace", "13,0.05,0.5", "--profiles", "20M-100ms", "--techniques", "plain,all", "--repeats", "2"]
GROUND = Ground(standin_card(MODEL), "auto", workers=3, prompt_tokens=64, tokens=32, pace=parse_pace("13,0.05,0.5"), rings=2)


# -- before anything starts --------------------------------------------------------------------


def refuse_to_start(*_: object, **__: object) -> None:
    raise AssertionError("a swarm was started")


def test_a_row_that_cannot_work_is_refused_with_what_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "Ring", refuse_to_start)
    arguments = [*PACED, "--json", str(tmp_path / "out.jsonl")]
    assert pipeline.main([*arguments, "--batches", "32,256"]) == 2
    said = capsys.readouterr().err
    assert "B = 256: to decode together for 32 tokens each sequence must be able to generate" in said
    best = int(said.rsplit("--batches up to ", 1)[1].split()[0])
    assert len(pipeline._prepare(parse([*arguments, "--batches", f"32,{best}"]))) == 1
    with pytest.raises(OptionError):
        pipeline._prepare(parse([*arguments, "--batches", str(best + 1)]))


def test_every_models_rows_and_files_are_looked_at_before_the_first_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "Ring", refuse_to_start)
    second = ["--models", f"standin:1024x12,{MODEL}", "--json", str(tmp_path / "out.jsonl"), "--pace", "13,0.05,0.5"]
    assert pipeline.main([*second, "--batches", "512"]) == 2
    assert f"{MODEL}, 500M-10ms, B = 512" in capsys.readouterr().err
    (tmp_path / "out-standin-llama-30b.jsonl").mkdir()
    assert pipeline.main(second) == 2
    assert "cannot write" in capsys.readouterr().err


def test_too_few_positions_are_refused() -> None:
    short = replace(GROUND, card=replace(GROUND.card, max_positions=400))
    with pytest.raises(OptionError, match="and the model has 400 positions; fewer --tokens"):
        tokens_each(short, load_profile("lan"), 1)


@pytest.mark.parametrize("batch", [1, 32, 128])
@pytest.mark.parametrize("profile", ["20M-100ms", "125M-60ms", "lan"])
def test_the_first_sequence_lasts_until_the_last_has_begun_and_all_fit_the_memory(batch: int, profile: str) -> None:
    links = load_profile(profile)
    limit = tokens_each(GROUND, links, batch)
    assert limit >= max(most_tokens(32, links), GROUND.head_start(links, batch) + SETTLE_TOKENS + 32)
    assert kv_tokens(GROUND, batch, limit) <= GROUND.kv_tokens_that_fit


def test_more_prompts_behind_slower_links_give_a_longer_head_start() -> None:
    slow, fast = load_profile("20M-100ms"), load_profile("500M-10ms")
    starts = [GROUND.head_start(slow, batch) for batch in (1, 8, 32, 128)]
    assert starts == sorted(starts)
    assert GROUND.head_start(slow, 128) > most_tokens(32) - SETTLE_TOKENS - 32  # what is set aside without looking is too little
    assert GROUND.head_start(fast, 128) < GROUND.head_start(slow, 128)
    assert replace(GROUND, prompt_tokens=16).head_start(slow, 128) < GROUND.head_start(slow, 128) / 3


# -- while it runs -----------------------------------------------------------------------------


class Failing(ModelRunner):
    """Its rings are none; the runs of ``failing`` cells fail."""

    failing: dict[Cell, Exception]

    @contextlib.asynccontextmanager
    async def _rings(self, cells: Any) -> AsyncIterator[dict[Any, Any]]:
        self.subject = Subject(MODEL, "bfloat16", 3, (20, 20, 20), 6656, 13312, "13,0.05,0.5", (GROUND.pace,) * 3, 64, 32)  # type: ignore[arg-type]
        runtime = SimpleNamespace(plan=SimpleNamespace(dtype=Dtype.BFLOAT16))
        keys = [self._key(cell) for cell in cells]
        self._subjects = dict.fromkeys(keys, self.subject)
        yield dict.fromkeys(keys, SimpleNamespace(runtime=runtime))

    async def _run_cell(self, cell: Cell, ring: Any, batch: int) -> dict[str, Any]:
        if cell in self.failing:
            raise self.failing[cell]
        return {
            "prefill_tokens_per_s": 100.0, "time_to_first_token_s": 0.2, "decode_tokens_per_s": 10.0, "gaps_s": [0.1] * 4,
            "computes_s": [0.013] * 3, "microbatch_rows": 1.0, "codec_ratios": [1.0, 1.0], "link_bytes_per_token": [600.0] * 3,
            "cpu_share": 0.2, "others_cpu_share": 0.0, "cpu_s_per_token": 0.01, "exact": True, "flips": 0,
        }  # fmt: skip


@pytest.mark.parametrize("error", [RunError("did not decode together"), LinkDown("a worker is gone"), OSError(28, "disk full")])
def test_a_row_that_fails_is_reported_and_the_others_are_kept(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "ModelRunner", Failing)
    bad = Cell("20M-100ms", "plain", 32)
    monkeypatch.setattr(Failing, "failing", {bad: error}, raising=False)
    file = tmp_path / "out.jsonl"
    asked = [*PACED, "--batches", "1,32", "--json", str(file)]
    assert pipeline.main(asked) == 1
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["technique"], line["batch"], line.get("failed")) for line in lines] == [
        ("plain", 1, None), ("all", 1, None), ("plain", 32, str(error)), ("all", 32, None),
    ]  # fmt: skip
    out = capsys.readouterr()
    assert f"pipeline: {MODEL} 20M-100ms plain B=32 failed: {error}" in out.err
    assert "20M-100ms" in out.out
    monkeypatch.setattr(Failing, "failing", {})
    assert pipeline.main(asked) == 0  # the same command runs what has failed, and that alone
    assert "6 runs are of an earlier start" in capsys.readouterr().out
    assert not [line for line in file.read_text().splitlines() if "failed" in json.loads(line)]


def test_rows_are_in_the_file_when_something_unforeseen_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "ModelRunner", Failing)
    monkeypatch.setattr(Failing, "failing", {Cell("20M-100ms", "all", 32): KeyboardInterrupt()}, raising=False)
    file = tmp_path / "out.jsonl"
    assert pipeline.main([*PACED, "--repeats", "1", "--batches", "1,32", "--json", str(file)]) == 130
    assert [json.loads(line)["batch"] for line in file.read_text().splitlines()] == [1, 1, 32]


def test_devices_whose_pace_is_given_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "Ring", refuse_to_start)
    for paced in (PACED, ["--models", MODEL]):
        found = ModelRunner(standin_card(MODEL), parse(paced), RunLog(tmp_path / "out.jsonl", {}), {})
        assert asyncio.run(found._measure_apart()) == ()
