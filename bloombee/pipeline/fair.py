"""Whose turn it is: requests of several clients and priorities, shared out by what each client has been given.

Of the highest priority that waits, the client that has been served least goes next, and its requests in their order. A client
that appears (again) starts level with the least served of those that are active, so that nobody saves up turns.
This is start-time fair queueing with one flow a client. Source: Goyal, Vin, Cheng, "Start-time Fair Queueing", SIGCOMM 1996.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Collection, Iterator
from typing import Generic, Protocol, TypeVar


class Claim(Protocol):
    """What can be queued."""

    @property
    def client(self) -> str: ...

    @property
    def priority(self) -> int: ...


T = TypeVar("T", bound=Claim)
MOST_ABSENT = 1024
"""Clients that wait for nothing and have been given more than those that do: so many are remembered, who was given most."""


class FairQueue(Generic[T]):
    """Ordered by priority (higher first), then by service, then by arrival."""

    def __init__(self) -> None:
        self._queues: dict[tuple[int, str], deque[T]] = {}
        self._served: dict[str, float] = {}
        self._floor = 0.0
        self._length = 0
        self._num_queues_of: Counter[str] = Counter()
        """Of the clients that wait for something."""
        self._absent: list[tuple[float, str]] = []
        """A heap of what clients had been given when they last waited for nothing any more."""

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return iter([item for queue in self._queues.values() for item in queue])

    def push(self, item: T) -> None:
        key = (item.priority, item.client)
        if key not in self._queues:
            self._queues[key] = deque()
            self._served[item.client] = max(self._served.get(item.client, 0.0), self._floor)
            self._num_queues_of[item.client] += 1
        self._queues[key].append(item)
        self._length += 1

    def peek(self) -> T:
        """The item whose turn it is. Raises IndexError if there is none."""
        return self._queues[self._next()][0]

    def first(self, *, without: Collection[str]) -> T | None:
        """The item whose turn it is among those of other clients than ``without``; None if there is none."""
        left = [key for key in self._queues if key[1] not in without]
        return self._queues[self._of(left)][0] if left else None

    def pop(self, cost: float) -> T:
        """Take it; its client has been given ``cost``."""
        key = self._next()
        item = self._queues[key].popleft()
        self._length -= 1
        self.charge(item, cost)
        self._tidy(key)
        return item

    def charge(self, item: T, cost: float) -> None:
        """Its client has been given ``cost`` while the item stays."""
        self._floor = max(self._floor, self._served.get(item.client, 0.0))
        self._served[item.client] = self._served.get(item.client, 0.0) + cost

    def remove(self, item: T) -> bool:
        """Take ``item`` out wherever it stands; False if it is not here."""
        key = (item.priority, item.client)
        queue = self._queues.get(key)
        if queue is None or item not in queue:
            return False
        queue.remove(item)
        self._length -= 1
        self._tidy(key)
        return True

    def clear(self) -> None:
        self._queues.clear()
        self._served.clear()
        self._num_queues_of.clear()
        self._absent.clear()
        self._length = 0

    def _next(self) -> tuple[int, str]:
        if not self._queues:
            raise IndexError("an empty queue")
        return self._of(self._queues)

    def _of(self, keys: Collection[tuple[int, str]]) -> tuple[int, str]:
        """Whose turn it is among ``keys``, of which there is one."""
        top = max(priority for priority, _ in keys)
        return min((key for key in keys if key[0] == top), key=lambda key: self._served[key[1]])

    def _tidy(self, key: tuple[int, str]) -> None:
        client = key[1]
        if self._queues[key]:
            return
        del self._queues[key]
        self._num_queues_of[client] -= 1
        if not self._num_queues_of[client]:
            del self._num_queues_of[client]
            heapq.heappush(self._absent, (self._served[client], client))
            self._forget()

    def _forget(self) -> None:
        """Whoever was given no more than those that wait begins level with them anyway."""
        absent = self._absent
        while absent and (absent[0][0] <= self._floor or len(absent) > MOST_ABSENT):
            served, client = heapq.heappop(absent)
            if client not in self._num_queues_of and self._served.get(client) == served:
                del self._served[client]
