"""A shape's random weights as a plain Llama checkpoint that old and new readers understand."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from bench.exact import load
from bloombee.types import Dtype

FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "max_position_embeddings", "rms_norm_eps", "hidden_act", "tie_word_embeddings", "initializer_range",
)  # fmt: skip
ROPE_THETA = 10000.0


def write_checkpoint(model: str, dtype: Dtype, folder: Path) -> None:
    """``model`` (``llama:HIDDENxLAYERS``) as config.json and model.safetensors in ``folder``."""
    loaded = load(model, dtype)
    config = loaded.config
    facts = {name: getattr(config, name) for name in FIELDS}
    facts |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": ROPE_THETA, "torch_dtype": str(dtype)}
    assert config.rope_parameters["rope_theta"] == ROPE_THETA
    (folder / "config.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    save_file(
        {name: tensor.contiguous() for name, tensor in loaded.state_dict().items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
