"""Attention over pages in place, by our own kernels: what one step is, as data in fixed buffers of the device.

A row's arithmetic depends on nothing but its own sequence. Keys are taken in strips of 64 positions and splits of 512, both
counted from position 0; each strip is weighed by itself, the strips of a split are added up in order, and so are the splits.
Which rows share a kernel's tile, which splits are worked on side by side, and whether a row came alone or in a chunk of its
prompt changes who does the work and never the order of a sum (docs/adr/0060).

Everything that differs from step to step - positions, slots, pages, which tile of rows has which splits - is data, packed
into one pinned buffer and copied to the device by one asynchronous copy. So a step can be captured in a CUDA graph and replayed
after the next :meth:`StepTables.fill`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from bloombee import _native
from bloombee.engine.cache import LayerCache, SlotCache, require_stored
from bloombee.engine.paged_items import HEADER, ITEM, NARROW_ROWS, Known, StepItems, Views
from bloombee.errors import ModelUnsupported
from bloombee.pipeline.work import Segment

TILE = 16
"""Pairs of a row and a query head that one warp takes together: the rows of a tensor core's product. This and what follows is as
in ``csrc/attention/layout.h``."""
WIDE_TILE = 4 * TILE
MOST_DIM = 256
DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
LOG2_E = 1.4426950408889634


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

    def __init__(self, cache: SlotCache, *, max_rows: int = 64, max_words: int = 1 << 14, max_items: int = 64) -> None:
        """
        Args:
            max_rows: of a step. max_words: of its lists and pages. max_items: splits, in one group, of narrow tiles that have
                several: those whose sums are kept. All grow when needed.

        Raises:
            ModelUnsupported: the cache's layers are not those that the kernels :func:`covers`.
        """
        if not covers(cache):
            raise ModelUnsupported("no attention kernel is made for this model's layers", unsupported="attention_kernel")
        self.cache = cache
        self.version = 0
        self.num_rows = 0
        self._kernels: Any = kernels_of(cache.device)
        grouped = max(one.heads // one.keys[0] for one in cache.layers.values())
        self._tile_rows = (max(1, TILE // grouped), max(1, WIDE_TILE // grouped))
        """Of a narrow and a wide tile."""
        self._known: Known = {}
        self._max_rows = self._max_words = self._max_items = 0
        self._bounds: list[tuple[int, int]] = []
        """Of each group: narrow and wide items, as far as launches go."""
        self._allocate(max_rows, max_words, max_items)

    # -- for whoever runs a step ------------------------------------------------------------------

    @property
    def positions(self) -> torch.Tensor:
        """[num_rows] int64 on the device; 0 for padding."""
        return self._views(self._device).positions[: self.num_rows]

    @property
    def tokens(self) -> torch.Tensor:
        """[num_rows] int64 on the device, the rows' token ids; 0 for padding."""
        return self._views(self._device).tokens[: self.num_rows]

    def slots(self, group: int) -> torch.Tensor:
        """[num_rows] int32 on the device, where each row's keys and values go in a group of layers; -1 for padding."""
        return self._views(self._device).slots[group, : self.num_rows]

    def fill(self, segments: Sequence[Segment], *, num_rows: int | None = None, captured: bool = False) -> None:
        """Write a step, and queue its copy to the device on the current stream.

        Args:
            num_rows: with rows of padding at the end, which store nothing and whose attention gives zeros; by default without.
            captured: launch (in :meth:`attend`) as for any narrow step of so many rows, whatever this one holds: for capturing,
                and of no effect on what is computed. Only for steps that :func:`is_narrow`.

        Raises:
            LocalProtocolError: pages that do not hold the rows.
        """
        assert not captured or is_narrow(segments)
        step = StepItems(self.cache, segments, num_rows, self._tile_rows, self._known)
        self._allocate(step.num_rows, step.num_words, step.num_kept)
        self.num_rows = step.num_rows
        self._bounds = [(self._max_words // ITEM, 0) if captured else bounds for bounds in step.bounds]
        host = torch.empty(self._tail_at + step.num_words, dtype=torch.int32, pin_memory=self._device.is_cuda)
        step.write(host.numpy(), self._views(host), self._tail_at)
        self._device[: len(host)].copy_(host, non_blocking=True)  # torch keeps the pinned memory until it is copied

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Queue the storing of the step's own keys and values, [1, k, num_rows, e] each, in their slots; attention follows."""
        held_keys, held_values = self.cache.rows(layer)
        keys, values = (_aligned(new[0].to(self.cache.dtype)) for new in (keys, values))
        size = keys.element_size()
        with torch.cuda.device_of(self._device):
            self._kernels.paged_write(
                keys=keys.data_ptr(), key_head=keys.stride(0) * size, key_row=keys.stride(1) * size,
                values=values.data_ptr(), value_head=values.stride(0) * size, value_row=values.stride(1) * size,
                held_keys=held_keys.data_ptr(), held_values=held_values.data_ptr(),
                slots=self.slots(self.cache.group_of[layer]).data_ptr(), num_slots=held_keys.shape[1], rows=self.num_rows,
                kv_heads=held_keys.shape[0], key_bytes=held_keys.shape[2] * size, value_bytes=held_values.shape[2] * size,
                stream=self._stream(),
            )  # fmt: skip

    def attend(
        self, layer: int, query: torch.Tensor, *, scaling: float | None = None, sliding_window: int | None = None,
        softcap: float | None = None, s_aux: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Queue the attention of [1, h, num_rows, e] queries over what their sequences hold, the step's own rows included.

        Args:
            scaling, sliding_window, softcap, s_aux: as :func:`~bloombee.engine.attention.attend` has them.

        Returns:
            [1, num_rows, h, e of the values].
        """
        keys, values = self.cache.rows(layer)
        group, (heads, _, key_dim) = self.cache.group_of[layer], query[0].shape
        query, grouped = _aligned(query[0].to(keys.dtype)), heads // keys.shape[0]
        size = query.element_size()
        scale = key_dim**-0.5 if scaling is None else scaling
        sinks = None if s_aux is None else s_aux.to(query.dtype).contiguous()
        out = query.new_empty(1, self.num_rows, heads, values.shape[2])
        with torch.cuda.device_of(self._device):
            self._kernels.paged_attend(
                query=query.data_ptr(), query_head=query.stride(0) * size, query_row=query.stride(1) * size,
                keys=keys.data_ptr(), values=values.data_ptr(), num_slots=keys.shape[1], out=out.data_ptr(),
                sinks=0 if sinks is None else sinks.data_ptr(), tables=self._device.data_ptr(), parts=self._parts.data_ptr(),
                arrived=self._arrived.data_ptr(), scale=scale * LOG2_E if softcap is None else scale / softcap,
                cap=0.0 if softcap is None else softcap * LOG2_E, dtype=DTYPES[query.dtype], group=group,
                window=sliding_window or 0, page_size=self.cache.page_size, heads=heads, kv_heads=keys.shape[0],
                key_dim=key_dim, value_dim=values.shape[2], narrow_bands=_bands(self._tile_rows[0] * grouped),
                wide_bands=_bands(self._tile_rows[1] * grouped), narrow_items=self._bounds[group][0],
                wide_items=self._bounds[group][1], stream=self._stream(),
            )  # fmt: skip
        return out

    # -- buffers ----------------------------------------------------------------------------------

    def _allocate(self, rows: int, words: int, items: int) -> None:
        """Room for so many, and half as many again where it is not there yet."""
        if rows <= self._max_rows and words <= self._max_words and items <= self._max_items:
            return
        self._max_rows, self._max_words, self._max_items = (
            have if need <= have else max(need, have * 3 // 2 + 1 & ~1)
            for need, have in ((rows + rows % 2, self._max_rows), (words, self._max_words), (items, self._max_items))
        )
        device, layers = self.cache.device, self.cache.layers.values()
        parts = max(part_bytes(one, self._tile_rows[0]) for one in layers)
        heads = max(one.keys[0] * _bands(self._tile_rows[0] * one.heads // one.keys[0]) for one in layers)
        with torch.inference_mode(False):  # they are written to in that mode and outside of it
            self._device = torch.zeros(self._tail_at + self._max_words, dtype=torch.int32, device=device)
            self._parts = torch.empty(self._max_items * parts, dtype=torch.uint8, device=device)
            self._arrived = torch.zeros(self._max_rows * heads, dtype=torch.int32, device=device)
        self.version += 1

    def _views(self, words: torch.Tensor) -> Views:
        """The parts of the buffer, or of its image on the host, that have a fixed place."""
        rows = self._max_rows
        head, positions, tokens, slots = words[: self._tail_at].split(
            [HEADER, 2 * rows, 2 * rows, self._tail_at - HEADER - 4 * rows]
        )
        slots = slots[: rows * len(self.cache.groups)].view(-1, rows)
        return Views(head.view(-1, 2), positions.view(torch.int64), tokens.view(torch.int64), slots)

    @property
    def _tail_at(self) -> int:
        """Where lists and pages begin, at a multiple of 16 bytes."""
        return -(-(HEADER + (4 + len(self.cache.groups)) * self._max_rows) // 4) * 4

    def _stream(self) -> int:
        return int(torch.cuda.current_stream(self.cache.device).cuda_stream) if self.cache.device.type == "cuda" else 0


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """[k, t, e] as the kernels read it: rows of heads together, and at multiples of 16 bytes."""
    fits = x.stride(2) == 1 and not any(stride * x.element_size() % 16 for stride in x.stride()[:2])
    return x if fits and x.data_ptr() % 16 == 0 else x.contiguous()


def _bands(pairs: int) -> int:
    return -(-pairs // TILE)


def part_bytes(one: LayerCache, rows: int) -> int:
    """Of what is kept of one split of a narrow tile in a layer: for each lane, what it has of 8 columns and their share."""
    dim = next(dim for dim in (64, 128, MOST_DIM) if max(one.keys[1], one.values[1]) <= dim)
    return one.keys[0] * _bands(rows * one.heads // one.keys[0]) * (1 + dim // 8) * 32 * 16


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

    @property
    def num_rows(self) -> int:
        return self.tables.num_rows

    @property
    def position_ids(self) -> torch.Tensor:
        """[1, t] absolute positions."""
        return self.tables.positions[None]
