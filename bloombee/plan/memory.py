"""What a stage holds: weights, KV and scratch. One account, for plans that are searched and for those that are made. Pure.

Sizes of a model's layers come from its card (:func:`model_shape`), how many slots their KV has from the pools that workers
make (:func:`kv_slots`), and :func:`stage_memory` adds up. The native search has the same sum (``csrc/plan/tables.cpp``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bloombee.kv.pool import make_groups, pages_for
from bloombee.models.card import ModelCard
from bloombee.models.shape import ModelShape
from bloombee.plan.scratch import LOADING_BYTES, forward_bytes
from bloombee.types import Dtype


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes of one stage."""

    weights: int
    kv: int
    scratch: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.scratch


def model_shape(card: ModelCard, dtype: Dtype, *, rows: int, tokens: int) -> ModelShape:
    """A model's sizes in ``dtype``, with the scratch that its stages need.

    Args:
        rows: of one microbatch, at most. tokens: that the KV memory of a stage holds.
    """
    inner, last = (forward_bytes(card, dtype, rows=rows, tokens=tokens, is_last=is_last) for is_last in (False, True))
    loading = LOADING_BYTES if card.row_elements else 0  # what computes nothing loads nothing
    return replace(card.shape(dtype), scratch_bytes=inner, output_scratch_bytes=last, loading_bytes=loading)


def kv_slots(model: ModelShape, tokens: int, *, page_size: int, rows: int) -> tuple[int, ...]:
    """Slots of the KV memory of a layer of each kind, where layers that see furthest hold ``tokens`` in whole pages."""
    windows = model.windows
    groups = make_groups(windows, pages_for(tokens, page_size), page_size, rows=rows)
    slots = {group.window: group.num_pages * page_size for group in groups}
    return tuple(slots.get(kind.window, 0) for kind in model.layer_kinds)


def stage_memory(model: ModelShape, start: int, stop: int, slots: tuple[int, ...]) -> StageMemory:
    """Of layers [start, stop) with so many KV slots for a layer of each kind."""
    is_first, is_last = start == 0, stop == model.num_layers
    weights = model.embedding_bytes * is_first + model.output_bytes * is_last - model.tied_bytes * (is_first and is_last)
    kv = 0
    for count, kind, held in zip(model.counts(start, stop), model.layer_kinds, slots, strict=True):
        weights += count * kind.layer_bytes
        kv += count * kind.kv_token_bytes * held
    forward = model.output_scratch_bytes if is_last else model.scratch_bytes
    return StageMemory(weights, kv, max(forward, min(model.loading_bytes, weights)))
