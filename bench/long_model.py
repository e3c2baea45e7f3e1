"""A tiny random Llama of 32k positions whose tokens depend on what stands far back, and what transformers alone makes of prompts.

python -m bench.long_model DIRECTORY LENGTH ...       writes it there; one JSON line: tokens after a prompt of each length
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

from bench.arguments import Parser, whole
from bench.program import program

LAYERS, POSITIONS, VOCABULARY = 3, 32_768, 512
NEW = 8
SHARPNESS = 3.0
"""Of queries and keys, against their usual scale: attention that is spread over 32,000 random tokens sees none of them."""


def prompt(length: int) -> list[int]:
    """The same whenever it is asked for."""
    rng = random.Random(length)
    return [rng.randrange(VOCABULARY) for _ in range(length)]


def write(directory: Path | str) -> Any:
    """Save the model; returns it as transformers loads it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(SHARPNESS)
            layer.self_attn.k_proj.weight.mul_(SHARPNESS)
    model.save_pretrained(directory)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa").eval()


def reference(model: Any, tokens: list[int], new: int = NEW) -> list[int]:
    """The ``new`` greedy tokens after ``tokens``, by transformers alone."""
    import torch

    ids = torch.tensor([tokens])
    with torch.inference_mode():
        full = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0)
    found: list[int] = full[0, len(tokens) :].tolist()
    return found


@program("long_model")
def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("lengths", type=whole(1, POSITIONS - NEW), nargs="+")
    options = parser.parse_args()
    model = write(options.directory)
    print(json.dumps([reference(model, prompt(length)) for length in options.lengths]))


if __name__ == "__main__":
    sys.exit(main())
