"""Memory beside weights and KV: bounded whatever the lengths, with the same results, and counted where a plan is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_kit import LAYERS, PAGE, VOCABULARY, generate, load_chain, make_checkpoint, ragged_prompts, reference_tokens
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bloombee.engine import attention, forward, steps
from bloombee.engine.attention import attend
from bloombee.engine.cache import LayerCache, SlotCache, Step
from bloombee.engine.describe import describe
from bloombee.engine.paged import TILE, part_bytes
from bloombee.engine.paged_items import SPLIT
from bloombee.errors import Infeasible
from bloombee.models.card import ModelCard
from bloombee.pipeline.work import Pages, Segment
from bloombee.plan import scratch
from bloombee.plan.memory import model_shape, stage_memory
from bloombee.plan.plan import StagePlan, check_memory
from bloombee.types import Dtype, PageGroup, Span


class Largest(TorchDispatchMode):  # type: ignore[misc]
    """Notes the largest tensor that anything makes meanwhile; views of older ones do not count."""

    num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            made = (leaf.nbytes for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))
            self.num_bytes = max(self.num_bytes, *made, 0)
        return out


@pytest.mark.parametrize(("softcap", "sinks"), [(2.0, False), (None, True), (None, False)])
def test_a_long_prompt_makes_no_larger_tensors_than_a_short_one(softcap: float | None, sinks: bool) -> None:
    """Heads x rows x keys would be 512 MB of scores, rows x keys 64 of mask in float32."""
    heads, rows, e, length = 8, 512, 4, 32768
    cache = SlotCache([LayerCache(0, (2, e), (2, e))], [PageGroup(0, length // 16)], 16, torch.float32, torch.device("cpu"))
    for held in cache.rows(0):
        held.zero_()
    segment = Segment(0, 0, length - rows, bytes(4 * rows), 0, (Pages(tuple(range(length // 16))),))
    step = Step(cache, [segment], batched=False)
    q, k = torch.randn(1, heads, rows, e), torch.randn(1, 2, rows, e)
    keys, values = step.update(k, k, 0)
    with Largest() as largest:
        attend(step, q, keys, values, softcap=softcap, s_aux=torch.zeros(heads) if sinks else None)
    assert largest.num_bytes <= 4 * max(scratch.SCORES + heads * rows, scratch.MASKED)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "llama", "mistral", "deepseek_v3"])
@pytest.mark.parametrize("chunk", [7, 1 << 30])
def test_attention_in_small_blocks_gives_the_tokens_of_transformers(
    family: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caps, sinks, neither, windows, latents: blocks of a row or two."""
    monkeypatch.setattr(attention, "SCORES", 4 * 20)
    monkeypatch.setattr(attention, "MASKED", 20)
    monkeypatch.setattr(attention, "FEW_ROWS", 0)
    reference, prompts = make_checkpoint(family, tmp_path), ragged_prompts()
    assert generate(load_chain(tmp_path, (2,)), prompts, 6, chunk=chunk) == reference_tokens(reference, prompts, 6)


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere2", "gpt_neox"])
def test_logits_of_many_rows_are_made_in_parts(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a family does with its logits (caps, scales) is done to each part."""
    monkeypatch.setattr(steps, "LOGITS", 3 * VOCABULARY + 1)
    made: list[int] = []
    by_parts = forward.SpanForward.logits_by_parts

    def counted(*args: Any) -> Any:
        made.extend(map(len, args[2]))
        return by_parts(*args)

    monkeypatch.setattr(forward.SpanForward, "logits_by_parts", counted)
    reference, prompts = make_checkpoint(family, tmp_path), ragged_prompts()
    assert generate(load_chain(tmp_path, (2,)), prompts, 5) == reference_tokens(reference, prompts, 5)
    assert set(made) == {3, 2}


def test_rows_of_many_keys_are_copied_together_as_far_as_bounds_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU all one-row segments are: eight sequences, one of them long, are not eight long ones."""
    cache = SlotCache([LayerCache(0, (2, 4), (2, 4))], [PageGroup(0, 64)], PAGE, torch.float32, torch.device("cpu"))
    cache.most_copied = 40
    lengths = [33, 18, 17, 9, 8, 8, 2, 1]
    pages = [tuple(range(8 * i, 8 * i + -(-length // PAGE))) for i, length in enumerate(lengths)]
    segments = [Segment(i, 0, n - 1, bytes(4), 0, (Pages(pages[i] + ((63,) if n > 32 else ())),)) for i, n in enumerate(lengths)]
    groups, alone = Step(cache, segments, batched=True).grouped(None, 10**6)
    assert [tuple(group.slots.shape) for group in groups] == [(2, 18), (4, 9)]
    assert sorted(alone) == [0, 7]


def scratch_bytes(card: ModelCard, span: Span, *, rows: int, tokens: int) -> int:
    model = model_shape(card, Dtype.FLOAT32, rows=rows, tokens=tokens)
    return stage_memory(model, span.start, span.stop, (0,) * len(model.layer_kinds)).scratch


def card(directory: Path, family: str, **sizes: object) -> ModelCard:
    make_checkpoint(family, directory, sizes=sizes)
    return describe(str(directory))


def test_the_scratch_of_a_long_prompt_is_bounded_and_counted(tmp_path: Path) -> None:
    """The plan of a Gemma 2 of 8 heads said 42 MB for a prompt that took a gigabyte."""
    long = card(tmp_path, "gemma2", num_attention_heads=8, max_position_embeddings=40000, num_hidden_layers=2)
    assert (long.num_heads, long.is_latent) == (8, False)
    short, full = (scratch_bytes(long, Span(0, 2), rows=512, tokens=tokens) for tokens in (100, 34000))
    assert short < full <= 160 << 20, "scores alone would be 8 x 512 x 34,000 in float32, three times over"


def test_what_attention_computes_from_latents_is_counted(tmp_path: Path) -> None:
    latent = card(tmp_path, "deepseek_v3")
    assert latent.is_latent
    assert latent.attended_elements > max(latent.layer_kv_elements)
    one, two = (scratch_bytes(latent, Span(0, 1), rows=1, tokens=tokens) for tokens in (10**6, 2 * 10**6))
    assert two - one >= 10**6 * latent.attended_elements * 4


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 32), (32, 8), (8, 1)])
def test_what_a_gpu_keeps_of_parts_of_keys_is_counted(heads: int, kv_heads: int, dim: int) -> None:
    layer = LayerCache(0, (kv_heads, dim), (kv_heads, dim), heads=heads)
    rows_of_a_tile = max(1, TILE // (heads // kv_heads))
    assert part_bytes(layer, rows_of_a_tile) <= SPLIT * layer.elements // scratch.SPLIT_SHARE


def test_only_the_last_stage_counts_logits(tmp_path: Path) -> None:
    wide = card(tmp_path, "llama", vocab_size=200_000)
    inner, last = (scratch_bytes(wide, span, rows=64, tokens=64) for span in (Span(1, 2), Span(2, LAYERS)))
    assert last - inner > 20 * 200_000 * 4
    many = scratch_bytes(wide, Span(2, LAYERS), rows=4096, tokens=64)
    assert many <= 130 << 20


def test_a_worker_without_room_for_the_scratch_is_too_small() -> None:
    stage = StagePlan(0, 1, "w", Span(0, 1), 1000, 1000, (), scratch_bytes=501)
    check_memory(dataclasses.replace(stage, scratch_bytes=500), 2500)
    with pytest.raises(Infeasible, match=r"scratch .*short by") as caught:
        check_memory(stage, 2500)
    assert caught.value.fields["short_bytes"] == 1


def test_a_stand_in_computes_nothing_and_needs_none() -> None:
    assert scratch_bytes(describe("standin:64x2"), Span(0, 2), rows=512, tokens=10**6) == 0
