"""Starts Python processes that find code where this process found it, and never in the current folder.

``python -m`` would put the current folder first on the search path, and would know nothing of what the application has
inserted into its own. So a child gets this process's path (:func:`~bloombee.paths.code_paths`) and the folders of our own
packages, and does not see PYTHONPATH, which may have relative entries.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bloombee.errors import DeviceError
from bloombee.paths import code_paths

MAIN = Path(__file__).with_name("child_main.py")
FLAGS = (("isolated", "-I"), ("ignore_environment", "-E"), ("no_user_site", "-s"), ("dont_write_bytecode", "-B"))
NOT_INHERITED = ("PYTHONPATH", "PYTHONOPTIMIZE", "PYTHONINSPECT")
"""Its path comes with it; transformers reads docstrings, which an optimizing interpreter drops; nobody types at a child."""


def start_child(module: str, *arguments: str, **how: Any) -> subprocess.Popen[Any]:
    """``module`` of one of our packages as the main module of a process of its own.

    Args:
        how: as for :class:`subprocess.Popen`. Where this process has no standard error, the child's goes nowhere.

    Raises:
        DeviceError: there is no interpreter to start, or it cannot be started.
    """
    command = [_interpreter(), "-P", *(flag for name, flag in FLAGS if getattr(sys.flags, name)), str(MAIN)]
    environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    if not _has_stderr():
        how.setdefault("stderr", subprocess.DEVNULL)
    try:
        return subprocess.Popen([*command, _facts(module), *arguments], env=environment, **how)
    except OSError as error:
        raise DeviceError(f"cannot start a process with {command[0]}: {error.strerror or error}") from error


def _facts(module: str) -> str:
    packages = {name: sys.modules[name].__path__[0] for name in ("bloombee", module.partition(".")[0])}
    path = code_paths(sys.path, os.path.dirname(packages["bloombee"]))
    return json.dumps({"module": module, "path": path, "packages": packages})


def _interpreter() -> str:
    """Raises DeviceError if ``sys.executable`` is no interpreter, or our files aren't there for one to read."""
    if not sys.executable:
        raise DeviceError("sys.executable is empty, as in an embedded interpreter: set it to a Python that can start processes")
    if getattr(sys, "frozen", False):
        raise DeviceError("this application is frozen: its executable is no Python interpreter, which worker processes need")
    if not MAIN.is_file():
        raise DeviceError(f"{MAIN} is no file: bloombee must be installed in a folder, not in an archive")
    return sys.executable


def _has_stderr() -> bool:
    """Where it was closed, descriptor 2 is by now something else: a socket, or a pipe of ours."""
    return sys.__stderr__ is not None and _is_open(2)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
