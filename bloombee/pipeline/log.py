"""What left a stage, kept so that it can be said again to another neighbour. Pure bookkeeping; payloads are opaque.

Frames are kept as they were made, encoded, with whose rows they hold: keeping costs no copy, and a frame that is still to be
acknowledged is the same object. The rows of a sequence are runs over such frames, in rising order without holes; beyond them
there may be nodes of a draft, of which a cut makes rows or nothing. A frame is let go when no sequence has rows in it any more.

Memory has a budget, and a file on disk another. Shortly before memory is full the oldest frames there are to be written to the
file, one slab at a time (:class:`~bloombee.pipeline.commands.Spill`); they count as memory's until they have been
(:meth:`BoundaryLog.spilled`), and whoever writes them says what stands for each from then on. Where either has no room left the
oldest frames go, and with them the beginnings of sequences. Which bytes of the file are whose is decided here; they are written
and read in the order in which that is asked for, so the room of a frame that is gone can be used at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile, takewhile

from msgspec import Struct

from bloombee.pipeline.commands import Spill
from bloombee.pipeline.extents import Extents
from bloombee.pipeline.trees import Part, nodes_of, parts_on
from bloombee.pipeline.work import Piece
from bloombee.types import SequenceId
from bloombee.wire.messages import Cut, Item, Tree

LOG_BYTES = 256 << 20
LOG_SHARE = 8
"""A log gets no more than this part of a worker's memory, unless it is told otherwise."""
SLABS = 8
"""Frames are written to disk by so many parts of the memory's budget."""


def default_log_bytes(memory_bytes: int) -> int:
    """Of memory, for a worker that has so much in all."""
    return min(LOG_BYTES, memory_bytes // LOG_SHARE)


@dataclass(slots=True, eq=False)
class _Frame:
    payload: object
    num_bytes: int
    sequences: tuple[SequenceId, ...]
    num_runs: int
    offset: int = -1
    """Where its bytes are, or will be, in the file; -1: only in memory."""


class _Run(Struct, gc=False):
    """Rows [position, stop) of a sequence, which are rows [row, ..) of the frame."""

    position: int
    tokens: bytes
    num_picks: int
    frame: _Frame
    row: int

    @property
    def stop(self) -> int:
        return self.position + len(self.tokens) // 4


@dataclass(slots=True, eq=False)
class _Branch:
    """The rows of a tree's item, which are those from ``row`` on of the frame."""

    item: Item
    tree: Tree
    frame: _Frame
    row: int

    @property
    def stop(self) -> int:
        """The node after its last."""
        return self.tree.first + self.item.num_rows


@dataclass(frozen=True, slots=True)
class Said:
    """Rows of a sequence as they are to be said again. ``tokens``, ``num_picks``, ``tree``: as of
    :class:`~bloombee.wire.messages.Item`."""

    position: int
    tokens: bytes
    num_picks: int
    pieces: tuple[Piece, ...]
    tree: Tree | None = None

    @property
    def num_rows(self) -> int:
        return len(self.tokens) // 4


@dataclass(slots=True)
class _Rows:
    """[start, stop) of a sequence."""

    runs: list[_Run] = field(default_factory=list)
    stop: int = 0
    nodes: list[_Branch] = field(default_factory=list)
    """Of the present generation, in order; they hang on row ``stop - 1``."""
    num_nodes: int = 0
    """Of those that have left, kept or not."""

    @property
    def start(self) -> int:
        return self.runs[0].position if self.runs else self.stop


class BoundaryLog:
    """Of one boundary of a pipeline.

    Args:
        memory_bytes: of payloads in memory; the newest frame is kept even if it is larger by itself.
        disk_bytes: of payloads in the file; 0: there is none.
    """

    def __init__(self, memory_bytes: int, disk_bytes: int = 0) -> None:
        self.num_bytes = 0
        """In memory."""
        self.num_stored_bytes = 0
        """In the file, or on their way to it."""
        self._memory_bytes = memory_bytes
        self._disk_bytes = disk_bytes
        self._room = Extents(disk_bytes)
        self._frames: OrderedDict[int, _Frame] = OrderedDict()
        """Those in memory, by identity, oldest first."""
        self._moving: list[_Frame] = []
        """Those that are being written, which are older; still in memory."""
        self._num_spills = 0
        self._stored: OrderedDict[int, _Frame] = OrderedDict()
        """Those on disk, which are older still."""
        self._rows: dict[SequenceId, _Rows] = {}

    def append(self, items: Sequence[Item], fresh: Sequence[Item], payload: object, num_bytes: int) -> Sequence[Spill]:
        """Keep a frame that has the rows of ``items``, in order; of those that are not ``fresh`` too nothing is noted.

        Returns:
            What is to be written to the file now, if anything; :meth:`spilled` is to follow.
        """
        if not fresh:
            return ()
        frame = _Frame(payload, num_bytes, tuple([item.sequence for item in fresh]), len(fresh))
        self._frames[id(frame)] = frame
        self.num_bytes += num_bytes
        row, wanted = 0, iter(fresh)
        following: Item | None = next(wanted)
        for item in items:
            num_rows = len(item.tokens) // 4
            if item is following:
                if item.tree is None:
                    self._note(item.sequence, item.position, item.tokens, item.num_picks, frame, row)
                else:
                    self._note_nodes(_Branch(item, item.tree, frame, row))
                following = next(wanted, None)
            row += num_rows
        while self.num_bytes > self._memory_bytes and len(self._frames) > 1:
            self._drop(next(iter(self._frames.values())))
        return self._spill()

    # -- to disk ---------------------------------------------------------------------------

    def _spill(self) -> Sequence[Spill]:
        slab = self._memory_bytes // SLABS
        if self._moving or not self._disk_bytes or self.num_bytes <= self._memory_bytes - slab:
            return ()
        wanted = slab
        while wanted >= 0 and len(self._frames) > 1:
            key, frame = next(iter(self._frames.items()))
            frame.offset = self._find_room(frame.num_bytes)
            if frame.offset < 0:
                self._drop(frame)
                continue
            del self._frames[key]
            self._moving.append(frame)
            self.num_stored_bytes += frame.num_bytes
            wanted -= frame.num_bytes
        if not self._moving:
            return ()
        self._num_spills += 1
        return (Spill(self._num_spills, tuple([(frame.offset, frame.payload) for frame in self._moving])),)

    def _find_room(self, num_bytes: int) -> int:
        """Drops the oldest that are there for it. -1: there is none, whatever is dropped."""
        if num_bytes > self._disk_bytes:
            return -1
        while (offset := self._room.take(max(1, num_bytes))) is None:
            if not self._stored:
                return -1
            self._drop(next(iter(self._stored.values())))
        return offset

    def spilled(self, number: int, stored: Sequence[object] | None) -> Sequence[Spill]:
        """The frames of a Spill are in the file, and these stand for their payloads now; None: it took no more, and they are
        lost. Returns what is to be written next, if anything."""
        if number != self._num_spills or not self._moving:
            return ()
        moving, self._moving = self._moving, []
        for frame, payload in zip(moving, stored or [None] * len(moving), strict=True):
            self.num_bytes -= frame.num_bytes
            self._stored[id(frame)] = frame
            if not frame.num_runs:  # nobody's rows are in it any more
                self._let_go(frame)
            elif stored is None:
                self._drop(frame)
            else:
                frame.payload = payload
        return self._spill()

    # -- rows ------------------------------------------------------------------------------

    def _note(self, sequence: SequenceId, position: int, tokens: bytes, num_picks: int, frame: _Frame, row: int) -> None:
        rows = self._rows.get(sequence)
        if rows is None:
            rows = self._rows[sequence] = _Rows()
        if position != rows.stop:
            self._cut(rows, position if rows.start <= position < rows.stop else 0)
        rows.runs.append(_Run(position, tokens, num_picks, frame, row))
        rows.stop = position + len(tokens) // 4

    def _note_nodes(self, branch: _Branch) -> None:
        rows = self._rows.setdefault(branch.item.sequence, _Rows())
        rows.nodes.append(branch)
        rows.num_nodes = branch.stop - 1

    def forget(self, sequence: SequenceId) -> None:
        """It is closed: nobody asks for its rows any more."""
        rows = self._rows.pop(sequence, None)
        if rows is not None:
            self._cut(rows, 0)
            self._let_go_of_nodes(rows)

    def cut(self, cut: Cut) -> None:
        """Rows from its length on are dead, but for those of nodes on its path, which come to be rows. Where one of these is kept
        no more, nothing is."""
        rows = self._rows.get(cut.sequence)
        if rows is None:
            return
        if cut.length == rows.stop:
            self._accept(rows, cut)
        elif cut.length < rows.stop:
            self._cut(rows, cut.length)
        self._let_go_of_nodes(rows)
        rows.num_nodes = 0

    def _accept(self, rows: _Rows, cut: Cut) -> None:
        """Nodes that have left, on its path."""
        stop = cut.length + sum(node <= rows.num_nodes for node in cut.path)
        for part, branch in _on_path(rows, cut):
            branch.frame.num_runs += 1
            assert part.item is not None
            self._note(cut.sequence, part.item.position, part.item.tokens, 0, branch.frame, branch.row + part.start)
        if rows.stop < stop:
            self._cut(rows, 0)
            rows.stop = stop

    def bounds(self, sequence: SequenceId) -> tuple[int, int]:
        """[start, stop) of the positions that are kept; (0, 0) if nothing of it ever left."""
        rows = self._rows.get(sequence)
        return (rows.start, rows.stop) if rows is not None else (0, 0)

    def read(self, sequence: SequenceId, start: int, stop: int) -> Said:
        """Rows [start, stop), which must be kept, and be some."""
        runs = self._rows[sequence].runs
        tokens, pieces, num_picks = [], [], 0
        for run in runs[bisect_right(runs, start, key=lambda run: run.stop) :]:
            if run.position >= stop:
                break
            first, end = max(start, run.position), min(stop, run.stop)
            tokens.append(run.tokens[4 * (first - run.position) : 4 * (end - run.position)])
            pieces.append(Piece(run.frame.payload, run.row + first - run.position, run.row + end - run.position))
            # Those with picks are the last rows of a run; in all, the last rows of what is read.
            picked = max(0, min(end - first, end - (run.stop - run.num_picks)))
            num_picks = picked + (num_picks if picked == end - first else 0)
        return Said(start, b"".join(tokens), num_picks, tuple(pieces))

    def num_nodes(self, sequence: SequenceId) -> int:
        """Of its present generation: those that are kept are the last."""
        rows = self._rows.get(sequence)
        return rows.nodes[-1].stop - 1 if rows is not None and rows.nodes else 0

    def read_nodes(self, sequence: SequenceId, first: int, most: int) -> Said:
        """Up to ``most`` nodes from number ``first`` on, or the first that is kept, which must be one."""
        branch = next(branch for branch in self._rows[sequence].nodes if first < branch.stop)
        start = max(0, first - branch.tree.first)
        stop = min(branch.item.num_rows, start + most)
        item = nodes_of(branch.item, branch.tree, start, stop)
        piece = Piece(branch.frame.payload, branch.row + start, branch.row + stop)
        return Said(item.position, item.tokens, item.num_picks, (piece,), item.tree)

    def lose_nodes(self, sequence: SequenceId) -> None:
        """They cannot be read."""
        rows = self._rows.get(sequence)
        if rows is not None:
            self._let_go_of_nodes(rows)

    def clear(self) -> None:
        """Forget everything; nothing is asked of it any more."""
        self._rows.clear()
        self._frames.clear()
        self._stored.clear()
        self._moving.clear()

    def _cut(self, rows: _Rows, position: int) -> None:
        """Forget rows from ``position`` on."""
        while rows.runs and rows.runs[-1].position >= position:
            self._release(rows.runs.pop().frame)
        if rows.runs and (surplus := rows.runs[-1].stop - position) > 0:
            last = rows.runs[-1]
            last.tokens, last.num_picks = last.tokens[: -4 * surplus], max(0, last.num_picks - surplus)
        rows.stop = position

    def _let_go_of_nodes(self, rows: _Rows) -> None:
        for branch in rows.nodes:
            self._release(branch.frame)
        rows.nodes.clear()

    def lose(self, sequence: SequenceId, stop: int) -> None:
        """Rows before ``stop`` cannot be read."""
        rows = self._rows.get(sequence)
        while rows is not None and rows.runs and rows.runs[0].position < stop:
            self._release(rows.runs.pop(0).frame)

    def _release(self, frame: _Frame) -> None:
        frame.num_runs -= 1
        if not frame.num_runs:
            self._let_go(frame)

    def _let_go(self, frame: _Frame) -> None:
        """Of one that is being written that is done when it has been."""
        if self._frames.pop(id(frame), None) is not None:
            self.num_bytes -= frame.num_bytes
        elif self._stored.pop(id(frame), None) is not None:
            self.num_stored_bytes -= frame.num_bytes
            self._room.give(frame.offset, max(1, frame.num_bytes))

    def _drop(self, frame: _Frame) -> None:
        """Sequences that have rows in the frame have none any more up to there."""
        for sequence in frame.sequences:
            rows = self._rows.get(sequence)
            if rows is None:
                continue
            frame.num_runs -= sum(branch.frame is frame for branch in rows.nodes)
            rows.nodes = [branch for branch in rows.nodes if branch.frame is not frame]
            self.lose(sequence, _stop_in(rows.runs, frame))
        self._let_go(frame)


def _stop_in(runs: Sequence[_Run], frame: _Frame) -> int:
    """Where the rows of a sequence that are in ``frame`` end; 0: none are. There are several runs, which are neighbours, where a
    path skips nodes."""
    own = takewhile(lambda run: run.frame is frame, dropwhile(lambda run: run.frame is not frame, runs))
    return max((run.stop for run in own), default=0)


def _on_path(rows: _Rows, cut: Cut) -> Iterator[tuple[Part, _Branch]]:
    """Rows of nodes on the path of a cut, in order, up to the first that is not kept."""
    for branch in rows.nodes:
        for part in parts_on(branch.item, branch.tree, cut.path, cut.generation, rows.stop):
            if part.item is None:
                continue
            if part.item.position != rows.stop:
                return
            yield part, branch
