"""The sizes of a model that plans and costs depend on. Pure data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bloombee.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What layers of one kind hold.

    Args:
        layer_bytes: weights of one. kv_token_bytes: KV of one token in it.
        window: how many positions it sees, itself included; 0 for all.

    Raises:
        ConfigError: a negative figure.
    """

    layer_bytes: int = 0
    kv_token_bytes: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        for name in ("layer_bytes", "kv_token_bytes", "window"):
            if getattr(self, name) < 0:
                raise ConfigError(f"LayerKind.{name} = {getattr(self, name)}: must be >= 0", field=name)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model that a plan depends on.

    Args:
        hidden: d.
        activation_bytes: of one element on a link.
        layer_bytes: weights of one layer, where all are alike.
        kv_token_bytes: KV of one token in one layer, where all are alike.
        embedding_bytes: on the first stage besides; output_bytes: on the last. tied_bytes: those of the latter that are the
            embedding's, which one stage with both holds once.
        scratch_bytes: what a forward needs besides weights and KV; output_scratch_bytes: on the last stage. loading_bytes: what
            loading needs meanwhile, unless the weights are less. streaming_bytes: what a stage needs that streams weights. See
            ``plan/memory.py``.
        kinds: of layers that differ; empty: all are alike.
        kind_of: of each layer, where in ``kinds`` its own is; empty: all are of the first.

    Raises:
        ConfigError: a layer of a kind that is not there, kinds of more or fewer layers than the model has, or more tied than
            there is.
    """

    hidden: int
    num_layers: int
    activation_bytes: int = 2
    layer_bytes: int = 0
    kv_token_bytes: int = 0
    embedding_bytes: int = 0
    output_bytes: int = 0
    tied_bytes: int = 0
    scratch_bytes: int = 0
    output_scratch_bytes: int = 0
    loading_bytes: int = 0
    streaming_bytes: int = 0
    kinds: tuple[LayerKind, ...] = ()
    kind_of: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind_of and len(self.kind_of) != self.num_layers:
            raise ConfigError(f"kinds of {len(self.kind_of)} layers, the model has {self.num_layers}", field="kind_of")
        known = max(1, len(self.kinds))
        if not all(0 <= kind < known for kind in self.kind_of):
            raise ConfigError(f"kind_of = {self.kind_of}: must be numbers below {known}", field="kind_of")
        if not 0 <= self.tied_bytes <= min(self.embedding_bytes, self.output_bytes):
            raise ConfigError(f"tied_bytes = {self.tied_bytes}: must be part of both ends of the model", field="tied_bytes")

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """At least one."""
        return self.kinds or (LayerKind(self.layer_bytes, self.kv_token_bytes),)

    @property
    def windows(self) -> tuple[int, ...]:
        """How far its layers see: each window once, widest first; 0 is all positions."""
        kinds = self.layer_kinds
        found = {kinds[kind].window for kind in self.kind_of or (0,)}
        return tuple(sorted(found, key=lambda window: window or math.inf, reverse=True))

    def counts(self, start: int, stop: int) -> tuple[int, ...]:
        """How many layers of each kind lie in [start, stop)."""
        if not self.kind_of:
            return (stop - start, *(0,) * (len(self.kinds) - 1))
        span = self.kind_of[start:stop]
        return tuple(span.count(kind) for kind in range(len(self.layer_kinds)))

    @property
    def row_bytes(self) -> int:
        """Raw activations of one row."""
        return self.hidden * self.activation_bytes
