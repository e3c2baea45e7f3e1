"""Kept rows in files: what is found again, and what a disk that is full, torn or lies costs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from bloombee.config import Disk
from bloombee.errors import CorruptPayload, DeviceError
from bloombee.kv.kept import StoredPrefix
from bloombee.roles.kv_files import KvFiles
from bloombee.wire.messages import Group, Load

LOAD = Load(1, 1, 0, 1, 2, "m", bytes(16), (), "float32", (Group(0, 8),), 4, 0, None, (), ())
KEY, OTHER = b"k" * 32, b"o" * 32
PAGES = [memoryview(bytes([n]) * 64) for n in range(3)]


def _prefix(key: bytes, *files: tuple[bytes, int]) -> StoredPrefix:
    return StoredPrefix(key, 4 * len(files), 4 * len(files), b"tokens", ((0, files),))


FIRST = _prefix(KEY, (KEY, 0), (KEY, 1), (KEY, 2))
SECOND = _prefix(OTHER, (KEY, 0), (KEY, 1), (OTHER, 0))


def _read(files: KvFiles, key: bytes, *numbers: int) -> list[bytes]:
    into = [bytearray(64) for _ in numbers]
    files.read(key, [(number, memoryview(page)) for number, page in zip(numbers, into, strict=True)])
    return [bytes(page) for page in into]


def _file(tmp_path: Path) -> Path:
    (path,) = tmp_path.rglob(f"{KEY.hex()}.rows")
    return path


def test_another_process_finds_what_was_written_and_nobody_else_reads_it(tmp_path: Path) -> None:
    KvFiles(Disk(tmp_path), LOAD).write(KEY, FIRST, PAGES)
    os.utime(_file(tmp_path), (1, 1))
    KvFiles(Disk(tmp_path), LOAD).write(OTHER, SECOND, PAGES[:1])
    files = KvFiles(Disk(tmp_path), LOAD)
    assert files.find() == (FIRST, SECOND)
    assert _read(files, KEY, 2, 0) == [bytes(PAGES[2]), bytes(PAGES[0])]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".rows"] == []
    assert {path.stat().st_mode & 0o077 for path in tmp_path.rglob("*.rows")} == {0}


@pytest.mark.parametrize(
    "other",
    [
        {"config_digest": b"x" * 16},
        {"weight_digests": (b"x" * 16,)},
        {"dtype": "bfloat16"},
        {"page_size": 8},
        {"stop": 2},
        {"groups": (Group(8, 8),)},
    ],
)
def test_what_another_model_type_or_page_size_has_kept_is_not_looked_at(tmp_path: Path, other: dict[str, object]) -> None:
    KvFiles(Disk(tmp_path), LOAD).write(KEY, FIRST, PAGES)
    files = KvFiles(Disk(tmp_path), replace(LOAD, **other))
    assert files.find() == ()
    with pytest.raises(DeviceError):
        _read(files, KEY, 0)


def test_what_is_torn_or_changed_is_not_taken(tmp_path: Path) -> None:
    files = KvFiles(Disk(tmp_path), LOAD)
    files.write(KEY, FIRST, PAGES)
    whole = _file(tmp_path).read_bytes()
    for at in (5, 12, 20, 40, len(whole) - 100):
        _file(tmp_path).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CorruptPayload):
            _read(files, KEY, 1)
    _file(tmp_path).write_bytes(whole[:-70])
    assert _read(files, KEY, 0) == [bytes(PAGES[0])]
    for number in (1, 2):
        with pytest.raises(CorruptPayload):
            _read(files, KEY, number)
    _file(tmp_path).write_bytes(whole[:30])
    assert files.find() == ()
    assert not list(tmp_path.rglob("*.rows"))  # of no use to anybody


def test_a_prefix_whose_pages_went_with_another_file_is_not_found(tmp_path: Path) -> None:
    files = KvFiles(Disk(tmp_path), LOAD)
    files.write(KEY, FIRST, PAGES)
    files.write(OTHER, SECOND, PAGES[:1])
    _file(tmp_path).unlink()
    assert files.find() == ()


def test_the_least_recently_used_make_way_but_nothing_that_is_needed(tmp_path: Path) -> None:
    probe = KvFiles(Disk(tmp_path / "probe"), LOAD)
    probe.write(KEY, FIRST, PAGES)
    size = sum(path.stat().st_size for path in (tmp_path / "probe").rglob("*.rows"))
    disk = Disk(tmp_path / "own", 2 * size + 100)
    files = KvFiles(disk, LOAD)
    keys = [bytes([n]) * 32 for n in range(4)]
    for number, key in enumerate(keys[:2]):
        assert files.write(key, _prefix(key, (key, 0), (key, 1), (key, 2)), PAGES) == ()
        os.utime(next(disk.directory.rglob(f"{key.hex()}.rows")), (number, number))
    assert files.write(keys[2], _prefix(keys[2], (keys[2], 0), (keys[2], 1), (keys[2], 2)), PAGES) == (keys[0],)
    needs = _prefix(keys[3], *((key, n) for key in keys[1:3] for n in range(3)), *((keys[3], n) for n in range(3)))
    with pytest.raises(DeviceError):
        files.write(keys[3], needs, PAGES)
    assert sum(path.stat().st_size for path in disk.directory.rglob("*") if path.is_file()) <= 2 * size + 100


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = KvFiles(Disk(tmp_path), LOAD)
    opened = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened("/dev/full", os.O_WRONLY) if rest else opened(path))
    with pytest.raises(DeviceError, match="No space left"):
        files.write(KEY, FIRST, [memoryview(bytes(1 << 20))] * 3)
    monkeypatch.undo()
    assert files.find() == ()
