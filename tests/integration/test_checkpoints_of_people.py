"""Directories as people make them: the tokens that transformers' ``generate`` gives for the same directory, or a refusal by name.

transformers loads the directory and obeys its generation_config.json by itself; so do we, on three stages with prompts in chunks.
The cores are the real ones under a virtual clock, the devices are real models.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_kit import PAGE, VOCABULARY, ModelDevice, make_checkpoint
from safetensors.torch import load_file, save_file
from swarm_kit import Swarm
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, PreTrainedModel

from bloombee.engine.checkpoint import INDEX_FILE, SINGLE_FILE
from bloombee.engine.describe import describe
from bloombee.errors import BloomBeeError, ConfigError
from bloombee.models.card import ModelCard
from bloombee.roles.asked import ask
from bloombee.roles.text import TextCodec
from bloombee.sim.cluster import SimCluster
from bloombee.types import SamplingParams

NEW_TOKENS = 24
LENGTHS = (1, 7, 37)
Tensors = dict[str, torch.Tensor]


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Case:
    """A directory.

    Args:
        family, sizes, save: of a tiny random model, and how it is saved.
        change: what somebody then did to the directory.
        config, generation: laid over config.json (None as a value: null; ``...``: left out), and all of generation_config.json.
        lengths: of the prompts. new_tokens: None: as many as the directory says.
        refused: what the error must name; None: the tokens must be transformers'.
    """

    family: str = "llama"
    sizes: dict[str, Any] = field(default_factory=dict)
    save: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Path], None] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] | None = None
    lengths: tuple[int, ...] = LENGTHS
    new_tokens: int | None = NEW_TOKENS
    refused: str | None = None

    def make(self, directory: Path) -> None:
        make_checkpoint(self.family, directory, sizes=self.sizes, **self.save)
        lay(directory / "config.json", self.config)
        if self.generation is not None:
            (directory / "generation_config.json").write_text(json.dumps(self.generation))
        if self.change is not None:
            self.change(directory)


def lay(path: Path, values: dict[str, Any]) -> None:
    merged = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in merged.items() if value is not ...}))


def rewrite(directory: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = directory / SINGLE_FILE
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def renamed(directory: Path, name: Callable[[str], str]) -> None:
    rewrite(directory, lambda tensors: {name(key): value for key, value in tensors.items()})


def other(tensor: torch.Tensor) -> torch.Tensor:
    return tensor + 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))


# -- what people do to their directories -------------------------------------------------------


def newer_single_file(directory: Path, *, keep_shards: bool) -> None:
    """An index of an older save beside weights that were trained on."""
    tensors: Tensors = {}
    for shard in sorted(directory.glob("model-*.safetensors")):
        tensors |= load_file(shard)
        if not keep_shards:
            shard.unlink()
    save_file({name: other(tensor) for name, tensor in tensors.items()}, directory / SINGLE_FILE, metadata={"format": "pt"})


def index_of(directory: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((directory / INDEX_FILE).read_text())["weight_map"]
    return found


def set_index(directory: Path, weight_map: dict[str, str]) -> None:
    lay(directory / INDEX_FILE, {"weight_map": weight_map})


def index_misplaces(directory: Path) -> None:
    """Every tensor in the shard after its own."""
    files = sorted(set(index_of(directory).values()))
    set_index(directory, {name: files[(files.index(file) + 1) % len(files)] for name, file in index_of(directory).items()})


def index_forgets(directory: Path) -> None:
    kept = {name: file for name, file in index_of(directory).items() if "up_proj" not in name}
    assert set(kept.values()) == set(index_of(directory).values())
    set_index(directory, kept)


def in_two_shards(directory: Path) -> None:
    """One tensor in two shards with different values; the index has the first."""
    name = "model.layers.1.mlp.up_proj.weight"
    own = directory / index_of(directory)[name]
    last = directory / max(index_of(directory).values())
    assert own != last
    save_file({**load_file(last), name: other(load_file(own)[name])}, last, metadata={"format": "pt"})


def extra_shard(directory: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    stray = {name: other(load_file(directory / index_of(directory)[name])[name])}
    save_file(stray, directory / "model-99999-of-99999.safetensors", metadata={"format": "pt"})


def shards_below(directory: Path) -> None:
    (directory / "weights").mkdir()
    for shard in directory.glob("model-*.safetensors"):
        shard.rename(directory / "weights" / shard.name)
    set_index(directory, {name: f"weights/{file}" for name, file in index_of(directory).items()})


def shard_lost(directory: Path) -> None:
    (directory / index_of(directory)["model.layers.2.mlp.up_proj.weight"]).unlink()


def elsewhere(directory: Path) -> None:
    """Links to files under other names, as in the hub's cache."""
    blobs = directory / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(directory.glob("*.*"))):
        file.rename(blobs / f"{number:04x}")
        file.symlink_to(Path("blobs") / f"{number:04x}")


def named_by_the_config(directory: Path) -> None:
    shutil.copy(directory / SINGLE_FILE, directory / "mine.safetensors")
    rewrite(directory, lambda tensors: {name: other(tensor) for name, tensor in tensors.items()})
    lay(directory / "config.json", {"transformers_weights": "mine.safetensors"})


def head_only(tensors: Tensors) -> Tensors:
    embedding = tensors.pop("model.embed_tokens.weight")
    return {**tensors, "lm_head.weight": embedding}


def with_head(tensors: Tensors, *, change: bool) -> Tensors:
    embedding = tensors["model.embed_tokens.weight"]
    return {**tensors, "lm_head.weight": other(embedding) if change else embedding.clone()}


def twice(tensors: Tensors) -> Tensors:
    """Names with and without the base model's prefix, of different values."""
    bare = {name.removeprefix("model."): other(tensor) for name, tensor in tensors.items() if name.startswith("model.layers.1.")}
    return {**tensors, **bare}


def with_buffers(tensors: Tensors) -> Tensors:
    """As saved by versions whose rotary frequencies were stored with each layer."""
    return {**tensors, **{f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(4)}}


TIED = {"tie_word_embeddings": True}
SHARDS = {"max_shard_size": "20KB"}
COMMON = {"eos_token_id": None, "bos_token_id": None}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}


def rope(**scaling: Any) -> dict[str, Any]:
    """Scaled rotary embeddings as older files have them."""
    return {"rope_parameters": ..., "rope_theta": 1e4, "rope_scaling": scaling}


LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]}

WEIGHTS = {
    "one file": Case(),
    "shards": Case(save=SHARDS),
    "an old index beside a newer file": Case(save=SHARDS, change=partial(newer_single_file, keep_shards=True)),
    "an old index whose shards are gone": Case(save=SHARDS, change=partial(newer_single_file, keep_shards=False)),
    "an index that misplaces tensors": Case(save=SHARDS, change=index_misplaces),
    "an index that forgets tensors": Case(save=SHARDS, change=index_forgets),
    "a tensor in two shards": Case(save=SHARDS, change=in_two_shards),
    "a stray shard": Case(save=SHARDS, change=extra_shard),
    "shards in a folder below": Case(save=SHARDS, change=shards_below),
    "a lost shard": Case(save=SHARDS, change=shard_lost, refused="safetensors is missing"),
    "links": Case(save=SHARDS, change=elsewhere),
    "weights that the config names": Case(change=named_by_the_config),
    "tied, the embedding alone saved": Case("qwen2", TIED),
    "tied, the head alone saved": Case(sizes=TIED, change=partial(rewrite, change=head_only)),
    "tied and saved twice": Case(sizes=TIED, change=partial(rewrite, change=partial(with_head, change=False))),
    "tied and saved twice, differently": Case(sizes=TIED, change=partial(rewrite, change=partial(with_head, change=True))),
    "not tied, and no head": Case(sizes=TIED, config={"tie_word_embeddings": False}, refused="lm_head.weight"),
    "a padded vocabulary": Case(sizes={"vocab_size": VOCABULARY + 64}),
    "an embedding longer than the config says": Case(config={"vocab_size": VOCABULARY - 8}, refused="embed_tokens.weight"),
    "names without the prefix": Case(change=partial(renamed, name=lambda name: name.removeprefix("model."))),
    "names with and without the prefix": Case(change=partial(rewrite, change=twice)),
    "buffers of an older version": Case(change=partial(rewrite, change=with_buffers)),
}
CONFIGS = {
    "nulls": Case(
        config={
            "rope_scaling": None, "head_dim": None, "pad_token_id": None, "layer_types": None, "dtype": None, "name": None,
            "architectures": None, "quantization_config": None,
        }
    ),
    "unknown and old fields": Case(
        config={
            "_name_or_path": "/nowhere", "torch_dtype": "float32", "dtype": ..., "use_cache": False, "pretraining_tp": 4,
            "attn_implementation": "flash_attention_2", "_attn_implementation": "sdpa", "my_field": {"a": [1]},
            "gradient_checkpointing": True, "max_sequence_length": 7, "architectures": None,
        }
    ),
    "outputs that the config asks for": Case(
        config={"output_attentions": True, "output_hidden_states": True}
    ),
    "a padding token of -1": Case(config={"pad_token_id": -1}),
    "no windows after all": Case("qwen2", config={"use_sliding_window": False, "layer_types": None}),
    "a null window": Case("mistral", config={"sliding_window": None}),
    "softcaps of null": Case("gemma2", config={"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "biases": Case(sizes={"attention_bias": True, "mlp_bias": True}),
    "rotary of old keys": Case("gpt_neox", config={"rope_parameters": ..., "rotary_emb_base": 5000, "rotary_pct": 0.25}),
    "rotary base at the top": Case(config={"rope_parameters": ..., "rope_theta": 777.0}),
    "rotary, linear": Case(config=rope(type="linear", factor=4.0)),
    "rotary, yarn": Case(config=rope(type="yarn", factor=4.0, original_max_position_embeddings=16)),
    "rotary, llama3": Case(
        config=rope(
            rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
        )
    ),
    "rotary, dynamic": Case(config={**rope(type="dynamic", factor=4.0), "max_position_embeddings": 16}),
    "rotary, long": Case(config=rope(type="longrope", **LONG, original_max_position_embeddings=16)),
    "rotary, long, of a class that starts anew": Case(
        "phi3", lengths=(1, 15, 41), config={**rope(type="longrope", **LONG), "original_max_position_embeddings": 40}
    ),
    "rotary, long, in layers of two kinds": Case(
        "gemma3_text",
        config={
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "longrope", **LONG, "original_max_position_embeddings": 16, "rope_theta": 1e4
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            }
        },
    ),
}  # fmt: skip
END = [3, 17, 40, 77, 90]
GENERATION = {
    "end tokens as a list": Case(generation={"eos_token_id": END}),
    "an end token in the config alone": Case(generation={}, config={"eos_token_id": END}),
    "no generation file": Case(
        config={"eos_token_id": END, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        change=lambda directory: (directory / "generation_config.json").unlink(),
    ),
    "nulls in the generation file": Case(generation=dict.fromkeys(("eos_token_id", "top_k", "max_length", "bad_words_ids"))),
    "as most chat models have it": Case(
        generation={
            "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "bos_token_id": 1, "eos_token_id": END,
            "pad_token_id": 0, "transformers_version": "4.40.0", "repetition_penalty": 1.05,
        }
    ),
    "max_new_tokens": Case(generation={"max_new_tokens": 9}, new_tokens=None),
    "max_length": Case(generation={"max_length": 45}, new_tokens=None),
    "both lengths": Case(generation={"max_length": 45, "max_new_tokens": 5}, new_tokens=None),
    "min_length": Case(generation={"min_length": 20, "eos_token_id": END}),
    "min_new_tokens": Case(generation={"min_new_tokens": 12, "min_length": 200, "eos_token_id": END}),
    "repetition_penalty": Case(generation={"repetition_penalty": 1.5}),
    "no_repeat_ngram_size": Case(generation={"no_repeat_ngram_size": 2}),
    "bad_words_ids": Case(generation={"bad_words_ids": [[n] for n in range(0, VOCABULARY, 2)] + [[3, 5], [7, 9, 11]]}),
    "bad words that end": Case(generation={"bad_words_ids": [[n] for n in END], "eos_token_id": END}),
    "sequence_bias": Case(generation={"sequence_bias": [[[n], 2.5] for n in range(9)] + [[[3, 5], 9.0], [[8, 4], -7.5]]}),
    "suppress_tokens": Case(generation={"suppress_tokens": [-1, *range(40, 110)]}),
    "begin_suppress_tokens": Case(generation={"begin_suppress_tokens": list(range(100))}),
    "forced_bos_token_id": Case(generation={"forced_bos_token_id": 11, "begin_suppress_tokens": list(range(100))}),
    "forced_eos_token_id": Case(generation={"forced_eos_token_id": 5, "eos_token_id": 5}),
    "several forced end tokens": Case(generation={"forced_eos_token_id": [9, 5]}),
    "forced_eos_token_id by length": Case(generation={"forced_eos_token_id": 5, "max_length": 41}, new_tokens=None),
    "exponential_decay_length_penalty": Case(
        generation={"exponential_decay_length_penalty": [3, 1.2], "eos_token_id": END}
    ),
    "remove_invalid_values": Case(generation={"remove_invalid_values": True, "renormalize_logits": True}),
    "watermarking_config": Case(generation={"watermarking_config": {"bias": 3.0, "greenlist_ratio": 0.4}}),
    "a watermark by itself": Case(
        generation={"watermarking_config": {"bias": 3.0, "seeding_scheme": "selfhash", "context_width": 2}}
    ),
    "filters, for a greedy caller": Case(
        generation={"typical_p": 0.5, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "min_p": 0.2, "top_k": 3}
    ),
    "many at once": Case(
        generation={
            "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "sequence_bias": [[[n], 1.5] for n in range(20)],
            "bad_words_ids": [[1], [2, 4]], "suppress_tokens": [6, 8], "min_new_tokens": 10, "eos_token_id": END,
            "forced_eos_token_id": 17, "exponential_decay_length_penalty": [4, 1.1],
        }
    ),
    "guidance_scale": Case(generation={"guidance_scale": 1.5}, refused="guidance_scale"),
}  # fmt: skip
CASES = {**WEIGHTS, **CONFIGS, **GENERATION}


def test_no_class_of_directories_that_is_served_is_refused() -> None:
    refused = [name for name, case in CASES.items() if case.refused]
    assert len(CASES) >= 60
    assert len(refused) * 25 <= 3 * len(CASES), refused


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_transformers_for_the_same_directory(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    case.make(tmp_path)
    rng = random.Random(name)
    prompts = [[rng.randrange(VOCABULARY) for _ in range(length)] for length in case.lengths]
    if case.refused is not None:
        with pytest.raises(BloomBeeError, match=case.refused):
            served(tmp_path, describe(str(tmp_path)), prompts, case.new_tokens)
        return
    expected = reference(tmp_path, prompts, case.new_tokens)
    assert served(tmp_path, describe(str(tmp_path)), prompts, case.new_tokens) == expected


def reference(directory: Path, prompts: list[list[int]], new_tokens: int | None) -> list[list[int]]:
    """What ``generate`` adds to each prompt, greedily, by the directory's own rules; each with a model that is freshly loaded."""
    given = {} if new_tokens is None else {"max_new_tokens": new_tokens}
    out = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        full = load(directory).generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **given)
        out.append(full[0, len(prompt) :].tolist())
    return out


def load(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")


def served(directory: Path, card: ModelCard, prompts: list[list[int]], new_tokens: int | None) -> list[list[int]]:
    """The same by three stages."""
    cluster = SimCluster(
        seed=1, num_stages=3, card=card, make_device=lambda assign: ModelDevice(directory, assign), num_pages=128, page_size=PAGE,
    )  # fmt: skip
    for prompt in prompts:
        asked = ask(SamplingParams(max_new_tokens=new_tokens), card, len(prompt))
        cluster.submit(prompt, max_new_tokens=asked.max_new_tokens, sampling=asked.sampling, end_tokens=asked.end_tokens)
    assert cluster.run()
    assert all(request.error is None for request in cluster.requests.values())
    return [request.tokens for request in cluster.requests.values()]


# -- through a Runtime -------------------------------------------------------------------------

CHAT = {
    "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "eos_token_id": END, "repetition_penalty": 1.3,
    "suppress_tokens": [5, 6, 7], "min_new_tokens": 6, "max_length": 31, "num_beams": 4,
}  # fmt: skip
PROMPT = [5, 9, 33, 70]


def letters(directory: Path) -> None:
    """A tokenizer of one letter a token."""
    tokenizer = Tokenizer(models.BPE(vocab={letter(token): token for token in range(VOCABULARY)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def letter(token: int) -> str:
    return chr(97 + token) if token < 26 else chr(0x4E00 + token)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on after it had been saved in shards, with what chat models bring."""
    directory = tmp_path_factory.mktemp("chat")
    Case(save=SHARDS, change=partial(newer_single_file, keep_shards=True), generation=CHAT).make(directory)
    letters(directory)
    return directory


@pytest.fixture(scope="module")
def swarm(chat: Path) -> Iterator[Swarm]:
    swarm = Swarm(model=str(chat), workers=2, dtype="float32", threads=1)
    yield swarm
    swarm.close()


def by_transformers(directory: Path, **given: Any) -> list[int]:
    ids = torch.tensor([PROMPT])
    full = load(directory).generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1, pad_token_id=0, **given
    )
    return full[0, len(PROMPT) :].tolist()


def test_a_runtime_obeys_the_directory(chat: Path, swarm: Swarm) -> None:
    """Greedy, since nobody asks for more; as long as the directory says; with its penalty, suppressed and end tokens."""
    answer = swarm.generate(PROMPT)
    assert list(answer.token_ids) == by_transformers(chat)
    assert not {5, 6, 7} & set(answer.token_ids)
    card = swarm.runtime.card
    assert card.ignored == ("generation_config.json: num_beams = 4 is ignored",)


def test_what_the_caller_of_a_runtime_gives_overrides_the_directory(chat: Path, swarm: Swarm) -> None:
    given = {"max_new_tokens": 9, "repetition_penalty": 1.0}
    got = list(swarm.generate(PROMPT, **given).token_ids)
    assert got == by_transformers(chat, **given)
    assert got != list(swarm.generate(PROMPT, max_new_tokens=9).token_ids)
    without_end = list(swarm.generate(PROMPT, max_new_tokens=40, ignore_eos=True).token_ids)
    assert len(without_end) == 40


def test_a_runtime_samples_with_the_directorys_filters_when_it_is_asked_to_sample(swarm: Swarm) -> None:
    """One token is all that a top_k of 1 leaves, so the caller's word shows; the file's own 20 leave more."""
    best = swarm.generate(PROMPT, max_new_tokens=9)
    assert swarm.generate(PROMPT, max_new_tokens=9, temperature=1.5, seed=1, top_k=1).token_ids == best.token_ids
    given = {"temperature": 1.5, "seed": 1, "max_new_tokens": 9}
    same = swarm.generate(PROMPT, **given, top_k=20, top_p=0.9, repetition_penalty=1.3, min_p=0.0)
    assert swarm.generate(PROMPT, **given).token_ids == same.token_ids != best.token_ids
    assert swarm.generate(PROMPT, **given, top_k=0, top_p=1.0).token_ids != same.token_ids


def test_stop_strings_of_the_directory_end_a_text_unless_the_caller_gives_others(chat: Path, tmp_path: Path) -> None:
    directory = tmp_path / "stops"
    shutil.copytree(chat, directory)
    tokens = by_transformers(chat)
    stop = "".join(map(letter, tokens[7:9]))
    lay(directory / "generation_config.json", {"stop_strings": stop})
    card = describe(str(directory))
    assert card.defaults.stop == (stop,)
    stream = TextCodec(card.tokenizer_json).stream(ask(SamplingParams(), card, len(PROMPT)).stop)
    assert "".join(map(stream.push, tokens)) + stream.finish() == "".join(map(letter, tokens[:7]))
    assert ask(SamplingParams(stop=()), card, len(PROMPT)).stop == ()


def test_a_sequence_that_would_change_its_rotary_embeddings_on_its_way_is_refused_by_name(tmp_path: Path) -> None:
    CASES["rotary, long, of a class that starts anew"].make(tmp_path)
    swarm = Swarm(model=str(tmp_path), workers=2, dtype="float32", threads=1)
    try:
        with pytest.raises(ConfigError, match=r"rotary embeddings \(longrope\) change after 40 positions"):
            swarm.generate([1] * 30, max_new_tokens=12)
        assert len(swarm.generate([1] * 30, max_new_tokens=11).token_ids) == 11
        assert len(swarm.generate([1] * 41, max_new_tokens=12).token_ids) == 12
        assert len(swarm.generate([1] * 30).token_ids) == 11
    finally:
        swarm.close()
