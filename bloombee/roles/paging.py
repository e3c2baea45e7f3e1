"""KV pages between a span's device, its host's memory and its disk: the core says which (``kv/tiers.py``), threads copy them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from bloombee.config import Disk
from bloombee.errors import BloomBeeError
from bloombee.kv.tiers import Copy, Way
from bloombee.pipeline.events import HostRoom, PagesCopied
from bloombee.roles.kv_files import KvFiles
from bloombee.roles.work_thread import WorkThread
from bloombee.wire.messages import Load

log = logging.getLogger(__name__)


class Pager:
    """Of one span that is loaded.

    Args:
        queue: the device's.
        pages: an engine.host_pages.HostPages.
        num_pages: that it has room for, of each group.
        files: None: nothing is written to disk.

    Attributes:
        room: for its core, and what is on disk from before.
    """

    def __init__(self, queue: WorkThread, pages: Any, num_pages: tuple[int, ...], files: KvFiles | None) -> None:
        self._pages, self._files = pages, files
        ways = Way if files is not None else (Way.OUT, Way.IN)
        self._queues = {way: queue.beside(f"bloombee-pages-{way.name.lower()}") for way in ways}
        self.room = HostRoom(num_pages, files is not None, files.find() if files is not None else (), os.urandom(8))
        self._has_complained = False

    @classmethod
    def of(cls, queue: WorkThread, model: Any, load: Load, num_bytes: int, disk: Disk | None) -> Pager | None:
        """Of a model that has KV memory, within ``num_bytes``; None: it has none, or there is no room. On any thread."""
        from bloombee.engine.host_pages import HostPages, num_host_pages

        if (cache := getattr(model, "kv", None)) is None:
            return None
        num_pages = num_host_pages(cache, num_bytes)
        files = None if disk is None else KvFiles(disk, load)
        return cls(queue, HostPages(cache, num_pages), num_pages, files) if all(num_pages) else None

    def copy(self, copy: Copy, on_done: Callable[[PagesCopied], None]) -> None:
        """``on_done``, on the event loop, gets what came of it."""
        queue = self._queues[copy.way]
        queue.put(lambda: queue.post(on_done, self._copied(copy)))

    def stop(self) -> None:
        """Once what was asked for is done; does not wait."""
        for queue in self._queues.values():
            queue.stop()

    def _copied(self, copy: Copy) -> PagesCopied:
        try:
            return PagesCopied(copy.number, False, self._copy(copy))
        except BloomBeeError as error:
            self._complain(error.message)
        except Exception as error:  # of the device's, as that it has no memory left
            self._complain(f"{type(error).__name__}: {error}")
        return PagesCopied(copy.number, True)

    def _copy(self, copy: Copy) -> tuple[bytes, ...]:
        """Returns the files that had to make way."""
        pages = self._pages
        if copy.way is Way.OUT:
            pages.take(copy.pages)
        elif copy.way is Way.IN:
            pages.give(copy.pages)
        elif copy.prefix is not None:
            assert self._files is not None
            return self._files.write(copy.file, copy.prefix, [pages.read(group, place) for group, place, _ in copy.pages])
        else:
            assert self._files is not None
            self._files.read(copy.file, [(number, pages.read(group, place)) for group, number, place in copy.pages])
            for group, _, place in copy.pages:
                pages.note(group, place)
        return ()

    def _complain(self, said: str) -> None:
        """Once: a disk that is full is full for every prefix."""
        log.log(logging.DEBUG if self._has_complained else logging.WARNING, "%s; rows are computed again where need be", said)
        self._has_complained = True
