"""What the parity tests share: tiny random checkpoints, a page allocator, and stages chained in one process."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from bloombee.engine.checkpoint import resolve
from bloombee.engine.model import SpanModel
from bloombee.pipeline.work import Outcome, Pages, Segment, Work
from bloombee.types import Dtype, PageGroup, Phase, Span
from bloombee.wire.messages import Load, Pick, Sampling

GREEDY = Sampling(
    temperature=0, top_k=0, top_p=1, min_p=0, repetition_penalty=1, presence_penalty=0, frequency_penalty=0, seed=0, logprobs=-1
)
VOCABULARY = 128
LAYERS = 4
PAGE = 4

_SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.2,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_ALTERNATE = ["sliding_attention", "full_attention"] * (LAYERS // 2)

FAMILIES: dict[str, dict[str, object]] = {
    "llama": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
    "mistral": {"sliding_window": 6},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    "qwen3": {},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0},
    "gemma3_text": {"sliding_window": 6, "query_pre_attn_scalar": 8, "layer_types": _ALTERNATE},
    "phi3": {"sliding_window": 9},
    "olmo2": {},
    "gpt_neox": {"num_key_value_heads": 4, "rotary_pct": 0.5},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, **_EXPERTS, "mlp_only_layers": [1]},
    "granite": {"embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.7, "logits_scaling": 2.0},
    "starcoder2": {"sliding_window": 7},
    "gpt_oss": {"num_local_experts": 4, **_EXPERTS, "sliding_window": 6, "layer_types": _ALTERNATE},
    "olmo": {"clip_qkv": 2.0},  # its final norm has no weights
    "olmo3": {"sliding_window": 6, "layer_types": _ALTERNATE},
    "granite_swa": {"sliding_window": 6, "layer_types": _ALTERNATE},  # lists of rotary bases by layer
    "sarvam_moe": {"num_experts": 4, **_EXPERTS, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},  # fused qkv on disk
    "deepseek_v3": {  # caches latents, not keys
        "num_key_value_heads": 4, "head_dim": 8, "n_routed_experts": 4, **_EXPERTS, "n_group": 2, "topk_group": 1,
        "first_k_dense_replace": 1, "q_lora_rank": 16,
        "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
    },
    "cohere2": {"sliding_window": 6, "layer_types": _ALTERNATE, "logit_scale": 0.25},
}  # fmt: skip


def make_checkpoint(
    family: str, directory: Path, *, sizes: Mapping[str, object] | None = None, **save: object
) -> PreTrainedModel:
    """Save a tiny random model of ``family``; returns it, with transformers' plain attention, as the reference.

    Args:
        sizes: entries of the config that are to be others than the family's here.
    """
    torch.manual_seed(20)
    config = AutoConfig.for_model(family, **{**_SMALL, **FAMILIES[family], **(sizes or {})})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms, biases, sinks: as initialised they are all ones or zeros, and prove nothing
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory, **save)
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    loaded.generation_config.eos_token_id = None
    return loaded


def ragged_prompts(count: int = 8, seed: int = 3) -> list[list[int]]:
    """Prompts of clearly different lengths, the shortest a single token."""
    rng = random.Random(seed)
    return [[rng.randrange(VOCABULARY) for _ in range(length)] for length in (1, 3, 5, 8, 11, 14, 19, 23)[:count]]


def reference_tokens(model: PreTrainedModel, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
    """What ``generate`` adds to each prompt on its own."""
    out = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        full = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
        )
        out.append(full[0, len(prompt) :].tolist())
    return out


def load_chain(
    directory: Path | str,
    cuts: Sequence[int],
    *,
    num_layers: int = LAYERS,
    dtype: Dtype = Dtype.FLOAT32,
    device: str = "cpu",
) -> list[SpanModel]:
    """Stages of the spans between ``cuts``."""
    checkpoint = resolve(str(directory))
    edges = [0, *cuts, num_layers]
    return [
        SpanModel.load(
            checkpoint, Span(a, b), num_layers=num_layers, dtype=dtype, device=device, groups=[PageGroup(0, 128)], page_size=PAGE
        )
        for a, b in itertools.pairwise(edges)
    ]


class ModelDevice:
    """A stage's model as the device of a simulated cluster."""

    def __init__(self, directory: Path | str, load: Load) -> None:
        self.model = SpanModel.load(
            resolve(str(directory)),
            Span(load.start, load.stop),
            dtype=Dtype.FLOAT32,
            groups=[PageGroup(group.window, group.num_pages) for group in load.groups],
            page_size=load.page_size,
            rules=load.rules,
        )

    def run(self, work: Work) -> Outcome:
        if not work.segments:
            return Outcome(work.number)
        hidden = None
        if isinstance(work.hidden, torch.Tensor):
            hidden = torch.cat([work.hidden[start:stop] for start, stop in work.hidden_rows])
        result = self.model.run(work, hidden)
        if isinstance(result, list):
            return Outcome(work.number, picks=tuple(result))
        return Outcome(work.number, hidden=result)


def pages_of(sequence: int, length: int) -> Pages:
    """The pages of a sequence, 16 each. Even sequences have theirs in order, odd ones shuffled: adjacent and scattered slots."""
    own = list(range(16 * sequence, 16 * sequence + 16))
    if sequence % 2:
        random.Random(sequence).shuffle(own)
    return Pages(tuple(own[: -(-length // PAGE)]))


def generate(
    stages: Sequence[SpanModel], prompts: Sequence[list[int]], new_tokens: int, *, chunk: int = 1 << 30
) -> list[list[int]]:
    """Greedy tokens of all prompts, packed: each pass takes up to ``chunk`` prompt tokens, or the newest token, of each.

    With a small ``chunk`` short prompts decode while long ones still prefill in the same batch.
    """
    tokens = [list(prompt) for prompt in prompts]
    done = [0] * len(prompts)
    number = 0
    while any(len(t) < len(p) + new_tokens for t, p in zip(tokens, prompts, strict=True)):
        segments = []
        for i, (have, prompt) in enumerate(zip(tokens, prompts, strict=True)):
            if len(have) == len(prompt) + new_tokens:
                continue
            stop = min(len(have), done[i] + chunk)
            rows = np.array(have[done[i] : stop], dtype="<u4").tobytes()
            segments.append(Segment(i, 0, done[i], rows, int(stop == len(have)), (pages_of(i, stop),), GREEDY, len(prompt)))
            done[i] = stop
        work = Work(pipeline=0, epoch=0, number=number, microbatch=number, phase=Phase.DECODE, segments=tuple(segments))
        for pick in run_chain(stages, work):
            assert pick.position == len(tokens[pick.sequence])
            tokens[pick.sequence].append(pick.token)
        number += 1
    return [have[len(prompt) :] for have, prompt in zip(tokens, prompts, strict=True)]


def run_chain(stages: Sequence[SpanModel], work: Work) -> list[Pick]:
    hidden: torch.Tensor | None = None
    for stage in stages[:-1]:
        out = stage.run(work, hidden)
        assert isinstance(out, torch.Tensor)
        hidden = out
    picks = stages[-1].run(work, hidden)
    assert isinstance(picks, list)
    return picks
