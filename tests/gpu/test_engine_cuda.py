"""The parity of tests/integration/test_parity.py on a CUDA device: same code, batched decode."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_kit import generate, load_chain, make_checkpoint, ragged_prompts, reference_tokens

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none")]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt_oss", "qwen3_moe"])
def test_tokens_equal_transformers_on_the_cpu(family: str, tmp_path: Path) -> None:
    prompts = ragged_prompts()
    expected = reference_tokens(make_checkpoint(family, tmp_path), prompts, 16)
    stages = load_chain(tmp_path, (1, 3), device="cuda")
    assert all(stage.batched_decode for stage in stages)
    assert generate(stages, prompts, 16, chunk=5) == expected
