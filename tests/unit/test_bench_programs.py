"""Every benchmark refuses what it cannot measure at once, in one sentence, and ends as a program should."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest

from bench import codec, pipes, prefill, serving
from bench.arguments import OptionError
from bench.program import BenchError, program
from bloombee.errors import LinkDown

ROOT = Path(__file__).parents[2]
BAD = [
    ("claims", ["--models", "nowhere/"], "no model"),
    ("claims", ["--threads", "0"], "must be a whole number from 1"),
    ("claims", ["--json", "/nowhere/x.json"], "cannot write '/nowhere/x.json'"),
    ("codec", ["--input", "/nowhere.safetensors"], "--input /nowhere.safetensors: no such file"),
    ("codec", ["--input", "x", "--seconds", "-1"], "must be seconds from"),
    ("compute", ["--batches", "1,x"], "'x': must be a whole number from 1"),
    ("compute", ["--peers"], "needs --peer-env llama.cpp=DIR"),
    ("compute", ["--peers", "--peer-env", "llama.cpp=/nowhere"], "no bin/python there"),
    ("compute", ["--device", "cuda"], "needs --only"),
    ("compute", ["--device", "moon", "--only"], "auto, cpu, cuda or cuda:N"),
    ("compute", ["--model", "nowhere/"], "no model"),
    ("compare", [], "required: --before"),
    ("compare", ["--before", "/nowhere"], "/nowhere: no checkout that has been set up"),
    ("compare", ["--before", ".", "--lines", "moon"], "'moon': there are plain"),
    ("drift", ["--repeats", "0"], "must be a whole number from 1"),
    ("drift", ["--calm", "0"], "must be seconds from"),
    ("embedding", ["--repeats", "0"], "must be a whole number from 1"),
    ("exact", ["demo"], "required: dtype"),
    ("far_head", ["--rows", "moon"], "'moon': there are near"),
    ("far_head", ["--head-ms", "-1"], "must be milliseconds from"),
    ("faults", ["--kills", "-1"], "must be a whole number from 0"),
    ("faults", ["--kills", "0"], "nothing is asked for"),
    ("faults", ["--kills", "1", "--tokens", "1900"], "must be a whole number from 8 to 1800"),
    ("faults", ["--kills", "1", "--links", "three-regions"], "all links must be alike"),
    ("faults", ["--recovery", "1", "--recovery-links", "moon"], "unknown profile 'moon'"),
    ("faults", ["--kills", "1", "--device", "moon"], "auto, cpu, cuda or cuda:N"),
    ("faults", ["--json", "/nowhere/x.json"], "cannot write '/nowhere/x.json'"),
    ("gpu", [], "torch sees no CUDA device"),
    ("gpu", ["--only", "moon"], "'moon': there are stage"),
    ("hops", ["--workers", "-1"], "must be a whole number from 1"),
    ("hops", ["--json", str(ROOT)], "Is a directory"),
    ("hops", ["--dtype", "int8"], "dtype = 'int8'"),
    ("hops", ["--model", "standin:1024x2"], "3 workers for 2 layers"),
    ("long_prompts", ["--lengths", "40000"], "must be a whole number from 1 to 32760"),
    ("prefix", ["--shared", "0"], "must be a whole number from 1"),
    ("prefix", ["--json", "/nowhere/x.json"], "cannot write '/nowhere/x.json'"),
    ("meter", ["--profiles", "moon"], "unknown profile 'moon'"),
    ("meter", ["--traffics", "moon"], "'moon': there are bulk"),
    ("micro", ["--rounds", "9"], "whole number from 10"),
    ("micro", ["--json", "/nowhere/x.json"], "cannot write '/nowhere/x.json'"),
    ("micro", ["--only", "x"], "envelope"),
    ("native", ["--rows", "0"], "must be a whole number from 1"),
    ("overtake", ["--period-ms", "0"], "must be milliseconds from"),
    ("pipes", ["flat", "--json", str(ROOT)], "Is a directory"),
    ("pipes", ["knee", "--batch", "1024"], "KV memory for"),
    ("pipes", ["knee", "--microbatches", "4-x"], "'x': must be a whole number"),
    ("pipes", ["knee", "--plot", "/nowhere/x.png"], "cannot write"),
    ("prefill", ["alone", "--chunks", "0"], "must be a whole number from 1"),
    ("prefill", ["alone", "--model", "demo"], "no stand-in"),
    ("prefill", ["alone", "--workers", "64"], "64 workers for 60 layers"),
    ("prefill", ["beside", "--profiles", "moon"], "unknown profile 'moon'"),
    ("reload", ["--spans", "4-6"], "must be spans as 0:16,4:6"),
    ("soak", ["--concurrency", "0"], "must be a whole number from 1"),
    ("serving", ["--modes", "moon"], "'moon': there are fairness"),
    ("serving", ["--profile", "x"], "unknown profile 'x'"),
    ("serving", ["--burst", "0"], "must be a whole number from 1"),
    ("serving", ["--pace", "slow"], "pace"),
    ("trace_cost", ["--model", "demo", "--tokens", "4096"], "demo has 2048 positions"),
    ("trace_cost", ["--tokens", "1"], "must be a whole number from 2"),
    ("trace_cost", ["--pace", "slow"], "pace"),
]


@pytest.mark.parametrize(("name", "words", "said"), BAD, ids=[f"{name} {' '.join(words)}" for name, words, _ in BAD])
def test_what_cannot_be_is_refused_before_anything_starts(
    name: str, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, *words])
    assert import_module(f"bench.{name}").main() == 2
    out = capsys.readouterr()
    assert out.err.startswith(f"{name}: ")
    assert said in out.err
    assert not out.out


def test_without_arguments_pipes_are_measured_flat() -> None:
    assert pipes._parse([]).mode == "flat"


def test_without_arguments_the_codec_is_measured_on_the_demo_models_activations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(codec, "rows_of", lambda name, *_: [SimpleNamespace(exact=name != "L4")])
    monkeypatch.setattr(codec, "show", lambda row: None)
    monkeypatch.setattr(sys, "argv", ["codec"])
    assert codec.main() == 1
    monkeypatch.setattr(sys, "argv", ["codec", "--only", "L1"])
    assert codec.main() == 0


def test_without_arguments_prompts_are_measured_alone_and_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, str, str]] = []

    async def run(part: str, profile: prefill.Profile, options: argparse.Namespace) -> bool:
        measured.append((part, profile.name, options.model))
        return part not in missed

    monkeypatch.setattr(prefill, "run", run)
    monkeypatch.setattr(sys, "argv", ["prefill"])
    missed: set[str] = set()
    assert prefill.main() == 0
    large, small = "standin:llama-30b", "standin:1024x16"
    assert measured == [("alone", "20M-100ms", large), ("alone", "100M-60ms", large), ("beside", "20M-100ms", small)]
    missed = {"alone"}
    assert prefill.main() == 1


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OptionError("no"), 2, "x: no\n"),
        (BenchError("it did not"), 1, "x: it did not\n"),
        (OSError(28, "No space left on device"), 1, "x: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "x: interrupted\n"),
    ],
)
def test_a_failure_is_a_sentence_and_a_status(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @program("x")
    def main() -> None:
        raise error

    assert main() == status
    assert capsys.readouterr().err == said


def test_a_fault_of_our_own_is_not_hidden() -> None:
    @program("x")
    def main() -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        main()


def test_whoever_stops_reading_is_told_nothing() -> None:
    words = ["--only", "pages", "--rounds", "10"]
    readable, writable = os.pipe()
    os.close(readable)
    done = subprocess.run(
        [sys.executable, "-m", "bench.micro", *words], stdout=writable, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=60
    )
    os.close(writable)
    assert (done.returncode, done.stderr) == (1, "")


def test_what_was_measured_is_kept_when_a_later_part_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def works(settings: object, mode: str) -> list[serving.Line]:
        return [serving.Line(mode, "thing", "1", ok=True)]

    async def fails(settings: object, mode: str) -> list[serving.Line]:
        raise LinkDown("a worker is gone")

    file = tmp_path / "out.json"
    for mode, kind in (("fairness", works), ("burst", fails), ("overlong", works)):
        monkeypatch.setitem(serving.MODES, mode, kind)
    assert serving.main(["--modes", "fairness,burst,overlong", "--json", str(file)]) == 1
    lines = json.loads(file.read_text())["lines"]
    assert [(line["mode"], line["value"], line["ok"]) for line in lines] == [
        ("fairness", "1", True), ("burst", "a worker is gone", False), ("overlong", "1", True),
    ]  # fmt: skip


def test_pairs_that_were_measured_are_in_the_file_when_a_later_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([SimpleNamespace(decode_tokens_per_s=10.0, cpu_share=0.1, microbatch_rows=1.0, others_cpu_share=0.0)] * 7)

    async def measure(*_: object, **__: object) -> object:
        try:
            return next(runs)
        except StopIteration:
            raise BenchError("no window") from None

    ring = SimpleNamespace(shape=lambda profile: None)
    monkeypatch.setattr(pipes, "Ring", lambda spec: contextlib.nullcontext(ring))
    monkeypatch.setattr(pipes, "warm_up", AsyncMock())
    monkeypatch.setattr(pipes, "measure", measure)
    monkeypatch.setattr(pipes, "_says", lambda *_: "")
    file = tmp_path / "out.jsonl"
    assert pipes.main(["flat", "--json", str(file)]) == 1
    assert [json.loads(line)["pair"] for line in file.read_text().splitlines()] == [0, 1]


def test_a_benchs_second_process_runs_nothing_that_lies_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "multiprocessing.py").write_text("open('RAN', 'w').close()\nraise SystemExit(7)\n")
    program = "import sys; sys.path.remove(''); from bench.micro import main; main()"
    words = [sys.executable, "-c", program, "--only", "hop", "--rounds", "10"]
    found = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=found, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, (tmp_path / "RAN").exists()) == (0, False), done.stderr
