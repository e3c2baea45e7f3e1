"""Models that exist only as sizes: ``standin:llama-30b``, ``standin:llama-70b``, ``standin:HIDDENxLAYERS``.

A swarm serves them with real processes, frames, pages and schedules; the forward is replaced by a pace, and activations
come from a bank of recorded ones (``engine/standin.py``). A token is a hash of its request's seed and its position, so
that one that is lost, doubled or misplaced shows. Pure data: heads and benchmarks use it without torch.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from bloombee.errors import ConfigError
from bloombee.models.card import ModelCard
from bloombee.pace import Pace
from bloombee.types import Dtype, Span

PREFIX = "standin:"
VOCAB = 32_000
CONTEXT_TOKENS = 1024
"""Cached tokens of a sequence that a default pace reckons with."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What a data sheet says of a device: memory, its bandwidth, and dense bf16 arithmetic."""

    name: str
    memory_bytes: int
    bytes_per_s: float
    flops_per_s: float
    source: str


ACCELERATORS = {
    accelerator.name: accelerator
    for accelerator in (
        Accelerator("a100", 80 * 10**9, 2.039e12, 312e12, "NVIDIA A100 80GB SXM data sheet"),
        Accelerator("h100", 80 * 10**9, 3.35e12, 989e12, "NVIDIA H100 SXM data sheet (dense)"),
        Accelerator("rtx-4090", 24 * 10**9, 1.008e12, 165.2e12, "NVIDIA Ada architecture white paper (dense, FP32 accumulate)"),
    )
}
DEFAULT_ACCELERATOR = ACCELERATORS["a100"]


@dataclass(frozen=True, slots=True)
class _Sizes:
    hidden: int
    layers: int
    feed_forward: int
    kv_width: int
    """Of keys (and of values) of one token in one layer."""


_NAMED = {
    "llama-30b": _Sizes(6656, 60, 17920, 6656),  # Touvron et al. 2023, table 2
    "llama-70b": _Sizes(8192, 80, 28672, 1024),  # Touvron et al. 2023b: 8 KV heads of 128
}


def is_standin(model: str) -> bool:
    return model.startswith(PREFIX)


def standin_memory_bytes(model: str) -> int | None:
    """Memory of the device that a worker stands in for; None for a real model."""
    return DEFAULT_ACCELERATOR.memory_bytes if is_standin(model) else None


def standin_card(model: str) -> ModelCard:
    """The card of a stand-in; a Llama of its hidden size and layers.

    Raises:
        ConfigError: no such stand-in.
    """
    sizes = _sizes(model)
    d = sizes.hidden
    layer = 2 * d * d + 2 * d * sizes.kv_width + 3 * d * sizes.feed_forward + 2 * d
    return ModelCard(
        model=model,
        config_digest=hashlib.blake2b(model.encode(), digest_size=16).hexdigest(),
        architecture="StandIn",
        num_layers=sizes.layers,
        hidden_size=d,
        vocab_size=VOCAB,
        max_positions=2**20,
        dtype=Dtype.BFLOAT16,
        eos_token_ids=(),
        bos_token_id=None,
        layer_parameters=(layer,) * sizes.layers,
        embed_parameters=VOCAB * d,
        tail_parameters=VOCAB * d + d,
        tied_parameters=0,
        layer_kv_elements=(2 * sizes.kv_width,) * sizes.layers,
        layer_windows=(0,) * sizes.layers,
        tokenizer_json=None,
    )


def default_pace(card: ModelCard, span: Span, accelerator: Accelerator = DEFAULT_ACCELERATOR) -> Pace:
    """What the data sheet allows a stage of ``span``, by the roofline (Williams et al. 2009).

    A forward reads the span's weights once (the embedding's are looked up, not read); each row costs two operations a
    parameter, and in decode the reading of :data:`CONTEXT_TOKENS` cached tokens. A ceiling: real kernels reach 50 to 80 % of it.
    """
    elements = card.weight_bytes(span) // card.dtype.num_bytes - card.embed_parameters * (span.start == 0)
    return _roofline(elements, card.kv_bytes_per_token(span), card, accelerator)


def default_layer_paces(card: ModelCard, accelerator: Accelerator = DEFAULT_ACCELERATOR) -> tuple[Pace, Pace]:
    """What :func:`default_pace` comes to of one layer, and of what the last stage has besides its layers."""
    layer = _roofline(card.layer_parameters[0], card.kv_bytes_per_token(Span(0, 1)), card, accelerator)
    return layer, _roofline(card.tail_parameters, 0, card, accelerator)


def _roofline(elements: int, kv_token_bytes: int, card: ModelCard, accelerator: Accelerator) -> Pace:
    row_s = 2 * elements / accelerator.flops_per_s
    read_s = CONTEXT_TOKENS * kv_token_bytes / accelerator.bytes_per_s
    return Pace(elements * card.dtype.num_bytes / accelerator.bytes_per_s, row_s + read_s, row_s)


def standin_token(seed: int, position: int) -> int:
    """The token that a request of ``seed`` gets at absolute ``position``."""
    data = seed.to_bytes(8, "little") + position.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") % VOCAB


def _sizes(model: str) -> _Sizes:
    name = model.removeprefix(PREFIX)
    if name in _NAMED:
        return _NAMED[name]
    match = re.fullmatch(r"(\d{1,6})x(\d{1,4})", name)
    if match is None or min(int(match[1]), int(match[2])) < 1:
        raise ConfigError(
            f"no stand-in {model!r}: there are {', '.join(PREFIX + known for known in _NAMED)} and {PREFIX}HIDDENxLAYERS,"
            f" as {PREFIX}6656x60",
            model=model,
        )
    d = int(match[1])
    return _Sizes(d, int(match[2]), 8 * d // 3, d)
