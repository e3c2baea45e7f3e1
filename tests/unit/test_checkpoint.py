"""Finding checkpoints, and refusing by name what cannot be served."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from engine_kit import make_checkpoint
from safetensors.torch import save_file
from transformers import AutoConfig

from bloombee.engine.checkpoint import Checkpoint, resolve
from bloombee.engine.describe import describe
from bloombee.engine.hub import Repo
from bloombee.errors import ConfigError, ModelUnsupported
from bloombee.models.card import ModelCard
from bloombee.roles.chat import ChatTemplate
from bloombee.types import Dtype, Span


def bare(directory: Path, **config: object) -> str:
    """A directory with a config and a file of weights that holds nothing of use."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, directory / "model.safetensors")
    return str(directory)


def default(directory: Path, family: str, **changes: object) -> str:
    return bare(directory, **{**AutoConfig.for_model(family).to_dict(), **changes})


@pytest.mark.parametrize("name", ["no/such/model/here", "./nothing", "two words", "llama:12x", "demo:other"])
def test_unknown_names_say_what_was_looked_for(name: str) -> None:
    with pytest.raises(ConfigError, match="no directory, no hub id") as caught:
        resolve(name)
    assert name in caught.value.message
    assert not isinstance(caught.value, ModelUnsupported)


def test_directories_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match=r"neither model\.safetensors\.index\.json nor model\.safetensors"):
        resolve(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelUnsupported, match="only safetensors"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("family", "changes", "unsupported"),
    [
        ("gpt2", {}, "base_model_pp_plan"),
        ("qwen3_next", {}, "attention_interface"),
        ("minimax", {}, "layer_types"),
        ("gemma4_text", {}, "base_model_pp_plan"),
        ("t5", {}, "causal_lm"),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
        ("llama", {"auto_map": {"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}}, "trust_remote_code"),
        ("llama", {"dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "is_causal"),
    ],
)
def test_what_cannot_be_served_is_named(tmp_path: Path, family: str, changes: dict[str, object], unsupported: str) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        describe(default(tmp_path, family, **changes))
    assert caught.value.fields["unsupported"] == unsupported


@pytest.mark.parametrize("count", [-1, 0, 10**9])
def test_a_number_of_layers_that_no_model_has_is_named_at_once(tmp_path: Path, count: int) -> None:
    with pytest.raises(ConfigError, match=f"num_hidden_layers = {count}: must be from 1 to 4096"):
        describe(default(tmp_path, "llama", num_hidden_layers=count))


@pytest.mark.parametrize("changes", [{"num_attention_heads": 0}, {"hidden_size": 2**62}, {"head_dim": -1}])
def test_values_that_no_model_can_have_are_a_config_error(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"transformers (refuses|cannot build)"):
        describe(default(tmp_path, "llama", **{"num_hidden_layers": 1, **changes}))


def test_a_config_of_nested_brackets_is_named(tmp_path: Path) -> None:
    bare(tmp_path)
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(ConfigError, match=r"cannot read .*config\.json"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("text", ["[" * 200_000, "{}", "", "[]"])
def test_a_broken_tokenizer_is_named_with_its_model(tmp_path: Path, text: str) -> None:
    model = default(tmp_path, "llama", num_hidden_layers=1, hidden_size=64, intermediate_size=64)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ConfigError, match=r"its tokenizer cannot be loaded: ."):
        describe(model)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match="nosuchthing"):
        resolve(bare(tmp_path, model_type="nosuchthing"))
    with pytest.raises(ModelUnsupported, match="trust_remote_code"):
        resolve(bare(tmp_path, model_type="nosuchthing", auto_map={"AutoConfig": "x.Y"}))


def test_code_in_the_checkpoint_does_not_matter_where_transformers_has_the_class(tmp_path: Path) -> None:
    name = default(tmp_path, "llama", auto_map={"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"})
    assert resolve(name).config.model_type == "llama"


def test_the_digest_tells_models_apart_and_copies_alike(tmp_path: Path) -> None:
    first, copy, other = (tmp_path / name for name in ("first", "copy", "other"))
    make_checkpoint("llama", first, max_shard_size="20KB")
    make_checkpoint("llama", copy, max_shard_size="20KB")
    make_checkpoint("qwen3", other, max_shard_size="20KB")
    digests = [resolve(str(path)).config_digest for path in (first, copy, other)]
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 16
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert resolve(str(copy)).config_digest != digests[0]


def test_an_index_cannot_point_outside_its_directory(tmp_path: Path) -> None:
    default(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(ConfigError, match="weight_map"):
        _ = resolve(str(tmp_path)).files


def test_the_demo_as_a_card() -> None:
    card = describe("demo")
    assert card == ModelCard.from_json(json.loads(json.dumps(card.to_json())))
    assert (card.num_layers, card.hidden_size, card.vocab_size, card.max_positions) == (8, 256, 4096, 2048)
    assert card.dtype is Dtype.BFLOAT16
    assert card.eos_token_ids == (0,)
    assert card.tokenizer_json is not None
    assert card.num_parameters == 6_951_168
    whole, parts = card.weight_bytes(Span(0, 8)), [card.weight_bytes(s) for s in (Span(0, 3), Span(3, 8))]
    assert sum(parts) == whole + 4096 * 256 * 2, "two stages hold the tied embedding twice"
    assert card.kv_bytes_per_token(Span(2, 4), Dtype.FLOAT32) == 2 * 2 * 2 * 64 * 4


def test_a_shape_as_a_card() -> None:
    card = describe("llama:128x3")
    assert (card.num_layers, card.hidden_size, card.vocab_size) == (3, 128, 32000)
    assert card.eos_token_ids == ()
    assert card.tokenizer_json is None
    with pytest.raises(ConfigError, match="multiple of 64"):
        describe("llama:100x2")


def test_end_tokens_are_those_configured(tmp_path: Path) -> None:
    name = default(tmp_path, "llama", vocab_size=64, hidden_size=32, eos_token_id=[5, 7])
    assert describe(name).eos_token_ids == (5, 7)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert describe(name).eos_token_ids == (9,)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    del config["eos_token_id"]  # the class has a default; nobody configured it
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert describe(name).eos_token_ids == ()


def test_windows_and_lengths_of_a_card(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    small = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 64}
    card = describe(
        default(tmp_path, "gemma3_text", **small, num_key_value_heads=2, head_dim=8, sliding_window=6, layer_types=kinds)
    )
    assert card.layer_windows == (6, 0, 6, 0)
    assert card.layer_kv_elements == (32,) * 4
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    long = default(
        tmp_path, "phi3", **small, num_key_value_heads=4, pad_token_id=0, max_position_embeddings=512,
        original_max_position_embeddings=128, rope_parameters={**rope, "original_max_position_embeddings": 128},
    )  # fmt: skip
    assert (describe(long).max_positions, describe(long).restart_at) == (512, 128)
    small = {**small, "max_position_embeddings": 512}
    for rope, positions in (
        ({"rope_type": "linear", "factor": 4.0}, 2048),
        ({"rope_type": "dynamic", "factor": 2.0}, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "default"}, 512),
    ):
        stretched = describe(default(tmp_path, "llama", **small, rope_parameters={**rope, "rope_theta": 1e4}))
        assert (stretched.max_positions, stretched.restart_at) == (positions, 0), rope


def test_a_card_has_the_chat_templates_wherever_the_checkpoint_keeps_them(tmp_path: Path) -> None:
    assert describe(str(resolve("demo").directory.parent / "draft")).chat_templates == {}
    for file in Path(str(resolve("demo").directory)).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}one")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("two")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": "<s>"}))
    card = ModelCard.from_json(json.loads(json.dumps(describe(str(tmp_path)).to_json())))
    assert card.chat_templates == {"default": "{{ bos_token }}one", "tool_use": "two"}
    assert card.special_tokens["bos_token"] == "<s>"
    assert card.token_bytes == 45
    assert ChatTemplate("m", card.chat_templates, card.special_tokens).render([{"role": "user", "content": "x"}]) == "<s>one"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"eos_token_id": "x"}, r"config\.json: eos_token_id = 'x'"),
        ({"eos_token_id": [1, None]}, r"config\.json: eos_token_id = \[1, None\]"),
        (
            {"rope_parameters": {"rope_type": "bogus"}},
            r"config\.json: rope_parameters\.rope_type = 'bogus': must be one of default, ",
        ),
        ({"rope_scaling": {"type": 5, "factor": 2.0}}, r"config\.json: rope_scaling\.rope_type = 5: "),
        ({"hidden_size": "wide"}, r"config\.json: hidden_size = 'wide'"),
    ],
)
def test_a_bad_field_is_named_with_its_file(tmp_path: Path, change: dict[str, object], said: str) -> None:
    name = default(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=said) as caught:
        describe(name)
    assert "\n" not in caught.value.message
    assert caught.value.fields["path"] == str(tmp_path / "config.json")


def test_end_tokens_of_another_type_are_named_with_their_file(tmp_path: Path) -> None:
    name = default(tmp_path, "llama")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "<end>"}')
    with pytest.raises(ConfigError, match=r"generation_config\.json: eos_token_id = '<end>': must be a token id"):
        describe(name)


@pytest.mark.parametrize(
    ("known", "answer", "file"),
    [
        (None, True, "model.safetensors"),
        (None, False, "model.safetensors.index.json"),
        (None, OSError("no network"), "model.safetensors.index.json"),
        (object(), True, "model.safetensors.index.json"),
        ("/cache/model.safetensors", False, "model.safetensors"),
    ],
    ids=["on the hub", "not on the hub", "no answer", "known to be absent", "in the cache"],
)
def test_a_hub_repository_with_an_index_is_asked_for_a_single_file(
    known: object, answer: object, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from_pretrained asks; ``known`` is what the hub's cache says, None being nothing."""

    def exists(*_: object, **__: object) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    make_checkpoint("llama", tmp_path, max_shard_size="20KB")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: known)
    monkeypatch.setattr(huggingface_hub, "file_exists", exists)
    local = resolve(str(tmp_path))
    assert Checkpoint("a/b", local.config, local.raw_config, tmp_path, Repo("a/b", tmp_path)).weights_file == file


def test_a_config_that_names_no_file_of_weights_beside_it_is_refused(tmp_path: Path) -> None:
    for name in ("../model.safetensors", "/etc/model.safetensors", "model.bin", 3):
        with pytest.raises(ConfigError, match="transformers_weights"):
            resolve(default(tmp_path, "llama", transformers_weights=name))
    with pytest.raises(ConfigError, match=r"no mine\.safetensors, which its config\.json names"):
        resolve(default(tmp_path, "llama", transformers_weights="mine.safetensors"))
    assert resolve(default(tmp_path, "llama", quantization_config=None)).weights_file == "model.safetensors"
