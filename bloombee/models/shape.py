"""The sizes of a model that plans and costs depend on. Pure data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model that a plan depends on.

    Args:
        hidden: d.
        activation_bytes: of one element on a link.
        layer_bytes: weights of one layer; all layers alike.
        kv_token_bytes: KV of one token in one layer.
        embedding_bytes: on the first stage besides; output_bytes: on the last.
    """

    hidden: int
    num_layers: int
    activation_bytes: int = 2
    layer_bytes: int = 0
    kv_token_bytes: int = 0
    embedding_bytes: int = 0
    output_bytes: int = 0

    @property
    def row_bytes(self) -> int:
        """Raw activations of one row."""
        return self.hidden * self.activation_bytes
