"""Loading by span: shards, ties, the hub's cache, dtypes, bytes read and memory held."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_kit import FAMILIES, LAYERS, generate, load_chain, make_checkpoint, ragged_prompts, reference_tokens
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig

from bloombee.engine.checkpoint import INDEX_FILE, resolve
from bloombee.engine.model import SpanModel
from bloombee.errors import ConfigError
from bloombee.types import Dtype, PageGroup, Span

NEW_TOKENS = 8
IDLE_BYTES = 450 << 20
BESIDE_IMPORTS_BYTES = 90 << 20
"""What a worker may hold beside weights and KV; torch and transformers alone are 360 MB of it."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt_neox"])
def test_sharded_checkpoints(family: str, tmp_path: Path) -> None:
    reference = make_checkpoint(family, tmp_path, max_shard_size="20KB")
    assert len(set(json.loads((tmp_path / INDEX_FILE).read_text())["weight_map"].values())) > 3
    prompts = ragged_prompts(4)
    assert generate(load_chain(tmp_path, (1, 3)), prompts, NEW_TOKENS) == reference_tokens(reference, prompts, NEW_TOKENS)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_tied_embeddings(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last stage reads the embedding for its head; one stage with both holds it once."""
    monkeypatch.setitem(FAMILIES, family, {**FAMILIES[family], "tie_word_embeddings": True})
    reference = make_checkpoint(family, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    prompts = ragged_prompts(4)
    expected = reference_tokens(reference, prompts, NEW_TOKENS)
    stages = load_chain(tmp_path, (2,))
    assert generate(stages, prompts, NEW_TOKENS) == expected
    (whole,) = load_chain(tmp_path, ())
    assert generate([whole], prompts, NEW_TOKENS) == expected
    embedding = whole._skeleton.base.embed_tokens.weight
    assert whole._skeleton.model.lm_head.weight.data_ptr() == embedding.data_ptr()
    assert sum(stage.weight_bytes for stage in stages) == whole.weight_bytes + embedding.nbytes


def test_the_base_models_own_names_load_too(tmp_path: Path) -> None:
    """Some checkpoints store the base model without its prefix, and no head where it is tied."""
    config = LlamaConfig(vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
                         num_key_value_heads=2, initializer_range=0.2, tie_word_embeddings=True)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.model.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"architectures": ["LlamaForCausalLM"]}))
    model.generation_config.eos_token_id = None
    prompts = ragged_prompts(3)
    assert generate(load_chain(tmp_path, (2,)), prompts, NEW_TOKENS) == reference_tokens(model, prompts, NEW_TOKENS)


def test_a_missing_tensor_or_shard_is_named(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    name = "model.layers.2.mlp.up_proj.weight"
    (tmp_path / index["weight_map"][name]).unlink()
    assert SpanModel.load(resolve(str(tmp_path)), Span(0, 1), groups=[PageGroup(0, 1)], page_size=4).disk_bytes
    with pytest.raises(ConfigError, match=index["weight_map"][name]):
        SpanModel.load(resolve(str(tmp_path)), Span(2, 3), groups=[PageGroup(0, 1)], page_size=4)
    del index["weight_map"][name]
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=name):
        SpanModel.load(resolve(str(tmp_path)), Span(2, 3), groups=[PageGroup(0, 1)], page_size=4)


HUB_SCRIPT = """
import sys
from bloombee.engine.checkpoint import resolve
from bloombee.engine.describe import describe
from bloombee.engine.model import SpanModel
from bloombee.errors import ConfigError
from bloombee.types import PageGroup, Span
checkpoint = resolve("someone/tiny-model")
print(checkpoint.config_digest.hex(), describe("someone/tiny-model").num_layers)
print(SpanModel.load(checkpoint, Span(0, 1), groups=[PageGroup(0, 1)], page_size=4).disk_bytes)
groups = [PageGroup(0, 1)]
for ask in (lambda: SpanModel.load(checkpoint, Span(3, 4), groups=groups, page_size=4), lambda: resolve("someone/else")):
    try:
        ask()
    except ConfigError as error:
        print("ConfigError", error.message)
"""


def test_a_hub_id_needs_only_the_shards_of_its_span(tmp_path: Path) -> None:
    """The hub's cache, offline, with the shards of the first layer only."""
    local = tmp_path / "local"
    make_checkpoint("llama", local, max_shard_size="20KB")
    weight_map = resolve(str(local)).files
    first = {file for name, file in weight_map.items() if "embed" in name or ".layers.0." in name}
    repo = tmp_path / "hub" / "models--someone--tiny-model"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    others = set(weight_map.values()) - first
    shutil.copytree(local, repo / "snapshots" / commit, ignore=lambda _, names: others & set(names))
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    out = subprocess.run(
        [sys.executable, "-c", HUB_SCRIPT], env=environment, capture_output=True, text=True, timeout=200, check=True
    )
    lines = out.stdout.splitlines()
    assert lines[0] == f"{resolve(str(local)).config_digest.hex()} {LAYERS}"
    assert int(lines[1]) == SpanModel.load(resolve(str(local)), Span(0, 1), groups=[PageGroup(0, 1)], page_size=4).disk_bytes
    assert lines[2].startswith("ConfigError someone/tiny-model: cannot fetch model-")
    assert any(other in lines[2] for other in others)
    assert lines[3].startswith("ConfigError no model 'someone/else'")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 checkpoint of 170 MB in shards of 40."""
    directory = tmp_path_factory.mktemp("large")
    config = LlamaConfig(vocab_size=8192, hidden_size=1024, intermediate_size=2816, num_hidden_layers=6, num_attention_heads=16,
                         num_key_value_heads=4)  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    state = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in model.state_dict().items()}
    model.save_pretrained(directory, state_dict=state, max_shard_size="40MB")
    return directory


@pytest.mark.parametrize("span", [Span(0, 5), Span(1, 6)])
def test_bytes_read_are_those_of_the_span(large: Path, span: Span) -> None:
    stage = SpanModel.load(resolve(str(large)), span, groups=[PageGroup(0, 1)], page_size=4)
    assert stage.disk_bytes == stage.weight_bytes >= 100e6
    assert stage.requested_bytes <= 1.02 * stage.disk_bytes
    assert stage.requested_bytes > stage.disk_bytes


PEAK_SCRIPT = """
import sys
import numpy as np, torch
from bloombee.engine.checkpoint import resolve
from bloombee.engine.model import SpanModel, set_threads
from bloombee.pipeline.work import Pages, Segment, Work
from bloombee.types import Dtype, PageGroup, Phase, Span
def resident(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))
set_threads(1)
imports = resident("VmRSS")
stage = SpanModel.load(resolve(sys.argv[1]), Span(0, 5), dtype=Dtype(sys.argv[2]), groups=[PageGroup(0, 4096)], page_size=16)
rows = 256
segment = Segment(0, 0, 0, np.arange(rows, dtype="<u4").tobytes(), 0, (Pages(tuple(range(rows // 16))),))
stage.run(Work(pipeline=0, epoch=0, number=0, microbatch=0, phase=Phase.PREFILL, segments=(segment,)), None)
has_cuda = int(torch.version.cuda is not None)
print(resident("VmHWM"), imports, has_cuda, stage.weight_bytes, stage.kv_bytes // (4096 * 16) * rows, stage.kv_bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux's")
@pytest.mark.parametrize("dtype", [Dtype.BFLOAT16, Dtype.FLOAT32])
def test_peak_memory_is_the_weights_once_and_the_kv_used(large: Path, dtype: Dtype) -> None:
    """Load, convert, and run 256 rows; the KV pool is far larger than what the rows use, and must not count."""
    out = subprocess.run(
        [sys.executable, "-c", PEAK_SCRIPT, str(large), dtype.value], capture_output=True, text=True, timeout=200, check=True
    )
    peak, imports, has_cuda, weights, kv_used, kv_pool = map(int, out.stdout.split())
    assert kv_pool > 100e6
    # A build of torch with CUDA takes twice the memory of one without before anything is loaded.
    idle = imports + BESIDE_IMPORTS_BYTES if has_cuda else IDLE_BYTES
    assert peak <= weights + kv_used + idle, (
        f"{(peak - weights - kv_used) >> 20} MB beside weights and KV, imports {imports >> 20}"
    )
