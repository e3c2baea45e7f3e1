"""The parity of tests/integration/test_parity.py on a CUDA device: our own attention, and torch's where that is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_kit import generate, load_chain, make_checkpoint, ragged_prompts, reference_tokens

from bloombee.engine.device_clock import clock_of
from bloombee.types import Dtype

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none")]


FAMILIES = ["llama", "mistral", "gemma2", "gemma3_text", "gpt_oss", "qwen3_moe", "phi3", "olmo3"]


@pytest.mark.parametrize("family", [*FAMILIES, "deepseek_v3"])
def test_tokens_equal_transformers_on_the_cpu(family: str, tmp_path: Path) -> None:
    prompts = ragged_prompts()
    expected = reference_tokens(make_checkpoint(family, tmp_path), prompts, 16)
    stages = load_chain(tmp_path, (1, 3), device="cuda")
    assert all((stage.steps.tables is not None) == (family in FAMILIES) for stage in stages)
    for chunk in (5, 1 << 30):
        assert generate(stages, prompts, 16, chunk=chunk) == expected


def test_torchs_attention_in_bfloat16_never_calls_cudnns(tmp_path: Path) -> None:
    """It plans anew for every number of keys; which kernels ran is in the profile of some steps of growing length."""
    make_checkpoint("llama", tmp_path, sizes={"head_dim": 64, "hidden_size": 256, "max_position_embeddings": 256})
    stages = load_chain(tmp_path, (), device="cuda", dtype=Dtype.BFLOAT16)
    stages[0].steps.tables = None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        generate(stages, ragged_prompts(), 8, chunk=5)
    names = {event.key for event in seen.key_averages()}
    assert any("scaled_dot_product" in name for name in names)
    assert not [name for name in names if "cudnn" in name]


def test_a_clock_of_events_knows_more_than_the_launches() -> None:
    """A product that takes the device long is launched in no time, once its kernels are loaded."""
    clock, spent = clock_of(torch.device("cuda")), []
    x = torch.randn(4096, 4096, device="cuda")
    (x @ x).clamp(-1, 1)
    torch.cuda.synchronize()
    mark = clock.begin()
    for _ in range(20):
        x = (x @ x).clamp(-1, 1)
    clock.end(mark, spent.append)
    assert not spent, "reported before anyone asked whether the device is done"
    torch.cuda.synchronize()
    clock.settle()
    assert len(spent) == 1
    assert spent[0] > 20 * 2 * 4096**3 / 2e14 * 1e9, "no GPU has 200 teraflops in float32"
