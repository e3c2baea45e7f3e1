"""What left a stage and is kept: in memory, in a file, and no more than either has room for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from bloombee.pipeline.commands import Spill
from bloombee.pipeline.extents import Extents
from bloombee.pipeline.log import BoundaryLog
from bloombee.types import Kind
from bloombee.wire.messages import Cut, Item, Tree

ROW_BYTES = 10


def _item(sequence: int, position: int, rows: int) -> Item:
    return Item(sequence, 0, Kind.DECODE, position, bytes(4 * rows), 1, None, None)


def _row(sequence: int, position: int) -> bytes:
    return f"{sequence:4d},{position:5d}".encode()


@dataclass
class _Disk:
    """Does what is asked for in its order; ``answers`` come when the test says so."""

    log: BoundaryLog
    file: bytearray
    answers: list[tuple[int, tuple[tuple[int, int], ...]]] = field(default_factory=list)

    def do(self, spills: Sequence[Spill]) -> None:
        for spill in spills:
            for offset, payload in spill.frames:
                assert isinstance(payload, bytes)
                assert offset + len(payload) <= len(self.file)
                self.file[offset : offset + len(payload)] = payload
            self.answers.append((spill.number, tuple([(offset, len(payload)) for offset, payload in spill.frames])))

    def answer(self, *, takes_it: bool = True) -> None:
        answers, self.answers = self.answers, []
        for number, stored in answers:
            self.do(self.log.spilled(number, stored if takes_it else None))

    def append(self, *parts: tuple[int, int, int]) -> int:
        """A frame of (sequence, position, rows); its bytes."""
        items = [_item(*part) for part in parts]
        payload = b"".join(_row(sequence, position + row) for sequence, position, rows in parts for row in range(rows))
        self.do(self.log.append(items, items, payload, len(payload)))
        return len(payload)

    def draft(self, sequence: int, generation: int, position: int, parents: tuple[int, ...], rows: Sequence[bytes]) -> None:
        """A frame of a tree's nodes."""
        tree = Tree(1, parents, bytes([(1 << len(parents)) - 1]))
        item = Item(sequence, generation, Kind.DRAFT, position, bytes(4 * len(parents)), len(parents), None, tree)
        self.do(self.log.append([item], [item], b"".join(rows), ROW_BYTES * len(rows)))

    def rows(self, sequence: int, start: int, stop: int) -> list[bytes]:
        found = []
        for piece in self.log.read(sequence, start, stop).pieces:
            payload = piece.payload
            if isinstance(payload, tuple):
                payload = bytes(self.file[payload[0] : sum(payload)])
            assert isinstance(payload, bytes)
            found += [payload[ROW_BYTES * row : ROW_BYTES * (row + 1)] for row in range(piece.start, piece.stop)]
        return found


@pytest.mark.parametrize("seed", range(30))
def test_every_row_that_is_kept_reads_as_it_was_whatever_comes_and_goes(seed: int) -> None:
    rng = random.Random(seed)
    memory, space = rng.choice([400, 1000]), rng.choice([0, 300, 2000])
    log = BoundaryLog(memory, space)
    disk = _Disk(log, bytearray(space))
    length: dict[int, int] = {}
    newest = 0
    for step in range(600):
        match rng.random():
            case chance if chance < 0.7:
                chosen = rng.sample(range(step // 100 * 6, step // 100 * 6 + 6), rng.randint(1, 3))
                parts = [(sequence, length.get(sequence, 0), rng.randint(1, 6)) for sequence in chosen]
                newest = disk.append(*parts)
                length |= {sequence: position + rows for sequence, position, rows in parts}
            case chance if chance < 0.85:
                disk.answer(takes_it=rng.random() < 0.9)
            case chance if chance < 0.95 and length:
                sequence = rng.choice(list(length))
                length[sequence] = rng.randint(0, length[sequence])
                log.cut(Cut(sequence, 1, length[sequence], ()))
            case _ if length:
                sequence = rng.choice(list(length))
                del length[sequence]
                log.forget(sequence)
        assert log.num_bytes <= max(memory, newest + memory // 2)
        assert 0 <= log.num_stored_bytes <= space
        for sequence, stop in length.items():
            start, end = log.bounds(sequence)
            assert end == stop
            if start < end:
                assert disk.rows(sequence, start, end) == [_row(sequence, position) for position in range(start, end)]
    disk.answer()
    for sequence in length:
        log.forget(sequence)
    assert (log.num_bytes, log.num_stored_bytes) == (0, 0)
    assert not space or log._room.take(space) == 0, "all of the file can be used again"


@pytest.mark.parametrize("seed", range(20))
def test_rows_that_were_drafted_read_as_they_were_too(seed: int) -> None:
    """A path may skip nodes: then a sequence has several runs in one frame."""
    rng = random.Random(seed)
    memory, space = rng.choice([200, 1000]), rng.choice([0, 200, 1000])
    log = BoundaryLog(memory, space)
    disk = _Disk(log, bytearray(space))
    rows: dict[int, list[bytes]] = {1: [], 2: [], 3: []}
    for step in range(400):
        sequence = rng.choice(list(rows))
        parents = tuple(rng.randrange(node + 1) for node in range(rng.randint(1, 6)))
        nodes = [_row(step, node) for node in range(1, len(parents) + 1)]
        disk.draft(sequence, step, len(rows[sequence]), parents, nodes)
        path, node = list[int](), 0
        while children := [child for child, parent in enumerate(parents, 1) if parent == node]:
            path.append(node := rng.choice(children))
        log.cut(Cut(sequence, step + 1, len(rows[sequence]), tuple(path)))
        rows[sequence] += [nodes[node - 1] for node in path]
        if rng.random() < 0.8:
            disk.answer(takes_it=rng.random() < 0.9)
        for number, known in rows.items():
            start, stop = log.bounds(number)
            assert stop == len(known)
            assert start == stop or disk.rows(number, start, stop) == known[start:stop]
    disk.answer()
    for number in rows:
        log.forget(number)
    assert (log.num_bytes, log.num_stored_bytes) == (0, 0)
    assert not space or log._room.take(space) == 0, "all of the file can be used again"


@pytest.mark.parametrize("path", [(1, 2), (1,), (1, 3)])
def test_once_a_node_on_the_path_is_kept_no_more_the_rows_end_where_they_ended_and_none_is_kept(path: tuple[int, ...]) -> None:
    """Of (1, 3) only the first has left: the other one comes as a row."""
    log = BoundaryLog(1000)
    disk = _Disk(log, bytearray())
    disk.append((1, 0, 4))
    disk.draft(1, 0, 4, (0, 1), [_row(1, 4), _row(1, 5)])
    log.lose_nodes(1)
    log.cut(Cut(1, 1, 4, path))
    stop = 4 + sum(node <= 2 for node in path)
    assert log.bounds(1) == (stop, stop)
    disk.append((1, stop, 2))
    assert log.bounds(1) == (stop, stop + 2)
    log.forget(1)
    assert log.num_bytes == 0


def test_what_has_no_room_in_memory_is_on_disk_and_nothing_is_lost() -> None:
    log = BoundaryLog(1000, 10_000)
    disk = _Disk(log, bytearray(10_000))
    for position in range(0, 800, 2):
        disk.append((1, position, 2))
        disk.answer()
        assert log.num_bytes <= 1000
    assert log.bounds(1) == (0, 800)
    assert log.num_bytes + log.num_stored_bytes == 8000
    assert disk.rows(1, 0, 800) == [_row(1, position) for position in range(800)]


def test_while_the_disk_is_slow_memory_stays_within_its_budget_and_the_oldest_go() -> None:
    log = BoundaryLog(1000, 10_000)
    disk = _Disk(log, bytearray(10_000))
    for position in range(0, 800, 2):
        disk.append((1, position, 2))
        assert log.num_bytes <= 1000
    start, stop = log.bounds(1)
    assert (stop, start > 0) == (800, True)
    assert disk.rows(1, start, stop) == [_row(1, position) for position in range(start, stop)]


def test_of_a_full_disk_the_oldest_are_dropped() -> None:
    log = BoundaryLog(1000, 3000)
    disk = _Disk(log, bytearray(3000))
    for position in range(0, 800, 2):
        disk.append((1, position, 2))
        disk.answer()
    start, stop = log.bounds(1)
    assert 8000 - 4000 <= 10 * start <= 8000 - 3000
    assert disk.rows(1, start, stop) == [_row(1, position) for position in range(start, stop)]


def test_what_a_disk_does_not_take_is_dropped_and_what_comes_later_is_kept() -> None:
    log = BoundaryLog(1000, 10_000)
    disk = _Disk(log, bytearray(10_000))
    for position in range(0, 200, 2):
        disk.append((1, position, 2))
        disk.answer(takes_it=False)
    assert log.num_stored_bytes == 0
    start, stop = log.bounds(1)
    assert 0 < start < stop == 200


def test_a_frame_that_is_larger_than_either_room_costs_only_older_ones() -> None:
    log = BoundaryLog(100, 100)
    disk = _Disk(log, bytearray(100))
    disk.append((1, 0, 50))
    disk.append((2, 0, 3))
    assert log.bounds(1) == (50, 50)
    assert log.bounds(2) == (0, 3)


@pytest.mark.parametrize("seed", range(10))
def test_room_in_the_file_is_nobody_elses_and_comes_back_whole(seed: int) -> None:
    rng = random.Random(seed)
    room = Extents(1000)
    taken: dict[int, int] = {}
    for _ in range(500):
        size = rng.randint(1, 60)
        start = room.take(size) if rng.random() < 0.6 else None
        if start is not None:
            assert 0 <= start <= 1000 - size
            assert all(start + size <= other or other + length <= start for other, length in taken.items())
            taken[start] = size
        elif taken:
            gone = rng.choice(list(taken))
            room.give(gone, taken.pop(gone))
    for start, size in taken.items():
        room.give(start, size)
    assert room.take(1000) == 0
