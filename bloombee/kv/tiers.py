"""Kept rows beyond the device: what is copied where, and when. Pure bookkeeping; the copies are the shell's.

Theory of operation. A page of kept rows is never written to again, so it may lie in several places. As soon as rows are kept
their pages are copied to the host's memory, if there is room: from then on their places on the device can be had by whoever needs
them, at once and at no loss. Rows that a sequence is to begin on, and that are not on the device, are copied back there
(:class:`~bloombee.kv.kept.Arrival`); what needs them waits, everybody else goes on.

Pins. Copies run beside the device's works, take their time, and end in any order. A page that a copy reads, on either side, or
that one writes, has the copy as one more holder (``PagePool.share``): nobody is given it, so nobody writes there, until the copy
has ended. What works that are on the device already read and write is safe the other way: a copy begins only when all works have
ended that were given to the device before it was decided (``pipeline/paging.py``).
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from msgspec import Struct

from bloombee.kv.kept import Arrival, Kept, KeptPage, StoredPrefix
from bloombee.kv.places import Places
from bloombee.kv.pool import PagePool


class Way(enum.Enum):
    """From where to where a copy goes."""

    OUT = enum.auto()
    """From the device to the host's memory."""
    IN = enum.auto()
    STORE = enum.auto()
    """From the host's memory to a file."""
    FETCH = enum.auto()
    """Back from one."""


class Copy(Struct, frozen=True, gc=False):
    """Pages to be copied.

    Args:
        pages: (group, from, to) of each; in a file they are counted.
        file: STORE, FETCH: its name. prefix: STORE: all that it is to say.
    """

    number: int
    way: Way
    pages: tuple[tuple[int, int, int], ...]
    file: bytes = b""
    prefix: StoredPrefix | None = None


@dataclass(frozen=True, slots=True)
class _UnderWay:
    copy: Copy
    pages: Sequence[KeptPage]


class Tiers:
    """Of one span.

    Args:
        places: of its pages.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._leaving: list[Kept] = []
        """That are to be copied to the host's memory."""
        self._to_store: dict[Kept, None] = {}
        """That are to be written to disk."""
        self.has_disk = False
        self.run = b""
        """Part of the names of this process's files: no two files ever have one."""
        self._is_storing = False
        self._arrivals: dict[Arrival, None] = {}
        self._failed: list[Arrival] = []
        self._under_way: dict[int, _UnderWay] = {}
        self._num_copies = 0

    @property
    def is_busy(self) -> bool:
        """Copies are under way: pages that they hold will be free."""
        return bool(self._under_way)

    @property
    def is_quiet(self) -> bool:
        """There is nothing to be copied, and nothing to be told."""
        return not (self._leaving or self._to_store or self._arrivals or self._failed)

    @property
    def num_held(self) -> int:
        """Pages of the device that nobody holds but a copy which reads them."""
        device = self._places.device
        out = [move for one in self._under_way.values() if one.copy.way is Way.OUT for move in one.copy.pages]
        return sum(device[group].holders(page) == 1 for group, page, _ in out)

    @property
    def has_arrivals(self) -> bool:
        """Somebody waits for rows, or has yet to be told that they cannot be had."""
        return bool(self._arrivals or self._failed)

    def kept(self, kept: Kept) -> None:
        """It is a keeper of its pages from now on."""
        if self._places.host:
            self._leaving.append(kept)
            if self.has_disk:
                self._to_store[kept] = None

    # -- arrivals --------------------------------------------------------------------------

    def bring(self, arrival: Arrival) -> Arrival:
        """Hold its pages on the device, and have those that are not there brought."""
        for page in arrival.pages():
            page.keepers[arrival] = None
            if page.device is not None:
                self._places.device[page.group].share([page.device])
            else:
                arrival.missing[page] = None
        if arrival.missing:
            self._arrivals[arrival] = None
        return arrival

    def end(self, arrival: Arrival) -> None:
        """Whoever it was for has begun, or will not."""
        if arrival.has_failed:
            return
        self._arrivals.pop(arrival, None)
        for page in arrival.pages():
            if page not in arrival.missing:
                assert page.device is not None
                self._places.device[page.group].give([page.device])
        self._places.forget(arrival)

    def fail(self, arrival: Arrival) -> None:
        """It cannot be had."""
        self.end(arrival)
        arrival.has_failed = True
        self._failed.append(arrival)

    def take_failed(self) -> list[Arrival]:
        """Those that have, since this was last asked."""
        failed, self._failed = self._failed, []
        return failed

    # -- copies ----------------------------------------------------------------------------

    def copies(self) -> list[Copy]:
        """To be begun, each as soon as all works of the device have ended that were given to it before."""
        return [*self._coming(), *self._outgoing(), *self._stores()]

    def done(self, number: int, *, failed: bool) -> None:
        """A copy has ended."""
        ended = self._under_way.pop(number)
        way = ended.copy.way
        done = {Way.OUT: self._is_out, Way.IN: self._is_in, Way.FETCH: self._is_fetched}.get(way)
        if done is None:
            self._is_stored(ended, failed=failed)
            return
        for page, (group, source, target) in zip(ended.pages, ended.copy.pages, strict=True):
            done(page, group, source, target, failed=failed)
        if failed and way is Way.FETCH:
            self._places.gone_from_disk(ended.copy.file)

    def _outgoing(self) -> Iterator[Copy]:
        leaving, self._leaving = self._leaving, []
        for kept in leaving:
            pages = [
                page
                for page in kept.pages()
                if page.device is not None and page.host is None and not page.is_leaving and kept in page.keepers
            ]
            if pages and self._places.make_host_room(Counter([page.group for page in pages])):
                for page in pages:
                    page.is_leaving = True
                yield self._copy(Way.OUT, pages)

    def _copy(self, way: Way, pages: Sequence[KeptPage]) -> Copy:
        """Between the device and the host's memory."""
        source, target = self._places.host, self._places.device
        if way is Way.OUT:
            source, target = target, source
        moves = []
        for page in pages:
            place = page.device if way is Way.OUT else page.host
            assert place is not None
            _pin(source[page.group], place)
            moves.append((page.group, place, target[page.group].take(1)[0]))
        return self._begin(way, moves, pages)

    def _is_out(self, page: KeptPage, group: int, source: int, target: int, *, failed: bool) -> None:
        page.is_leaving = False
        _unpin(self._places.device[group], source)
        if failed or not page.keepers:
            self._places.host[group].give([target])
        else:
            self._places.is_on_host(page, target)

    def _coming(self) -> Iterator[Copy]:
        for arrival in list(self._arrivals):
            if far := [page for page in arrival.missing if not page.is_coming and page.host is None]:
                yield from self._fetch(arrival, far)
            if arrival not in self._arrivals:
                continue  # it has failed
            pages = [page for page in arrival.missing if not page.is_coming]
            wanted = Counter([page.group for page in pages])
            if all(self._places.device[group].can_take(count) for group, count in wanted.items()):
                for page in pages:
                    page.is_coming = True
                if pages:
                    yield self._copy(Way.IN, pages)
            elif not self._under_way:
                self.fail(arrival)

    def _fetch(self, arrival: Arrival, pages: Sequence[KeptPage]) -> Iterator[Copy]:
        """Into the host's memory first."""
        if not self._places.make_host_room(Counter([page.group for page in pages])):
            if not self._under_way:
                self.fail(arrival)
            return
        by_file: dict[bytes, list[KeptPage]] = {}
        for page in pages:
            assert page.disk is not None
            page.is_coming = True
            by_file.setdefault(page.disk[0], []).append(page)
        for file, own in by_file.items():
            moves = [(page.group, page.disk[1], self._places.host[page.group].take(1)[0]) for page in own if page.disk]
            yield self._begin(Way.FETCH, moves, own, file=file)

    def _is_fetched(self, page: KeptPage, group: int, source: int, target: int, *, failed: bool) -> None:
        page.is_coming = False
        if failed or not page.keepers or page.host is not None:
            self._places.host[group].give([target])
        else:
            self._places.is_on_host(page, target)

    def _stores(self) -> Iterator[Copy]:
        """One at a time: what is kept, and is in the host's memory or on disk page by page."""
        while self._to_store and not self._is_storing:
            kept = next(iter(self._to_store))
            pages = list(kept.pages())
            if any(page.is_leaving for page in pages):
                return
            del self._to_store[kept]
            if all(kept in page.keepers and (page.host is not None or page.disk is not None) for page in pages):
                self._is_storing = True
                yield self._store(kept)

    def _store(self, kept: Kept) -> Copy:
        own = [page for page in kept.pages() if page.disk is None]
        file = kept.key + self.run + self._num_copies.to_bytes(8, "little")
        at = {page: (file, number) for number, page in enumerate(own)}
        parts = tuple([(start, tuple([page.disk or at[page] for page in pages])) for start, pages in kept.parts])
        moves = []
        for number, page in enumerate(own):
            assert page.host is not None
            _pin(self._places.host[page.group], page.host)
            moves.append((page.group, page.host, number))
        stored = StoredPrefix(kept.key, kept.length, kept.newest, kept.tokens, parts)
        return self._begin(Way.STORE, moves, own, file=file, prefix=stored)

    def _is_stored(self, ended: _UnderWay, *, failed: bool) -> None:
        self._is_storing = False
        for page, (group, source, number) in zip(ended.pages, ended.copy.pages, strict=True):
            _unpin(self._places.host[group], source)
            if not failed and page.keepers and page.disk is None:
                self._places.is_on_disk(page, (ended.copy.file, number))

    def _is_in(self, page: KeptPage, group: int, source: int, target: int, *, failed: bool) -> None:
        pool = self._places.device[group]
        page.is_coming = False
        _unpin(self._places.host[group], source)
        if failed:
            self._places.lost(page)
        elif page.keepers:
            self._places.is_on_device(page, target)
            for keeper in page.keepers:
                if isinstance(keeper, Arrival) and page in keeper.missing:
                    del keeper.missing[page]
                    pool.share([target])
        pool.give([target])

    def _begin(
        self,
        way: Way,
        moves: Sequence[tuple[int, int, int]],
        pages: Sequence[KeptPage],
        *,
        file: bytes = b"",
        prefix: StoredPrefix | None = None,
    ) -> Copy:
        copy = Copy(self._num_copies, way, tuple(moves), file, prefix)
        self._num_copies += 1
        self._under_way[copy.number] = _UnderWay(copy, pages)
        return copy


def _pin(pool: PagePool, page: int) -> None:
    """A copy reads it."""
    pool.share([page])


def _unpin(pool: PagePool, page: int) -> None:
    pool.give([page])
