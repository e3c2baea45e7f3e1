"""The file that ``--decisions`` names: what the control core was told and what it decided (control/log.py)."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from bloombee.control.events import Decision, Event
from bloombee.control.log import to_line
from bloombee.errors import ConfigError

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 30
"""Some days of a handful of workers. What is decided can be made again only from the beginning, so the end is left out."""


class DecisionFile:
    """Written by one head, each record at once.

    Args:
        most_bytes: that it takes.

    Raises:
        ConfigError: it cannot be written.
    """

    def __init__(self, path: str, most_bytes: int = MOST_BYTES) -> None:
        try:
            self._file = Path(path).open("wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"decisions: cannot write {path}: {error.strerror}", field="decisions", path=path) from error
        self._room = most_bytes

    def write(self, record: Event | Decision) -> None:
        """A disk that is full, or a file that is, ends the log and nothing else."""
        if self._file.closed:
            return
        line = to_line(record) + b"\n"
        self._room -= len(line)
        if self._room < 0:
            self._end("it is as large as it may be")
            return
        try:
            self._file.write(line)
        except OSError as error:
            self._end(error.strerror)

    def _end(self, why: str | None) -> None:
        log.warning("the decision log ends here: %s", why)
        self.close()

    def close(self) -> None:
        """Nothing is written any more. Idempotent."""
        with contextlib.suppress(OSError):
            self._file.close()
