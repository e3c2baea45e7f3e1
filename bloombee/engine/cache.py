"""Keys and values by slots, and where one step's rows find theirs.

One slot holds one token of one sequence, in every layer of a group: those that see equally far. Pages say which slots a
sequence has in each group; nothing here knows sequences beyond the step at hand, so rolling back and forking are index changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch

from bloombee.engine.hugepages import let_go
from bloombee.errors import LocalProtocolError, ModelUnsupported
from bloombee.pipeline.work import Branches, Pages, Segment
from bloombee.plan.scratch import COPIED_BYTES
from bloombee.types import PageGroup

Index: TypeAlias = slice | torch.Tensor

LEAST_FILL = 0.75
"""Of the longest in a group, the least that a member holds: the rest is padding, which is read and multiplied too."""

KEYS_STEP = 16
"""Members of a group are padded to a multiple of so many keys."""


@dataclass(frozen=True, slots=True)
class LayerCache:
    """What one layer stores of a token: keys [k, e] and values [k, e'].

    Args:
        layer: the number it stores under.
        window: how many positions it sees; 0 for all. Of a layer with two attentions the wider.
        latent: it stores something smaller than the keys and values it attends to, and computes those from all it has
            stored, each time (multi-head latent attention).
    """

    layer: int
    keys: tuple[int, int]
    values: tuple[int, int]
    window: int = 0
    latent: bool = False
    attended: int = 0
    """Elements of one token's keys and values as attention takes them."""
    heads: int = 1
    """Of its queries."""

    @property
    def elements(self) -> int:
        return self.keys[0] * self.keys[1] + self.values[0] * self.values[1]


class SlotCache:
    """Two tensors a layer, [k, num_slots, e]: what one head reads lies together. On the CPU this only reserves addresses:
    memory becomes resident page by page as slots are first written. On a GPU it is taken here.

    Args:
        layers: what each layer stores.
        groups: a layer is in the one with the smallest window that is not below its own; a sequence has pages in each.
        page_size: in tokens.
        dtype: of keys and values.
    """

    def __init__(
        self,
        layers: Sequence[LayerCache],
        groups: Sequence[PageGroup],
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.groups = tuple(groups)
        self.page_size = page_size
        self.device = device
        self.most_copied = COPIED_BYTES // (max((one.elements for one in layers), default=1) * dtype.itemsize)
        """Keys, with their values, that are copied side by side in a layer."""
        self.dtype = dtype
        self.layers: dict[int, LayerCache] = {}
        self.group_of: dict[int, int] = {}
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for one in layers:
            self.add(one)

    def add(self, one: LayerCache) -> None:
        """Memory for one layer more.

        Raises:
            LocalProtocolError: no group's layers see as far.
        """
        group = _find_group(self.groups, one)
        num_slots = self.groups[group].num_pages * self.page_size
        self.group_of[one.layer] = group
        self.layers[one.layer] = one
        self._layers[one.layer] = (
            torch.empty((one.keys[0], num_slots, one.keys[1]), dtype=self.dtype, device=self.device),
            torch.empty((one.values[0], num_slots, one.values[1]), dtype=self.dtype, device=self.device),
        )

    def drop(self, layer: int) -> None:
        """Give a layer's memory back: at once, whoever still has a view of it."""
        for held in self._layers.pop(layer):
            let_go(held)
        del self.group_of[layer], self.layers[layer]

    def clear(self, num_slots: int) -> None:
        """Zeros in the first ``num_slots`` slots of every layer."""
        for keys, values in self._layers.values():
            keys[:, :num_slots] = 0
            values[:, :num_slots] = 0

    def write(self, layer: int, slots: Index, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store rows.

        Args:
            slots: one a row.
            keys, values: [k, t, e]; the two may differ in e.
        """
        held_keys, held_values = self._layers[layer]
        held_keys[:, slots] = keys
        held_values[:, slots] = values

    def rows(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's keys and values, [k, num_slots, e] each."""
        return self._layers[layer]

    def read(self, layer: int, slots: Index) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of ``slots``, [k, l, e] each: views of adjacent slots, copies of others."""
        keys, values = self._layers[layer]
        if isinstance(slots, slice):
            return keys[:, slots], values[:, slots]
        return keys.index_select(1, slots), values.index_select(1, slots)

    def copy_shared(self, segments: Sequence[Segment]) -> None:
        """Put accepted rows of drafts in their places, and give segments that write to a page of others' a copy of it. Before
        anything of a step is written."""
        self._move(segments)
        for segment in segments:
            for group, pages in enumerate(segment.pages):
                if pages.source is not None:
                    self._copy_page(group, pages.source, pages.ids[(segment.position - pages.start) // self.page_size])

    def _move(self, segments: Sequence[Segment]) -> None:
        for group in range(len(self.groups)):
            moves = [move for segment in segments if group < len(segment.pages) for move in segment.pages[group].moves]
            if moves:
                sources, targets = torch.tensor(moves, device=self.device).T
                for layer, pair in self._layers.items():
                    if self.group_of[layer] == group:
                        for held in pair:
                            held[:, targets] = held[:, sources]

    def _copy_page(self, group: int, source: int, target: int) -> None:
        """All rows of page ``source`` into page ``target``, in every layer of ``group``."""
        size = self.page_size
        for layer, pair in self._layers.items():
            if self.group_of[layer] == group:
                for held in pair:
                    held[:, target * size : (target + 1) * size] = held[:, source * size : (source + 1) * size]

    @property
    def token_bytes(self) -> int:
        """Of one token in all layers."""
        return sum(t.shape[0] * t.shape[2] * t.element_size() for pair in self._layers.values() for t in pair)

    @property
    def num_bytes(self) -> int:
        """Of all slots, used or not."""
        return sum(t.numel() * t.element_size() for pair in self._layers.values() for t in pair)


@dataclass(frozen=True)
class Rows:
    """One segment's place in a step: rows [start, stop) of the batch, positions ``position ..``; of a tree, whose nodes have
    slots one after the other whatever their positions, the positions of these slots."""

    start: int
    stop: int
    position: int
    tree: Branches | None = None

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @property
    def length(self) -> int:
        return self.position + self.num_rows

    def first_key(self, window: int | None) -> int:
        """The oldest position that any of these rows sees: a row sees itself and ``window - 1`` before it."""
        first = self.position if self.tree is None else self.tree.base
        return 0 if window is None else max(0, first + 1 - window)

    def is_causal(self, window: int | None) -> bool:
        """Whether the mask is the plain triangle: a prompt from its start, within one window."""
        return self.position == 0 and self.num_rows > 1 and (window is None or window >= self.length)


@dataclass(frozen=True)
class Held:
    """Where one group of layers has a segment's sequence."""

    start: int
    """The first position that is held."""
    slots: np.ndarray[Any, np.dtype[np.int64]]
    """[length - start] of every token from there on, the segment's rows included."""


@dataclass(frozen=True)
class Together:
    """One-row segments that are attended in one call.

    Args:
        rows: [b] their rows of the batch.
        slots: [b, l] of the keys each sees; a shorter one repeats a slot of its own, as memory that was never written may hold
            NaN, which no mask removes.
        valid: [b, l] bool, which of them count; None if all do.
    """

    rows: torch.Tensor
    slots: torch.Tensor
    valid: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Block:
    """Rows [first, stop) of a segment, which see keys [oldest, newest) of those that the segment sees.

    Args:
        allowed: [rows, keys] bool, which of those each row sees; None if its one row sees all of them.
    """

    first: int
    stop: int
    oldest: int
    newest: int
    allowed: torch.Tensor | None


class Step:
    """Everything attention needs to know of one forward; indices are built once and shared by all layers of a group.

    The methods that attention calls speak of the group of ``layer``, the one whose attention is being computed.

    Args:
        batched: attend all one-row segments in one padded call, whatever they hold. Fewer kernels, more arithmetic and a copy of
            every key: right for a GPU, where our own kernels do not attend. Otherwise only sequences of few keys are, see
            :meth:`grouped`.
    """

    def __init__(self, cache: SlotCache, segments: Sequence[Segment], *, batched: bool) -> None:
        self.cache = cache
        self.layer = -1
        self._stored: tuple[torch.Tensor, torch.Tensor] | None = None
        self.rows: list[Rows] = []
        start = 0
        for segment in segments:
            self.rows.append(Rows(start, start + segment.num_rows, segment.position, segment.tree))
            start += segment.num_rows
        self.num_rows = start
        self._segments = segments
        self._batched = batched
        self._held = [[_find_slots(segment, cache, index) for segment in segments] for index in range(len(cache.groups))]
        self._group = 0
        self._new_slots: dict[int, Index] = {}
        self._indices: dict[tuple[int, int, int | None], Index] = {}
        self._blocks: dict[tuple[int, int | None, int], list[Block]] = {}
        self._grouped: dict[tuple[int, int | None, int], tuple[list[Together], Sequence[int]]] = {}

    def new_slots(self) -> Index:
        """[t] where this step's own rows go."""
        found = self._new_slots.get(self._group)
        if found is None:
            own = [held.slots[rows.position - held.start :] for rows, held in zip(self.rows, self._here, strict=True)]
            found = self._new_slots[self._group] = self._index(np.concatenate(own))
        return found

    @property
    def _here(self) -> list[Held]:
        return self._held[self._group]

    def _seen(self, number: int, window: int | None) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Slots of the keys that ``rows[number]`` sees, oldest first."""
        held = self._here[number]
        return held.slots[self.rows[number].first_key(window) - held.start :]

    @cached_property
    def position_ids(self) -> torch.Tensor:
        """[1, t] absolute positions."""
        flat = np.concatenate([np.asarray(segment.positions(), dtype=np.int64) for segment in self._segments])
        return self._tensor(flat)[None]

    def grouped(self, window: int | None, few: int) -> tuple[list[Together], Sequence[int]]:
        """How the segments are attended: one-row segments together where each sees at most ``few`` keys, and of
        about the same number; the numbers (in ``rows``) of those that go one by one.

        With ``batched`` all one-row segments are together, as far as a copy of all their keys is within bounds.
        """
        found = self._grouped.get((self._group, window, few))
        if found is None:
            found = self._grouped[self._group, window, few] = self._bring_together(window, few)
        return found

    def _bring_together(self, window: int | None, few: int) -> tuple[list[Together], Sequence[int]]:
        counts = {
            number: rows.length - rows.first_key(window)
            for number, rows in enumerate(self.rows)
            if rows.num_rows == 1 and rows.tree is None
        }
        small = sorted((n for n in counts if self._batched or counts[n] <= few), key=counts.__getitem__, reverse=True)
        groups: list[list[int]] = []
        for number in small:
            longest = counts[groups[-1][0]] if groups else 0
            fits = bool(groups) and (len(groups[-1]) + 1) * longest <= self.cache.most_copied
            if fits and (self._batched or counts[number] >= LEAST_FILL * longest):
                groups[-1].append(number)
            else:
                groups.append([number])
        groups = [members for members in groups if len(members) > 1]
        together = {number for members in groups for number in members}
        alone = [number for number in range(len(self.rows)) if number not in together]
        return [self._together(members, window) for members in groups], alone

    def _together(self, members: list[int], window: int | None) -> Together:
        runs = [self._seen(number, window) for number in members]
        longest = max(len(run) for run in runs)
        if not self._batched:  # the CPU's products write a kernel for every number of keys
            longest = -(-longest // KEYS_STEP) * KEYS_STEP
        slots = np.stack([np.pad(run, (0, longest - len(run)), mode="edge") for run in runs])
        lengths = np.array([len(run) for run in runs])
        valid = None if (lengths == longest).all() else self._tensor(np.arange(longest)[None] < lengths[:, None])
        rows = np.array([self.rows[number].start for number in members], dtype=np.int64)
        return Together(self._tensor(rows), self._tensor(slots), valid)

    def keys_of(self, number: int, window: int | None) -> Index:
        """Slots of the keys that ``rows[number]`` sees, oldest first: a slice (no copy) where they are adjacent."""
        index = self._indices.get((self._group, number, window))
        if index is None:
            index = self._indices[self._group, number, window] = self._index(self._seen(number, window))
        return index

    def blocks(self, number: int, window: int | None, most: int) -> list[Block]:
        """The rows of ``rows[number]`` in blocks, of at most ``most`` pairs of a row and a key; of one row at least."""
        found = self._blocks.get((number, window, most))
        if found is None:
            rows = self.rows[number]
            size = max(1, most // (rows.length - rows.first_key(window)))
            starts = range(0, rows.num_rows, size)
            found = [self._block(rows, first, min(first + size, rows.num_rows), window) for first in starts]
            self._blocks[number, window, most] = found
        return found

    def _block(self, rows: Rows, first: int, stop: int, window: int | None) -> Block:
        if rows.tree is not None:
            start = rows.first_key(window)
            allowed = self._tensor(_seen_in_tree(rows, rows.tree, window)[first:stop])
            return Block(first, stop, 0, rows.length - start, allowed)
        own = Rows(rows.start + first, rows.start + stop, rows.position + first)
        start, oldest = rows.first_key(window), own.first_key(window)
        allowed = None
        if own.num_rows > 1:
            queries = torch.arange(own.position, own.length, device=self.cache.device)[:, None]
            positions = torch.arange(oldest, own.length, device=self.cache.device)[None]
            allowed = positions <= queries
            if window is not None:
                allowed &= positions > queries - window
        return Block(first, stop, oldest - start, own.length - start, allowed)

    # -- what transformers calls a cache -------------------------------------------------------

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by a layer with this step's keys and values, [1, k, t, e]; attention follows at once."""
        self._group = self.cache.group_of[layer]
        self.cache.write(layer, self.new_slots(), keys[0], values[0])
        if self.cache.layers[layer].latent:
            all_slots = self._index(np.concatenate([held.slots for held in self._here]))
            keys, values = (rows[None] for rows in self.cache.read(layer, all_slots))
        self.layer, self._stored = layer, (keys, values)
        return keys, values

    def take_layer(self, keys: torch.Tensor, values: torch.Tensor) -> int:
        """The layer whose attention is being computed, with ``keys`` and ``values``.

        Raises:
            ModelUnsupported: these are not what it has just stored, nor (of a latent layer) as many.
        """
        latent = self._stored is not None and self.cache.layers[self.layer].latent
        require_stored(self._stored, keys, values, latent=latent)
        self._stored = None
        return self.layer

    def span_of(self, number: int, window: int | None) -> tuple[int, int]:
        """[start, stop) of the keys that ``rows[number]`` sees in what a latent layer computes: all that its group holds."""
        before = sum(len(held.slots) for held in self._here[:number])
        held = self._here[number]
        return before + self.rows[number].first_key(window) - held.start, before + len(held.slots)

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return 0

    # -- helpers -------------------------------------------------------------------------------

    def _index(self, slots: np.ndarray[Any, np.dtype[np.int64]]) -> Index:
        first, count = int(slots[0]), len(slots)
        if slots[-1] == first + count - 1 and (count < 3 or bool((np.diff(slots) == 1).all())):
            return slice(first, first + count)
        return self._tensor(slots)

    def _tensor(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.cache.device, non_blocking=True)


def require_stored(
    stored: tuple[torch.Tensor, torch.Tensor] | None, keys: torch.Tensor, values: torch.Tensor, *, latent: bool
) -> None:
    """Attention reads the cache, so what a layer attends to must be what it stored (or, if latent, one for each stored).

    Raises:
        ModelUnsupported: it attends to another layer's keys, or to another number of keys than are stored.
    """
    same = stored is not None and stored[0] is keys and stored[1] is values
    as_many = stored is not None and stored[0].shape[2] == keys.shape[2] == values.shape[2]
    if not (same or (latent and as_many)):
        how = "another layer's keys" if stored is None else "other keys than it caches"
        raise ModelUnsupported(f"a layer attends to {how}; it must attend to what it caches", unsupported="kv_cache")


def _seen_in_tree(rows: Rows, tree: Branches, window: int | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[rows, keys] which keys from ``first_key`` on each node sees: confirmed rows, its ancestors and itself."""
    count, start = len(tree.parents), rows.first_key(window)
    above = np.zeros((count + 1, count), dtype=np.bool_)
    for node, parent in enumerate(tree.parents, start=1):
        above[node] = above[parent]
        above[node, node - 1] = True
    depths = np.array(tree.depths())
    positions = np.concatenate([np.arange(start, tree.base), tree.base + depths])
    allowed = np.concatenate([np.ones((count, tree.base - start), dtype=np.bool_), above[1:]], axis=1)[tree.first - 1 :]
    if window is not None:
        allowed &= positions > (tree.base + depths[tree.first - 1 :] - window)[:, None]
    return allowed


def _find_group(groups: Sequence[PageGroup], layer: LayerCache) -> int:
    fitting = [index for index, group in enumerate(groups) if not group.window or 0 < layer.window <= group.window]
    if not fitting:
        raise LocalProtocolError(f"layer {layer.layer} sees {layer.window or 'all'} positions; no group of pages does")
    return min(fitting, key=lambda index: groups[index].window or math.inf)


def _find_slots(segment: Segment, cache: SlotCache, index: int) -> Held:
    ids = held_pages(segment, cache, index)
    start, size = segment.pages[index].start, cache.page_size
    slots: np.ndarray[Any, np.dtype[np.int64]] = (ids[:, None] * size + np.arange(size)).reshape(-1)
    return Held(start, slots[: segment.position + segment.num_rows - start])


def held_pages(segment: Segment, cache: SlotCache, index: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The pages that a segment has in group ``index``.

    Raises:
        LocalProtocolError: they do not hold what its rows see, and themselves, or are none of the pool's.
    """
    require_held(segment, cache, index)
    ids = np.asarray(segment.pages[index].ids, dtype=np.int64)
    num_pages = cache.groups[index].num_pages
    if ids.min() < 0 or int(ids.max()) >= num_pages:
        raise LocalProtocolError(
            f"sequence {segment.sequence}: pages up to {ids.max()} in a pool of {num_pages}", sequence=segment.sequence
        )
    return ids


def require_held(segment: Segment, cache: SlotCache, index: int) -> None:
    """
    Raises:
        LocalProtocolError: a segment's pages in group ``index`` are too few, or begin too late.
    """
    size, group = cache.page_size, cache.groups[index]
    if len(segment.pages) != len(cache.groups):
        raise LocalProtocolError(f"sequence {segment.sequence}: pages of {len(segment.pages)} groups, not {len(cache.groups)}")
    pages = segment.pages[index]
    length = segment.position + segment.num_rows
    first = segment.position if segment.tree is None else segment.tree.base
    oldest = max(0, first + 1 - group.window) if group.window else 0
    if not segment.num_rows or pages.start % size or pages.start > oldest or pages.start + len(pages.ids) * size < length:
        raise LocalProtocolError(
            f"sequence {segment.sequence}: {len(pages.ids)} pages of {size} from {pages.start} on for {length} positions,"
            f" {segment.num_rows} new, that see back to {oldest}",
            sequence=segment.sequence,
        )


def everywhere(cache: SlotCache, first: int, count: int, context: int) -> tuple[Pages, ...]:
    """Pages ``first`` to ``first + count`` in every group, for a sequence of so many tokens: those that its layers still see."""
    size = cache.page_size
    gone = [max(0, context + 1 - group.window) // size if group.window else 0 for group in cache.groups]
    return tuple(Pages(tuple(range(first + skipped, first + count)), skipped * size) for skipped in gone)
