"""A simulated device whose kept pages go to the host's memory and come back, by copies that are late and end in any order.

A page that a copy reads must not be written, and one that it writes must neither be read nor written, from when the copy begins
until it ends: that is looked at with every work.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from bloombee.kv.kept import StoredPrefix
from bloombee.kv.tiers import Copy, Way
from bloombee.pipeline.work import Outcome, Work
from bloombee.sim.device import SimDevice
from bloombee.wire.messages import Group

Place = tuple[int, int]
"""A group and a page."""


class PagedDevice(SimDevice):
    """``late_s``: that a copy takes at most; ``fails``: the share of copies that come to nothing. ``files``: those that there
    are, by key, which may be another device's later: what each says, and its pages."""

    def __init__(
        self,
        *,
        stage: int,
        is_last: bool,
        groups: Sequence[Group],
        page_size: int,
        rng: random.Random,
        late_s: float = 0.1,
        fails: float = 0.0,
        files: dict[bytes, tuple[StoredPrefix, list[list[bytes]]]] | None = None,
    ) -> None:
        super().__init__(stage=stage, is_last=is_last, groups=groups, page_size=page_size)
        self._rng, self._late_s, self._fails = rng, late_s, fails
        self._host: dict[Place, list[bytes]] = {}
        self._files = files if files is not None else {}
        self._read: Counter[Place] = Counter()
        self._written: Counter[Place] = Counter()
        """Pages of the device, by the copies that are under way."""
        self.num_copies: Counter[Way] = Counter()
        self.num_rows = 0
        """That it has computed."""

    def run(self, work: Work) -> Outcome:
        for segment in work.segments:
            for group, pages in enumerate(segment.pages):
                for index, page in enumerate(pages.ids):
                    assert not self._written[group, page], "a page is read that a copy writes"
                    stop = pages.start + (index + 1) * self._page_size
                    assert stop <= segment.position or not self._read[group, page], "a page is written that a copy reads"
        self.num_rows += work.num_rows
        return super().run(work)

    def begin_copy(self, copy: Copy) -> float:
        """Returns how many seconds it takes."""
        self._count(copy, 1)
        return self._late_s * self._rng.random()

    def end_copy(self, copy: Copy) -> bool:
        """Whether it has failed; what it reads is read now."""
        self._count(copy, -1)
        self.num_copies[copy.way] += 1
        if self._rng.random() < self._fails:
            return True
        if copy.prefix is not None:
            self._files[copy.file] = copy.prefix, [self._host[group, source] for group, source, _ in copy.pages]
            return False
        for group, source, target in copy.pages:
            if copy.way is Way.OUT:
                self._host[group, target] = self._kv[group][self._rows(source)]
            elif copy.way is Way.IN:
                self._kv[group][self._rows(target)] = self._host[group, source]
            else:
                self._host[group, target] = self._files[copy.file][1][source]
        return False

    def _rows(self, page: int) -> slice:
        return slice(page * self._page_size, (page + 1) * self._page_size)

    def _count(self, copy: Copy, more: int) -> None:
        for group, source, target in copy.pages:
            if copy.way is Way.OUT:
                self._read[group, source] += more
            elif copy.way is Way.IN:
                self._written[group, target] += more
