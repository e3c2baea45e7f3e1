"""Linear layers of one input - queries, keys and values; gate and up - multiplied as one, on a GPU.

One product of many outputs reads its weights nearer to the speed of memory than several of few, and is one kernel. The weights
lie side by side from the start: each layer's own is a view of its part, so that nothing is copied and nothing is held twice.
Which layers these are is seen, not known by name: ``packed.Watch``. On the CPU ``packed.py`` does the same with another layout.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import torch
from torch import nn
from torch.nn.functional import linear


class _Product:
    """Of several layers: made for the first that is called, kept until the last has had its part."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, sizes: list[int]) -> None:
        self.weight, self.bias, self.sizes = weight, bias, sizes
        self.input: torch.Tensor | None = None
        self.parts: tuple[torch.Tensor, ...] = ()


class JoinedPart:
    """In place of the forward of one of them. Handed another tensor than the layer before it, it multiplies anew."""

    def __init__(self, product: _Product, number: int) -> None:
        self._product, self._number = product, number
        self._is_last = number == len(product.sizes) - 1

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        product = self._product
        if product.input is not x:
            product.parts = linear(x, product.weight, product.bias).split(product.sizes, -1)
            product.input = x
        part = product.parts[self._number]
        if self._is_last:
            product.input, product.parts = None, ()
        return part


def side_by_side(
    groups: Iterable[Sequence[nn.Linear]], wanted: Container[nn.Module], dtype: torch.dtype, device: torch.device
) -> dict[tuple[nn.Module, str], torch.Tensor]:
    """Memory for the weights and biases of each group, and forwards that multiply them as one.

    Args:
        groups: plain linear layers of one input, as a ``packed.Watch`` saw them. wanted: layers that are about to be loaded with
            weights of their own; a group of which one is not stays as it is.

    Returns:
        (layer, name of the parameter) -> its part of the memory, still to be filled.
    """
    places: dict[tuple[nn.Module, str], torch.Tensor] = {}
    for group in groups:
        if len({(layer.in_features, layer.bias is None) for layer in group}) != 1 or not all(layer in wanted for layer in group):
            continue
        sizes = [layer.out_features for layer in group]
        weight = torch.empty(sum(sizes), group[0].in_features, dtype=dtype, device=device)
        bias = None if group[0].bias is None else torch.empty(sum(sizes), dtype=dtype, device=device)
        product = _Product(weight, bias, sizes)
        for number, layer in enumerate(group):
            first = sum(sizes[:number])
            places[layer, "weight"] = weight[first : first + sizes[number]]
            if bias is not None:
                places[layer, "bias"] = bias[first : first + sizes[number]]
            layer.forward = JoinedPart(product, number)
    return places
