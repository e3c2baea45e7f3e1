"""Everything that needs a GPU, in nine minutes: build with CUDA, GPU tests, GPU benchmarks, one results file.

    python tools/gpu_check.py --wheels wheels          on a machine with a GPU; missing packages come from a folder, no network
    python tools/gpu_check.py --dry-run                list the steps; needs no GPU
    python tools/gpu_check.py --steps build            only compile; needs nvcc and no GPU

Works in a copy of the sources in a temporary directory: the tree it is started in gets nothing but
bench/results/gpu-DEVICE.md and .json, written anew after every step. The most important comes first; a step that fails or takes
too long is recorded with the end of its output, and the next one runs, as long as there is time. Needs torch with CUDA,
transformers, cmake, ninja and nvcc; compute-sanitizer for two of the steps, which are left out without.

Exit status: 0 every step passed, 1 a step failed, 2 no GPU or bad arguments.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("bloombee", "csrc", "bench", "tests", "tools", "setup.py", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE")
PACKAGES = {
    "zmq": "pyzmq", "msgspec": "msgspec", "msgpack": "msgpack", "uvloop": "uvloop", "rich": "rich", "cyclopts": "cyclopts",
    "psutil": "psutil", "jinja2": "jinja2", "numpy": "numpy", "pybind11": "pybind11", "setuptools": "setuptools",
    "pytest": "pytest", "pytest_timeout": "pytest-timeout", "hypothesis": "hypothesis", "scipy": "scipy",
}  # fmt: skip
"""Module -> package, of what a machine with torch and transformers may lack."""
TAIL = 4000
"""Characters of a failed step's output that are kept."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command, run in the copy. ``OUT`` in it is the folder for its JSON."""

    name: str
    command: tuple[str, ...]
    timeout_s: float
    needs_gpu: bool = True
    environment: tuple[tuple[str, str], ...] = ()
    must_say: str = ""
    """A pattern without which the step has failed, whatever its status: a run in which all was skipped proves nothing."""


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    command: str
    passed: bool
    seconds: float
    status: int | None
    """None: it ran out of time."""
    output: str
    numbers: Any = None


PY = sys.executable
BUDGET_S = 540.0
SANITIZER = "compute-sanitizer"
PYTEST = (PY, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu")
SMALLEST = (*PYTEST, "-k", "smallest or odd", "tests/gpu/test_fused_cuda.py", "tests/gpu/test_attention_cuda.py")
CODEC = (PY, "-m", "bench.codec", "--input", "bloombee/engine/bank.safetensors", "--device", "cuda")
STEPS = (
    Step("build", (PY, "setup.py", "build_ext", "--inplace"), 300, False, (("BLOOMBEE_CUDA", "on"),)),
    Step("kernels", (*PYTEST, "tests/gpu/test_fused_cuda.py", "tests/gpu/test_attention_cuda.py"), 90, must_say=r"\d+ passed"),
    Step("graphs", (*PYTEST, "tests/gpu/test_graphs_cuda.py"), 120, must_say=r"\d+ passed"),
    Step("gpu", (PY, "-m", "bench.gpu", "--quick", "--json", "OUT/gpu.json"), 90),
    Step("engine tests", (*PYTEST, "tests/gpu/test_engine_cuda.py"), 90, must_say=r"\d+ passed"),
    Step("codec tests", (*PYTEST, "-k", "codec or planes", "tests/gpu"), 60, must_say=r"\d+ passed"),
    Step("ring", (PY, "-m", "bench.gpu", "--only", "long,ring", "--json", "OUT/ring.json"), 150),
    Step("codec", (*CODEC, "--larger", "64KiB,512KiB,8MiB,128MiB", "--json", "OUT/codec.json"), 90),
    Step("attention", (PY, "-m", "bench.gpu_attention", "--json", "OUT/attention.json"), 60),
    Step("memcheck", (SANITIZER, "--tool", "memcheck", "--error-exitcode", "9", *SMALLEST), 120, must_say=r"\d+ passed"),
    Step("racecheck", (SANITIZER, "--tool", "racecheck", "--error-exitcode", "9", *SMALLEST), 120, must_say=r"\d+ passed"),
    Step("hops", (PY, "bench/hops.py", "--device", "cuda", "--rounds", "5", "--json", "OUT/hops.json"), 90),
)


def find_device() -> str | None:
    """The name of torch's first CUDA device; None if there is none, or no torch."""
    return _ask_torch("torch.cuda.get_device_name(0)")


def find_architecture() -> str | None:
    """Of that device, as CMake names it: what is built here is for it alone, to save time."""
    return _ask_torch("'%d%d' % torch.cuda.get_device_capability(0)")


def _ask_torch(what: str) -> str | None:
    ask = f"import torch; print({what} if torch.cuda.is_available() else '')"
    done = subprocess.run([PY, "-P", "-c", ask], capture_output=True, text=True, timeout=120)
    return done.stdout.strip() or None


def install_step(wheels: Path | None, site: Path) -> Step | None:
    """Installs what is missing into ``site``; None if nothing is, or no wheels were given."""
    missing = sorted(package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None)
    if wheels is None or not missing:
        return None
    options = ("--quiet", "--no-index", "--find-links", str(wheels.resolve()), "--target", str(site))
    return Step("packages", (PY, "-m", "pip", "install", *options, *missing), 300, False)


def find_sanitizer() -> str | None:
    """Where compute-sanitizer is."""
    return shutil.which(SANITIZER) or shutil.which(os.environ.get("CUDA_HOME", "/usr/local/cuda") + f"/bin/{SANITIZER}")


def copy_sources(target: Path) -> None:
    """What the steps need, without anything that was built."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "build", "results")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignore)
        elif source.is_file():
            shutil.copy2(source, target / name)


def run(step: Step, work: Path, out: Path, site: Path, most_s: float) -> Result:
    """Run a step to its end, its timeout or that of all; then its whole process group is killed."""
    command = [word.replace("OUT", str(out), 1) if word.startswith("OUT/") else word for word in step.command]
    if command[0] == SANITIZER:
        command[0] = find_sanitizer() or SANITIZER
    path = os.pathsep.join([str(work), str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **dict(step.environment), "PYTHONPATH": path}
    started, log = time.monotonic(), out / f"{step.name}.log"
    status: int | None
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            cwd=work,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status = process.wait(min(step.timeout_s, most_s))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    output = log.read_text(encoding="utf-8", errors="replace")
    passed = status == 0 and re.search(step.must_say, output) is not None
    return Result(
        step.name, shlex.join(step.command), passed, time.monotonic() - started, status, output[-TAIL:], _numbers(out, step)
    )


def _numbers(out: Path, step: Step) -> Any:
    """What the step wrote as JSON, or as JSON lines."""
    file = out / f"{step.name}.json"
    if not file.is_file():
        return None
    text = file.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines() if line]


def summary(results: Sequence[Result], facts: dict[str, str]) -> str:
    """Markdown: a table of the steps, then the end of each one's output."""
    lines = [f"# GPU check: {facts['device']}", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += ["| step | result | seconds |", "|---|---|---|"]
    lines += [f"| {r.name} | {_verdict(r)} | {r.seconds:.0f} |" for r in results]
    for result in results:
        lines += ["", f"## {result.name}", "", f"`{result.command}`", "", "```", result.output.strip(), "```"]
    return "\n".join(lines) + "\n"


def _verdict(result: Result) -> str:
    if result.passed:
        return "passed"
    return "FAILED: out of time" if result.status is None else f"FAILED (status {result.status})"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", metavar="DIR", type=Path, help="a folder of wheels to install what is missing from")
    parser.add_argument("--steps", metavar="A,B", help=f"only these of {', '.join(step.name for step in STEPS)}")
    parser.add_argument("--dry-run", action="store_true", help="list the steps and end")
    parser.add_argument("--budget", metavar="S", type=float, default=BUDGET_S, help=f"for all steps (default {BUDGET_S:g} s)")
    parser.add_argument("--results", metavar="DIR", type=Path, default=ROOT / "bench" / "results", help="default bench/results")
    options = parser.parse_args(words)
    names = [step.name for step in STEPS] if options.steps is None else options.steps.split(",")
    for name in names:
        if name not in {step.name for step in STEPS}:
            parser.error(f"--steps {name}: there are {', '.join(step.name for step in STEPS)}")
    if options.wheels is not None and not options.wheels.is_dir():
        parser.error(f"--wheels {options.wheels}: no such folder")
    steps = [step for step in STEPS if step.name in names]
    device = find_device()
    if options.dry_run:
        print(f"device: {device or 'none'}")
        for step in steps:
            print(f"{step.name:<12} {step.timeout_s:>4.0f} s at most  {shlex.join(step.command)}")
        return 0
    if device is None and any(step.needs_gpu for step in steps):
        print("gpu_check: torch sees no CUDA device here; --dry-run lists the steps, --steps build compiles", file=sys.stderr)
        return 2
    if find_sanitizer() is None:
        left_out = [step.name for step in steps if step.command[0] == SANITIZER]
        steps = [step for step in steps if step.name not in left_out]
        print(f"left out, as {SANITIZER} is not here: {', '.join(left_out) or 'nothing'}")
    if device is not None and (architecture := find_architecture()) is not None:
        os.environ.setdefault("BLOOMBEE_CUDA_ARCHITECTURES", architecture)
    return check(steps, device or "none", options.wheels, options.results, options.budget)


def check(steps: Sequence[Step], device: str, wheels: Path | None, folder: Path, budget_s: float = BUDGET_S) -> int:
    """Run ``steps`` in a fresh copy and write the results, after each; the exit status. What there is no time for has failed."""
    facts = {"device": device, "machine": f"{os.cpu_count()} cores, {platform.platform()}", "python": platform.python_version()}
    facts |= {"commit": _commit(), "command": f"python tools/gpu_check.py --steps {','.join(step.name for step in steps)}"}
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / ("gpu-" + re.sub(r"[^A-Za-z0-9.]+", "-", device).strip("-"))
    ends = time.monotonic() + budget_s
    with tempfile.TemporaryDirectory(prefix="bloombee-gpu-") as name:
        work, out, site = (Path(name) / part for part in ("work", "out", "site"))
        for directory in (work, out, site):
            directory.mkdir()
        copy_sources(work)
        install = install_step(wheels, site)
        results: list[Result] = []
        for step in [*([install] if install else []), *steps]:
            print(f"{step.name} ...", flush=True)
            results.append(run(step, work, out, site, max(0.0, ends - time.monotonic())))
            print(f"  {_verdict(results[-1])}, {results[-1].seconds:.0f} s", flush=True)
            print(results[-1].output, flush=True)
            _write(base, results, facts)
    print(f"{base}.md, {base}.json")
    return 0 if all(result.passed for result in results) else 1


def _write(base: Path, results: Sequence[Result], facts: dict[str, str]) -> None:
    base.with_name(base.name + ".md").write_text(summary(results, facts), encoding="utf-8")
    record = {**facts, "steps": [asdict(result) for result in results]}
    base.with_name(base.name + ".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _commit() -> str:
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
