"""A device that computes digests instead of layers, so that a wrong row, slot or order shows at once.

The hidden row of position p after a stage is a hash of the row that came in and of every row that the stage's KV holds for
positions [0, p], or as far back as its layers see, read through the pages it was given: a page shared by mistake, a stale row
after a rollback or a missing row changes every later token of the sequence. :func:`oracle` gives the tokens that a pipeline
must produce.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Protocol

from bloombee.pipeline.work import Outcome, Pages, Piece, Segment, Work
from bloombee.wire.messages import Group, Pick

VOCAB = 50_000
ROW_BYTES = 8


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=8).digest()


class Device(Protocol):
    """Runs the works of one stage, one after the other."""

    def run(self, work: Work) -> Outcome: ...
    def gather(self, pieces: Sequence[Piece]) -> object: ...


class SimDevice:
    """One stage's KV and forward. ``hidden`` payloads are lists of 8-byte rows."""

    def __init__(self, *, stage: int, is_last: bool, groups: Sequence[Group], page_size: int) -> None:
        self._stage = stage.to_bytes(2, "little")
        self._is_last = is_last
        self._page_size = page_size
        self._windows = [group.window for group in groups]
        self._kv = [[b""] * (group.num_pages * page_size) for group in groups]

    def run(self, work: Work) -> Outcome:
        rows_out: list[bytes] = []
        picks: list[Pick] = []
        hidden = work.hidden
        for segment in work.segments:
            self._move(segment)
        for segment in work.segments:
            self._copy_shared(segment)
        for index, segment in enumerate(work.segments):
            if hidden is None:
                rows_in = [segment.tokens[4 * i : 4 * i + 4] for i in range(segment.num_rows)]
            else:
                assert isinstance(hidden, list)
                start, stop = work.hidden_rows[index]
                rows_in = hidden[start:stop]
            rows = [self._row(segment, i, row) for i, row in enumerate(rows_in)]
            rows_out += rows
            if self._is_last:
                picks += [_pick(segment, i, rows[i]) for i in segment.picked()]
        if self._is_last:
            return Outcome(work.number, picks=tuple(picks))
        return Outcome(work.number, hidden=rows_out, num_bytes=ROW_BYTES * len(rows_out))

    def gather(self, pieces: Sequence[Piece]) -> list[bytes]:
        """Rows that left this stage before, in one frame."""
        rows: list[bytes] = []
        for piece in pieces:
            assert isinstance(piece.payload, list)
            rows += piece.payload[piece.start : piece.stop]
        return rows

    def _row(self, segment: Segment, index: int, row: bytes) -> bytes:
        places = _places(segment, index)
        seen: list[bytes] = []
        for kv, window, pages in zip(self._kv, self._windows, segment.pages, strict=True):
            kv[self._slot(pages, segment.position + index)] = row
            seen += [kv[self._slot(pages, place)] for place in places[_oldest(len(places) - 1, window) :]]
        return _digest(self._stage, *seen)

    def _slot(self, pages: Pages, position: int) -> int:
        assert position >= pages.start, "a position below those held is asked for"
        return pages.ids[(position - pages.start) // self._page_size] * self._page_size + position % self._page_size

    def _move(self, segment: Segment) -> None:
        for kv, pages in zip(self._kv, segment.pages, strict=True):
            rows = [kv[source] for source, _ in pages.moves]
            for (_, target), row in zip(pages.moves, rows, strict=True):
                kv[target] = row

    def _copy_shared(self, segment: Segment) -> None:
        for kv, pages in zip(self._kv, segment.pages, strict=True):
            if pages.source is not None:
                source, target = pages.source * self._page_size, self._slot(pages, segment.position)
                target -= segment.position % self._page_size
                kv[target : target + self._page_size] = kv[source : source + self._page_size]


def _oldest(position: int, window: int) -> int:
    return max(0, position - window + 1) if window else 0


def _places(segment: Segment, index: int) -> Sequence[int]:
    """The positions whose slots a row sees, its own last; as many as its own position and one."""
    tree = segment.tree
    if tree is None:
        return range(segment.position + index + 1)
    return [*range(tree.base), *(tree.base + node - 1 for node in tree.path(tree.first + index))]


def _pick(segment: Segment, index: int, row: bytes) -> Pick:
    assert segment.sampling is not None
    position = len(_places(segment, index))
    token = _token(row, segment.sampling.seed, position)
    return Pick(segment.sequence, segment.generation, position, token, None, ())


def _token(row: bytes, seed: int, position: int) -> int:
    return int.from_bytes(_digest(row, struct.pack("<QI", seed, position))[:4], "little") % VOCAB


def oracle(
    prompt: list[int], seed: int, num_stages: int, num_tokens: int, windows: Sequence[Sequence[int]] | None = None
) -> list[int]:
    """The ``num_tokens`` tokens that follow ``prompt``, computed densely without pages, frames or stages.

    Args:
        windows: of the groups of each stage; None: all see everything.
    """
    windows = windows or [(0,)] * num_stages
    tokens = list(prompt)
    kv: list[list[bytes]] = [[] for _ in range(num_stages)]
    done = 0
    while len(tokens) < len(prompt) + num_tokens:
        row = b""
        for position in range(done, len(tokens)):
            row = struct.pack("<I", tokens[position])
            for stage in range(num_stages):
                kv[stage].append(row)
                seen = [one for window in windows[stage] for one in kv[stage][_oldest(position, window) :]]
                row = _digest(stage.to_bytes(2, "little"), *seen)
        done = len(tokens)
        tokens.append(_token(row, seed, len(tokens)))
    return tokens[len(prompt) :]
