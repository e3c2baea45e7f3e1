"""A model as plain data: what a head knows of it without ever importing torch. Made by ``engine/describe.py``."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from bloombee.models.rules import Defaults, LogitsRules, Watermark
from bloombee.models.shape import LayerKind, ModelShape
from bloombee.types import Dtype, Span


@dataclass(frozen=True)
class ModelCard:
    """Everything a head needs to know of a model. JSON-able: see :meth:`to_json`.

    Args:
        model: the name it was asked for by; what workers are told.
        config_digest: 32 hex digits, compared before anything runs.
        weight_digests: hex, of the embedding, each layer and what comes after the layers; empty where not known, and no
            entries at all where nothing is or nothing could differ. Workers compare them with their own copies.
        max_positions: the longest sequence it is served for.
        restart_at: positions at which transformers computes a sequence anew, with other rotary frequencies: none may grow past
            that after its prompt; 0: there is no such place.
        dtype: of the checkpoint.
        eos_token_ids: as configured (generation_config.json, else config.json); empty if nothing is.
        layer_parameters: elements of each layer. embed_parameters: before the layers. tail_parameters: after them, head
            included. tied_parameters: those of the head that are the embedding's, which one stage with both holds once.
        layer_kv_elements: of one token in each layer. layer_windows: positions each layer sees; 0 for all.
        num_heads: of queries. row_elements: of a row's activations while a layer is computed, about; 0 of what computes nothing.
            attended_elements: of keys and values of one token in one layer, as attention takes them, the most of any layer.
            is_latent: they are computed from what is cached (multi-head latent attention). See ``plan/scratch.py``.
        tokenizer_json: for ``tokenizers.Tokenizer.from_str``; None if the checkpoint has none.
        cleans_up: the tokenizer drops spaces before punctuation and English contractions when it decodes.
        splits_special: it takes the names of special tokens in a text for plain text.
        token_bytes: most bytes of text that one token covers; 0 where no bound is known (``engine/token_bytes.py``).
        chat_templates: jinja sources by name, as transformers reads them; a checkpoint's only one is ``default``.
        special_tokens: what chat templates know of the tokenizer: ``bos_token`` and such.
        defaults, logits_rules: of its generation_config.json; None: no rules, and nothing is done to logits.
        ignored: what that file asks for and does not get, one sentence each.
    """

    model: str
    config_digest: str
    architecture: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_positions: int
    dtype: Dtype
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    layer_parameters: tuple[int, ...]
    embed_parameters: int
    tail_parameters: int
    tied_parameters: int
    layer_kv_elements: tuple[int, ...]
    layer_windows: tuple[int, ...]
    tokenizer_json: str | None
    cleans_up: bool = False
    splits_special: bool = False
    token_bytes: int = 0
    chat_templates: dict[str, str] = dataclasses.field(default_factory=dict)
    special_tokens: dict[str, str] = dataclasses.field(default_factory=dict)
    weight_digests: tuple[str, ...] = ()
    num_heads: int = 0
    row_elements: int = 0
    attended_elements: int = 0
    is_latent: bool = False
    defaults: Defaults = field(default_factory=Defaults)
    logits_rules: LogitsRules | None = None
    ignored: tuple[str, ...] = ()
    restart_at: int = 0

    @property
    def num_parameters(self) -> int:
        return sum(self.layer_parameters) + self.embed_parameters + self.tail_parameters - self.tied_parameters

    @property
    def layer_bytes(self) -> tuple[int, ...]:
        """Bytes of each layer's weights in the checkpoint's dtype."""
        return tuple(count * self.dtype.num_bytes for count in self.layer_parameters)

    def weight_bytes(self, span: Span, dtype: Dtype | None = None) -> int:
        """What the stage of ``span`` holds in ``dtype`` (None: the checkpoint's), embedding, norm and head included."""
        first, last = span.start == 0, span.stop == self.num_layers
        count = sum(self.layer_parameters[span.start : span.stop])
        count += self.embed_parameters * first + self.tail_parameters * last - self.tied_parameters * (first and last)
        return count * (dtype or self.dtype).num_bytes

    def span_digests(self, span: Span) -> tuple[bytes, ...]:
        """Those that the stage of ``span`` is to have, in the order of :attr:`weight_digests`."""
        first, last = span.start == 0, span.stop == self.num_layers
        return tuple(bytes.fromhex(known) for known in self.weight_digests[span.start + (not first) : span.stop + 1 + last])

    def kv_bytes_per_token(self, span: Span, dtype: Dtype | None = None, *, window: int | None = None) -> int:
        """KV memory of one token in the layers of ``span``; only in those of ``window`` unless that is None."""
        layers = range(span.start, span.stop)
        count = sum(self.layer_kv_elements[layer] for layer in layers if window in (None, self.layer_windows[layer]))
        return count * (dtype or self.dtype).num_bytes

    def shape(self, dtype: Dtype | None = None) -> ModelShape:
        """The sizes that plans depend on, of a run in ``dtype`` (None: the checkpoint's); scratch apart (``plan/memory.py``)."""
        width = (dtype or self.dtype).num_bytes
        sizes = zip(self.layer_parameters, self.layer_kv_elements, self.layer_windows, strict=True)
        layers = [LayerKind(parameters * width, elements * width, window) for parameters, elements, window in sizes]
        kinds = tuple(dict.fromkeys(layers))
        return ModelShape(
            hidden=self.hidden_size,
            num_layers=self.num_layers,
            activation_bytes=width,
            embedding_bytes=self.embed_parameters * width,
            output_bytes=self.tail_parameters * width,
            tied_bytes=self.tied_parameters * width,
            kinds=kinds,
            kind_of=tuple(kinds.index(layer) for layer in layers),
        )

    def windows(self, span: Span | None = None) -> tuple[int, ...]:
        """How far the layers of ``span`` (None: all) see: each window once, widest first; 0 is all positions."""
        found = set(self.layer_windows[span.start : span.stop] if span else self.layer_windows)
        return tuple(sorted(found, key=lambda window: window or math.inf, reverse=True))

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "dtype": self.dtype.value}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelCard:
        """Inverse of :meth:`to_json`, also after a round through JSON text."""
        plain: dict[str, Any] = _frozen(data)
        plain["dtype"] = Dtype(data["dtype"])
        plain["defaults"] = Defaults(**plain["defaults"])
        if (rules := plain["logits_rules"]) is not None:
            mark = rules["watermark"]
            plain["logits_rules"] = LogitsRules(**{**rules, "watermark": mark and Watermark(**mark)})
        return cls(**plain)


def _frozen(value: Any) -> Any:
    """JSON's lists as tuples, at any depth."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
