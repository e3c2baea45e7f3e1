"""The stage of a stand-in model: what :class:`~bloombee.engine.model.SpanModel` is to a real one.

Nothing is computed. Activations are rows of a bank that was recorded from the packaged model (tools/make_activation_bank.py),
chosen by sequence and position, so that each stage knows what must have come in and says so if it did not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from bloombee.engine.buffers import TORCH_DTYPES
from bloombee.engine.spans import ModelKey, SpanStore
from bloombee.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from bloombee.models.card import ModelCard
from bloombee.models.standin import default_pace, standin_card, standin_token
from bloombee.pace import Pace
from bloombee.pipeline.work import Segment, Work
from bloombee.types import Dtype, PageGroup, Span
from bloombee.wire.messages import Pick

BANK = Path(__file__).with_name("bank.safetensors")
LOAD_PIECES = 256
"""In which a span's weights come, of however many bytes."""


class Bank:
    """Recorded activations of several depths, as rows of any width.

    A row is ``d`` elements in sequence from where its key falls in the recording, which goes round.

    Args:
        d: width of the rows.
        dtype: of the rows; the recording is bfloat16, which all of ours hold.
    """

    def __init__(self, d: int, dtype: Dtype) -> None:
        self._depths = []
        for _, recorded in sorted(load_file(BANK).items()):
            flat = recorded.to(TORCH_DTYPES[dtype]).reshape(-1)
            whole = flat.repeat(-(-d // flat.numel()) + 1)[: flat.numel() + d]
            self._depths.append(whole.as_strided((recorded.shape[0], d), (recorded.shape[1], 1)))

    def rows(self, boundary: int, num_layers: int, segments: tuple[Segment, ...]) -> torch.Tensor:
        """[rows, d] that cross after ``boundary`` of ``num_layers`` layers, those of ``segments`` in order."""
        depth = self._depths[min(len(self._depths) - 1, boundary * len(self._depths) // num_layers)]
        keys = [_key(one.sequence, position) % len(depth) for one in segments for position in one.positions()]
        return depth[torch.tensor(keys, dtype=torch.int64)]


def _key(sequence: int, position: int) -> int:
    data = sequence.to_bytes(8, "little") + position.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "little")


class StandIn:
    """Attributes as those of :class:`~bloombee.engine.model.SpanModel`.

    ``weight_bytes`` and ``kv_bytes`` are what the model that it stands for has. ``default_pace`` is how long a forward takes
    unless the worker was given a pace.

    Args:
        kv_slots: tokens whose KV the stage has room for (a stand-in's layers all see everything).

    Raises:
        ConfigError: the span and the model disagree.
    """

    def __init__(self, card: ModelCard, span: Span, dtype: Dtype, kv_slots: int = 0) -> None:
        if span.stop > card.num_layers:
            raise ConfigError(f"{card.model} has {card.num_layers} layers; this stage has {span}", model=card.model)
        self.span = span
        self.num_layers = card.num_layers
        self.dtype = dtype
        self.hidden_size = card.hidden_size
        self.vocab_size = card.vocab_size
        self.weight_bytes = card.weight_bytes(span, dtype)
        self.kv_bytes = kv_slots * card.kv_bytes_per_token(span, dtype)
        self.default_pace: Pace = default_pace(card, span)
        self._bank = Bank(card.hidden_size, dtype)
        self._store = SpanStore()
        self._key: ModelKey = ()
        self._kept: list[int] = []
        self._reservation = 0

    @classmethod
    def load(
        cls,
        model: str,
        span: Span,
        *,
        dtype: Dtype,
        groups: Sequence[PageGroup] = (),
        page_size: int = 1,
        progress: Callable[[int, int], None] | None = None,
        store: SpanStore | None = None,
    ) -> StandIn:
        """As :meth:`SpanModel.load <bloombee.engine.model.SpanModel.load>`, without reading anything.

        Args:
            progress: called with (loaded bytes, total bytes) piece by piece; it may take its time, or raise to give up.
            store: of the device that it stands for.

        Raises:
            ConfigError: there is no such stand-in or no such span.
            Infeasible: weights and KV are more than the store has room for.
        """
        card = standin_card(model)
        loaded = cls(card, span, dtype, page_size * sum(group.num_pages for group in groups))
        loaded._store, loaded._key = store or SpanStore(), (model, str(dtype))
        held = loaded._store.take(loaded._key, span)
        loaded._kept = list(held)
        num_bytes = loaded.weight_bytes - sum(layer for _, layer in held.values())
        try:
            loaded._reservation = loaded._store.reserve(span, num_bytes, loaded.kv_bytes)
            for piece in range(1, LOAD_PIECES + 1):
                if progress is not None:
                    progress(num_bytes * piece // LOAD_PIECES, num_bytes)
        except BaseException:
            loaded.close()
            raise
        missing = (number for number in range(span.start, span.stop) if number not in held)
        fresh = {number: (None, card.layer_parameters[number] * dtype.num_bytes) for number in missing}
        loaded._store.keep(loaded._key, fresh, loaded._reservation)
        loaded._kept += fresh
        return loaded

    def settle(self, on_part: Callable[[], None] = lambda: None) -> None:
        """Nothing of it is read on each step."""

    def close(self) -> None:
        """As :meth:`SpanModel.close <bloombee.engine.model.SpanModel.close>`."""
        self._store.give(self._key, self._kept)
        self._kept = []
        self._store.release(self._reservation)

    @property
    def is_last(self) -> bool:
        return self.span.stop == self.num_layers

    def run(self, work: Work, hidden: torch.Tensor | None) -> torch.Tensor | list[Pick]:
        """As :meth:`SpanModel.run <bloombee.engine.model.SpanModel.run>`, without the arithmetic.

        Raises:
            RemoteProtocolError: a row that came in is not what the stage before this one sends for its sequence and position.
        """
        if self.span.start > 0:
            self._check(work, hidden)
        if not self.is_last:
            return self._bank.rows(self.span.stop, self.num_layers, work.segments)
        return [pick for segment in work.segments for pick in _picks(segment)]

    def _check(self, work: Work, hidden: torch.Tensor | None) -> None:
        expected = self._bank.rows(self.span.start, self.num_layers, work.segments)
        if hidden is not None and torch.equal(hidden, expected):
            return
        if hidden is None or hidden.shape != expected.shape or hidden.dtype != expected.dtype:
            got = "none" if hidden is None else f"{list(hidden.shape)} {hidden.dtype}"
            raise RemoteProtocolError(f"activations are {got}; this stage takes {list(expected.shape)} {self.dtype.value}")
        wrong = int((hidden != expected).any(dim=1).nonzero()[0])
        places = [(one.sequence, position) for one in work.segments for position in one.positions()]
        sequence, position = places[wrong]
        raise RemoteProtocolError(
            f"the row of sequence {sequence}, position {position} is not the one that belongs there",
            sequence=sequence,
            position=position,
        )


def _picks(segment: Segment) -> list[Pick]:
    if segment.num_picks and segment.sampling is None:
        raise LocalProtocolError(f"sequence {segment.sequence}: rows to sample and no sampling parameters")
    seed = segment.sampling.seed if segment.sampling is not None else 0
    positions = segment.positions()
    places = [positions[row] + 1 for row in segment.picked()]
    return [Pick(segment.sequence, segment.generation, place, standin_token(seed, place), None, ()) for place in places]
