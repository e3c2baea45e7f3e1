"""A model as plain data, for processes that plan and speak with users and never import torch.

Call these in a process that may (``roles/`` has one), and send the result where it is needed.
"""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from bloombee.engine.checkpoint import resolve
from bloombee.engine.digest import weight_digests
from bloombee.engine.generation import read_generation
from bloombee.engine.rotary import restart_at
from bloombee.engine.skeleton import Skeleton, build
from bloombee.engine.stored import probe
from bloombee.engine.token_bytes import token_bytes
from bloombee.engine.tokenizer import load_tokenizer
from bloombee.models.card import ModelCard
from bloombee.models.standin import is_standin, standin_card
from bloombee.types import Span

_STRETCHED = ("linear", "dynamic", "yarn")
"""Rotary types that serve ``factor`` times as many positions as they were trained for."""


def describe(model: str) -> ModelCard:
    """Read everything about ``model`` but its weights, of which a few bytes a tensor.

    Raises:
        ConfigError: no such model, or its files are broken.
        ModelUnsupported: it cannot be split; the message says why.

    Time: about a second, most of it imports; nothing of the weights is fetched.
    """
    if is_standin(model):
        return standin_card(model)
    checkpoint = resolve(model)
    skeleton = build(checkpoint, checkpoint.dtype)
    caches = [probe(skeleton, model, Span(layer, layer + 1)) for layer in range(skeleton.num_layers)]
    counts = skeleton.parameter_counts()
    config = checkpoint.config
    tokenizer = load_tokenizer(checkpoint)
    vocab_size = skeleton.model.get_input_embeddings().weight.shape[0]
    generation = read_generation(checkpoint, vocab_size)
    return ModelCard(
        model=model,
        config_digest=checkpoint.config_digest.hex(),
        weight_digests=tuple(known.hex() for known in weight_digests(checkpoint, skeleton)),
        architecture=type(skeleton.model).__name__,
        num_layers=skeleton.num_layers,
        hidden_size=config.hidden_size,
        vocab_size=vocab_size,
        max_positions=_max_positions(config),
        restart_at=restart_at(skeleton.model),
        dtype=checkpoint.dtype,
        eos_token_ids=generation.end_tokens,
        bos_token_id=generation.bos_token_id,
        layer_parameters=tuple(counts[layer] for layer in range(skeleton.num_layers)),
        embed_parameters=counts[-1],
        tail_parameters=counts[skeleton.num_layers],
        tied_parameters=sum(skeleton.meta[name].numel() for name in skeleton.tied()),
        layer_kv_elements=tuple(sum(entry.elements for entry in layer) for layer in caches),
        layer_windows=tuple(layer[0].window for layer in caches),
        num_heads=config.num_attention_heads,
        row_elements=_row_elements(skeleton),
        attended_elements=max(entry.attended for layer in caches for entry in layer),
        is_latent=any(entry.latent for layer in caches for entry in layer),
        tokenizer_json=tokenizer.backend_tokenizer.to_str() if tokenizer is not None and tokenizer.is_fast else None,
        cleans_up=tokenizer is not None and tokenizer.is_fast and _cleans_up(tokenizer),
        splits_special=tokenizer is not None and bool(tokenizer.split_special_tokens),
        token_bytes=token_bytes(tokenizer.backend_tokenizer) if tokenizer is not None and tokenizer.is_fast else 0,
        chat_templates=_chat_templates(tokenizer),
        special_tokens=dict(tokenizer.special_tokens_map) if tokenizer is not None else {},
        defaults=generation.defaults,
        logits_rules=generation.logits_rules,
        ignored=generation.ignored,
    )


def _row_elements(skeleton: Skeleton) -> int:
    """Of the activations that are alive at once for one row: what is added to, what a layer's widest product takes and gives
    (gate, up and their product), for each expert that the row goes to."""
    config = skeleton.base.config
    layers = (tensor for name, tensor in skeleton.meta.items() if 0 <= skeleton.home(name) < skeleton.num_layers)
    widest = max(max(tensor.shape[-2:]) for tensor in layers if tensor.dim() > 1)
    experts = getattr(config, "num_experts_per_tok", None) or 1
    return int(4 * config.hidden_size + 3 * widest * experts)


def _max_positions(config: PreTrainedConfig) -> int:
    """As many as the config has, and more by the factor of rotary embeddings that are scaled beyond them."""
    limit = int(getattr(config, "max_position_embeddings", None) or 2**31 - 1)
    rope = getattr(config, "rope_parameters", None) or {}
    scaled = limit
    for one in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if one.get("rope_type") in _STRETCHED:
            trained = int(one.get("original_max_position_embeddings") or limit)
            scaled = max(scaled, int(trained * float(one.get("factor") or 1)))
    return scaled


def _cleans_up(tokenizer: Any) -> bool:
    """Whether transformers' ``decode`` changes what the library decodes: by default not where the model is BPE."""
    is_bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    forced = tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
    return bool(tokenizer.clean_up_tokenization_spaces and (forced or not is_bpe))


def _chat_templates(tokenizer: Any) -> dict[str, str]:
    """By name, from wherever in the checkpoint transformers finds them."""
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        return dict(found)
    return {"default": found} if found else {}
