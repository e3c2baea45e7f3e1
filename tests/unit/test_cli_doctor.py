"""What doctor finds, and what it advises where it does not."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from bloombee import doctor
from bloombee.cli import main
from bloombee.doctor import Finding
from bloombee.errors import CapacityError


def _without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def test_a_missing_module_is_a_finding_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "bloombee._native", "bloombee._native_cuda", "torch", "zmq", "uvloop", "psutil")
    for check, state in (
        (doctor.check_extension, "missing"),
        (doctor.check_cuda_extension, "optional"),
        (doctor.check_torch, "missing"),
        (doctor.check_zmq, "missing"),
        (doctor.check_uvloop, "optional"),
        (doctor.check_memory, "missing"),
    ):
        finding = check()
        assert finding.state == state
        assert finding.advice


@pytest.mark.parametrize("module", ["uvloop", "bloombee._native_cuda"])
def test_what_is_called_optional_is_not_needed(module: str) -> None:
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "import bloombee.cli, bloombee.runtime, bloombee.roles.worker\n"
        "from bloombee import doctor\n"
        "assert [f.name for f in doctor.examine() if f.state == 'missing'] == []"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["psutil"])
def test_what_nothing_starts_without_is_called_missing(module: str) -> None:
    program = f"import sys; sys.modules[{module!r}] = None\nimport bloombee.runtime"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert f"import of {module} halted" in done.stderr


@pytest.mark.parametrize("kind", [OSError, RuntimeError, AttributeError])
def test_a_library_that_does_not_load_is_a_finding(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> types.ModuleType:
        raise kind("libgomp.so.1: cannot open shared object file\nmore")

    monkeypatch.setattr(doctor.importlib, "import_module", refuse)
    assert doctor.check_torch().found == "libgomp.so.1: cannot open shared object file"


@pytest.mark.parametrize(
    ("name", "version", "found"),
    [
        ("transformers", "5.3.1", "transformers 5.3.1 is too old"),
        ("torch", "2.7.9+cpu", "torch 2.7.9+cpu is too old"),
        ("msgspec", None, "msgspec is not installed"),
    ],
)
def test_a_package_that_is_too_old_or_not_there_is_missing(
    name: str, version: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor.check_packages().state == "ok"
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda one: version if one == name else real(one))
    finding = doctor.check_packages()
    assert (finding.state, finding.found) == ("missing", found)
    assert finding.advice.startswith(f"pip install '{name}>=")


def test_a_later_release_is_not_too_old() -> None:
    assert doctor._unmet("torch", "2.8") is None
    assert doctor._numbers("2.13.0+cu126") > doctor._numbers("2.8")
    assert doctor._numbers("27.1.0rc1") >= doctor._numbers("27")


def test_too_few_descriptors_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_descriptors().state == "ok"

    def refuse(**_: int) -> None:
        raise CapacityError("too few", limit=24, needed=94)

    monkeypatch.setattr(doctor, "require_descriptors", refuse)
    assert doctor.check_descriptors() == Finding("file descriptors", "missing", "limit 24", "ulimit -n 94")


def test_zmq_without_curve_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    zmq = types.SimpleNamespace(__version__="27", zmq_version=lambda: "4.3", has=lambda what: False)
    monkeypatch.setitem(sys.modules, "zmq", zmq)  # type: ignore[arg-type]
    finding = doctor.check_zmq()
    assert finding.state == "missing"
    assert "without CURVE" in finding.found


def test_extension_names_its_simd_level(monkeypatch: pytest.MonkeyPatch) -> None:
    native = types.SimpleNamespace(available_isas=lambda: ["scalar", "avx2"], current_isa=lambda: "avx2")
    monkeypatch.setitem(sys.modules, "bloombee._native", native)  # type: ignore[arg-type]
    assert doctor.check_extension() == Finding("native extension", "ok", "SIMD level avx2; this CPU has scalar, avx2")


def test_loopback_works_here_and_a_refusal_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_loopback().state == "ok"

    def refuse(*_: Any, **__: Any) -> socket.socket:
        raise PermissionError("not allowed")

    monkeypatch.setattr(doctor.socket, "create_server", refuse)
    assert doctor.check_loopback().state == "missing"


def test_demo_model_is_shipped_and_its_absence_seen(tmp_path: Path) -> None:
    assert doctor.check_demo_model().state == "ok"
    (tmp_path / "config.json").touch()
    finding = doctor.check_demo_model(tmp_path)
    assert finding.state == "missing"
    assert "model.safetensors, tokenizer.json" in finding.found


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("optional", 0), ("missing", 1)])
def test_exit_code_is_whether_something_needed_is_missing(
    state: doctor.State, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (lambda: Finding("thing", state, "found", "do this"),))
    assert main(["doctor"]) == code
    out = capsys.readouterr().out
    assert out == f"{state:<8}  thing  found\n{'':<8}         -> do this\n"
    assert main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == [{"name": "thing", "state": state, "found": "found", "advice": "do this"}]


@pytest.mark.parametrize(
    ("words", "said"), [(["--threads", "-1"], "threads = -1: must be"), (["--device", "gpu"], "auto, cpu, cuda or cuda:N")]
)
def test_a_profile_is_refused_what_no_worker_could_be_given(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--profile", "demo", *words]) == 2
    assert said in capsys.readouterr().err
