"""Which peers there are, and whether the environments that were named can run them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.arguments import OptionError, shown

README = "bench/peers/README.md"
CHECK_S = 120.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A peer.

    Args:
        technique: what its rows are called.
        program: in this folder; speaks the protocol of :mod:`bench.peers.protocol`.
        check: Python that succeeds in an environment with all that the program needs.
        dtypes: of weights that it can compute with on a CPU.
        is_split: over the workers' machines, behind links; else one process.
    """

    technique: str
    program: str
    check: str
    dtypes: tuple[str, ...]
    is_split: bool = True


TRANSFORMERS = Kind("transformers", "run_transformers.py", "", ("bfloat16", "float16", "float32"), is_split=False)
KINDS = {
    "petals": Kind(
        "petals",
        "run_petals.py",
        "from importlib.metadata import version as v; assert v('petals').startswith('2.2'); v('hivemind'); v('torch')",
        ("bfloat16", "float32"),
    ),
    "llama.cpp": Kind(
        "llama.cpp-rpc",
        "run_llama_cpp.py",
        "import gguf, llama_cpp; assert llama_cpp.llama_supports_rpc(), 'llama-cpp-python was built without its RPC backend'",
        ("bfloat16", "float16", "float32"),
    ),
}
"""Peers that need an environment, by the name that ``--peer-env`` gives them."""
BY_TECHNIQUE = {kind.technique: kind for kind in (TRANSFORMERS, *KINDS.values())}


@dataclass(frozen=True, slots=True)
class PeerEnv:
    """A peer's rows and the interpreter that runs them."""

    technique: str
    python: str


def parse_envs(texts: Sequence[str]) -> tuple[PeerEnv, ...]:
    """``NAME=DIR`` of each ``--peer-env``, checked by asking the environment itself; transformers comes first, with ours.

    Raises:
        OptionError: no such peer, one twice, no virtual environment there, or one that lacks something.
    """
    found = [PeerEnv(TRANSFORMERS.technique, sys.executable)]
    names: set[str] = set()
    for text in texts:
        name, is_pair, folder = text.partition("=")
        if not is_pair or not folder or name not in KINDS:
            raise OptionError(f"--peer-env {shown(text)}: NAME=DIR, with a virtual environment; NAME is {' or '.join(KINDS)}")
        if name in names:
            raise OptionError(f"--peer-env {name}: given twice")
        names.add(name)
        found.append(PeerEnv(KINDS[name].technique, _python(name, Path(folder).expanduser())))
    return tuple(found)


def missing(envs: Sequence[PeerEnv]) -> str | None:
    """A line on peers without an environment; None if there are none."""
    have = {env.technique for env in envs}
    names = [name for name, kind in KINDS.items() if kind.technique not in have]
    return f"rows of {' and '.join(names)} need --peer-env NAME=DIR; {README} makes such environments" if names else None


def _python(name: str, folder: Path) -> str:
    python = (folder / "bin" / "python").absolute()
    if not python.is_file():
        raise OptionError(f"--peer-env {name}={folder}: no bin/python there; {README} says how to make one")
    try:
        run = subprocess.run(
            [python, "-I", "-c", KINDS[name].check], capture_output=True, text=True, timeout=CHECK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OptionError(f"--peer-env {name}={folder}: its python does not run: {error}; see {README}") from error
    if run.returncode:
        why = (run.stderr.strip().splitlines() or [f"status {run.returncode}"])[-1]
        raise OptionError(f"--peer-env {name}={folder} cannot run it: {why}; {README} says how to make one")
    return str(python)
