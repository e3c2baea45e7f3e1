"""A layer's weights in a file of its own, as the layer has them in memory, to be read again and again past the system's cache.

A file is a header, padded to a whole number of blocks, and chunks, each at a block's start::

    8 bytes   magic
    8 bytes   length of the JSON that follows
    JSON      {key, areas: [bytes of each area], dtype, table, chunks: [[offset, bytes, file offset, stored bytes, crc32c]]}

``key`` says what the weights are: a file of another key is as good as none. Offsets are into all areas, one after the other.
Each chunk has a checksum, which is looked at whenever it is read: what was changed or cut off on disk is never computed with.
A chunk that is stored in fewer bytes than it has is a message of the codec (docs/codec.md), of rows of ``WIDTH`` values of type
``dtype``, for which ``table`` was fitted to the layer; in a file that was written without a type there are none.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bloombee.codec import api as codec
from bloombee.codec.checksum import check_crc32c, crc32c
from bloombee.codec.fit import fit
from bloombee.codec.table import Table
from bloombee.engine.leaves import SMALL_BYTES, Area
from bloombee.errors import CorruptPayload, DeviceError
from bloombee.plan.placement import BLOCK_BYTES, READ_BYTES
from bloombee.types import Dtype

MAGIC = b"BBLAYER1"
WIDTH, SAMPLE_ROWS = 256, 256
"""Values of a row, for the codec; rows that its table is fitted to, of each large area."""
ENTRY_BYTES = 96
"""Room in the header for what is said of a chunk."""
ABANDONED_S = 300.0
"""Nobody who writes a file leaves it for so long."""
_DRAFT = re.compile(r"[0-9a-f]+\.[0-9]+")


@dataclass(frozen=True, slots=True)
class Chunk:
    """``num_bytes`` from ``offset`` of a layer's areas, which are ``stored_bytes`` from ``file_offset`` of its file."""

    offset: int
    num_bytes: int
    file_offset: int
    stored_bytes: int
    checksum: int

    @property
    def is_coded(self) -> bool:
        return self.stored_bytes < self.num_bytes


class LayerFile:
    """One open file. Any thread may read.

    Attributes:
        areas: bytes of each. chunks: that it is made of. num_bytes: of the layer's weights. stored_bytes: read for them.

    Raises:
        CorruptPayload: it is none of this format, or another's than ``key``'s. OSError: it cannot be opened or read.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.is_open = path, True
        self._fd = _open_direct(path)
        try:
            self.areas, self.chunks = self._read_header(key)
        except BaseException:
            self.close()
            raise
        self.num_bytes = sum(self.areas)
        self.stored_bytes = sum(padded(chunk.stored_bytes) for chunk in self.chunks)

    def close(self) -> None:
        self.is_open = False
        os.close(self._fd)

    def read(self, chunk: Chunk, staging: memoryview) -> memoryview:
        """The stored bytes of ``chunk``, at the start of ``staging``.

        Args:
            staging: whole blocks, aligned to one, with room for the chunk.

        Raises:
            CorruptPayload: they are others than were written, or the file ends before them.
            OSError: the disk says so.
        """
        want, got = padded(chunk.stored_bytes), 0
        while got < chunk.stored_bytes:
            count = os.preadv(self._fd, [staging[got:want]], chunk.file_offset + got)
            if count == 0:
                raise CorruptPayload(f"{self.path} ends at byte {chunk.file_offset + got}; its header promises more")
            got += count
        stored = staging[: chunk.stored_bytes]
        check_crc32c(stored, chunk.checksum)
        return stored

    def decode(self, chunk: Chunk, stored: memoryview, out: Any) -> None:
        """The weights of a chunk of fewer bytes than it stands for into ``out``, a writable buffer of them.

        Raises:
            CorruptPayload, CodecUnavailable: it is no sound message for this file's table.
        """
        assert self._dtype is not None
        shape = (chunk.num_bytes // (WIDTH * self._dtype.num_bytes), WIDTH)
        codec.decode(stored, out, shape=shape, dtype=self._dtype, tables=self._tables)

    def _read_header(self, key: str) -> tuple[list[int], list[Chunk]]:
        with open(self.path, "rb") as file:
            if file.read(8) != MAGIC:
                raise CorruptPayload(f"{self.path} holds no layer")
            length = int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(min(length, 1 << 26)))
                areas, chunks = [int(n) for n in header["areas"]], [Chunk(*map(int, entry)) for entry in header["chunks"]]
                found, table = header["key"], bytes.fromhex(header["table"])
                self._dtype = Dtype(header["dtype"]) if table else None
                self._tables = {one.key: one for one in ([Table.from_bytes(table)] if table else [])}
            except (ValueError, TypeError, KeyError) as error:
                raise CorruptPayload(f"{self.path} has no sound header: {error}") from error
        is_whole = [(chunk.offset, chunk.num_bytes) for chunk in chunks] == list(cut(areas))
        if found != key or not is_whole or any(chunk.stored_bytes > READ_BYTES for chunk in chunks):
            raise CorruptPayload(f"{self.path} is of another layer, or damaged")
        return areas, chunks


def write_layer(path: Path, key: str, areas: Sequence[Area], dtype: Dtype | None = None) -> None:
    """Have a file at ``path`` hold what lies in ``areas`` of this process's memory. Whoever is ended meanwhile, and whoever reads
    what was there, finds what was there before.

    Args:
        dtype: of the values, which are to be compressed as such; None: they are stored as they are.

    Raises:
        DeviceError: the disk is full or cannot be written; nothing is left behind. ``fields`` have its path.
    """
    try:
        _replace(path, key, areas, dtype)
    except OSError as error:
        what = "no room is left" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"{error.strerror}"
        raise DeviceError(f"cannot write weights to {path.parent}: {what}", path=str(path.parent)) from error


def _replace(path: Path, key: str, areas: Sequence[Area], dtype: Dtype | None) -> None:
    draft = path.with_suffix(f".{os.getpid()}")
    try:
        with open(draft, "wb") as file:
            _write(file.fileno(), key, areas, dtype)
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def is_left(path: Path, now: float) -> bool:
    """Whether it is what a process that has ended had begun to write; ``now``: as of time.time. Raises OSError: it is gone."""
    return _DRAFT.fullmatch(path.name) is not None and now - path.stat().st_mtime > ABANDONED_S


def _write(fd: int, key: str, areas: Sequence[Area], dtype: Dtype | None) -> None:
    cuts = list(cut([area.num_bytes for area in areas]))
    table = None if dtype is None else _fitted(areas, dtype)
    blob = "" if table is None else table.to_bytes().hex()
    at = padded(len(MAGIC) + 8 + 256 + len(key) + len(blob) + 24 * len(areas) + ENTRY_BYTES * len(cuts))
    chunks = []
    for offset, num_bytes in cuts:
        parts = list(parts_of(areas, offset, num_bytes))
        data = b"".join(ctypes.string_at(areas[number].address + first, count) for number, first, count in parts)
        if table is not None and len(parts) == 1:
            data = _encoded(data, table)
        _write_all(fd, data + bytes(padded(len(data)) - len(data)), at)
        chunks.append((offset, num_bytes, at, len(data), crc32c(data)))
        at += padded(len(data))
    header = {"key": key, "areas": [area.num_bytes for area in areas], "dtype": dtype or "", "table": blob, "chunks": chunks}
    text = json.dumps(header).encode()
    _write_all(fd, MAGIC + len(text).to_bytes(8, "little") + text, 0)


def _fitted(areas: Sequence[Area], dtype: Dtype) -> Table:
    """To the beginning of each of the largest areas."""
    count = SAMPLE_ROWS * WIDTH * dtype.num_bytes
    samples = [ctypes.string_at(area.address, count) for area in areas if area.num_bytes >= count]
    return fit(b"".join(samples) or bytes(count), dtype, channels=WIDTH)


def _encoded(data: bytes, table: Table) -> bytes:
    """As a message of the codec, where that is shorter and there are whole rows."""
    rows, rest = divmod(len(data), WIDTH * table.dtype.num_bytes)
    if rest or not rows:
        return data
    out = bytearray(codec.bound(rows * WIDTH, table.dtype))
    size = codec.encode(data, shape=(rows, WIDTH), dtype=table.dtype, table=table, out=out)
    return bytes(memoryview(out)[:size]) if size < len(data) else data


def cut(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of the chunks of areas of ``sizes``, large ones first: a large area has chunks of its own."""
    large = [size for size in sizes if size >= SMALL_BYTES]
    start = 0
    for size in (*large, sum(sizes) - sum(large)):
        for first in range(0, size, READ_BYTES):
            yield start + first, min(READ_BYTES, size - first)
        start += size


def parts_of(areas: Sequence[Area], offset: int, num_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(number of the area, first byte in it, bytes) of ``num_bytes`` from ``offset`` of ``areas``, in order."""
    at = 0
    for number, area in enumerate(areas):
        first, stop = max(offset, at), min(offset + num_bytes, at + area.num_bytes)
        if first < stop:
            yield number, first - at, stop - first
        at += area.num_bytes


def padded(num_bytes: int) -> int:
    """To whole blocks."""
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def _open_direct(path: Path) -> int:
    """For reads past the system's cache, where the file's system has any."""
    direct = getattr(os, "O_DIRECT", 0)
    try:
        return os.open(path, os.O_RDONLY | direct)
    except OSError as error:
        if not direct or error.errno != errno.EINVAL:
            raise
        return os.open(path, os.O_RDONLY)
