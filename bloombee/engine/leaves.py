"""The weights of one layer as memory: which places of its modules hold them, and where each lies.

A layer whose weights come and go has its modules all the time, and in them values only while they are there. What holds one is a
:class:`Leaf`: a parameter, a buffer that the checkpoint stores, or the laid out weights of a packed layer (``packed.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bloombee.engine.packed import PackedLinear, PackedPart, memory_of

SMALL_BYTES = 1 << 16
"""Areas below this lie together at the end, so that norms and biases cost one read, not one each."""


@dataclass(frozen=True, slots=True)
class Area:
    """Memory of a value: ``num_bytes`` from ``address``. ``tensor``: whose it is, if torch can say."""

    address: int
    num_bytes: int
    tensor: torch.Tensor | None = None

    def bytes(self) -> torch.Tensor:
        """[num_bytes] uint8: the same memory, wherever it is, of a tensor that torch knows."""
        assert self.tensor is not None
        return self.tensor.view(-1).view(torch.uint8)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A place of a module that holds a weight, or (``name`` is empty) all that a packed layer has."""

    module: nn.Module
    name: str

    @property
    def value(self) -> Any:
        if not self.name:
            return self.module.parts
        return self.module._parameters.get(self.name, self.module._buffers.get(self.name))

    def hold(self, value: Any) -> None:
        """``value``: of a leaf at the same place of a like layer; None: nothing."""
        if not self.name:
            self.module.hold(value or [])
        elif self.name in self.module._parameters:
            self.module._parameters[self.name] = value
        else:
            self.module._buffers[self.name] = value

    def areas(self) -> list[Area]:
        if self.name:
            return [_dense(self.value)]
        biases = [bias for _, bias in self.value if bias is not None]
        return [Area(*memory_of(weight)) for weight, _ in self.value] + [_dense(bias) for bias in biases]


def leaves_of(layer: nn.Module) -> list[Leaf]:
    """In an order that is the same for layers that are alike; buffers that no checkpoint stores are none."""
    found: dict[tuple[int, str], Leaf] = {}
    for module in layer.modules():
        packed = module.packed if isinstance(module, PackedPart) else module
        if isinstance(packed, PackedLinear):
            found.setdefault((id(packed), ""), Leaf(packed, ""))
            continue
        stored = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
        tensors = {**module._parameters, **module._buffers}
        for name in (*module._parameters, *stored):
            if tensors[name] is not None:
                found.setdefault((id(module), name), Leaf(module, name))
    return list(found.values())


def areas_of(leaves: Iterable[Leaf]) -> list[Area]:
    """All memory that they have, in the order in which it is stored: large areas first."""
    return sorted((area for leaf in leaves for area in leaf.areas()), key=lambda area: area.num_bytes < SMALL_BYTES)


def _dense(tensor: torch.Tensor) -> Area:
    return Area(tensor.data_ptr(), int(tensor.nbytes), tensor.detach())
