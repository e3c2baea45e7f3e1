"""The program that makes the demo pair, run for a few seconds."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROGRAM = Path(__file__).parents[2] / "tools" / "train_demo_model.py"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pair")
    command = [sys.executable, str(PROGRAM), "--out", str(out), "--quick", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    return out


def test_both_models_learned(pair: Path) -> None:
    report = json.loads((pair / "report.json").read_text())
    for name in ("target", "draft"):
        assert report[name]["loss_after"] < report[name]["loss_before"] - 0.3, "held-out loss, nats a token"
    assert report["greedy_agreement"] > 0.1, "two untrained models agree on one token in 512"


def test_transformers_loads_the_pair_with_its_one_tokenizer(pair: Path) -> None:
    text = "def f(x):\n    return x  # ∑\n"
    ids = []
    for name in ("target", "draft"):
        model = AutoModelForCausalLM.from_pretrained(pair / name)
        tokenizer = AutoTokenizer.from_pretrained(pair / name)
        assert model.dtype is torch.bfloat16
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 0
        ids.append(tokenizer(text)["input_ids"])
        assert tokenizer.decode(ids[-1]) == text
        out = model.generate(torch.tensor([ids[-1]]), max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert out.shape == (1, len(ids[-1]) + 4)
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--target-seconds", "0"], "--target-seconds 0: must be > 0"), (["--sources", "."], "only 0 Python files")],
)
def test_bad_options_are_refused(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    program = runpy.run_path(str(PROGRAM))
    with pytest.raises(SystemExit) as ended:
        program["main"](["--quick", "--out", "out", *arguments])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
    assert not Path("out").exists()
