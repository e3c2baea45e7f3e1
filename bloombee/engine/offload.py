"""Getting a span's layers ready to stream: each is filled and laid out once, as if it stayed, and written to a file.

Where the file is there already, from an earlier run, nothing of the checkpoint is read for it. What is on the device at any time
is no more than the slots.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from bloombee.engine.buffers import TORCH_DTYPES
from bloombee.engine.checkpoint import Checkpoint
from bloombee.engine.hugepages import forget
from bloombee.engine.layer_file import LayerFile
from bloombee.engine.layer_files import LayerFiles
from bloombee.engine.leaves import Area, Leaf, areas_of, leaves_of
from bloombee.engine.packed import ROWS, Watch, can_pack, pack_like, pack_linears
from bloombee.engine.skeleton import Skeleton, build
from bloombee.engine.stored import probe
from bloombee.engine.streams import LayerStream
from bloombee.engine.synthetic import fill_random
from bloombee.engine.weights import Loading, LoadProgress, everything, fill, give_memory, plan_loading
from bloombee.errors import ConfigError, DeviceError
from bloombee.plan.placement import num_slots
from bloombee.types import Dtype, Span


@dataclass(frozen=True)
class LayerMaker:
    """Fills layers of one span, one at a time.

    Args:
        skeleton: spliced to ``span``; the layers in question have no memory.
        loading: of all of them. together: linear layers that are handed one input.
        whole: as in :func:`~bloombee.engine.weights.fill`.
    """

    checkpoint: Checkpoint
    skeleton: Skeleton
    span: Span
    loading: Loading
    dtype: Dtype
    device: torch.device
    together: Sequence[tuple[nn.Linear, ...]]
    whole: Callable[[], PreTrainedModel]

    def layer(self, number: int) -> nn.Module:
        layer: nn.Module = getattr(self.skeleton.base, self.skeleton.layers)[number - self.span.start]
        return layer

    def make(self, number: int, progress: LoadProgress | None) -> tuple[int, int]:
        """A layer as it is when it stays. Returns as :func:`~bloombee.engine.weights.fill`."""
        loading = self._loading_of(number)
        memory = give_memory(self.skeleton, loading.stored, self.dtype, self.device)
        if self.checkpoint.is_random:
            counts = fill_random(memory, progress), 0
        else:
            counts = fill(self.checkpoint, loading, memory, self.whole, progress)
        self._lay_out(number)
        return counts

    def make_room(self, number: int) -> None:
        """A layer with memory as :meth:`make` gives it, and no values."""
        give_memory(self.skeleton, self._loading_of(number).stored, self.dtype, self.device)
        self._lay_out(number)

    def num_bytes(self, number: int) -> int:
        """Of a layer's weights on the device."""
        names = set(self._loading_of(number).stored.values())
        return sum(bytes_of(self.skeleton.meta[name], self.dtype) for name in names)

    def form(self, number: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """What layers share that may use each other's memory."""
        start = f"{self.skeleton.prefix}{self.skeleton.layers}.{number}."
        names = self._loading_of(number).stored
        return tuple((name.removeprefix(start), tuple(self.skeleton.meta[name].shape)) for name in sorted(names))

    def key(self, number: int) -> str:
        """What the layer's weights in memory are made of: files, as they are now, and how they are laid out."""
        names = sorted({name for unit in self._loading_of(number).units for name in unit.names()})
        files = {file: self._file(file) for file in sorted({self.checkpoint.files[name] for name in names})}
        return repr((self.checkpoint.config_digest.hex(), number, names, files or self.checkpoint.ref, self._layout))

    @cached_property
    def _layout(self) -> tuple[object, ...]:
        packs = self.device.type == "cpu" and can_pack(TORCH_DTYPES[self.dtype])
        groups = [tuple(layer.out_features for layer in layers) for layers in self.together]
        return (
            str(self.dtype),
            self.device.type,
            torch.__version__,
            torch.backends.cpu.get_cpu_capability(),
            packs,
            ROWS,
            groups,
        )

    def _file(self, name: str) -> tuple[str, int, int]:
        path = os.path.realpath(self.checkpoint.shard(name))
        status = os.stat(path)
        return path, status.st_size, status.st_mtime_ns

    def _loading_of(self, number: int) -> Loading:
        return self.loading.without({name for name in self.loading.stored if self.skeleton.home(name) != number})

    def _lay_out(self, number: int) -> None:
        if self.device.type == "cpu":
            pack_linears(self.layer(number), self.together)


def stream_layers(
    maker: LayerMaker, numbers: Sequence[int], files: LayerFiles, progress: LoadProgress
) -> tuple[LayerStream, int, int]:
    """The stream of layers ``numbers`` of a span, attached to them; and bytes as :func:`~bloombee.engine.weights.fill` counts.

    Raises:
        ConfigError: they are not alike. Infeasible, DeviceError: there is no room for their files.

    Memory: of its slots; while it is made of one layer more at most.
    """
    _require_alike(maker, numbers)
    first_slot = len(numbers) - num_slots(len(numbers))
    rest = sum(maker.num_bytes(number) for number in numbers)
    opened: dict[int, LayerFile] = {}
    leaves: dict[int, list[Leaf]] = {}
    slots: list[tuple[list[Any], list[Area]]] = []
    disk_bytes = requested_bytes = 0
    try:
        for index, number in enumerate(numbers):
            rest -= maker.num_bytes(number)
            key = maker.key(number)
            file = files.find(key)
            if file is None:
                read, asked = maker.make(number, continued(progress, disk_bytes, rest))
                disk_bytes, requested_bytes = disk_bytes + read, requested_bytes + asked
            elif index >= first_slot:
                maker.make_room(number)
            if file is None or index >= first_slot:
                own = leaves[number] = leaves_of(maker.layer(number))
                areas = areas_of(own)
                file = file or files.write(key, _on_host(areas))
                if index >= first_slot:
                    slots.append(([leaf.value for leaf in own], areas))
                else:
                    _let_go(areas)
                for leaf in own:
                    leaf.hold(None)
            opened[number] = file
        leaves |= {number: _bare(maker, number, numbers[-1]) for number in numbers if number not in leaves}
        stream = _stream(maker, opened, leaves, slots)
    except BaseException:
        for file in opened.values():
            file.close()
        raise
    return stream, disk_bytes, requested_bytes


def pack_layers(checkpoint: Checkpoint, dtype: Dtype, files: LayerFiles) -> tuple[int, int]:
    """Have compressed files of all layers of ``checkpoint``, as workers on this machine's processor stream them.

    Returns:
        Bytes of the layers, and of the files that are read for them.

    Raises:
        ModelUnsupported, ConfigError: as :meth:`~bloombee.engine.model.SpanModel.load`. Infeasible, DeviceError: as
            :func:`stream_layers`.

    Memory: of one layer.
    """
    skeleton = build(checkpoint, dtype)
    span = Span(0, skeleton.num_layers)
    with Watch(skeleton.model) as watch:
        probe(skeleton, checkpoint.ref, span)
    loading = everything(skeleton, span) if checkpoint.is_random else plan_loading(skeleton, checkpoint, span)
    whole = cache(lambda: build(checkpoint, dtype).model)
    maker = LayerMaker(checkpoint, skeleton, span, loading, dtype, torch.device("cpu"), watch.groups, whole)
    num_bytes = stored_bytes = 0
    for number in range(skeleton.num_layers):
        maker.make(number, lambda *_: None)
        own = leaves_of(maker.layer(number))
        file = files.write_compressed(maker.key(number), areas_of(own), dtype)
        num_bytes, stored_bytes = num_bytes + file.num_bytes, stored_bytes + file.stored_bytes
        file.close()
        _let_go(areas_of(own))
        for leaf in own:
            leaf.hold(None)
    return num_bytes, stored_bytes


def _stream(
    maker: LayerMaker,
    files: dict[int, LayerFile],
    leaves: dict[int, list[Leaf]],
    slots: list[tuple[list[Any], list[Area]]],
) -> LayerStream:
    sizes = [area.num_bytes for area in slots[0][1]]
    for number, file in files.items():
        if file.areas != sizes:
            raise DeviceError(f"{file.path} does not hold a layer as layer {number} is; remove it", path=str(file.path))
    start = maker.span.start
    return LayerStream(
        {number - start: file for number, file in files.items()},
        {number - start: leaves[number] for number in files},
        slots,
        maker.device,
    )


def _bare(maker: LayerMaker, number: int, like: int) -> list[Leaf]:
    """Leaves of a layer that was never filled, once it has the modules of one that was."""
    layer = maker.layer(number)
    pack_like(layer, maker.layer(like))
    own = leaves_of(layer)
    for leaf in own:
        leaf.hold(None)
    return own


def continued(progress: LoadProgress, before: int, rest: int) -> LoadProgress:
    """Of a part of what is loaded, ``before`` of which was, and ``rest`` is still to be."""
    return lambda loaded, total: progress(before + loaded, before + total + rest)


def _require_alike(maker: LayerMaker, numbers: Sequence[int]) -> None:
    form = maker.form(numbers[0])
    other = next((number for number in numbers if maker.form(number) != form), None)
    if other is not None:
        raise ConfigError(
            f"{maker.checkpoint.ref}: layers {numbers[0]} and {other} differ in their weights and cannot stream through the same"
            " memory; give the worker more of it",
            model=maker.checkpoint.ref,
        )


def _on_host(areas: Sequence[Area]) -> list[Area]:
    if all(area.tensor is None or area.tensor.device.type == "cpu" for area in areas):
        return list(areas)
    copies = [area.bytes().cpu() for area in areas]
    return [Area(copy.data_ptr(), int(copy.nbytes), copy) for copy in copies]


def _let_go(areas: Sequence[Area]) -> None:
    """Of memory on the host that nothing reads any more, before its owners free it: see ``hugepages.py``."""
    for area in areas:
        if area.tensor is None or area.tensor.device.type == "cpu":
            forget(area.address, area.num_bytes)


def bytes_of(tensor: torch.Tensor, dtype: Dtype) -> int:
    """Of a parameter in a run of ``dtype``."""
    return int(tensor.numel()) * (dtype.num_bytes if tensor.is_floating_point() else int(tensor.element_size()))
