"""Recorded steps on a GPU: tokens of transformers on the CPU, in float32, whatever sequences do between replays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_kit import FAMILIES, generate, load_chain, make_checkpoint, ragged_prompts, reference_tokens
from kernel_kit import load_windowed, random_steps

from bloombee.engine import fused
from bloombee.types import Dtype

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(fused.cuda_kernels() is None, reason="needs a CUDA device and the extension built for it"),
]
RECORDED = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt_neox", "granite", "cohere2"]


@pytest.mark.parametrize("family", RECORDED)
def test_tokens_of_replayed_steps_are_transformers(family: str, tmp_path: Path) -> None:
    prompts = ragged_prompts()
    expected = reference_tokens(make_checkpoint(family, tmp_path), prompts, 16)
    stages = load_chain(tmp_path, (1, 3), device="cuda")
    for stage in stages:
        for part in stage.warm_up():
            part()
    assert generate(stages, prompts, 16, chunk=5) == expected
    assert [stage.steps.graphs.failure for stage in stages] == [""] * 3


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - set(RECORDED)))
def test_all_other_families_give_the_same_tokens_recorded_or_not(family: str, tmp_path: Path) -> None:
    prompts = ragged_prompts(4)
    expected = reference_tokens(make_checkpoint(family, tmp_path), prompts, 6)
    stages = load_chain(tmp_path, (2,), device="cuda")
    assert generate(stages, prompts, 6, chunk=5) == expected
    for stage in stages:
        print(family, stage.span, "not recorded" if stage.steps.graphs is None else stage.steps.graphs.failure or "recorded")


def test_sequences_come_and_go_fork_and_are_rolled_back_between_replays(tmp_path: Path) -> None:
    make_checkpoint("gemma3_text", tmp_path)
    replayed, plain = (load_windowed(tmp_path, "cuda") for _ in range(2))
    plain.steps.graphs = None
    for work in random_steps():
        assert replayed.run(work, None) == plain.run(work, None)
    assert replayed.steps.graphs is not None
    assert not replayed.steps.graphs.failure


def test_a_step_is_one_launch(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, sizes={"head_dim": 64, "hidden_size": 256})
    (stage,) = load_chain(tmp_path, (), device="cuda", dtype=Dtype.BFLOAT16)
    steps = list(random_steps(12, (0,)))
    for work in steps:
        stage.run(work, None)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]) as seen:
        stage.run(steps[-1], None)
    counts = {event.key: event.count for event in seen.key_averages()}
    assert sum(count for key, count in counts.items() if "GraphLaunch" in key) == 1
    assert sum(count for key, count in counts.items() if key.startswith("cudaLaunchKernel")) <= 2


def test_steps_are_launched_while_others_are_under_way(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    first, last = load_chain(tmp_path, (2,), device="cuda")
    steps = list(random_steps(12, (0,)))
    pending = [first.launch(work, None) for work in steps]
    rows = [one.result() for one in pending]
    again = [first.run(work, None) for work in steps]
    for a, b in zip(rows, again, strict=True):
        assert a.device.type == "cpu"
        assert torch.equal(a, b.cpu())
    picks = [last.launch(work, one) for work, one in zip(steps, rows, strict=True)]
    expected = [last.run(work, one) for work, one in zip(steps, rows, strict=True)]
    assert [one.result() for one in picks] == expected
