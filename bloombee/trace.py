"""Where time goes, written down: one process's stamps as JSON lines.

Whoever has a :class:`Tracer` hands it chains of stamps: n names and n + 1 moments, so that each span ends where the next
begins and nothing between the first and the last is unaccounted for. Handing one over is a list append; a thread of
the tracer's own turns them into text and writes them, a second's worth at a time. Who has none pays one test of an attribute.

The lines of a file, all times in nanoseconds of the process's own monotonic clock::

    {"process": "local-1", "worker": 2, "stage": 1, "num_stages": 3, "clock": "5f0c...", ...}    first line
    {"peer": 0, "offset_ns": 1200, "error_ns": 60000}    a peer's clock = own clock + offset, +- error; the surest counts
    {"microbatch": 7, "start_ns": 88123, "spans": {"receive": 31000, "queue": 9000, ...}}        one after the other
    {"microbatch": 7, "start_ns": 88050, "spans": {"send": 40000}, "phase": 0, "sequences": [1]}  the head's, with facts

``bloombee.timeline`` reads them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

FLUSH_EVERY_S = 1.0
MAX_FILE_BYTES = 1 << 30
"""A trace that nobody ends must not fill the disk; what comes after is dropped."""

Chain = tuple[tuple[str, ...], int, Sequence[int], dict[str, Any] | None]
"""names, microbatch, stamps, facts"""

_encode = msgspec.json.Encoder().encode
_log = logging.getLogger(__name__)


class Tracer:
    """One file of one process. Methods may be called from any thread.

    Args:
        path: the file; made anew, its directory too.
        process: what the first line says besides the clock: name, worker, stage, ...

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, process: Mapping[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._written = 0
        self._chains: deque[Chain] = deque()
        self._over = threading.Event()
        self._writing = threading.Lock()
        self._write([{**process, "pid": os.getpid(), "clock": clock_id()}])
        self._thread = threading.Thread(target=self._main, name="bloombee-trace", daemon=True)
        self._thread.start()

    def clock(self, peer: int, offset_ns: int, error_ns: int) -> None:
        """What a handshake told of a peer's clock (wire/handshake.py)."""
        self._write([{"peer": peer, "offset_ns": offset_ns, "error_ns": error_ns}])

    def chain(self, names: tuple[str, ...], microbatch: int, stamps: Sequence[int], facts: dict[str, Any] | None = None) -> None:
        """Spans ``names[i]`` from ``stamps[i]`` to ``stamps[i + 1]``, nanoseconds; costs one append."""
        self._chains.append((names, microbatch, stamps, facts))

    def flush(self) -> None:
        """Write what has been handed over."""
        self._write([_line(*chain) for chain in self._taken()])

    def close(self) -> None:
        """Write the rest and close the file. Closing twice changes nothing."""
        self._over.set()
        self._thread.join()
        self.flush()
        with self._writing, contextlib.suppress(OSError):  # a full disk: what is missing is missing
            self._file.close()

    def _taken(self) -> Iterator[Chain]:
        with contextlib.suppress(IndexError):
            while True:
                yield self._chains.popleft()

    def _main(self) -> None:
        while not self._over.wait(FLUSH_EVERY_S):
            self.flush()

    def _write(self, lines: list[dict[str, Any]]) -> None:
        data = b"".join(_encode(line) + b"\n" for line in lines)
        with self._writing:
            if data and not self._file.closed and self._written + len(data) <= MAX_FILE_BYTES:
                self._written += len(data)
                try:
                    self._file.write(data)
                    self._file.flush()
                except OSError as error:  # a full disk costs the trace, not the request
                    self._written = MAX_FILE_BYTES  # no line after one that may be cut off
                    _log.warning("the trace %s ends here: %s", self.path, error)


def _line(names: tuple[str, ...], microbatch: int, stamps: Sequence[int], facts: dict[str, Any] | None) -> dict[str, Any]:
    spans = {name: stop - start for name, start, stop in zip(names, stamps, stamps[1:], strict=False)}
    return {"microbatch": microbatch, "start_ns": stamps[0], "spans": spans, **(facts or {})}


def clock_id() -> str:
    """Names the monotonic clock: processes that say the same share it. Empty where nobody knows (not Linux)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        shift = Path("/proc/self/timens_offsets").read_text(encoding="ascii").split()
    except OSError:
        return ""
    return " ".join((boot, *shift))
