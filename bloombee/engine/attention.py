"""Our attention, called by every transformers layer in place of its own.

Queries come packed: rows of several sequences side by side in one batch of one. Each segment's keys and
values are found by slot (``cache.py``), so sequences never see each other and no mask of the whole batch
is ever built. No mask function is registered under our name, and transformers then builds none.

Grouped queries never repeat their keys: the g query heads of one KV head become a batch (prefill) or g
rows of one query (decode), over the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bloombee.engine.cache import Step
from bloombee.errors import ModelUnsupported
from bloombee.plan.scratch import MASKED, SCORES

ATTENTION = "bloombee"
OPTIONS = {"scaling", "sliding_window", "softcap", "s_aux"}
WITHOUT_EFFECT = {"dropout", "position_ids", "use_cache", "cache_position"}
"""Keywords that families hand on and that mean nothing here (nor does ``output_*``): dropout is for training, positions
are the step's."""
KNOWN = OPTIONS | WITHOUT_EFFECT

FEW_ROWS = 64
"""Rows of scores for one KV head, up to which a product by keys beats torch's fused attention."""
MANY_KEYS_BYTES = 1 << 19

CUDA_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""By preference; the first takes no masks."""

Attender = Callable[..., tuple[torch.Tensor, None]]
ATTENDER: ContextVar[Attender] = ContextVar("bloombee_attender")
"""Attention of the forward under way in this thread: layers hand it no cache, and not every family hands on keywords."""


def dispatch(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls: the attention of the step under way.

    Raises:
        ModelUnsupported: the layer asks for what we would have to ignore: a mask of its own, or an unknown option.
    """
    strange = options.keys() - KNOWN
    if strange:
        strange = {name for name in strange if options[name] is not None and not name.startswith("output_")}
    if attention_mask is not None or strange:
        raise ModelUnsupported(
            f"{type(module).__name__} asks attention for {', '.join(sorted(strange)) or 'a mask of its own'}, "
            "which is not supported",
            unsupported="attention_options",
        )
    return ATTENDER.get()(query, key, value, **options)


def attend(
    step: Step,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of packed rows over the slots of their own sequences.

    Args:
        query: [1, h, t, e]. key, value: [1, k, t, e], as the step's ``update`` has stored and returned them; of a latent
            layer [1, k, l, e], computed from all that the step's sequences hold.
        scaling: of the scores; e ** -0.5 if None.
        sliding_window: a row sees itself and this many positions before it, less one.
        softcap: scores become ``softcap * tanh(score / softcap)``.
        s_aux: [h] attention sinks: one more score a head in the softmax's sum, without a value.

    Returns:
        [1, t, h, e of the values], None.

    Raises:
        ModelUnsupported: the keys are not what was stored.

    Time: reads each sequence's keys once, in place where its slots are adjacent; of many rows once a block. Sequences of few keys
    share calls.

    Memory: the bounds of ``plan/scratch.py``, whatever the lengths.
    """
    layer = step.take_layer(key, value)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    plain = softcap is None and s_aux is None
    latent = step.cache.layers[layer].latent
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    groups, alone = ([], range(len(step.rows))) if latent else step.grouped(sliding_window, few_keys(key))
    for group in groups:
        keys, values = step.cache.read(layer, group.slots.view(-1))
        q = query[0].index_select(1, group.rows)
        out[0, group.rows] = _one_row_each(q, keys, values, group.valid, scale, softcap, s_aux)
    for number in alone:
        rows = step.rows[number]
        q = query[0, :, rows.start : rows.stop]
        if latent:
            start, stop = step.span_of(number, sliding_window)
            k, v = key[0, :, start:stop], value[0, :, start:stop]
        else:
            k, v = step.cache.read(layer, step.keys_of(number, sliding_window))
        fused = plain and not _is_small(q, k)
        if fused and rows.is_causal(sliding_window):
            out[0, rows.start : rows.stop] = _fused(q, k, v, None, True, scale).transpose(0, 1)
            continue
        for block in step.blocks(number, sliding_window, MASKED if fused else SCORES // q.shape[0]):
            part, seen = q[:, block.first : block.stop], slice(block.oldest, block.newest)
            if fused:
                got = _fused(part, k[:, seen], v[:, seen], block.allowed, False, scale)
            else:
                got = _explicit(part, k[:, seen], v[:, seen], block.allowed, scale, softcap, s_aux)
            out[0, rows.start + block.first : rows.start + block.stop] = got.transpose(0, 1)
    return out, None


def kernels(device: torch.device) -> AbstractContextManager[None]:
    """Meanwhile torch chooses among attention kernels that need no plan: cuDNN's, its own choice in bfloat16, plans anew for
    every number of keys (12 ms a layer and step as reported; lengths that come again, as in
    bench/results/gpu-NVIDIA-H200.md, do not show it). Nothing is left changed afterwards."""
    if device.type != "cuda":
        return nullcontext()
    kernels: AbstractContextManager[None] = sdpa_kernel(CUDA_KERNELS, set_priority=True)
    return kernels


def few_keys(key: torch.Tensor) -> int:
    """Up to how many keys each, sequences are worth copying together, on the CPU.

    A product in bfloat16 costs 15 us before it begins, as much as the copy of 500 KB; one in float32 costs 3.
    """
    return MANY_KEYS_BYTES // (key.shape[1] * key.shape[3] * key.element_size()) if key.element_size() == 2 else -1


def _fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor | None, causal: bool, scale: float
) -> torch.Tensor:
    """[h, n, e], [k, l, e], [k, l, e'] -> [h, n, e'] by torch's own kernel."""
    heads, n, e = q.shape
    groups = heads // k.shape[0]
    if n == 1 and allowed is None:
        got = scaled_dot_product_attention(q.reshape(1, -1, groups, e), k[None], v[None], scale=scale)
        return got.reshape(heads, 1, -1)
    batch = q.reshape(-1, groups, n, e).transpose(0, 1)
    k, v = k.expand(groups, -1, -1, -1), v.expand(groups, -1, -1, -1)
    got = scaled_dot_product_attention(batch, k, v, attn_mask=allowed, is_causal=causal, scale=scale)
    return got.transpose(0, 1).reshape(heads, n, -1)


def _explicit(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor | None, scale: float,
    softcap: float | None, sinks: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """As :func:`_fused`, written out: for caps and sinks, which the kernel does not know, and few rows, for which it is slow."""
    heads, n, e = q.shape
    kv_heads, length = k.shape[0], k.shape[1]
    rows = q.reshape(kv_heads, -1, e)
    if _is_small(q, k):  # keys by rows, not rows by keys: the long operand goes in as it lies
        scores = torch.bmm(k, rows.transpose(1, 2)).transpose(1, 2).contiguous()
    else:
        scores = torch.bmm(rows, k.transpose(1, 2))
    sinks = None if sinks is None else sinks[:, None]
    weights = _softmax(scores.view(heads, n, length), allowed, softcap, sinks, scale).to(q.dtype)
    return torch.bmm(weights.view(kv_heads, -1, length), v).view(heads, n, -1)


def _one_row_each(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, valid: torch.Tensor | None, scale: float,
    softcap: float | None, sinks: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """One query row a sequence: [h, b, e], [k, b * l, e], [k, b * l, e'], [b, l] -> [b, h, e']."""
    heads, b, e = q.shape
    kv_heads, groups = k.shape[0], heads // k.shape[0]
    grouped = q.view(kv_heads, groups, b, e).transpose(1, 2)
    k, v = k.view(kv_heads, b, -1, e), v.view(kv_heads, b, -1, v.shape[-1])
    seen = None if valid is None else valid[None, :, None]
    if k.device.type != "cpu" and softcap is None and sinks is None:
        got = scaled_dot_product_attention(grouped, k, v, attn_mask=seen, scale=scale)
    else:
        scores = torch.matmul(k, grouped.transpose(2, 3)).transpose(2, 3).contiguous()
        weights = _softmax(scores, seen, softcap, None if sinks is None else sinks.view(kv_heads, 1, groups), scale)
        got = torch.matmul(weights.to(q.dtype), v)
    return got.permute(1, 0, 2, 3).reshape(b, heads, -1)


def _is_small(q: torch.Tensor, k: torch.Tensor) -> bool:
    """Whether a few rows meet many keys on the CPU, where torch's fused kernel reads keys 2 to 5 times slower than a product.

    For one row and few keys it is the other way round, as a product in bfloat16 costs 15 us before it begins.
    Measured in docs/adr/0030.
    """
    rows, groups = q.shape[1], q.shape[0] // k.shape[0]
    return k.device.type == "cpu" and rows * groups <= FEW_ROWS and (rows > 1 or int(k.nbytes) >= MANY_KEYS_BYTES)


def _softmax(
    scores: torch.Tensor, allowed: torch.Tensor | None, softcap: float | None, sinks: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Scaled, capped, masked, with sinks; in float32. scores: [..., l], may be overwritten; sinks: broadcast to [...]."""
    scores = scores.float().mul_(scale)
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if allowed is not None:
        scores = scores.masked_fill_(~allowed, float("-inf"))
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.float().expand(scores.shape[:-1])[..., None]
    return torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, dispatch)
