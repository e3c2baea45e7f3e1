"""The GPU check without a GPU: it says so, lists its steps, and goes on after one that fails, hangs or only skips."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tools import gpu_check
from tools.gpu_check import Step, check, main


def _python(name: str, code: str, timeout_s: float = 60, must_say: str = "") -> Step:
    return Step(name, (sys.executable, "-c", code, f"OUT/{name}.json"), timeout_s, must_say=must_say)


def test_every_step_is_recorded_whatever_became_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "copy_sources", lambda _: None)
    steps = [
        _python("fails", "print('the reason'); raise SystemExit(3)"),
        _python("hangs", "import signal; print('so far', flush=True); signal.pause()", timeout_s=2),
        _python("skips", "print('4 skipped')", must_say=r"\d+ passed"),
        _python("works", "import sys; open(sys.argv[1], 'w').write('{\"x\": 1}'); print('4 passed')", must_say=r"\d+ passed"),
    ]
    assert check(steps, "Some GPU 9", None, tmp_path) == 1
    record = json.loads((tmp_path / "gpu-Some-GPU-9.json").read_text())
    got = [(step["name"], step["passed"], step["status"], step["numbers"]) for step in record["steps"]]
    assert got == [
        ("fails", False, 3, None),
        ("hangs", False, None, None),
        ("skips", False, 0, None),
        ("works", True, 0, {"x": 1}),
    ]
    text = (tmp_path / "gpu-Some-GPU-9.md").read_text()
    for said in ("FAILED (status 3)", "the reason", "FAILED: out of time", "so far", "| works | passed |"):
        assert said in text
    assert check(steps[-1:], "none", None, tmp_path) == 0


def test_what_was_found_is_kept_when_the_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step finds what those before it came to written down; without any time left one is cut off at once."""
    monkeypatch.setattr(gpu_check, "copy_sources", lambda _: None)
    file = tmp_path / "gpu-GPU.json"
    look = f"import json; assert len(json.load(open({str(file)!r}))['steps']) == 1"
    assert check([_python("first", "pass"), _python("second", look)], "GPU", None, tmp_path) == 0
    assert check([_python("hangs", "import signal; signal.pause()")], "GPU", None, tmp_path, budget_s=0) == 1
    assert [(step["passed"], step["status"]) for step in json.loads(file.read_text())["steps"]] == [(False, None)]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_check, "find_device", lambda: None)
    assert main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert main(["--dry-run"]) == 0
    out = capsys.readouterr().out
    assert all(step.name in out for step in gpu_check.STEPS)


@pytest.mark.parametrize(("words", "said"), [(["--steps", "x"], "there are build"), (["--wheels", "/nowhere"], "no such folder")])
def test_bad_arguments_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_the_copy_has_sources_and_nothing_built(tmp_path: Path) -> None:
    gpu_check.copy_sources(tmp_path)
    assert (tmp_path / "bloombee" / "engine" / "bank.safetensors").is_file()
    assert (tmp_path / "csrc" / "cuda").is_dir()
    assert not list(tmp_path.rglob("*.so"))
