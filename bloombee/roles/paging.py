"""KV pages between a span's device and its host's memory: the core says which (``kv/tiers.py``), threads copy them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from bloombee.errors import BloomBeeError
from bloombee.kv.tiers import Copy, Way
from bloombee.roles.loading import say
from bloombee.roles.work_thread import WorkThread

log = logging.getLogger(__name__)


class Pager:
    """Of one span that is loaded.

    Args:
        queue: the device's.
        pages: an engine.host_pages.HostPages.
        num_pages: that it has room for, of each group.
    """

    def __init__(self, queue: WorkThread, pages: Any, num_pages: tuple[int, ...]) -> None:
        self.num_pages = num_pages
        self._pages = pages
        self._queues = {way: queue.beside(f"bloombee-pages-{way.name.lower()}") for way in Way}

    @classmethod
    def of(cls, queue: WorkThread, model: Any, num_bytes: int) -> Pager | None:
        """Of a model that has KV memory, within ``num_bytes``; None: it has none, or there is no room. On any thread."""
        from bloombee.engine.host_pages import HostPages, num_host_pages

        cache = getattr(model, "kv", None)
        num_pages = num_host_pages(cache, num_bytes) if cache is not None else ()
        return cls(queue, HostPages(cache, num_pages), num_pages) if cache is not None and all(num_pages) else None

    def copy(self, copy: Copy, on_done: Callable[[bool], None]) -> None:
        """``on_done``, on the event loop, gets whether it has failed."""
        queue = self._queues[copy.way]
        queue.put(lambda: queue.post(on_done, not self._has_copied(copy)))

    def stop(self) -> None:
        """Once what was asked for is done; does not wait."""
        for queue in self._queues.values():
            queue.stop()

    def _has_copied(self, copy: Copy) -> bool:
        move = self._pages.take if copy.way is Way.OUT else self._pages.give
        try:
            move(copy.pages)
        except BloomBeeError as error:
            log.warning("kept rows are computed again: %s", error.message)
            return False
        except Exception as error:  # of the device's, as that it has no memory left
            log.warning("kept rows are computed again: %s", say(error))
            return False
        return True
