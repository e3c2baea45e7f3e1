"""Filling a span with its weights: which tensors of the files it takes, and putting them in place.

Names on disk and names in the model differ by family and by transformers version (prefixes, ``embed_out``,
experts one by one against experts stacked). transformers keeps the rules; they are asked here rather
than repeated: each name goes through the model's own conversion mapping, and tensors that a conversion
combines are handed to the conversion, save for the commonest (stacking experts), which is read in place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    build_glob_alternation,
    dot_natural_key,
    rename_source_key,
)
from transformers.modeling_utils import PreTrainedModel

from bloombee.engine.buffers import TORCH_DTYPES
from bloombee.engine.checkpoint import Checkpoint
from bloombee.engine.joined import side_by_side
from bloombee.engine.reader import Entry, Progress, ShardReader
from bloombee.engine.skeleton import Skeleton
from bloombee.errors import ConfigError
from bloombee.types import Dtype, Span

LoadProgress = Callable[[int, int], None]
"""Called with (loaded bytes, total bytes)."""


@dataclass
class Unit:
    """What is loaded together: one tensor, or the sources and targets of one conversion.

    Args:
        targets: parameter names in the whole model.
        sources: per source pattern, the names on disk, in the order the conversion wants them.
        converter: None if source and target are the same tensor.
    """

    targets: tuple[str, ...]
    sources: dict[str, list[str]] = field(default_factory=dict)
    converter: WeightConverter | None = None

    def names(self) -> Iterable[str]:
        return (name for names in self.sources.values() for name in names)


def units_of(skeleton: Skeleton, names: Iterable[str]) -> dict[str, Unit]:
    """Match every tensor name of a checkpoint with the whole model.

    Returns:
        First target -> unit; of several names for one target the first in natural order counts. Names that match nothing
        (buffers of older versions, other heads) are left out.
    """
    mapping = get_model_conversion_mapping(skeleton.model)
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    state = skeleton.meta
    prefix = skeleton.model.base_model_prefix
    units: dict[str, Unit] = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        if target not in state:
            continue
        if pattern is None:
            units.setdefault(target, Unit((target,), {name: [name]}))
            continue
        rule = by_pattern[pattern]
        if target not in units:
            targets = tuple(target.replace(rule.target_patterns[0], other) for other in rule.target_patterns)
            units[target] = Unit(targets, converter=rule)
        units[target].sources.setdefault(pattern, []).append(name)
    return units


@dataclass
class Loading:
    """What one span takes from a checkpoint.

    Args:
        units: to load.
        stored: parameter of the span -> the name its values are stored under: its own, or that of the parameter it is
            tied to where the checkpoint has only that one.
    """

    units: list[Unit]
    stored: dict[str, str]

    def without(self, names: Container[str]) -> Loading:
        """The same but for parameters that are there already."""
        stored = {name: source for name, source in self.stored.items() if name not in names}
        wanted = set(stored.values())
        return Loading([unit for unit in self.units if wanted.intersection(unit.targets)], stored)


def plan_loading(skeleton: Skeleton, checkpoint: Checkpoint, span: Span) -> Loading:
    """Choose what the stage of ``span`` reads. A last stage without a head of its own in the file reads the embedding for it.

    Raises:
        ConfigError: the checkpoint lacks a tensor that the span needs.
    """
    units = units_of(skeleton, checkpoint.files)
    unit_of = {target: unit for unit in units.values() for target in unit.targets}
    twins = skeleton.tied()
    twins |= {source: target for target, source in twins.items()}
    chosen: dict[int, Unit] = {}
    stored: dict[str, str] = {}
    for name in skeleton.parameters:
        if not skeleton.is_in(name, span):
            continue
        source = name if name in unit_of else twins.get(name, name)
        if source not in unit_of:
            raise ConfigError(
                f"{checkpoint.ref}: the checkpoint has no weights for {name} of {type(skeleton.model).__name__}", tensor=name
            )
        stored[name] = source
        chosen[id(unit_of[source])] = unit_of[source]
    return Loading(list(chosen.values()), stored)


def everything(skeleton: Skeleton, span: Span) -> Loading:
    """What a span takes of a checkpoint without files, whose weights are made: each of its parameters."""
    return Loading([], {name: name for name in skeleton.parameters if skeleton.is_in(name, span)})


def materialize(
    skeleton: Skeleton,
    stored: dict[str, str],
    dtype: Dtype,
    device: torch.device,
    together: Sequence[tuple[nn.Linear, ...]] = (),
) -> dict[str, torch.Tensor]:
    """Give a span's parameters memory; parameters stored under one name share it.

    Args:
        skeleton: spliced to the span.
        stored: as in :class:`Loading`.
        together: layers that are to be multiplied as one (``joined.py``).

    Returns:
        Stored name -> tensor to fill. Buffers that no checkpoint stores are computed already.
    """
    memory = give_memory(skeleton, stored, dtype, device, together)
    _compute_buffers(skeleton.model, device)
    return memory


def give_memory(
    skeleton: Skeleton,
    stored: dict[str, str],
    dtype: Dtype,
    device: torch.device,
    together: Sequence[tuple[nn.Linear, ...]] = (),
) -> dict[str, torch.Tensor]:
    """As :func:`materialize`, where buffers are computed already."""
    wide = skeleton.model._get_dtype_plan(TORCH_DTYPES[dtype])
    keep_wide = build_glob_alternation(list(wide))[0].search if wide else lambda _: None
    times = Counter(stored.values())
    own = {skeleton.parameters[name][0] for name, source in stored.items() if times[source] == 1 and not keep_wide(source)}
    places = side_by_side(together, own, TORCH_DTYPES[dtype], device)
    memory: dict[str, torch.Tensor] = {}
    for name, source in stored.items():
        owner, leaf = skeleton.parameters[name]
        old = getattr(owner, leaf)
        if source not in memory:
            kind = torch.float32 if old.is_floating_point() and keep_wide(source) else old.dtype
            place = places.get((owner, leaf))
            memory[source] = torch.empty(old.shape, dtype=kind, device=device) if place is None else place
        if isinstance(old, nn.Parameter):
            owner._parameters[leaf] = nn.Parameter(memory[source], requires_grad=False)
        else:
            owner._buffers[leaf] = memory[source]
        getattr(owner, leaf)._is_hf_initialized = True
    return memory


def _compute_buffers(model: nn.Module, device: torch.device) -> None:
    """Buffers that no checkpoint stores (rotary frequencies, embedding scales), by the model's own initialisation,
    which leaves alone what is marked ``_is_hf_initialized``."""
    for module in list(model.modules()):
        names = [name for name in module._non_persistent_buffers_set if module._buffers.get(name) is not None]
        for name in names:
            module._buffers[name] = torch.empty_like(module._buffers[name], device=device)
        if names:
            with torch.no_grad():
                model._init_weights(module)


def fill(
    checkpoint: Checkpoint,
    loading: Loading,
    memory: dict[str, torch.Tensor],
    whole: Callable[[], PreTrainedModel],
    progress: LoadProgress | None = None,
) -> tuple[int, int]:
    """Read ``loading`` into ``memory``.

    Args:
        whole: makes the whole model on the meta device, which some conversions look shapes up in.

    Returns:
        Bytes of the span's tensors on disk, and bytes asked of the files (those, and the headers of their shards).

    Raises:
        ConfigError: a shard is missing, corrupt, or holds a tensor of another shape than the model's.

    Memory: one chunk of staging where the dtype changes; the sources of one unit where a conversion combines them.
    """
    with ExitStack() as stack:
        shards = {
            file: stack.enter_context(ShardReader(checkpoint.shard(file)))
            for file in sorted({checkpoint.files[name] for unit in loading.units for name in unit.names()})
        }

        def locate(name: str) -> tuple[ShardReader, Entry]:
            return shards[checkpoint.files[name]].locate(name)

        total = sum(locate(name)[1].num_bytes for unit in loading.units for name in unit.names())
        loaded = 0

        def advance(count: int) -> None:
            nonlocal loaded
            loaded += count
            if progress is not None:
                progress(loaded, total)

        for unit in loading.units:
            places = {name: memory[name] for name in unit.targets if name in memory}
            _fill_unit(unit, places, locate, advance, whole)
        return total, sum(shard.requested_bytes for shard in shards.values())


Locate = Callable[[str], tuple[ShardReader, Entry]]


def _fill_unit(
    unit: Unit,
    places: dict[str, torch.Tensor],
    locate: Locate,
    advance: Progress,
    whole: Callable[[], PreTrainedModel],
) -> None:
    if unit.converter is None:
        shard, entry = locate(next(iter(unit.names())))
        shard.read_into(entry, places[unit.targets[0]], advance)
        return
    stacked = _stacked_views(unit, places[unit.targets[0]], locate) if len(places) == len(unit.targets) == 1 else None
    if stacked is not None:
        for name, view in stacked:
            shard, entry = locate(name)
            shard.read_into(entry, view, advance)
        return
    converter = deepcopy(unit.converter)
    for pattern, names in unit.sources.items():
        for name in names:
            shard, entry = locate(name)
            converter.add_tensor(unit.targets[0], name, pattern, shard.read(entry, advance))
    model = whole()
    values = converter.convert(unit.targets[0], model=model, config=model.config)
    for target, place in places.items():
        if target not in values:
            raise ConfigError(f"transformers' conversion of {', '.join(unit.names())} gave no {target}", tensor=target)
        value = values[target]
        value = value[0] if isinstance(value, list) else value
        if value.shape != place.shape:
            raise ConfigError(
                f"{target} is {list(value.shape)} in the checkpoint; the model wants {list(place.shape)}", tensor=target
            )
        place.copy_(value)


def _stacked_views(unit: Unit, out: torch.Tensor, locate: Locate) -> list[tuple[str, torch.Tensor]] | None:
    """The part of ``out`` that each source fills, if the conversion is "stack experts, then join along rows".

    Experts are most of a mixture model's bytes: read into place, a layer of them is never held twice.
    """
    assert unit.converter is not None
    operations = [(type(op), getattr(op, "dim", None)) for op in unit.converter.operations]
    if operations not in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)]):
        return None
    views: list[tuple[str, torch.Tensor]] = []
    row = 0
    for pattern in unit.converter.source_patterns:
        names = unit.sources.get(pattern, [])
        shapes = {locate(name)[1].shape for name in names}
        if len(names) != out.shape[0] or len(shapes) != 1:
            return None
        rows = next(iter(shapes))[0]
        if row + rows > out.shape[1]:
            return None
        views += [(name, out[number, row : row + rows]) for number, name in enumerate(names)]
        row += rows
    return views if row == out.shape[1] else None
