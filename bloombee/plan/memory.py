"""What a stage holds: weights, KV and scratch. One account, for plans that are searched and for those that are made. Pure.

Sizes of a model's layers come from its card (:func:`model_shape`), how many slots their KV has from the pools that workers
make (:func:`kv_slots`), and :func:`stage_memory` adds up. The native search has the same sum (``csrc/plan/tables.cpp``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bloombee.kv.pool import make_groups, pages_for
from bloombee.models.card import ModelCard
from bloombee.models.shape import ModelShape
from bloombee.plan.placement import SLOTS, spread, streamed_memory
from bloombee.plan.scratch import LOADING_BYTES, forward_bytes
from bloombee.types import Dtype, Span


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes of one stage. ``weights``: of layers that stay, and of the slots of those that stream."""

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
    shape = card.shape(dtype)
    computes = bool(card.row_elements)  # what computes nothing loads nothing
    return replace(
        shape,
        scratch_bytes=inner,
        output_scratch_bytes=last,
        loading_bytes=LOADING_BYTES if computes else 0,
        streaming_bytes=streamed_memory(max(kind.layer_bytes for kind in shape.layer_kinds), SLOTS) if computes else 0,
    )


def kv_slots(model: ModelShape, tokens: int, *, page_size: int, rows: int) -> tuple[int, ...]:
    """Slots of the KV memory of a layer of each kind, where layers that see furthest hold ``tokens`` in whole pages."""
    windows = model.windows
    groups = make_groups(windows, pages_for(tokens, page_size), page_size, rows=rows)
    slots = {group.window: group.num_pages * page_size for group in groups}
    return tuple(slots.get(kind.window, 0) for kind in model.layer_kinds)


def stage_memory(model: ModelShape, start: int, stop: int, slots: tuple[int, ...], streamed: tuple[int, ...] = ()) -> StageMemory:
    """Of layers [start, stop) with so many KV slots for a layer of each kind, where ``streamed`` of them, all alike, stream."""
    is_first, is_last = start == 0, stop == model.num_layers
    weights = model.embedding_bytes * is_first + model.output_bytes * is_last - model.tied_bytes * (is_first and is_last)
    kv = 0
    for count, kind, held in zip(model.counts(start, stop), model.layer_kinds, slots, strict=True):
        weights += count * kind.layer_bytes
        kv += count * kind.kv_token_bytes * held
    if streamed:
        weights += streamed_memory(layer_bytes(model, streamed[:1]), len(streamed)) - layer_bytes(model, streamed)
    forward = model.output_scratch_bytes if is_last else model.scratch_bytes
    return StageMemory(weights, kv, max(forward, min(model.loading_bytes, weights)))


def streamable(model: ModelShape, span: Span) -> tuple[int, ...]:
    """The layers of ``span`` that may stream, which have to be alike: those of the size that makes up most of it."""
    sizes = [model.layer_kinds[_kind_of(model, layer)].layer_bytes for layer in range(span.start, span.stop)]
    most = max(sizes, key=lambda size: (size * sizes.count(size), size))
    return tuple(layer for layer, size in enumerate(sizes, span.start) if size == most)


def chosen_to_stream(model: ModelShape, span: Span, count: int) -> tuple[int, ...]:
    """``count`` of them, as far apart as can be."""
    layers = streamable(model, span)
    return tuple(layers[place] for place in spread(Span(0, len(layers)), min(count, len(layers))))


def layer_bytes(model: ModelShape, layers: tuple[int, ...]) -> int:
    """Weights of ``layers``."""
    return sum(model.layer_kinds[_kind_of(model, layer)].layer_bytes for layer in layers)


def _kind_of(model: ModelShape, layer: int) -> int:
    return model.kind_of[layer] if model.kind_of else 0
