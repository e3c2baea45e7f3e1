"""Where the weights of layers that stream lie on disk: one file a layer, kept from one run to the next as far as there is room."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from bloombee.engine.layer_file import LayerFile, padded, write_layer
from bloombee.engine.leaves import Area
from bloombee.errors import CorruptPayload, Infeasible

SUFFIX = ".layer"
HEADER_BYTES = 64 << 10
"""More than the header of a file takes."""


class LayerFiles:
    """Of one directory, which workers may share.

    Args:
        budget_bytes: of all files in it together; the least recently used go first. None: as much as the disk has.
    """

    def __init__(self, directory: Path, budget_bytes: int | None = None) -> None:
        self._directory = directory
        self._budget_bytes = budget_bytes
        self._used: set[Path] = set()
        """By spans of this process: these stay."""

    def find(self, key: str) -> LayerFile | None:
        """The sound file of ``key``, if there is one."""
        path = self._path(key)
        try:
            file = LayerFile(path, key)
        except (OSError, CorruptPayload):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        self._used.add(path)
        return file

    def write(self, key: str, areas: Sequence[Area]) -> LayerFile:
        """Have it hold what lies in ``areas`` of this process's memory.

        Raises:
            Infeasible: it has no room beside what is in use. DeviceError: the disk is full, or cannot be written.
        """
        path = self._path(key)
        self._make_room(padded(sum(area.num_bytes for area in areas)) + HEADER_BYTES)
        write_layer(path, key, areas)
        self._used.add(path)
        return LayerFile(path, key)

    def _path(self, key: str) -> Path:
        return self._directory / (hashlib.blake2b(key.encode(), digest_size=16).hexdigest() + SUFFIX)

    def _make_room(self, num_bytes: int) -> None:
        if self._budget_bytes is None:
            return
        sizes: dict[Path, tuple[float, int]] = {}
        for path in self._directory.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                status = path.stat()
                sizes[path] = (status.st_mtime, status.st_size)
        short = sum(size for _, size in sizes.values()) + num_bytes - self._budget_bytes
        for path in sorted(sizes.keys() - self._used, key=lambda path: sizes[path]):
            if short <= 0:
                break
            with contextlib.suppress(OSError):
                path.unlink()  # who reads it has it open
                short -= sizes[path][1]
        if short > 0:
            raise Infeasible(
                f"weights that stream need {short / 1e6:.0f} MB more in {self._directory} than its"
                f" {self._budget_bytes / 1e6:.0f} MB; give --disk more, or the worker more memory",
                constraint="disk",
                short_bytes=short,
            )
