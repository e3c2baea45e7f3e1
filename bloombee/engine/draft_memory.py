"""Keys and values of a draft model: of each sequence its confirmed rows in order, then those of a tree that is being tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bloombee.engine.cache import LayerCache

FIRST_ROWS = 256
"""That memory is made for; twice as many whenever it is full."""


class SequenceMemory:
    """Two tensors a layer, [k, rows, e], that grow by doubling."""

    def __init__(self, layers: Sequence[LayerCache], dtype: torch.dtype, device: torch.device) -> None:
        self.length = 0
        """Rows that are of use."""
        self.positions = torch.zeros(FIRST_ROWS, dtype=torch.int64, device=device)
        self._layers = {
            one.layer: (
                torch.empty(one.keys[0], FIRST_ROWS, one.keys[1], dtype=dtype, device=device),
                torch.empty(one.values[0], FIRST_ROWS, one.values[1], dtype=dtype, device=device),
            )
            for one in layers
        }

    @property
    def capacity(self) -> int:
        return len(self.positions)

    def make_room(self, rows: int) -> None:
        """For ``rows`` more."""
        while self.capacity < self.length + rows:
            self.positions = torch.cat((self.positions, torch.zeros_like(self.positions)))
            for layer, pair in self._layers.items():
                self._layers[layer] = (_doubled(pair[0]), _doubled(pair[1]))

    def layer(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._layers[number]

    def keep(self, confirmed: int, rows: Sequence[int]) -> None:
        """The first ``confirmed`` rows stay, and ``rows``, ascending and all behind them, follow; the others are of no use."""
        self.length = confirmed + len(rows)
        if list(rows) == list(range(confirmed, self.length)):
            return
        index = torch.tensor(rows, device=self.positions.device)
        for held in (tensor for pair in self._layers.values() for tensor in pair):
            held[:, confirmed : self.length] = held[:, index]
        self.positions[confirmed : self.length] = self.positions[index]


def _doubled(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat((tensor, torch.empty_like(tensor)), 1)


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one sequence in a forward; they go behind what its memory has.

    Args:
        tokens, positions: [t].
        allowed: [t, length + t] bool, which rows of the memory each sees; None: those before it, and itself.
    """

    memory: SequenceMemory
    tokens: Sequence[int]
    positions: Sequence[int]
    allowed: torch.Tensor | None = None


class DraftStep:
    """One forward of several sequences' rows: what transformers calls a cache, and the attention of its layers."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._layer = -1
        for part in parts:
            memory, count = part.memory, len(part.tokens)
            memory.make_room(count)
            memory.positions[memory.length : memory.length + count] = torch.tensor(part.positions)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by a layer with this step's keys and values, [1, k, t, e]; attention follows at once."""
        self._layer, start = layer, 0
        for part in self._parts:
            stop, length = start + len(part.tokens), part.memory.length
            for held, rows in zip(part.memory.layer(layer), (keys, values), strict=True):
                held[:, length : length + stop - start] = rows[0, :, start:stop]
            start = stop
        return keys, values

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return 0

    def attend(self, query: torch.Tensor, *_: torch.Tensor, **options: Any) -> tuple[torch.Tensor, None]:
        """[1, t, h, e]; arguments as of :func:`~bloombee.engine.attention.attend`."""
        found, start = [], 0
        for part in self._parts:
            stop = start + len(part.tokens)
            found.append(self._attend_one(part, query[0, :, start:stop], **options))
            start = stop
        return torch.cat(found)[None], None

    def _attend_one(
        self,
        part: Part,
        query: torch.Tensor,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """[t, h, e] of one sequence's [h, t, e]."""
        total = part.memory.length + query.shape[1]
        keys, values = (held[:, :total] for held in part.memory.layer(self._layer))
        heads, rows, width = query.shape
        grouped = query.reshape(keys.shape[0], -1, width)
        scores = grouped @ keys.transpose(1, 2) * (width**-0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        seen = self._seen(part, total, sliding_window)
        scores = scores.view(heads, rows, total).masked_fill(~seen, float("-inf"))
        if s_aux is not None:
            sinks = s_aux.to(scores.dtype)[:, None, None].expand(-1, rows, 1)
            weights = torch.softmax(torch.cat((scores, sinks), -1), -1)[..., :-1]
        else:
            weights = torch.softmax(scores, -1)
        mixed = weights.reshape(keys.shape[0], -1, total) @ values
        return mixed.view(heads, rows, -1).transpose(0, 1)

    def _seen(self, part: Part, total: int, window: int | None) -> torch.Tensor:
        """[t, total] bool."""
        positions = part.memory.positions[:total]
        own = positions[part.memory.length :, None]
        seen = part.allowed
        if seen is None:
            order = torch.arange(total, device=positions.device)
            seen = order[None] <= order[part.memory.length :, None]
        return seen if window is None else seen & (positions[None] > own - window)
