"""What each layer keeps in the cache, found by asking the layers rather than the config.

Every layer of a skeleton runs once on the meta device, where tensors have shapes and no values. So a plan
knows the KV bytes of a token before any weight is read, and a family whose cache cannot be ours is refused
before any worker is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bloombee.engine.attention import ATTENDER
from bloombee.engine.cache import require_stored
from bloombee.engine.skeleton import Skeleton, isolated
from bloombee.errors import ModelUnsupported


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Per token: elements of keys and values together. ``window``: positions the layer sees; 0 for all."""

    elements: int
    window: int


class _Probe:
    """Stands in for both cache and attention of one layer, and takes notes."""

    def __init__(self) -> None:
        self.elements = 0
        self.windows: set[int] = set()
        self._stored: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.elements += sum(t.shape[1] * t.shape[3] for t in (keys, values))
        self._stored = (keys, values)
        return keys, values

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, sliding_window: int | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        require_stored(self._stored, keys, values)
        self._stored = None
        self.windows.add(sliding_window or 0)
        return query.new_empty(1, query.shape[2], query.shape[1], values.shape[3]), None

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return 0


def probe(skeleton: Skeleton, ref: str) -> list[LayerCache]:
    """One entry a layer.

    Args:
        skeleton: whole, on the meta device; left as it was.

    Raises:
        ModelUnsupported: a layer has no attention of the interface's kind, or does not cache what it attends to.

    Time: about a millisecond a layer.
    """
    return [_probe_layer(skeleton, ref, number) for number in range(skeleton.num_layers)]


def _probe_layer(skeleton: Skeleton, ref: str, number: int) -> LayerCache:
    notes = _Probe()
    inputs = {
        "input_ids": torch.zeros(1, 2, dtype=torch.long, device="meta"),
        "position_ids": torch.zeros(1, 2, dtype=torch.long, device="meta"),
        skeleton.cache_argument: notes,
        "use_cache": True,
    }
    token = ATTENDER.set(notes.attend)
    failure: Exception | None = None
    try:
        with isolated(skeleton, number), torch.inference_mode():
            skeleton.base(**inputs)
    except (RuntimeError, NotImplementedError) as error:
        failure = error  # expert routing asks for values, which meta tensors lack; attention comes before it
    finally:
        ATTENDER.reset(token)
    if not notes.elements or not notes.windows:
        raise ModelUnsupported(
            f"{ref}: layer {number} has no attention of the interface's kind ({failure})", unsupported="attention_interface"
        )
    return LayerCache(notes.elements, max(notes.windows))
