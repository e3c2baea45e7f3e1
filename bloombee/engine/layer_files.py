"""Where the weights of layers that stream lie on disk: one file a layer, kept for the next run as far as there is room."""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from bloombee.engine.layer_file import LayerFile, is_left, padded, write_layer
from bloombee.engine.leaves import Area
from bloombee.errors import CodecUnavailable, CorruptPayload, DeviceError, Infeasible
from bloombee.types import Dtype

SUFFIX = ".layer"
ROWS = "kv/*/*.rows"
"""Kept rows beside them, within the same budget; whoever has some on disk alone computes them again."""
CODED = " compressed"
"""Of the key of a file that is."""
HEADER_BYTES = 64 << 10
"""More than the header of a file takes."""
SPARED_BYTES = 1 << 30
"""Of the disk, that is left to others where no budget says how much may be used."""


class LayerFiles:
    """Of one directory, which workers may share.

    Args:
        budget_bytes: of all files in it together; the least recently used go first. None: what the disk has free, but for some.
    """

    def __init__(self, directory: Path, budget_bytes: int | None = None) -> None:
        self._directory = directory
        self._budget_bytes = budget_bytes
        self._used: dict[Path, LayerFile] = {}
        """By spans of this process: those that are open stay."""
        self._is_quick: bool | None = None
        """Whether compressed layers come quicker; None: that is not known yet."""

    def find(self, key: str) -> LayerFile | None:
        """The sound file of ``key``, if there is one: the compressed one, where that is quicker here."""
        coded = self._find(key + CODED)
        if coded is not None and self._decodes_quickly(coded):
            return coded
        if coded is not None:
            coded.close()
        return self._find(key)

    def write_compressed(self, key: str, areas: Sequence[Area], dtype: Dtype) -> LayerFile:
        """As :meth:`write`, compressed."""
        return self._write(key + CODED, areas, dtype)

    def _decodes_quickly(self, file: LayerFile) -> bool:
        """Whether its weights come sooner than as many bytes that are stored as they are; found out by the first."""
        if self._is_quick is None:
            self._is_quick = is_quicker(file)
        return self._is_quick

    def _find(self, key: str) -> LayerFile | None:
        path = self._path(key)
        try:
            file = LayerFile(path, key)
        except (OSError, CorruptPayload):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        self._used[path] = file
        return file

    def write(self, key: str, areas: Sequence[Area]) -> LayerFile:
        """Have it hold what lies in ``areas`` of this process's memory.

        Raises:
            Infeasible: it has no room beside what is in use. DeviceError: the disk is full, or cannot be written.
        """
        return self._write(key, areas, None)

    def _write(self, key: str, areas: Sequence[Area], dtype: Dtype | None) -> LayerFile:
        path = self._path(key)
        self._make_directory()
        self._make_room(padded(sum(area.num_bytes for area in areas)) + HEADER_BYTES)
        write_layer(path, key, areas, dtype)
        self._used[path] = file = LayerFile(path, key)
        return file

    def _path(self, key: str) -> Path:
        return self._directory / (hashlib.blake2b(key.encode(), digest_size=16).hexdigest() + SUFFIX)

    def _make_directory(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            said = f"cannot keep weights in {self._directory}: {error.strerror}"
            raise DeviceError(said, path=str(self._directory)) from error

    def _remove_left(self) -> None:
        """What processes that were ended had begun to write counts for nobody."""
        for path in self._directory.iterdir():
            with contextlib.suppress(OSError):
                if is_left(path, time.time()):
                    path.unlink()

    def _make_room(self, num_bytes: int) -> None:
        self._remove_left()
        sizes: dict[Path, tuple[float, int]] = {}
        rows = self._directory.parent.glob(ROWS)
        for path in (*self._directory.glob(f"*{SUFFIX}"), *rows):
            with contextlib.suppress(OSError):
                status = path.stat()
                sizes[path] = (status.st_mtime, status.st_size)
        if self._budget_bytes is not None:
            short = sum(size for _, size in sizes.values()) + num_bytes - self._budget_bytes
        else:
            short = num_bytes + SPARED_BYTES - shutil.disk_usage(self._directory).free
        used = {path for path, file in self._used.items() if file.is_open}
        for path in sorted(sizes.keys() - used, key=lambda path: sizes[path]):
            if short <= 0:
                break
            with contextlib.suppress(OSError):
                path.unlink()  # who reads it has it open
                short -= sizes[path][1]
        if short > 0:
            spared = f", of which {SPARED_BYTES >> 30} GiB stays free for others" if self._budget_bytes is None else ""
            needed = f"{math.ceil(short / 1e6)} MB more in {self._directory} than there is room for{spared}"
            raise Infeasible(
                f"weights that stream need {needed}; give --disk more room, or the worker more memory",
                constraint="disk",
                short_bytes=short,
            )


def is_quicker(file: LayerFile) -> bool:
    """Whether reading and decoding it, at once, takes less time than reading as many bytes as its layer has."""
    staging = mmap.mmap(-1, padded(max(chunk.stored_bytes for chunk in file.chunks)))
    out = bytearray(max(chunk.num_bytes for chunk in file.chunks))
    read_s = decode_s = 0.0
    try:
        for chunk in file.chunks:
            began = time.perf_counter()
            stored = file.read(chunk, memoryview(staging))
            read_s += time.perf_counter() - began
            began = time.perf_counter()
            if chunk.is_coded:
                file.decode(chunk, stored, memoryview(out)[: chunk.num_bytes])
            decode_s += time.perf_counter() - began
    except (OSError, CorruptPayload, CodecUnavailable):
        return False
    return max(read_s, decode_s) < read_s * file.num_bytes / file.stored_bytes
