"""A model cut into spans gives exactly the tokens that transformers gives: every family, every cut, fp32, greedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_kit import FAMILIES, LAYERS, generate, load_chain, make_checkpoint, ragged_prompts, reference_tokens

from bloombee.engine.paged import StepTables

NEW_TOKENS = 16
SPLITS = [((cut,), 1 << 30) for cut in range(1, LAYERS)] + [((1, 3), 5)]
"""(cuts, prompt tokens a pass): two stages at every boundary; three stages with prompts in chunks beside decodes."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_transformers_at_every_cut(family: str, tmp_path: Path) -> None:
    reference = make_checkpoint(family, tmp_path)
    prompts = ragged_prompts()
    expected = reference_tokens(reference, prompts, NEW_TOKENS)
    assert len({tuple(tokens) for tokens in expected}) == len(prompts), "the model ignores its prompt and proves nothing"
    for cuts, chunk in SPLITS:
        assert generate(load_chain(tmp_path, cuts), prompts, NEW_TOKENS, chunk=chunk) == expected, f"{family} cut at {cuts}"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_batched_decode_gives_the_same_tokens(family: str, tmp_path: Path) -> None:
    """The padded one-row path, which a GPU takes, run on the CPU."""
    expected = reference_tokens(make_checkpoint(family, tmp_path), ragged_prompts(), NEW_TOKENS)
    stages = load_chain(tmp_path, (2,))
    for stage in stages:
        stage.steps.batched = True
    assert generate(stages, ragged_prompts(), NEW_TOKENS, chunk=5) == expected


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text", "gpt_oss", "phi3", "qwen3_moe", "granite_swa"])
def test_paged_attention_gives_the_same_tokens(family: str, tmp_path: Path) -> None:
    """The kernels that a GPU runs, lane by lane on the CPU: windows, caps, sinks, grouped queries."""
    prompts = ragged_prompts(5)
    expected = reference_tokens(make_checkpoint(family, tmp_path), prompts, 4)
    stages = load_chain(tmp_path, (2,))
    for stage in stages:
        stage.steps.tables = StepTables(stage.kv)
    assert generate(stages, prompts, 4, chunk=5) == expected


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_comparison_can_fail(layer: int, tmp_path: Path) -> None:
    """With one layer's attention output zeroed the tokens differ, whichever layer it is."""
    expected = reference_tokens(make_checkpoint("llama", tmp_path), ragged_prompts(), NEW_TOKENS)
    stages = load_chain(tmp_path, (2,))
    spoilt = stages[layer // 2]._skeleton.base.layers[layer % 2].self_attn.o_proj
    with torch.no_grad():
        spoilt.weight.zero_()
    assert generate(stages, ragged_prompts(), NEW_TOKENS) != expected
