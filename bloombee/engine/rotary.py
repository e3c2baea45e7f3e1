"""Rotary embeddings whose frequencies depend on how long a sequence is (``dynamic``, ``longrope``), for many sequences at once.

transformers looks at the largest position of a forward: the whole prompt counts for each of its rows, and a row of the output for
itself. A forward of ours has rows of many sequences, and a prompt comes in chunks. So each row is told the length that it would
have seen with its sequence alone, and rows of one length are embedded together, by transformers' own code.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.generation import GenerationMixin
from transformers.modeling_utils import PreTrainedModel

from bloombee.pipeline.work import Segment

DYNAMIC, LONG = "dynamic", "longrope"


class RotaryByLength:
    """In place of a rotary module's forward.

    Attributes:
        lengths: of the next forward, one a row (:func:`lengths_of`); None: every row is as of a short sequence.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module
        self._forward = module.forward
        self._plain = inspect.unwrap(type(module).forward)
        self.lengths: Sequence[int] | None = None

    def __call__(
        self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        more = {} if layer_type is None else {"layer_type": layer_type}
        kind = _kinds(self._module)[layer_type]
        lengths = self.lengths if kind in (DYNAMIC, LONG) else None
        if lengths is None:
            return self._embed_plain(x, position_ids, more)
        limit = self._limit(kind, layer_type)
        keys = [0 if n <= limit else limit + 1 if kind == LONG else n for n in lengths]
        parts = {key: self._embed(x, position_ids, keys, key, more) for key in sorted(set(keys))}
        if len(parts) == 1:
            return next(iter(parts.values()))
        cos, sin = (
            torch.empty((*position_ids.shape, part.shape[-1]), dtype=part.dtype, device=part.device) for part in parts[keys[0]]
        )
        for key, (some_cos, some_sin) in parts.items():
            rows = _rows(keys, key, position_ids)
            cos[:, rows], sin[:, rows] = some_cos, some_sin
        return cos, sin

    def _embed(
        self, x: torch.Tensor, position_ids: torch.Tensor, keys: Sequence[int], key: int, more: dict[str, str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of ``key``: a length for all of them, 0 for a short one."""
        own = position_ids[:, _rows(keys, key, position_ids)]
        self._forget(more.get("layer_type"))
        if not key:
            return self._embed_plain(x, own, more)
        last = own.new_full((own.shape[0], 1), key - 1)
        cos, sin = self._forward(x, torch.cat([own, last], dim=1), **more)
        return cos[:, :-1], sin[:, :-1]

    def _embed_plain(
        self, x: torch.Tensor, position_ids: torch.Tensor, more: dict[str, str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            cos, sin = self._plain(self._module, x, position_ids, **more)
        return cos, sin

    def _limit(self, kind: str, layer_type: str | None) -> int:
        """The longest sequence that is embedded plainly."""
        if kind == DYNAMIC:
            return int(self._module.original_max_seq_len)
        table = self._module.config.rope_parameters
        return int((table if layer_type is None else table[layer_type])["original_max_position_embeddings"])

    def _forget(self, layer_type: str | None) -> None:
        """As if nothing had been embedded yet: what the module remembers is of other sequences."""
        prefix = "" if layer_type is None else f"{layer_type}_"
        original = getattr(self._module, f"{prefix}original_inv_freq")
        self._module._buffers[f"{prefix}inv_freq"] = original.clone()
        setattr(self._module, f"{prefix}max_seq_len_cached", self._module.original_max_seq_len)


def install(model: nn.Module) -> tuple[RotaryByLength, ...]:
    """Give every module of ``model`` that needs it such a forward."""
    found = []
    for module in model.modules():
        if hasattr(module, "rope_type") and {DYNAMIC, LONG} & set(_kinds(module).values()):
            found.append(RotaryByLength(module))
            module.forward = found[-1]
    return tuple(found)


def lengths_of(segments: Sequence[Segment]) -> list[int]:
    """Of each row: how long its sequence was in the forward that it would have been in alone."""
    return [max(s.num_prompt_tokens, position + 1) for s in segments for position in s.positions()]


def restart_at(model: PreTrainedModel) -> int:
    """How long a sequence is when transformers computes all of it anew, with the frequencies of a long one; 0: that never is.

    Some classes do so, in their ``prepare_inputs_for_generation``. What is cached cannot be rolled back to its beginning in the
    middle of a request, so such a one must be short all the time, or long from its prompt on.
    """
    config = model.config
    is_own = type(model).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation
    table = getattr(config, "rope_parameters", None) or {}
    return int(getattr(config, "original_max_position_embeddings", 0)) if is_own and table.get("rope_type") == LONG else 0


def _kinds(module: Any) -> dict[str | None, str]:
    """Layer type -> kind of embedding; under None where all layers have the same."""
    kinds = module.rope_type
    return dict(kinds) if isinstance(kinds, dict) else {None: kinds}


def _rows(keys: Sequence[int], key: int, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor([row for row, other in enumerate(keys) if other == key], device=like.device)
