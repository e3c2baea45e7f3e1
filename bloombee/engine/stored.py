"""What each layer keeps in the cache, found by asking the layers rather than the config.

Every layer of a skeleton runs once on the meta device, where tensors have shapes and no values. So a plan
knows the KV bytes of a token before any weight is read, and a family whose cache cannot be ours is refused
before any worker is asked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from bloombee.engine.attention import ATTENDER
from bloombee.engine.cache import LayerCache, require_stored
from bloombee.engine.skeleton import Skeleton, rearranged
from bloombee.errors import ModelUnsupported
from bloombee.types import Span


class _Probe:
    """Stands in for both cache and attention of one layer, and takes notes."""

    def __init__(self) -> None:
        self.stored: list[LayerCache] = []
        self.windows: list[int] = []
        self.latent: list[bool] = []
        self.attended: list[int] = []
        self.heads: list[int] = []
        self._stored: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.stored.append(LayerCache(layer, (keys.shape[1], keys.shape[3]), (values.shape[1], values.shape[3])))
        self._stored = (keys, values)
        return keys, values

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, sliding_window: int | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        require_stored(self._stored, keys, values, latent=True)
        assert self._stored is not None
        self.latent.append(self._stored[0] is not keys)
        self.attended.append(sum(x.shape[1] * x.shape[3] for x in (keys, values)))
        self.heads.append(query.shape[1])
        self._stored = None
        self.windows.append(sliding_window or 0)
        return query.new_empty(1, query.shape[2], query.shape[1], values.shape[3]), None

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return 0


def probe(skeleton: Skeleton, ref: str, span: Span | None = None) -> list[LayerCache]:
    """What the layers of ``span`` (None: all) store, in order; a layer with two attentions has two entries.

    Args:
        skeleton: whole, on the meta device; left as it was.

    Raises:
        ModelUnsupported: a layer has no attention of the interface's kind, or does not cache what it attends to.

    Time: a few milliseconds a layer.
    """
    span = span or Span(0, skeleton.num_layers)
    return [entry for layer in range(span.start, span.stop) for entry in _probe_layer(skeleton, ref, layer)]


def _probe_layer(skeleton: Skeleton, ref: str, layer: int) -> list[LayerCache]:
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
        with rearranged(skeleton, [layer]), torch.inference_mode():
            skeleton.base(**inputs)
    except (RuntimeError, NotImplementedError) as error:
        failure = error  # expert routing asks for values, which meta tensors lack; attention comes before it
    except ModelUnsupported as error:
        raise ModelUnsupported(f"{ref}: {error.message}", **error.fields) from error
    finally:
        ATTENDER.reset(token)
    if not notes.stored or len(notes.stored) != len(notes.windows):
        what = f"{ref}: layer {layer} does not attend through the interface to what it caches"
        raise ModelUnsupported(f"{what} ({failure})" if failure else what, unsupported="attention_interface")
    kinds = getattr(skeleton.base.config, "layer_types", None)
    if kinds and kinds[layer] == "sliding_attention" and not all(notes.windows):
        raise ModelUnsupported(
            f"{ref}: layer {layer} is of type sliding_attention and is given no window: its config contradicts itself",
            unsupported="sliding_window",
        )
    window = max(notes.windows) if all(notes.windows) else 0
    return [
        replace(entry, window=window, latent=latent, attended=attended, heads=heads)
        for entry, latent, attended, heads in zip(notes.stored, notes.latent, notes.attended, notes.heads, strict=True)
    ]
