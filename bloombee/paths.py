"""Which folders code may come from. Imports nothing but what every interpreter has loaded by itself, so that it can run first."""

from __future__ import annotations

import os
from collections.abc import Iterable


def code_paths(entries: Iterable[object], home: str) -> list[str]:
    """``entries`` of a search path without the current folder, which may be a downloaded checkpoint's.

    Relative entries, the empty one among them, mean the current folder or one below it, and are left out too; so is what is no
    text, which Python itself passes over.

    Args:
        home: the folder that holds this program's own package. If that is the current folder it comes last: what lies there
            hides no module of the standard library and none that is installed.
    """
    here = _current_folder()
    kept = [entry for entry in entries if isinstance(entry, str) and os.path.isabs(entry) and os.path.realpath(entry) != here]
    return [*kept, home] if home not in kept else kept


def _current_folder() -> str | None:
    """None: it has been deleted, and nothing can be imported from there."""
    try:
        return os.path.realpath(os.getcwd())
    except OSError:
        return None
