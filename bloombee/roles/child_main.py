"""The first lines of every Python process that this program starts: ``python -P child_main.py FACTS [ARGUMENT ...]``.

Runs as a file, before any package can be found: it may import the standard library only. See ``roles/child.py``.
"""

import importlib.util
import json
import os
import runpy
import signal
import sys
from typing import Any


def main() -> None:
    """Make this process find code where its parent does, and run the module that was asked for."""
    facts: dict[str, Any] = json.loads(sys.argv[1])
    _heed_signals()
    _stand_somewhere()
    sys.path[:] = [*facts["path"], *(entry for entry in sys.path if entry not in facts["path"])]
    for name, folder in facts["packages"].items():
        _load(name, folder)
    sys.argv[:2] = [facts["module"]]
    runpy.run_module(facts["module"], run_name="__main__", alter_sys=True)


def _heed_signals() -> None:
    """What the application blocks or ignores is its own affair, and inherited."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _stand_somewhere() -> None:
    """A current folder that was deleted makes libraries fail that only ask for its name."""
    try:
        os.getcwd()
    except OSError:
        os.chdir("/")


def _load(name: str, folder: str) -> None:
    """The package of just this folder, whatever else of its name can be found."""
    spec = importlib.util.spec_from_file_location(name, f"{folder}/__init__.py", submodule_search_locations=[folder])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


if __name__ == "__main__":
    main()
