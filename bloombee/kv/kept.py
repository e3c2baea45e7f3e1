"""What is kept of a sequence's first rows, page by page, wherever each page lies. Plain data; ``tiers.py`` moves the pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from msgspec import Struct

from bloombee.types import SequenceId

Place = tuple[bytes, int]
"""On disk: the file, by its name, and the page's number in it."""


class StoredPrefix(Struct, frozen=True, gc=False):
    """What is kept, as a file names it.

    Args:
        parts: as of :class:`Kept`; pages may be in files of others, of which they are the first rows too.
    """

    key: bytes
    length: int
    newest: int
    tokens: bytes
    parts: tuple[tuple[int, tuple[Place, ...]], ...]


@dataclass(slots=True, eq=False)
class KeptPage:
    """A page of rows that nobody writes to any more.

    Args:
        group: of layers. device, host, disk: where it lies there; None: it does not.
    """

    group: int
    device: int | None = None
    host: int | None = None
    disk: Place | None = None
    keepers: dict[Kept | Arrival, None] = field(default_factory=dict)
    """Who has it, in the order of coming; a page that nobody has is gone."""
    is_leaving: bool = False
    """It is being copied to the host's memory; ``is_coming``: to the device's, or to the host's from disk."""
    is_coming: bool = False


Parts = tuple[tuple[int, tuple[KeptPage, ...]], ...]
"""One a group: the first position, and the pages from there on."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Rows [0, length) of a sequence that has computed them.

    Args:
        key: names their token ids.
        newest: the most rows that it had then: how far back one can go depends on that.
        tokens: [length] little-endian uint32, on the last stage.
    """

    key: bytes
    sequence: SequenceId
    length: int
    newest: int
    parts: Parts
    tokens: bytes

    def pages(self) -> Iterator[KeptPage]:
        for _, pages in self.parts:
            yield from pages

    def first(self, length: int, page_size: int) -> Parts:
        """The parts that hold [0, length)."""
        return tuple([(start, pages[: max(0, -(-(length - start) // page_size))]) for start, pages in self.parts])


@dataclass(slots=True, eq=False)
class Arrival:
    """Rows [0, length) that a sequence is to begin on: those on the device are held there for it, the others are on their way.

    Args:
        parts: of these rows.
    """

    kept: Kept
    length: int
    parts: Parts
    missing: dict[KeptPage, None] = field(default_factory=dict)
    """Not on the device yet."""
    has_failed: bool = False
    """Some cannot be had: the rows are to be computed."""

    @property
    def is_here(self) -> bool:
        return not self.missing and not self.has_failed

    def pages(self) -> Iterator[KeptPage]:
        for _, pages in self.parts:
            yield from pages
