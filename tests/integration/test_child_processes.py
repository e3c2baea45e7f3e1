"""A Runtime in odd company: where it lives, what it was given and what it inherits must not matter to its child processes."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, "HF_HUB_OFFLINE": "1"}
TRAPS = ("json", "torch", "queue", "flash_attn", "sitecustomize", "bloombee_trap")
TRAP = (
    "import os\nopen(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'RAN'), 'a').write(__name__)\nraise SystemExit(7)\n"
)
APPLICATION = """
import os, signal, sys
{before}
import bloombee, bloombee.runtime
out = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
{then}
try:
    with bloombee.Runtime.sync("demo", workers=1, dtype="float32", threads=1{fields}) as runtime:
        said = "generated " + runtime.generate("a", max_new_tokens=2).finish_reason
except bloombee.BloomBeeError as error:
    said = type(error).__name__ + ": " + str(error)
os.write(out, said.encode())
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder whose modules leave a mark when they run."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in TRAPS:
        (folder / f"{name}.py").write_text(TRAP)
    return folder


def ran(checkpoint: Path) -> str:
    mark = checkpoint / "RAN"
    return mark.read_text() if mark.exists() else ""


def application(
    tmp_path: Path,
    *,
    before: str = "",
    then: str = "",
    fields: str = "",
    shell: str = "",
    python: str = sys.executable,
    **how: str,
) -> str:
    """What a program says that embeds a Runtime: ``before`` it imports bloombee and ``then``, its arguments in ``fields``.

    Args:
        shell: put around the program's command, which stands for ``{}``.
        how: the environment.
    """
    out = tmp_path / "said"
    out.touch()
    program = tmp_path / "application.py"
    program.write_text(APPLICATION.format(before=before, then=then, fields=fields))
    command = f"{python} {program} {out}"
    done = subprocess.run(
        ["/bin/sh", "-c", shell.format(command) if shell else command],
        env={**ENVIRONMENT, **how}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    return out.read_text() if done.returncode == 0 else f"{out.read_text()}; status {done.returncode}, {done.stderr[-500:]}"


@pytest.mark.parametrize(
    "command", [[str(Path(sys.executable).with_name("bloombee"))], [sys.executable, "-m", "bloombee"]], ids=len
)
def test_the_command_line_runs_nothing_that_lies_in_the_current_folder(command: list[str], checkpoint: Path) -> None:
    words = ["generate", "--prompt", "import os", "--max-new-tokens", "4", "--workers", "1"]
    done = subprocess.run([*command, *words], cwd=checkpoint, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert (ran(checkpoint), done.returncode) == ("", 0), done.stderr


def test_an_application_in_a_checkpoints_folder_runs_nothing_of_it(checkpoint: Path, tmp_path: Path) -> None:
    """The profile's process among its children; the search path and PYTHONPATH name the folder in the ways there are."""
    there = f"os.chdir({str(checkpoint)!r}); sys.path[:0] = ['', '.', os.getcwd()]; os.environ['PYTHONPATH'] = ':.'"
    cache = tmp_path / "cache"
    assert application(tmp_path, then=there, fields=", profile=True", XDG_CACHE_HOME=str(cache)) == "generated length"
    assert list(cache.rglob("*.json"))
    assert ran(checkpoint) == ""


def test_a_package_found_by_an_inserted_path_is_the_one_its_children_run(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():  # this environment without bloombee
        if "bloombee" not in entry.name and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    inserted = f"sys.path[:0] = [{str(ROOT)!r}, {str(site)!r}]"
    base = str(Path(sys.base_prefix) / "bin" / "python3")
    assert application(tmp_path, before=inserted, python=base) == "generated length"


@pytest.mark.parametrize("closed", ["{} <&-", "{} >&-", "{} 2>&-", "{} <&- >&- 2>&-"])
def test_standard_streams_may_be_closed(closed: str, tmp_path: Path) -> None:
    assert application(tmp_path, shell=closed) == "generated length"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONOPTIMIZE": "2"},
        {"PYTHONWARNINGS": "error"},
        {"PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONINSPECT": "1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TMPDIR": "/nowhere", "HOME": "/proc"},
    ],
    ids=["optimizing", "warnings are errors", "safe path", "no home, no locale"],
)
def test_an_odd_environment_changes_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    assert application(tmp_path, **environment) == "generated length"


@pytest.mark.parametrize(
    "then",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
        "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')",
    ],
    ids=["signals ignored", "signals blocked", "current folder deleted"],
)
def test_what_children_inherit_does_not_hinder_them(then: str, tmp_path: Path) -> None:
    assert application(tmp_path, then=then) == "generated length"


@pytest.mark.parametrize(
    ("then", "says"),
    [
        ("sys.executable = ''", "DeviceError: sys.executable is empty"),
        ("sys.executable = None", "DeviceError: sys.executable is empty"),
        ("sys.executable = '/nowhere/python'", "DeviceError: cannot start a process with /nowhere/python: No such file"),
        ("sys.frozen = True", "DeviceError: this application is frozen"),
    ],
)
def test_without_an_interpreter_to_start_there_is_one_sentence(then: str, says: str, tmp_path: Path) -> None:
    assert application(tmp_path, then=then).startswith(says)


@pytest.mark.parametrize("limit", [12, 24, 40])
def test_too_few_descriptors_are_one_sentence_before_anything_starts(limit: int, tmp_path: Path) -> None:
    """ZeroMQ aborts the process, or the loop waits for ever, where one of them finds none."""
    lowered = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))"
    said = application(tmp_path, then=lowered)
    assert said.startswith(f"CapacityError: this process may open too few files: its limit is {limit}")


def test_a_swarm_works_with_as_many_descriptors_as_it_asks_for(tmp_path: Path) -> None:
    """Of the limit that its refusal names; its workers have the same."""
    lowered = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (106, 106))"
    assert application(tmp_path, then=lowered, fields=", max_waiting=4").startswith("generated")


def test_a_soft_limit_is_raised_for_a_swarm(tmp_path: Path) -> None:
    lowered = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (32, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))"
    assert application(tmp_path, then=lowered) == "generated length"


def test_a_worker_with_too_few_descriptors_says_so_and_ends() -> None:
    command = f"ulimit -n 24; exec {sys.executable} -m bloombee worker --join bb1-x"
    done = subprocess.run(["/bin/sh", "-c", command], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("bloombee: this process may open too few files: its limit is 24, 64 are needed")


def test_the_process_that_forks_workers_has_one_thread() -> None:
    """A fork of more is unsafe, and Python 3.12 warns of it at the user's terminal."""
    program = """
import bloombee, psutil
with bloombee.Runtime.sync("demo", workers=1, dtype="float32", threads=1):
    for child in psutil.Process().children():
        print(child.num_threads())
"""
    environment = ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "4", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("1\n", "")
