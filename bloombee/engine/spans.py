"""The weights that a worker has on its device, layer by layer, whoever uses them.

Spans come and go: a worker is told to load further layers while it serves, another span, or to let one go. A layer is read once
however many spans have it, and its memory is given back when the last of them is gone: at once and by name, since what a model
is made of refers to itself in places, and whoever waits for the collector of cycles holds up every step while it runs.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bloombee.plan.plan import check_fits
from bloombee.types import Span

ModelKey = tuple[str, ...]
"""Which model's layers, in which form: its config's digest, where it is, the type of its values and the device."""


@dataclass(slots=True)
class _Layer:
    weights: Any
    num_bytes: int
    num_users: int = 1


class SpanStore:
    """Of one device. Any thread may use it.

    Args:
        budget_bytes: for weights and KV; None: as much as there is.
    """

    def __init__(self, budget_bytes: int | None = None) -> None:
        self._budget_bytes = budget_bytes
        self._layers: dict[tuple[ModelKey, int], _Layer] = {}
        self._reserved: dict[int, int] = {}
        """Bytes of what no other span can use - KV, embeddings, heads - and of layers that are being loaded."""
        self._num_reservations = 0
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """All that is held or being loaded."""
        with self._lock:
            return self._num_bytes()

    def _num_bytes(self) -> int:
        return sum(layer.num_bytes for layer in self._layers.values()) + sum(self._reserved.values())

    def take(self, model: ModelKey, span: Span) -> dict[int, tuple[Any, int]]:
        """The layers of ``span`` that are held: number -> (weights, bytes). Each has one user more until :meth:`give`."""
        with self._lock:
            found = {number: layer for number in range(span.start, span.stop) if (layer := self._layers.get((model, number)))}
            for layer in found.values():
                layer.num_users += 1
            return {number: (layer.weights, layer.num_bytes) for number, layer in found.items()}

    def reserve(self, span: Span, weight_bytes: int, kv_bytes: int) -> int:
        """Room for what is about to be loaded, until :meth:`release` of the number that is returned.

        Raises:
            Infeasible: it does not fit beside what is held.
        """
        with self._lock:
            if self._budget_bytes is not None:
                check_fits("this one", span, weight_bytes, kv_bytes, self._budget_bytes - self._num_bytes())
            self._num_reservations += 1
            self._reserved[self._num_reservations] = weight_bytes + kv_bytes
            return self._num_reservations

    def release(self, reservation: int) -> None:
        """Said again it does nothing."""
        with self._lock:
            self._reserved.pop(reservation, None)

    def keep(self, model: ModelKey, layers: Mapping[int, tuple[Any, int]], reservation: int) -> None:
        """Layers have been loaded, as (weights, bytes), in room that was reserved; each has one user."""
        with self._lock:
            for number, (weights, num_bytes) in layers.items():
                self._layers[model, number] = _Layer(weights, num_bytes)
                self._reserved[reservation] -= num_bytes

    def hold(self) -> dict[ModelKey, list[int]]:
        """Every layer has one user more, whoever else lets go of it, until :meth:`give` for each model."""
        held: dict[ModelKey, list[int]] = {}
        with self._lock:
            for (model, number), layer in self._layers.items():
                layer.num_users += 1
                held.setdefault(model, []).append(number)
        return held

    def give(self, model: ModelKey, numbers: Iterable[int]) -> list[Any]:
        """One user less of each; the weights of those that have none any more, which are held no longer."""
        gone = []
        with self._lock:
            for number in numbers:
                layer = self._layers[model, number]
                layer.num_users -= 1
                if not layer.num_users:
                    gone.append(self._layers.pop((model, number)).weights)
        return gone


def trim() -> None:
    """Give what the allocator keeps of freed memory back to the system; glibc only, elsewhere nothing."""
    if sys.platform.startswith("linux"):
        trim_heap = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim_heap is not None:
            trim_heap(0)
