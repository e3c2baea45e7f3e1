"""generation_config.json: every field is decided, a wrong value is named, and what is read reaches the last stage."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, GenerationConfig

from bloombee.engine.checkpoint import Checkpoint
from bloombee.engine.generation import FIELDS, GenerationFile, Use, read_generation
from bloombee.errors import ConfigError, ModelUnsupported
from bloombee.models.card import ModelCard
from bloombee.models.rules import Defaults, LogitsRules, Watermark
from bloombee.pipeline.swarm import rules_message
from bloombee.sim.cluster import sim_card
from bloombee.wire import messages as m
from bloombee.wire.schema import decode_message, encode_message

DOCS = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"
VOCABULARY = 100


def read(directory: Path, values: dict[str, Any] | None, config: dict[str, Any] | None = None) -> GenerationFile:
    if values is not None:
        (directory / "generation_config.json").write_text(json.dumps(values))
    raw = {"model_type": "llama", **(config or {})}
    return read_generation(Checkpoint("it", AutoConfig.for_model("llama"), raw, directory), VOCABULARY)


def test_every_field_that_transformers_knows_is_decided() -> None:
    assert set(FIELDS) == set(vars(GenerationConfig()))


def test_the_documented_table_is_the_one_that_is_used() -> None:
    rows = re.findall(r"^\| (`.*?) \| ([a-z ]+) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: use for names, use in rows for name in re.findall(r"`(\w+)`", names)} == {k: str(v) for k, v in FIELDS.items()}


@pytest.mark.parametrize(
    "values",
    [{}, {"do_sample": True, "temperature": 0.6, "top_k": 20, "pad_token_id": 0, "eos_token_id": [1, 2], "num_beams": 1}],
)
def test_what_asks_nothing_of_logits_leaves_them_alone(values: dict[str, Any], tmp_path: Path) -> None:
    found = read(tmp_path, values)
    assert found.logits_rules is None
    assert found.ignored == ()


def test_the_config_counts_where_there_is_no_generation_file(tmp_path: Path) -> None:
    old = {"eos_token_id": [7, 8], "bos_token_id": 5, "repetition_penalty": 1.5, "suppress_tokens": [3]}
    found = read(tmp_path, None, old)
    assert (found.end_tokens, found.bos_token_id, found.defaults) == ((7, 8), 5, Defaults(repetition_penalty=1.5))
    assert found.logits_rules == LogitsRules(suppress_tokens=(3,))
    with_file = read(tmp_path, {"bos_token_id": 6}, old)
    assert with_file == GenerationFile((), 6, Defaults(), None, ())


WRONG: list[tuple[str, Any]] = [
    ("eos_token_id", "2"), ("eos_token_id", [True]), ("eos_token_id", list(range(300))), ("max_length", 0), ("max_length", 1.5),
    ("top_k", "all"), ("top_p", 1.5), ("min_p", -1), ("repetition_penalty", 0), ("repetition_penalty", "high"),
    ("stop_strings", [""]), ("stop_strings", 3), ("max_time", "1s"),

    ("bad_words_ids", [3]), ("bad_words_ids", [[]]), ("bad_words_ids", [[VOCABULARY]]),
    ("sequence_bias", [[[1], 2]]), ("sequence_bias", {"1": 2.0}), ("sequence_bias", [[[1], float("nan")]]),
    ("no_repeat_ngram_size", -1), ("min_length", -2), ("min_new_tokens", "few"), ("forced_bos_token_id", VOCABULARY),
    ("forced_bos_token_id", [1, 2]), ("forced_eos_token_id", [VOCABULARY]), ("exponential_decay_length_penalty", [1]),
    ("exponential_decay_length_penalty", [1.5, 2.0]), ("suppress_tokens", ["a"]), ("suppress_tokens", list(range(70_000))),
    ("top_h", 1.5), ("typical_p", 0), ("epsilon_cutoff", "none"), ("eta_cutoff", []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_of_another_kind_is_named_with_its_file(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"generation_config\.json: {name} = .*: must be") as caught:
        read(tmp_path, {name: value})
    assert caught.value.fields["field"] == name


@pytest.mark.parametrize("values", [{"max_new_tokens": 0}, {"watermarking_config": {"seeding_scheme": "no"}}])
def test_what_transformers_refuses_is_refused_with_its_words(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"generation_config\.json: transformers refuses it: .*(max_new_tokens|seeding_scheme)"):
        read(tmp_path, values)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        read(tmp_path, None)


@pytest.mark.parametrize(("name", "value"), [("guidance_scale", 1.5), ("token_healing", True)])
def test_what_would_change_the_tokens_and_cannot_be_done_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match=name) as caught:
        read(tmp_path, {name: value})
    assert caught.value.fields["unsupported"] == name


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_beams", 4), ("prompt_lookup_num_tokens", 3), ("penalty_alpha", 0.6), ("dola_layers", "low"), ("use_mtp", True)],
)
def test_what_a_ring_cannot_do_is_ignored_by_name(name: str, value: Any, tmp_path: Path) -> None:
    found = read(tmp_path, {name: value})
    assert found.ignored == (f"generation_config.json: {name} = {value!r} is ignored",)
    assert FIELDS[name] is Use.IGNORED


RULES = LogitsRules(
    sequence_bias=(((1, 2), -1e18), ((3,), 2.5)), bad_words_ids=((4,), (5, 6)), no_repeat_ngram_size=3, min_new_tokens=9,
    forced_bos_token_id=0, forced_eos_token_id=(7,), remove_invalid_values=True, exponential_decay_length_penalty=(4, 1.5),
    suppress_tokens=(8, 200_000), begin_suppress_tokens=(9,), top_h=0.5, typical_p=0.9, epsilon_cutoff=0.1, eta_cutoff=0.2,
    watermark=Watermark(0.25, 2.0, 15485863, False, 1),
)  # fmt: skip


def test_the_rules_of_a_file_reach_the_last_stage(tmp_path: Path) -> None:
    """Through the card, which crosses processes as JSON, and the message that makes a worker a stage."""
    values = {
        "sequence_bias": [[[1, 2], float("-inf")], [[3], 2.5]], "bad_words_ids": [[4], [5, 6]], "no_repeat_ngram_size": 3,
        "min_new_tokens": 9, "min_length": 400, "forced_bos_token_id": 0, "forced_eos_token_id": 7, "remove_invalid_values": True,
        "exponential_decay_length_penalty": [4, 1.5], "suppress_tokens": [-1, 8, 200_000], "begin_suppress_tokens": [9],
        "top_h": 0.5, "typical_p": 0.9, "epsilon_cutoff": 0.1, "eta_cutoff": 0.2, "watermarking_config": {},
        "max_new_tokens": 5, "stop_strings": "end", "max_time": 3, "top_k": -1, "top_p": 0.5,
    }  # fmt: skip
    found = read(tmp_path, values)
    assert found.logits_rules == RULES
    assert found.defaults == Defaults(max_new_tokens=5, top_p=0.5, stop=("end",), max_time_s=3.0)
    card = dataclasses.replace(sim_card((0,)), defaults=found.defaults, logits_rules=RULES, ignored=("a",))
    assert ModelCard.from_json(json.loads(json.dumps(card.to_json()))) == card
    message = rules_message(RULES)
    load = m.Load(1, 0, 0, 1, 1, "m", bytes(16), (), "float32", (m.Group(0, 10),), 16, 2, message, (), ())
    assert decode_message(encode_message(load)) == load
    assert message is not None
    assert all(getattr(message, name) == getattr(RULES, name) for name in message.__struct_fields__ if name != "watermark")


def test_as_many_tokens_as_are_allowed_fit_a_message() -> None:
    bias = tuple(((token,), -1.5) for token in range(200_000, 200_000 + m.MAX_RULE_TOKENS))
    message = rules_message(LogitsRules(sequence_bias=bias))
    load = m.Load(1, 0, 0, 1, 1, "m", bytes(16), (), "float32", (m.Group(0, 10),), 16, 2, message, (), ())
    assert len(encode_message(load)) < m.MAX_HEADER_BYTES * 0.9


def test_lists_that_fill_a_message_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="suppress_tokens"):
        read(tmp_path, {"suppress_tokens": list(range(60_000)), "bad_words_ids": [[n % 90] for n in range(10_000)]})
