"""Our attention, called by every transformers layer in place of its own.

Queries come packed: rows of several sequences side by side in one batch of one. Each segment's keys and
values are found by slot (``cache.py``), so sequences never see each other and no mask of the whole batch
is ever built. No mask function is registered under our name, and transformers then builds none.

Grouped queries never repeat their keys: the g query heads of one KV head become a batch (prefill) or g
rows of one query (decode), over the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bloombee.engine.cache import Step
from bloombee.errors import ModelUnsupported

ATTENTION = "bloombee"
OPTIONS = {"scaling", "sliding_window", "softcap", "s_aux"}
WITHOUT_EFFECT = {"dropout", "position_ids", "use_cache", "cache_position"}
"""Keywords that families hand on and that mean nothing here (nor does ``output_*``): dropout is for training, positions
are the step's."""

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
    known = OPTIONS | WITHOUT_EFFECT
    strange = [n for n, value in options.items() if value is not None and n not in known and not n.startswith("output_")]
    if attention_mask is not None or strange:
        raise ModelUnsupported(
            f"{type(module).__name__} asks attention for {', '.join(strange) or 'a mask of its own'}, which is not supported",
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

    Time: reads each sequence's keys once. One call a segment, or on a GPU one for all one-row segments.
    """
    layer = step.take_layer(key, value)
    keys, values = step.cache.rows(layer)
    latent = layer in step.cache.latent
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    plain = softcap is None and s_aux is None
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    if step.together:
        where = step.together_rows
        slots, valid = step.padded_keys(sliding_window)
        out[0, where] = _one_row_each(query[0].transpose(0, 1)[where], keys[slots], values[slots], valid, scale, softcap, s_aux)
    for number, rows in enumerate(step.alone):
        q = query[0, :, rows.start : rows.stop]
        if latent:
            start, stop = step.spans_of_all[number]
            start += rows.first_key(sliding_window)
            k, v = key[0, :, start:stop], value[0, :, start:stop]
        else:
            index = step.keys_of(number, sliding_window)
            k, v = keys[index].transpose(0, 1), values[index].transpose(0, 1)
        if plain:
            causal = rows.is_causal(sliding_window)
            got = _fused(q, k, v, None if causal else step.mask_of(number, sliding_window), causal, scale)
        else:
            got = _explicit(q, k, v, step.mask_of(number, sliding_window), scale, softcap, s_aux)
        out[0, rows.start : rows.stop] = got.transpose(0, 1)
    return out, None


def _fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor | None, causal: bool, scale: float
) -> torch.Tensor:
    """[h, n, e], [k, l, e], [k, l, e'] -> [h, n, e'] by torch's own kernel."""
    heads, n, e = q.shape
    groups = heads // k.shape[0]
    if n == 1:
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
    """As :func:`_fused`, written out: for caps and sinks, which the kernel does not know."""
    heads, n, e = q.shape
    kv_heads, length = k.shape[0], k.shape[1]
    scores = torch.matmul(q.reshape(kv_heads, -1, e), k.transpose(1, 2)).view(heads, n, length)
    weights = _softmax(scores * scale, allowed, softcap, sinks).to(q.dtype)
    return torch.matmul(weights.view(kv_heads, -1, length), v).view(heads, n, -1)


def _one_row_each(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, valid: torch.Tensor, scale: float,
    softcap: float | None, sinks: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """One query row a sequence: [b, h, e], [b, l, k, e], [b, l, k, e'], [b, l] -> [b, h, e']."""
    b, heads, e = q.shape
    grouped = q.view(b, k.shape[2], -1, e)
    k, v, seen = k.transpose(1, 2), v.transpose(1, 2), valid[:, None, None]
    if softcap is None and sinks is None:
        return scaled_dot_product_attention(grouped, k, v, attn_mask=seen, scale=scale).reshape(b, heads, -1)
    scores = torch.matmul(grouped, k.transpose(2, 3)) * scale
    weights = _softmax(scores.view(b, heads, 1, -1), seen, softcap, sinks).to(q.dtype)
    return torch.matmul(weights.view(grouped.shape[:3] + scores.shape[-1:]), v).reshape(b, heads, -1)


def _softmax(
    scores: torch.Tensor, allowed: torch.Tensor | None, softcap: float | None, sinks: torch.Tensor | None
) -> torch.Tensor:
    """Capped, masked, with sinks; in float32. scores: [..., h, n, l]; sinks: [h]."""
    scores = scores.float()
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.float().view(-1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, dispatch)
