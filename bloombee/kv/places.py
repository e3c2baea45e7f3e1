"""Where each page of kept rows lies - on the device, in the host's memory, on disk - and which make way for others. Pure.

Pages that were of no use for the longest time go first; those of sequences that are open last: these come back for sure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from bloombee.kv.kept import Arrival, Kept, KeptPage, Place
from bloombee.kv.pool import PagePool
from bloombee.types import SequenceId

AT_ONCE = 32
"""Pages that make way when one is needed: to find them takes a look at all."""
HOST_SHARE = 8


def default_host_bytes(memory_bytes: int) -> int:
    """Of the host's memory for kept rows, of a worker that offers so much for a model."""
    return memory_bytes // HOST_SHARE


class Places:
    """Of one span.

    Args:
        pools: of the device's pages, one a group.

    Attributes:
        lose: is told of a keeper some of whose pages are gone. is_open: of a sequence, whether it is to come back. Both are the
            owner's.
    """

    def __init__(self, pools: Sequence[PagePool]) -> None:
        self.device = tuple(pools)
        self.host: tuple[PagePool, ...] = ()
        """Of the host's memory; empty: there is none."""
        self.lose: Callable[[Kept | Arrival], None] = lambda _: None
        self.is_open: Callable[[SequenceId], bool] = lambda _: False
        self._on_device: list[dict[int, KeptPage]] = [{} for _ in pools]
        """By page; what was of use last at the end, here as there."""
        self._on_host: list[dict[int, KeptPage]] = [{} for _ in pools]
        self._on_disk: dict[bytes, dict[KeptPage, None]] = {}
        """By file."""

    def open(self, host_pages: Sequence[int]) -> None:
        """There is room for so many pages of each group in the host's memory; none at all if there is none of some group."""
        if not self.host and all(host_pages):
            self.host = tuple([PagePool(count, pool.page_size) for count, pool in zip(host_pages, self.device, strict=True)])

    # -- where they lie --------------------------------------------------------------------

    def page(self, group: int, place: int) -> KeptPage:
        """What is kept of a page of the device, from now on if it was not."""
        page = self._on_device[group].get(place)
        if page is None:
            page = KeptPage(group)
            self.is_on_device(page, place)
        return page

    def touch(self, pages: Iterator[KeptPage]) -> None:
        """They are of use."""
        for page in pages:
            for place, there in ((page.device, self._on_device), (page.host, self._on_host)):
                if place is not None:
                    there[page.group][place] = there[page.group].pop(place)

    def forget(self, keeper: Kept | Arrival) -> None:
        """It has its pages no more."""
        for page in keeper.pages():
            del page.keepers[keeper]
            if not page.keepers:
                self._leave_device(page)
                self._leave_host(page)
                self._leave_disk(page)

    def lost(self, page: KeptPage) -> None:
        """Its rows are nowhere any more."""
        for keeper in list(page.keepers):
            self.lose(keeper)

    def is_on_device(self, page: KeptPage, place: int) -> None:
        """It lies there too, and is kept there."""
        page.device = place
        self._on_device[page.group][place] = page
        self.device[page.group].keep([place])

    def is_on_host(self, page: KeptPage, place: int) -> None:
        """As :meth:`is_on_device`; whoever took the place has given it to the page."""
        page.host = place
        self._on_host[page.group][place] = page

    def is_on_disk(self, page: KeptPage, place: Place) -> None:
        """As :meth:`is_on_device`; the file is the shell's, which says when it is gone."""
        page.disk = place
        self._on_disk.setdefault(place[0], {})[page] = None

    def gone_from_disk(self, file: bytes) -> None:
        """A file is no more, or cannot be read."""
        for page in list(self._on_disk.get(file, ())):
            self._leave_disk(page)
            if page.device is None and page.host is None:
                self.lost(page)

    def _leave_disk(self, page: KeptPage) -> None:
        if page.disk is not None:
            pages = self._on_disk[page.disk[0]]
            del pages[page]
            if not pages:
                del self._on_disk[page.disk[0]]
            page.disk = None

    def _leave_device(self, page: KeptPage) -> None:
        if page.device is not None:
            del self._on_device[page.group][page.device]
            self.device[page.group].unkeep([page.device])
            page.device = None

    def _leave_host(self, page: KeptPage) -> None:
        if page.host is not None:
            del self._on_host[page.group][page.host]
            self.host[page.group].give([page.host])
            page.host = None

    # -- who makes way ---------------------------------------------------------------------

    def make_way(self, group: int) -> bool:
        """Have some idle pages of the device unused: those that lie elsewhere too, else rows are lost. False: there is none."""
        pool, there = self.device[group], self._on_device[group]
        idle = [page for place, page in there.items() if pool.is_idle(place)]
        safe = [page for page in idle if page.host is not None or page.disk is not None][:AT_ONCE]
        for page in safe:
            self._leave_device(page)
        if safe or not idle:
            return bool(safe)
        self.lost(next((page for page in idle if not self._comes_back(page)), idle[0]))
        return True

    def make_host_room(self, wanted: Mapping[int, int]) -> bool:
        """For so many pages of each group; what is needed for that makes way, but nothing that comes back for sure."""
        for group, count in wanted.items():
            short = count - self.host[group].num_free
            for page in self._least_useful_on_host(group, short) if short > 0 else ():
                if page.device is not None or page.disk is not None:
                    self._leave_host(page)
                else:
                    self.lost(page)
        return all(self.host[group].can_take(count) for group, count in wanted.items())

    def _least_useful_on_host(self, group: int, count: int) -> list[KeptPage]:
        """As many as that, if there are: first of those that lie elsewhere as well."""
        host = self.host[group]
        there = [page for place, page in self._on_host[group].items() if host.sharers(place) == 1]
        quiet = [page for page in there if not any(isinstance(keeper, Arrival) for keeper in page.keepers)]
        twice = [page for page in quiet if page.device is not None or page.disk is not None]
        once = [page for page in quiet if page.device is None and page.disk is None]
        return [*twice, *(page for page in once if not self._comes_back(page))][:count]

    def _comes_back(self, page: KeptPage) -> bool:
        """Somebody will want it for sure."""
        return any(isinstance(keeper, Arrival) or self.is_open(keeper.sequence) for keeper in page.keepers)
