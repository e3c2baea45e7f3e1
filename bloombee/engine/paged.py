"""Attention over pages in place, by our own kernels: what one step is, as data in fixed buffers of the device.

A row's arithmetic depends on nothing but its own sequence. Keys are taken in strips of ``STRIP`` positions and splits of ``SPLIT``, both
counted from position 0; each strip is weighed by itself, the strips of a split are added up in order, and so are the splits. Which
rows share a kernel's tile, which splits are worked on side by side, and whether a row came alone or in a chunk of its prompt changes who
does the work and never the order of a sum (docs/adr/0060).

Everything that differs from step to step - positions, slots, pages, which tile of rows has which splits - is data, packed
into one pinned buffer and copied to the device by one asynchronous copy. So a step can be captured in a CUDA graph and replayed
after the next :meth:`StepTables.fill`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bloombee import _native
from bloombee.engine.cache import LayerCache, SlotCache, held_pages, require_stored
from bloombee.errors import LocalProtocolError
from bloombee.pipeline.work import Segment

SPLIT = 512
"""Keys that one block of the kernel takes for a narrow tile; ``csrc/attention/layout.h`` has the same."""
TILE = 16
"""Pairs of a row and a query head that one warp takes together: the rows of a tensor core's product."""
WIDE_WARPS = 4
NARROW_ROWS = 16
"""Most new rows of a sequence whose splits are worked on side by side. Of more there are tiles enough, which take their keys from
first to last and need no memory for parts of sums."""
MOST_DIM = 256

HEADER, ITEM = 64, 8
"""Words (int32) of the buffer's head, which says where the lists of items are, and of one item."""
STAGES = 3
"""Pinned buffers taken in turn: one may be filled while the copies of those before it are still under way."""

Words = np.ndarray[Any, np.dtype[np.int32]]


def kernels_of(device: torch.device) -> Any | None:
    """The module with the kernels for a device; None if there are none. On the CPU they run lane by lane, for tests."""
    if device.type == "cpu":
        return _native
    try:
        return importlib.import_module("bloombee._native_cuda")
    except ImportError:
        return None


def covers(cache: SlotCache) -> bool:
    """Whether the kernels can attend in every layer of ``cache``: not where keys are computed from latents, nor where heads are
    wider than ``MOST_DIM`` or no multiple of 16 bytes."""
    size = cache.dtype.itemsize

    def fits(one: LayerCache) -> bool:
        dims = (one.keys[1], one.values[1])
        return not one.latent and max(dims) <= MOST_DIM and not any(dim * size % 16 for dim in dims)

    return kernels_of(cache.device) is not None and all(map(fits, cache.layers.values()))


def is_narrow(segments: Sequence[Segment]) -> bool:
    """Whether a step of ``segments`` has narrow tiles only: the steps that a graph can be captured of."""
    return all(segment.num_rows <= NARROW_ROWS for segment in segments)


class StepTables:
    """The buffers that one step is in, on the device, and :meth:`fill` that writes a step into them.

    A graph that was captured over them stays good until :attr:`version` changes, which happens when a step is larger than any
    before and a buffer has to be taken anew. One thread, one stream.

    Attributes:
        version: of the buffers' addresses.
        num_rows: of the step, padding included.
    """

    def __init__(self, cache: SlotCache, *, max_rows: int = 64, max_words: int = 1 << 14, max_items: int = 256) -> None:
        """
        Args:
            max_rows: of a step. max_words: of its lists and pages. max_items: splits of narrow tiles, in one group. All grow when needed.
        """
        self.cache = cache
        self.version = 0
        self.num_rows = 0
        self._kernels = kernels_of(cache.device)
        grouped = max((one.heads // one.keys[0] for one in cache.layers.values()), default=1)
        self._narrow, self._wide = max(1, TILE // grouped), max(1, WIDE_WARPS * TILE // grouped)
        """Rows of a tile."""
        self._ids: dict[tuple[int, int], tuple[tuple[int, ...], Words]] = {}
        """Pages of (sequence, group) as numbers, by the tuple that they came in: most tokens that decode change none."""
        self._max_rows = self._max_words = self._max_items = 0
        self._bounds: list[tuple[int, int]] = []
        self._allocate(max_rows, max_words, max_items)

    # -- for whoever runs a step ------------------------------------------------------------------

    @property
    def positions(self) -> torch.Tensor:
        """[num_rows] int64 on the device; 0 for padding."""
        return self._int64(HEADER)

    @property
    def tokens(self) -> torch.Tensor:
        """[num_rows] int64 on the device, the rows' token ids; 0 for padding."""
        return self._int64(HEADER + 2 * self._max_rows)

    def slots(self, group: int) -> torch.Tensor:
        """[num_rows] int32 on the device, where each row's keys and values go in a group of layers; -1 for padding."""
        at = HEADER + (4 + group) * self._max_rows
        return self._device[at : at + self.num_rows]

    def can_hold(self, segments: Sequence[Segment], num_rows: int) -> bool:
        """Whether :meth:`fill` would leave the buffers where they are."""
        tail, items = self._needs(segments, num_rows)
        return num_rows <= self._max_rows and tail <= self._max_words and items <= self._max_items

    def fill(self, segments: Sequence[Segment], *, num_rows: int | None = None, captured: bool = False) -> None:
        """Write a step, and queue its copy to the device on the current stream.

        Args:
            num_rows: with rows of padding at the end, which store nothing and whose attention gives zeros; by default without.
            captured: launch (in :meth:`attend`) as for any narrow step of ``num_rows`` rows, whatever this one holds: for capturing,
                and of no effect on what is computed. Only for steps that :func:`is_narrow`.

        Raises:
            LocalProtocolError: pages that do not hold the rows.
        """
        total = sum(segment.num_rows for segment in segments)
        self.num_rows = total if num_rows is None else num_rows
        assert self.num_rows >= total, "rows of padding are added, none is taken away"
        tail, items = self._needs(segments, self.num_rows)
        if self.num_rows > self._max_rows or tail > self._max_words or items > self._max_items:
            self._allocate(*(_grown(need, have) for need, have in (
                (self.num_rows, self._max_rows), (tail, self._max_words), (items, self._max_items),
            )))  # fmt: skip
        raise NotImplementedError

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Queue the storing of the step's own keys and values, [1, k, num_rows, e] each, in their slots. Before :meth:`attend`."""
        raise NotImplementedError

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Queue the attention of [1, h, num_rows, e] queries over what their sequences hold, the step's own rows included.

        Args:
            scaling, sliding_window, softcap, s_aux: as :func:`~bloombee.engine.attention.attend` has them.

        Returns:
            [1, num_rows, h, e of the values].
        """
        raise NotImplementedError


class PagedStep:
    """One forward on :class:`StepTables`: what transformers calls a cache, and the attention of its layers.

    Use: ``tables.fill(segments)``; ``step = PagedStep(tables)``; hand it to the model as its cache with ``ATTENDER`` set to
    :meth:`attend`. Has no state of the step but the layer at hand, so that a capture of the forward can be replayed.
    """

    def __init__(self, tables: StepTables) -> None:
        self.tables = tables
        self._layer = -1
        self._stored: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by a layer with this step's keys and values, [1, k, t, e]; attention follows at once."""
        self.tables.write(layer, keys, values)
        self._layer, self._stored = layer, (keys, values)
        return keys, values

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float | None = None,
        sliding_window: int | None = None, softcap: float | None = None, s_aux: torch.Tensor | None = None, **_: Any,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        """As :func:`~bloombee.engine.attention.attend`.

        Raises:
            ModelUnsupported: the keys are not what was stored.
        """
        require_stored(self._stored, key, value, latent=False)
        self._stored = None
        return self.tables.attend(
            self._layer, query, scaling=scaling, sliding_window=sliding_window, softcap=softcap, s_aux=s_aux
        ), None

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return 0
