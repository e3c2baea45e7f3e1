"""What left a stage, kept so that it can be said again to another neighbour. Pure bookkeeping; payloads are opaque.

Frames are kept as they were made, encoded, with whose rows they hold: keeping costs no copy, and a frame that is still to be
acknowledged is the same object. The rows of a sequence are runs over such frames, in rising order without holes. A frame is let
go when no sequence has rows in it any more; when the budget is full the oldest goes, and with it the beginnings of sequences.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from bloombee.pipeline.work import Piece
from bloombee.types import SequenceId
from bloombee.wire.messages import Item


@dataclass(slots=True, eq=False)
class _Frame:
    payload: object
    num_bytes: int
    sequences: tuple[SequenceId, ...]
    num_runs: int


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


@dataclass(frozen=True, slots=True)
class Said:
    """Rows of a sequence as they are to be said again. ``tokens``, ``num_picks``: as of :class:`~bloombee.wire.messages.Item`."""

    position: int
    tokens: bytes
    num_picks: int
    pieces: tuple[Piece, ...]

    @property
    def num_rows(self) -> int:
        return len(self.tokens) // 4


@dataclass(slots=True)
class _Rows:
    """[start, stop) of a sequence."""

    runs: list[_Run] = field(default_factory=list)
    stop: int = 0

    @property
    def start(self) -> int:
        return self.runs[0].position if self.runs else self.stop


class BoundaryLog:
    """Of one boundary of a pipeline.

    Args:
        budget_bytes: of payloads; the newest frame is kept even if it is larger by itself.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.num_bytes = 0
        self._budget_bytes = budget_bytes
        self._frames: OrderedDict[int, _Frame] = OrderedDict()
        """By identity, oldest first."""
        self._rows: dict[SequenceId, _Rows] = {}

    def append(self, items: Sequence[Item], fresh: Sequence[Item], payload: object, num_bytes: int) -> None:
        """Keep a frame that has the rows of ``items``, in order; of those that are not ``fresh`` too nothing is noted."""
        if not fresh:
            return
        frame = _Frame(payload, num_bytes, tuple([item.sequence for item in fresh]), len(fresh))
        self._frames[id(frame)] = frame
        self.num_bytes += num_bytes
        row, wanted = 0, iter(fresh)
        following: Item | None = next(wanted)
        for item in items:
            num_rows = len(item.tokens) // 4
            if item is following:
                self._note(item, frame, row, num_rows)
                following = next(wanted, None)
            row += num_rows
        while self.num_bytes > self._budget_bytes and len(self._frames) > 1:
            self._drop_oldest()

    def _note(self, item: Item, frame: _Frame, row: int, num_rows: int) -> None:
        rows = self._rows.get(item.sequence)
        if rows is None:
            rows = self._rows[item.sequence] = _Rows()
        position = item.position
        if position != rows.stop:
            self._cut(rows, position if rows.start <= position < rows.stop else 0)
        rows.runs.append(_Run(position, item.tokens, item.num_picks, frame, row))
        rows.stop = position + num_rows

    def forget(self, sequence: SequenceId) -> None:
        """It is closed: nobody asks for its rows any more."""
        rows = self._rows.pop(sequence, None)
        if rows is not None:
            self._cut(rows, 0)

    def truncate(self, sequence: SequenceId, position: int) -> None:
        """Rows from ``position`` on are of an older generation now."""
        rows = self._rows.get(sequence)
        if rows is not None and position < rows.stop:
            self._cut(rows, position)

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

    def _cut(self, rows: _Rows, position: int) -> None:
        """Forget rows from ``position`` on."""
        while rows.runs and rows.runs[-1].position >= position:
            self._release(rows.runs.pop())
        if rows.runs and (surplus := rows.runs[-1].stop - position) > 0:
            last = rows.runs[-1]
            last.tokens, last.num_picks = last.tokens[: -4 * surplus], max(0, last.num_picks - surplus)
        rows.stop = position

    def _release(self, run: _Run) -> None:
        frame = run.frame
        frame.num_runs -= 1
        if not frame.num_runs and self._frames.pop(id(frame), None) is not None:
            self.num_bytes -= frame.num_bytes

    def _drop_oldest(self) -> None:
        _, frame = self._frames.popitem(last=False)
        self.num_bytes -= frame.num_bytes
        for sequence in frame.sequences:
            rows = self._rows.get(sequence)
            if rows is not None and rows.runs and rows.runs[0].frame is frame:  # its oldest rows are in the oldest frame
                del rows.runs[0]
