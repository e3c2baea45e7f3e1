"""Which checkpoint is meant, where its files are, and whether the engine can serve it at all.

A checkpoint is a directory in the hub's layout (config.json, safetensors in one file or in shards with
an index), a hub id of which only the files a span needs are fetched, or a name of ours: ``demo``,
``demo:draft`` (packaged) and ``llama:HIDDENxLAYERS`` (random weights for benchmarks; no files).
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from transformers import AutoConfig, LlamaConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bloombee.engine import hub
from bloombee.engine.reader import ShardReader
from bloombee.errors import ConfigError, ModelUnsupported
from bloombee.types import Dtype

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

_PACKAGED = {"demo": "target", "demo:draft": "draft"}
_RANDOM = re.compile(r"llama:(\d{1,6})x(\d{1,4})")
_ROPE_TYPES = ("default", *ROPE_INIT_FUNCTIONS, "su", "mrope", "xdrope", "ntk_alpha")
"""transformers' own, then names that single families give to theirs."""
_NOT_COMPUTED_WITH = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "bos_token_id", "eos_token_id",
}  # fmt: skip
"""Keys of config.json that a worker makes no use of: who wrote it, and what the head decides."""
_FLOATS = {"F32": Dtype.FLOAT32, "F16": Dtype.FLOAT16, "BF16": Dtype.BFLOAT16}


@dataclass(frozen=True)
class Checkpoint:
    """A model as it lies on disk. Holds no weights and opens no shard until asked.

    Args:
        ref: the name it was asked for by.
        directory: its config and tokenizer files (and shards, as far as they are local); None for random weights.
        repo: hub id that missing shards are fetched from.
        raw_config: config.json as it is written: what is configured, without any class's defaults.
    """

    ref: str
    config: PreTrainedConfig = field(compare=False)
    raw_config: dict[str, Any] = field(compare=False)
    directory: Path | None = None
    repo: hub.Repo | None = None

    @property
    def is_random(self) -> bool:
        return self.directory is None

    def new_config(self) -> PreTrainedConfig:
        """A copy that a model may change."""
        return copy.deepcopy(self.config)

    def json_file(self, name: str) -> dict[str, Any]:
        """A JSON file beside the config; empty if there is none."""
        return _read_json(self.directory / name) if self.directory is not None and (self.directory / name).is_file() else {}

    @cached_property
    def index(self) -> dict[str, str] | None:
        """Tensor name -> file name of a sharded checkpoint; None for a checkpoint in one file."""
        if self.directory is None or not (self.directory / INDEX_FILE).is_file():
            return None
        table = self.json_file(INDEX_FILE).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(f, str) and Path(f).name == f for f in table.values()):
            raise ConfigError(f"{self.directory / INDEX_FILE} has no sound weight_map", path=str(self.directory))
        return table

    @cached_property
    def files(self) -> dict[str, str]:
        """Tensor name -> file name. Reads (and of a hub checkpoint first fetches) the one file if there is no index."""
        if self.index is not None or self.is_random:
            return self.index or {}
        with ShardReader(self.shard(SINGLE_FILE)) as shard:
            return dict.fromkeys(shard.entries, SINGLE_FILE)

    def shard(self, name: str) -> Path:
        """The local path of one file of weights; a hub checkpoint fetches it if need be.

        Raises:
            ConfigError: it is not there, or cannot be fetched.
        """
        assert self.directory is not None
        path = self.directory / name
        if not path.is_file() and self.repo is not None:
            path = self.repo.fetch(name)
        if not path.is_file():
            raise ConfigError(f"{self.ref}: {path} is missing", path=str(path))
        return path

    @cached_property
    def dtype(self) -> Dtype:
        """The element type the weights are stored in: what the config says, else what most tensors have."""
        named = str(self.raw_config.get("dtype") or self.raw_config.get("torch_dtype") or "").removeprefix("torch.")
        if named in ("", "auto"):
            return self._stored_dtype()
        try:
            return Dtype(named)
        except ValueError:
            raise ModelUnsupported(
                f"{self.ref}: weights of type {named}; supported are {', '.join(Dtype)}", unsupported=named
            ) from None

    def _stored_dtype(self) -> Dtype:
        if self.is_random or (self.index is None and self.repo is not None):
            return Dtype.FLOAT32
        with ShardReader(self.shard(next(iter(sorted(set(self.files.values()))), SINGLE_FILE))) as shard:
            kinds = [entry.dtype for entry in shard.entries.values()]
        kind = max(set(kinds), key=kinds.count, default="F32")
        if kind not in _FLOATS:
            raise ModelUnsupported(f"{self.ref}: weights of type {kind}; supported are {', '.join(_FLOATS)}", unsupported=kind)
        return _FLOATS[kind]

    @cached_property
    def config_digest(self) -> bytes:
        """16 bytes that two sides compare before they run one model: what config.json says of how it computes.

        Wherever the files lie and however the weights are cut into them, the same checkpoint has the same digest. The weights
        have digests of their own (``engine/digest.py``); end tokens and the like concern the head alone.
        """
        config = {key: value for key, value in self.raw_config.items() if key not in _NOT_COMPUTED_WITH}
        return hashlib.blake2b(json.dumps(config, sort_keys=True, separators=(",", ":")).encode(), digest_size=16).digest()


def resolve(model: str, on_bytes: Callable[[], None] | None = None) -> Checkpoint:
    """Find a checkpoint by name.

    Args:
        model: a directory, a hub id (``owner/name``), ``demo``, ``demo:draft`` or ``llama:HIDDENxLAYERS``.
        on_bytes: called while files of a hub checkpoint are fetched, now or later.

    Raises:
        ConfigError: there is no such model; the message says where was looked.
        ModelUnsupported: it is there and cannot be served; the message names what is unsupported.
    """
    if match := _RANDOM.fullmatch(model):
        return _random_llama(model, int(match[1]), int(match[2]))
    repo = None
    if model in _PACKAGED:
        directory = Path(__file__).resolve().parent.parent / "demo_model" / _PACKAGED[model]
    else:
        directory = Path(model).expanduser()
    if not directory.is_dir():
        if not hub.is_id(model):
            raise ConfigError(
                f"no model {model!r}: it is no directory, no hub id (owner/name) and none of demo, demo:draft", model=model
            )
        repo = hub.open_repo(model, on_bytes)
        directory = repo.directory
    if not (directory / "config.json").is_file():
        raise ConfigError(f"no model in {directory}: it has no config.json", model=model, path=str(directory))
    raw = _read_json(directory / "config.json")
    _refuse_foreign(model, raw)
    _check_rope(directory / "config.json", raw)
    _require_safetensors(model, directory, repo)
    return Checkpoint(model, _load_config(model, directory), raw, directory, repo)


def _refuse_foreign(model: str, raw: dict[str, Any]) -> None:
    """What the config alone shows to be out of reach; asked before transformers touches the file."""
    kind = raw.get("model_type")
    if "quantization_config" in raw or "compression_config" in raw:
        method = (raw.get("quantization_config") or {}).get("quant_method", "unknown")
        raise ModelUnsupported(
            f"{model}: quantised weights (quant_method {method}) are not supported", unsupported="quantization_config"
        )
    code = str((raw.get("auto_map") or {}).get("AutoModelForCausalLM", "")).split(".")[-1]
    known = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind))
    if raw.get("auto_map") and code != known:
        raise ModelUnsupported(
            f"{model}: the checkpoint brings its own code (auto_map: {code or 'config'}), which would need trust_remote_code; "
            "only architectures that transformers itself has are run",
            unsupported="trust_remote_code",
        )
    if kind not in CONFIG_MAPPING_NAMES:
        raise ModelUnsupported(f"{model}: transformers has no model_type {kind!r}", unsupported="model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or raw.get("is_encoder_decoder"):
        what = "an encoder-decoder model" if raw.get("is_encoder_decoder") else "no causal language model"
        raise ModelUnsupported(f"{model}: {kind} is {what}, which is not supported", unsupported="causal_lm")


def _check_rope(path: Path, raw: dict[str, Any]) -> None:
    """Refuse rotary embeddings of no known kind, which transformers would notice late and say in its own words."""
    for key in ("rope_parameters", "rope_scaling"):
        table = raw.get(key)
        if not isinstance(table, dict):
            continue
        for one in (table, *(value for value in table.values() if isinstance(value, dict))):
            kind = one.get("rope_type", one.get("type", "default"))
            if kind not in _ROPE_TYPES:
                raise ConfigError(
                    f"{path}: {key}.rope_type = {kind!r}: must be one of {', '.join(_ROPE_TYPES)}",
                    path=str(path),
                    field=f"{key}.rope_type",
                )


def _bad_field(path: Path, error: StrictDataclassFieldValidationError) -> ConfigError:
    """transformers' configs check the types of their fields; its error tells the field in its first line only."""
    match = re.search(r"field '(\w+)'", str(error))
    name = match[1] if match else "a field"
    value = _read_json(path).get(name)
    return ConfigError(f"{path}: {name} = {value!r}: not of the type that this model takes there", path=str(path), field=name)


def _require_safetensors(model: str, directory: Path, repo: hub.Repo | None) -> None:
    if repo is None and not any((directory / name).is_file() for name in (INDEX_FILE, SINGLE_FILE)):
        if any(directory.glob("*.bin")) or any(directory.glob("*.pth")):
            raise ModelUnsupported(f"{model}: the weights are pickled; only safetensors are read", unsupported="pickle")
        raise ConfigError(f"no weights in {directory}: neither {INDEX_FILE} nor {SINGLE_FILE}", model=model)


def _load_config(model: str, directory: Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except StrictDataclassFieldValidationError as error:
        raise _bad_field(directory / "config.json", error) from error
    except (ValueError, TypeError, KeyError, AttributeError, OSError, StrictDataclassError) as error:
        raise ConfigError(f"{model}: transformers refuses {directory / 'config.json'}: {error}", model=model) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}", path=str(path)) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JSON object", path=str(path))
    return value


def _random_llama(model: str, hidden: int, layers: int) -> Checkpoint:
    """A Llama of the proportions of its family: heads of 64 (of 128 from 4096 on), 4 query heads a KV head, MLP 2.75 d."""
    head = 128 if hidden >= 4096 else 64
    if not layers or hidden % head:
        raise ConfigError(f"{model}: HIDDEN must be a multiple of {head} and LAYERS at least 1", model=model)
    heads = hidden // head
    config = LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads // 4 if heads % 4 == 0 else heads, intermediate_size=hidden * 11 // 4,
        vocab_size=32000, max_position_embeddings=8192, tie_word_embeddings=False, dtype="bfloat16",
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return Checkpoint(model, config, {**config.to_dict(), "dtype": "bfloat16"})
