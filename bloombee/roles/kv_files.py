"""Kept rows on disk: a file for each prefix, which later processes find again.

A file names what it was made of (the model's weights, layers, type and pages: others are not looked at), what it keeps, and
which pages; those that another file has already are named by that one. Header and pages have checksums. A file is written under
another name first, so whoever is ended meanwhile leaves nothing that is half. Tokens of prompts are in it: nobody but its user
may read it, and nothing is written unless a directory was given.

Format: ``BBROWS1\\n``, length and CRC-32C of the header (8 bytes each, little-endian), the header (JSON of :class:`_Header`),
then the pages, one after the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from bloombee.codec.checksum import check_crc32c, crc32c
from bloombee.config import Disk
from bloombee.errors import CorruptPayload, DeviceError
from bloombee.kv.kept import StoredPrefix
from bloombee.wire.messages import Load

MAGIC = b"BBROWS1\n"
SUFFIX = ".rows"
SPARED_BYTES = 1 << 30
"""Of the disk, that is left to others where no budget says how much may be used."""
MOST_FILES = 2048
"""Found again; the least recently used go."""


class _Header(msgspec.Struct, frozen=True):
    """``pages``: bytes and checksum of each that is in this file."""

    made_of: str
    prefix: StoredPrefix
    pages: tuple[tuple[int, int], ...]


class KvFiles:
    """Of one span. One thread writes, another reads.

    Args:
        disk: the directory, and how much it may hold with all else that is in it; None: what the disk has free, but for some.
    """

    def __init__(self, disk: Disk, load: Load) -> None:
        groups = [(group.window, load.page_size) for group in load.groups]
        digests = [digest.hex() for digest in load.weight_digests]
        self._made_of = repr((load.config_digest.hex(), digests, load.start, load.stop, load.num_layers, load.dtype, groups))
        name = hashlib.blake2b(self._made_of.encode(), digest_size=12).hexdigest()
        self._disk = disk
        self._directory = disk.directory / "kv" / name

    def find(self) -> tuple[StoredPrefix, ...]:
        """What is here, what was of use last at the end; what cannot be read, or lacks pages, is removed."""
        found: dict[bytes, tuple[StoredPrefix, int]] = {}
        """By name; with the number of its pages."""
        for path in self._by_use()[-MOST_FILES:]:
            try:
                header = self._header(path)[0]
                found[bytes.fromhex(path.stem)] = header.prefix, len(header.pages)
            except (OSError, CorruptPayload):
                path.unlink(missing_ok=True)
        return tuple([prefix for prefix, _ in found.values() if _has_all(prefix, found)])

    def write(self, name: bytes, prefix: StoredPrefix, pages: Sequence[memoryview]) -> tuple[bytes, ...]:
        """Returns the names of files that had to make way.

        Raises:
            DeviceError: the disk is full or cannot be written, or the file is more than there may be; nothing is left behind.
        """
        header = _Header(self._made_of, prefix, tuple([(len(page), crc32c(page)) for page in pages]))
        text = msgspec.json.encode(header)
        path = self._path(name)
        draft = path.with_suffix(f".{os.getpid()}")
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            gone = self._make_room(sum(map(len, pages)) + len(text) + 24, of=prefix)
            with open(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
                file.write(MAGIC + len(text).to_bytes(8, "little") + crc32c(text).to_bytes(8, "little") + text)
                for page in pages:
                    file.write(page)
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            where = str(self._directory)
            raise DeviceError(f"cannot keep rows in {where}: {error.strerror or error}", path=where) from error
        return gone

    def read(self, name: bytes, into: Sequence[tuple[int, memoryview]]) -> None:
        """Pages of a file, by their numbers there, each into memory of its size.

        Raises:
            CorruptPayload: the file is short or holds something else than was written. DeviceError: it cannot be read.
        """
        path = self._path(name)
        try:
            header, start = self._header(path)
            with open(path, "rb", buffering=0) as file:
                for number, target in into:
                    size, checksum = header.pages[number] if number < len(header.pages) else (0, 0)
                    offset = start + sum(size for size, _ in header.pages[:number])
                    if size != len(target) or os.preadv(file.fileno(), [target], offset) != size:
                        raise CorruptPayload(f"{path} is shorter than what was written to it")
                    check_crc32c(target, checksum)
            os.utime(path)
        except OSError as error:
            raise DeviceError(f"kept rows cannot be read from {path}: {error.strerror or error}", path=str(path)) from error

    def _header(self, path: Path) -> tuple[_Header, int]:
        """And where the pages begin."""
        with open(path, "rb") as file:
            begins = file.read(24)
            length = int.from_bytes(begins[8:16], "little")
            text = file.read(min(length, 1 << 26))
        if begins[:8] != MAGIC or crc32c(text) != int.from_bytes(begins[16:], "little"):
            raise CorruptPayload(f"{path} has no sound header")
        try:
            header = msgspec.json.decode(text, type=_Header)
        except msgspec.DecodeError as error:
            raise CorruptPayload(f"{path} has no sound header: {error}") from error
        if header.made_of != self._made_of or not path.stem.startswith(header.prefix.key.hex()):
            raise CorruptPayload(f"{path} is of another span or prefix")
        return header, 24 + length

    def _path(self, name: bytes) -> Path:
        return self._directory / (name.hex() + SUFFIX)

    def _by_use(self) -> list[Path]:
        times: dict[Path, float] = {}
        for path in self._directory.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                times[path] = path.stat().st_mtime
        return sorted(times, key=times.__getitem__)

    def _make_room(self, num_bytes: int, *, of: StoredPrefix) -> tuple[bytes, ...]:
        """The least recently used files of this span make way, but none that ``of`` names. Raises OSError if it is too few."""
        directory = self._disk.directory
        if self._disk.num_bytes is not None:
            short = sum(_sizes(directory)) + num_bytes - self._disk.num_bytes
        else:
            short = num_bytes + SPARED_BYTES - shutil.disk_usage(directory).free
        needed = {self._path(file) for _, places in of.parts for file, _ in places}
        gone = []
        for path in self._by_use() if short > 0 else ():
            if short > 0 and path not in needed:
                short -= path.stat().st_size
                path.unlink()
                gone.append(bytes.fromhex(path.stem))
        if short > 0:
            raise OSError(f"{short} bytes more than it may hold")
        return tuple(gone)


def _sizes(directory: Path) -> Iterator[int]:
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            yield path.stat().st_size if path.is_file() else 0


def _has_all(prefix: StoredPrefix, found: dict[bytes, tuple[StoredPrefix, int]]) -> bool:
    """Its pages are in files that are there."""
    return all(file in found and number < found[file][1] for _, places in prefix.parts for file, number in places)
