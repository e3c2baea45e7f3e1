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

from huggingface_hub.errors import StrictDataclassFieldValidationError
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
INDEX_SUFFIX = ".safetensors.index.json"

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
    def weights_file(self) -> str:
        """What transformers' ``from_pretrained`` starts from: the file that config.json names, else the single file if there
        is one, else the index. An index beside a single file counts for nothing: it is what an older save has left."""
        assert self.directory is not None
        named = self.raw_config.get("transformers_weights")
        if named is not None:
            return _inside(self.directory / "config.json", "transformers_weights", named)
        has_index = (self.directory / INDEX_FILE).is_file()
        if not has_index or (self.directory / SINGLE_FILE).is_file() or (self.repo is not None and self.repo.has(SINGLE_FILE)):
            return SINGLE_FILE
        return INDEX_FILE

    @cached_property
    def index(self) -> dict[str, str] | None:
        """Tensor name -> file name, as the index of a sharded checkpoint has it; None for a checkpoint in one file."""
        if self.directory is None or not self.weights_file.endswith(".json"):
            return None
        path = self.directory / self.weights_file
        table = self.json_file(self.weights_file).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise ConfigError(f"{path} has no sound weight_map", path=str(path))
        return {name: _inside(path, f"weight_map[{name!r}]", file) for name, file in table.items()}

    @cached_property
    def files(self) -> dict[str, str]:
        """Tensor name -> file name. Reads (and of a hub checkpoint first fetches) the one file if there is no index.

        transformers takes every tensor of every shard that the index names, in the order of the shards' names, wherever the index
        places it. So do we as far as shards are here; of others the index is believed.
        """
        if self.is_random:
            return {}
        if self.index is None:
            with ShardReader(self.shard(self.weights_file)) as shard:
                return dict.fromkeys(shard.entries, self.weights_file)
        found = dict(self.index)
        here = {file for file in set(self.index.values()) if self._path(file).is_file()}
        for file in sorted(here):
            with ShardReader(self._path(file)) as shard:
                found |= {name: file for name in shard.entries if found.get(name, file) in here}
        return found

    def shard(self, name: str) -> Path:
        """The local path of one file of weights; a hub checkpoint fetches it if need be.

        Raises:
            ConfigError: it is not there, or cannot be fetched.
        """
        path = self._path(name)
        if not path.is_file() and self.repo is not None:
            path = self.repo.fetch(name)
        if not path.is_file():
            raise ConfigError(f"{self.ref}: {path} is missing", path=str(path))
        return path

    def _path(self, name: str) -> Path:
        assert self.directory is not None
        return self.directory / name

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
        """Of the first file's first floating tensor, as in transformers; of a single file on the hub only once it is here."""
        if self.is_random or (self.index is None and self.repo is not None and not self._path(self.weights_file).is_file()):
            return Dtype.FLOAT32
        first = min(self.index.values()) if self.index else self.weights_file
        with ShardReader(self.shard(first)) as shard:
            kinds = [entry.dtype for entry in shard.entries.values()]
        kind = next((kind for kind in kinds if kind in _FLOATS), kinds[0] if kinds else "F32")
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
    checkpoint = Checkpoint(model, _load_config(model, directory), raw, directory, repo)
    _require_safetensors(checkpoint)
    return checkpoint


def _refuse_foreign(model: str, raw: dict[str, Any]) -> None:
    """What the config alone shows to be out of reach; asked before transformers touches the file."""
    kind = raw.get("model_type")
    if raw.get("quantization_config") or raw.get("compression_config"):
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


def _require_safetensors(checkpoint: Checkpoint) -> None:
    directory = checkpoint.directory
    assert directory is not None
    if checkpoint.repo is not None or (directory / checkpoint.weights_file).is_file():
        return
    if any(directory.glob("*.bin")) or any(directory.glob("*.pth")):
        raise ModelUnsupported(f"{checkpoint.ref}: the weights are pickled; only safetensors are read", unsupported="pickle")
    named = checkpoint.raw_config.get("transformers_weights")
    looked = f"no {named}, which its config.json names" if named else f"neither {INDEX_FILE} nor {SINGLE_FILE}"
    raise ConfigError(f"no weights in {directory}: {looked}", model=checkpoint.ref)


def _inside(path: Path, field: str, file: object) -> str:
    """``file``, which the JSON at ``path`` names, if it is a safetensors file or an index of some below that folder."""
    parts = Path(file).parts if isinstance(file, str) else ()
    if not parts or ".." in parts or Path(*parts).is_absolute() or not str(file).endswith((".safetensors", INDEX_SUFFIX)):
        raise ConfigError(f"{path}: {field} = {file!r}: must name a safetensors file beside it", path=str(path), field=field)
    return str(file)


def _load_config(model: str, directory: Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except StrictDataclassFieldValidationError as error:
        raise _bad_field(directory / "config.json", error) from error
    except Exception as error:  # whatever comes of somebody's values
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{model}: transformers refuses {directory / 'config.json'}: {said}", model=model) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
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
