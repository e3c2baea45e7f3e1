"""A checkpoint's rules on the last stage: transformers' own processors, in the order in which ``generate`` has them."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedModel

from bloombee.engine.processors import Processors
from bloombee.engine.sampler import SamplerRow, sample
from bloombee.models.rules import LogitsRules, Watermark
from bloombee.pipeline.swarm import rules_message
from bloombee.wire.messages import Sampling

VOCABULARY, PROMPT, NEW, ENDS = 64, 5, 12, (3, 9)
PLAIN = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 11, -1)

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "biases": ({"sequence_bias": [[[1, 2], 5.0], [[4], -3.0]]}, {"sequence_bias": (((1, 2), 5.0), ((4,), -3.0))}),
    "bad words": ({"bad_words_ids": [[1], [2, 3], [9]]}, {"bad_words_ids": ((1,), (2, 3), (9,))}),
    "n-grams": ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
    "lengths": ({"min_new_tokens": 4}, {"min_new_tokens": 4}),
    "length": ({"min_length": 9}, {"min_length": 9}),
    "forced": ({"forced_eos_token_id": [9, 3]}, {"forced_eos_token_id": (9, 3)}),
    "decay": ({"exponential_decay_length_penalty": (2, 1.5)}, {"exponential_decay_length_penalty": (2, 1.5)}),
    "suppressed": (
        {"suppress_tokens": [1, 5], "begin_suppress_tokens": [6]}, {"suppress_tokens": (1, 5), "begin_suppress_tokens": (6,)},
    ),
    "top h": ({"top_h": 0.4}, {"top_h": 0.4}),
    "typical": ({"typical_p": 0.6}, {"typical_p": 0.6}),
    "cutoffs": ({"epsilon_cutoff": 0.02, "eta_cutoff": 0.05}, {"epsilon_cutoff": 0.02, "eta_cutoff": 0.05}),
    "watermark": (
        {"watermarking_config": {"bias": 2.5}}, {"watermark": Watermark(0.25, 2.5, 15485863, False, 1)},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    return AutoModelForCausalLM.from_config(config)


def as_generate_has_it(model: PreTrainedModel, row: Any, history: Any, **fields: Any) -> Any:
    """[v] after everything that ``generate`` does to logits."""
    config = GenerationConfig(eos_token_id=list(ENDS), max_length=PROMPT + NEW, **fields)
    config.update(**config._get_default_generation_params(), defaults_only=True)
    model._prepare_special_tokens(config, device="cpu")
    processors = model._get_logits_processor(config, input_ids_seq_length=PROMPT, device="cpu")
    return processors(torch.from_numpy(history)[None], torch.from_numpy(row.copy())[None])[0].numpy()


def ours(history: Any, sampling: Sampling) -> SamplerRow:
    return SamplerRow(sampling, len(history), history.astype("<u4").tobytes(), PROMPT, NEW, ENDS)


def processors_of(rules: LogitsRules) -> Processors:
    found = rules_message(rules)
    assert found is not None
    return Processors(found, VOCABULARY)


@pytest.mark.parametrize("is_sampling", [False, True], ids=["greedy", "sampling"])
@pytest.mark.parametrize("name", CASES)
def test_a_pick_is_from_the_logits_that_generate_would_pick_from(name: str, is_sampling: bool, model: PreTrainedModel) -> None:
    """For a request that samples: the same tokens are left, with the same probabilities, and the request's own noise chooses."""
    fields, rule = CASES[name]
    processors = processors_of(LogitsRules(**rule))
    warm = {"temperature": 0.8, "top_k": 12, "top_p": 0.95, "min_p": 0.01} if is_sampling else {}
    sampling = msgspec.structs.replace(PLAIN, repetition_penalty=1.2, **warm)
    rng = np.random.default_rng(5)
    for length in range(PROMPT, PROMPT + NEW):
        row = rng.normal(0, 2, VOCABULARY).astype(np.float32)
        history = rng.integers(0, 8, length)
        expected = as_generate_has_it(model, row, history, **fields, **warm, do_sample=is_sampling, repetition_penalty=1.2)
        request = ours(history, sampling)
        before = row.copy()
        (got,) = sample(row[None], [request], processors)
        assert (row == before).all()
        if not is_sampling:
            assert got.token == int(expected.argmax())
            continue
        left = dataclasses.replace(request, sampling=msgspec.structs.replace(PLAIN, temperature=1.0))
        (wanted,) = sample(expected[None], [left])
        assert got.token == wanted.token
        assert np.isfinite(expected[got.token])


def test_the_first_token_of_one_that_follows_a_single_one_is_forced() -> None:
    processors = processors_of(LogitsRules(forced_bos_token_id=6, begin_suppress_tokens=(6, 7)))
    row = np.zeros((2, VOCABULARY), np.float32)
    row[:, 7] = 5
    requests = [SamplerRow(PLAIN, n, np.zeros(n, "<u4").tobytes(), 1, NEW, ENDS) for n in (1, 2)]
    assert [got.token for got in sample(row, requests, processors)] == [6, 0]


def test_numbers_that_are_none_are_repaired_where_the_checkpoint_says_so() -> None:
    row = np.full((1, VOCABULARY), -3, np.float32)
    row[0, 4], row[0, 5] = np.nan, -np.inf
    request = SamplerRow(PLAIN, 1, np.zeros(1, "<u4").tobytes(), 1, NEW, ENDS)
    (got,) = sample(row, [request], processors_of(LogitsRules(remove_invalid_values=True)))
    assert (got.token, got.is_finite) == (4, True)
    broken = np.full((1, VOCABULARY), np.nan, np.float32)
    assert sample(broken, [request], processors_of(LogitsRules(remove_invalid_values=True)))[0].is_finite
    assert not sample(broken, [request], processors_of(LogitsRules(suppress_tokens=(1,))))[0].is_finite
    assert not sample(broken, [request])[0].is_finite


def test_logits_are_not_written_and_log_probabilities_are_the_models_own() -> None:
    rng = np.random.default_rng(1)
    row = rng.normal(size=(1, VOCABULARY)).astype(np.float32)
    before = row.copy()
    request = SamplerRow(Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, 2), 3, np.zeros(3, "<u4").tobytes(), 1, NEW, ENDS)
    best = int(row[0].argmax())
    (plain,) = sample(row, [request])
    (got,) = sample(row, [request], processors_of(LogitsRules(suppress_tokens=(best,), sequence_bias=(((best,), 3.0),))))
    assert (row == before).all()
    assert got.token != best
    assert got.top == plain.top
