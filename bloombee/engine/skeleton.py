"""The model as transformers builds it, without weights, and the span of it that a stage keeps.

There is no code per family. What a family must offer is what transformers itself publishes:

- its config has a ``base_model_pp_plan``: which children of the base model come before the layers, which
  list holds the layers, and what comes after;
- its attention goes through the attention interface (``_supports_attention_backend``), so that our
  function and our cache can stand in;
- a layer takes and returns hidden states only: what else it would be handed (another layer's keys, routing
  of the layer before) cannot cross a cut.

Whatever does not is refused by name.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from bloombee.engine.attention import ATTENTION
from bloombee.engine.buffers import TORCH_DTYPES
from bloombee.engine.checkpoint import Checkpoint
from bloombee.engine.rotary import RotaryByLength, install
from bloombee.errors import ConfigError, ModelUnsupported
from bloombee.types import Dtype, Span

LAYER_INPUTS = {
    "hidden_states", "attention_mask", "position_ids", "position_embeddings", "cache", "past_key_values", "layer_past",
    "past_key_value", "cache_position", "use_cache", "output_attentions", "head_mask", "kwargs",
}  # fmt: skip
"""What a decoder layer may take: its input, the step's positions, our cache, and switches."""
ATTENTION_KINDS = {"full_attention", "sliding_attention"}

MAX_LAYERS = 4096
"""Some thirty times as many as the deepest model has; building takes time with each."""
_BUILDING = threading.Lock()
"""``no_init_weights`` patches torch for the whole process: of two that overlap, the later would put the patch back for good."""


@dataclass(frozen=True)
class Skeleton:
    """A causal language model on the meta device.

    Args:
        model, base: the whole and its base model (``model.model`` in most families).
        layers: name of the base model's list of layers. ``before``: the children before it that hold parameters
            (embeddings). ``after``: all that come after (final norm, which in some families holds none).
        prefix: of the base model's parameters within the model's.
        cache_argument: how the base model's forward calls its cache.
        meta: every parameter and persistent buffer of the whole model by name, tied names included.
        parameters: where each of them hangs; stays true when the model is spliced, as modules are moved, not copied.
        rotaries: those that must be told the lengths of a forward's sequences; most models have none.
    """

    model: PreTrainedModel
    base: PreTrainedModel
    prefix: str
    layers: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    cache_argument: str
    num_layers: int
    meta: dict[str, torch.Tensor]
    parameters: dict[str, tuple[nn.Module, str]]
    rotaries: tuple[RotaryByLength, ...]

    def home(self, name: str) -> int:
        """Where a parameter lives: its layer's number, -1 before the layers, ``num_layers`` after (norm, head)."""
        if not name.startswith(self.prefix):
            return self.num_layers
        child, _, rest = name.removeprefix(self.prefix).partition(".")
        if child == self.layers:
            return int(rest.partition(".")[0])
        return -1 if child in self.before else self.num_layers

    def is_in(self, name: str, span: Span) -> bool:
        """Whether the stage of ``span`` needs parameter ``name``. Tied parameters: each name on its own."""
        home = self.home(name)
        if home == -1:
            return span.start == 0
        if home == self.num_layers:
            return span.stop == self.num_layers
        return home in span

    def parameter_counts(self) -> list[int]:
        """Elements by home: [0, num_layers) the layers, num_layers what comes after, -1 (the last entry) before the layers."""
        counts = [0] * (self.num_layers + 2)
        for name, tensor in self.meta.items():
            counts[self.home(name)] += tensor.numel()
        return counts

    def tied(self) -> dict[str, str]:
        """Parameter -> the parameter it is the same as (head -> embedding), as the config ties them."""
        return dict(self.model.all_tied_weights_keys)


def build(checkpoint: Checkpoint, dtype: Dtype) -> Skeleton:
    """The whole model on the meta device.

    Raises:
        ModelUnsupported: the family lacks what the module's docstring asks for.
        ConfigError: no model can be built of its config.

    Time: milliseconds a layer, no memory to speak of.
    """
    config = checkpoint.new_config()
    plan = _require_plan(checkpoint.ref, config)
    if not 1 <= config.num_hidden_layers <= MAX_LAYERS:
        said = f"{checkpoint.ref}: num_hidden_layers = {config.num_hidden_layers}: must be from 1 to {MAX_LAYERS}"
        raise ConfigError(said, model=checkpoint.ref, field="num_hidden_layers")
    with _BUILDING, torch.device("meta"), no_init_weights():
        try:
            model = AutoModelForCausalLM.from_config(
                config, dtype=TORCH_DTYPES[dtype], attn_implementation=ATTENTION, trust_remote_code=False
            )
        except Exception as error:  # whatever comes of somebody's values
            raise ConfigError(
                f"{checkpoint.ref}: transformers cannot build the model of its config.json: {type(error).__name__}: {error}",
                model=checkpoint.ref,
            ) from error
    return _dissect(checkpoint.ref, model, plan)


def _require_plan(ref: str, config: PreTrainedConfig) -> dict[str, Any]:
    def refuse(what: str, unsupported: str) -> ModelUnsupported:
        return ModelUnsupported(f"{ref}: {config.model_type}: {what}", unsupported=unsupported, model_type=config.model_type)

    if not config.base_model_pp_plan:
        raise refuse("transformers publishes no pipeline plan (base_model_pp_plan) for it", "base_model_pp_plan")
    if not MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_attention_backend:
        raise refuse("it does not use transformers' attention interface", "attention_interface")
    kinds = set(getattr(config, "layer_types", None) or ()) - ATTENTION_KINDS
    if kinds:
        raise refuse(f"layers of type {', '.join(sorted(kinds))} are not supported", "layer_types")
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        raise refuse("its attention is not causal", "is_causal")
    return dict(config.base_model_pp_plan)


def _dissect(ref: str, model: PreTrainedModel, plan: dict[str, Any]) -> Skeleton:
    base = model.base_model
    children = dict(base.named_children())
    lists = [name for name in plan if isinstance(children.get(name), nn.ModuleList)]
    outside = [name for name, child in children.items() if name not in plan and any(True for _ in child.parameters())]
    loose = [name for name, _ in base.named_parameters(recurse=False)]
    if base is model or len(lists) != 1 or outside or loose:
        what = ", ".join(outside + loose) or f"layer lists {lists}"
        raise ModelUnsupported(
            f"{ref}: the pipeline plan of {type(base).__name__} does not place {what}", unsupported="base_model_pp_plan"
        )
    layers = children[lists[0]]
    foreign = {name for layer in layers for name in _inputs(type(layer))} - LAYER_INPUTS
    if foreign:
        raise ModelUnsupported(
            f"{ref}: layers of {type(base).__name__} take more than hidden states: {', '.join(sorted(foreign))}",
            unsupported="layer_inputs",
        )
    names = [name for name in plan if name in children]
    at = names.index(lists[0])
    weighty = {name for name, child in children.items() if any(True for _ in child.parameters())}
    arguments = _inputs(type(base))
    meta = model.state_dict(keep_vars=True)
    return Skeleton(
        model=model,
        base=base,
        prefix=next(name for name, module in model.named_modules() if module is base) + ".",
        layers=lists[0],
        before=tuple(name for name in names[:at] if name in weighty),
        after=tuple(names[at + 1 :]),
        cache_argument="cache" if "cache" in arguments else "past_key_values",
        num_layers=len(layers),
        meta=meta,
        parameters={name: _locate(model, name) for name in meta},
        rotaries=install(base),
    )


def _locate(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _inputs(module: type[nn.Module]) -> set[str]:
    return set(inspect.signature(module.forward).parameters) - {"self"}


class _Absent(nn.Module):  # type: ignore[misc]
    """Stands where another stage has the embedding: adds nothing, and its output is thrown away in any case."""

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.zeros((), device=x.device)


def splice(skeleton: Skeleton, span: Span) -> None:
    """Cut ``skeleton.model``, in place, down to what the stage of ``span`` holds. Layers keep their numbers.

    The base model's forward stays transformers' own: it finds a shorter list of layers, an identity for the
    norm that a later stage has, and per-layer lists (``layer_types`` and the like) cut to the span.
    """
    base, last = skeleton.base, span.stop == skeleton.num_layers
    if span.start > 0:
        for name in skeleton.before:
            setattr(base, name, _Absent())
    if not last:
        for name in skeleton.after:
            setattr(base, name, nn.Identity())
        for name, child in list(skeleton.model.named_children()):
            if child is not base:
                setattr(skeleton.model, name, _Absent())
    _keep_layers(skeleton, range(span.start, span.stop))


@contextmanager
def rearranged(skeleton: Skeleton, places: Sequence[int]) -> Iterator[None]:
    """Meanwhile the model's layers are those at ``places`` of the ones it has; one may come more than once."""
    base = skeleton.base
    layers, config = getattr(base, skeleton.layers), base.config
    before = {name: vars(base)[name] for name, _ in _per_layer_lists(base, len(layers))}
    _keep_layers(skeleton, places)
    try:
        yield
    finally:
        setattr(base, skeleton.layers, layers)
        base.config = config
        vars(base).update(before)


def _keep_layers(skeleton: Skeleton, places: Sequence[int]) -> None:
    base = skeleton.base
    layers = list(getattr(base, skeleton.layers))
    config = copy.copy(base.config)
    for owner in (config, base):
        for name, value in _per_layer_lists(owner, len(layers)):
            vars(owner)[name] = type(value)(value[place] for place in places)
    config.num_hidden_layers = len(places)
    base.config = config
    setattr(base, skeleton.layers, nn.ModuleList([layers[place] for place in places]))


def _per_layer_lists(owner: Any, total: int) -> Iterator[tuple[str, Any]]:
    """Attributes with one value a layer: named after layers or types, as long as the model is deep."""
    for name, value in list(vars(owner).items()):
        if isinstance(value, (list, tuple)) and len(value) == total and ("layer" in name or "types" in name):
            yield name, value
