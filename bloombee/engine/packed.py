"""Linear layers on the CPU with their weights laid out once for the matrix kernels.

torch's plain linear hands oneDNN the weights as they lie in the file, and the kernels put them in order on every
call: a decode step of one row then reads weights at about half the speed of memory. Here each weight is put in
order once, when the span has been filled, and the original is let go at once, so that no weight is held
twice. docs/adr/0030 has the measurements; with packed weights no number of rows is slower than without, so
there is no second path to choose.

Layers that are handed one and the same tensor (queries, keys and values; gate and up) are multiplied as one. Which those are
is not known by name but seen: the layers run once without values, for the cache's sake (probe.py), and :class:`Watch`
looks on.

Kernels are written for every shape anew. So that they do not become more and more as requests of all lengths come and go,
rows are padded to one of few numbers (:func:`padded_rows`), and only the last used are kept.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, pad

from bloombee.engine.hugepages import collapse, forget, let_go

ROWS = 32
"""Rows that the layout is made for. Those for 4 to 512 rows measure alike; the one for a single row is slower from 2 on."""
EXACT_ROWS = 16
"""Up to so many, each number of rows has kernels of its own: what decodes comes in these."""
KEPT_KERNELS = 512
"""That oneDNN keeps of those it has written, the last used: its own 1,024 take 0.7 to 1.7 MB each."""
CHUNK_BYTES = 64 << 20
"""Larger weights are packed by parts, each part of the original let go before the next; and larger groups are not joined."""

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KEPT_KERNELS))  # read when the first kernel is written; no other way


class Watch:
    """Notes which linear layers of a model are called one after the other with the very same tensor, while the block runs.

    Attributes:
        groups: those layers, in the order of their calls; each layer was called once and is in one group.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [module for module in model.modules() if type(module) is nn.Linear]
        self._calls: list[tuple[torch.Tensor, list[nn.Linear]]] = []
        self.groups: list[tuple[nn.Linear, ...]] = []

    def __enter__(self) -> Watch:
        self._hooks = [layer.register_forward_pre_hook(self._note) for layer in self._layers]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()
        times = Counter(id(layer) for _, layers in self._calls for layer in layers)
        self.groups = [
            tuple(layers) for _, layers in self._calls if len(layers) > 1 and all(times[id(layer)] == 1 for layer in layers)
        ]
        self._calls = []

    def _note(self, layer: nn.Linear, args: tuple[Any, ...]) -> None:
        if self._calls and args and self._calls[-1][0] is args[0]:
            self._calls[-1][1].append(layer)
        elif args:
            self._calls.append((args[0], [layer]))


class PackedLinear(nn.Module):  # type: ignore[misc]
    """What one linear layer does, or several of the same input, side by side. Takes their weights over: they have none after, and
    whoever still holds one holds zeros. Of no layers: it has no weights until it is to :meth:`hold` some.

    Attributes:
        weight: [out, in], in an order that only oneDNN knows; the first of several, by rows, where it is large.
        parts: all of them, each with its part of the bias.
    """

    def __init__(self, originals: Sequence[nn.Linear]) -> None:
        super().__init__()
        self._multiply = torch.ops.mkldnn._linear_pointwise.default  # its packet would look up the overload on every call
        self.hold([])
        if not originals:
            return
        bias = _joined([layer.bias for layer in originals]) if originals[0].bias is not None else None
        weight = _joined([layer.weight for layer in originals])
        for layer in originals:
            if weight.data_ptr() != layer.weight.data_ptr():
                let_go(layer.weight)
            del layer.weight
        self.hold([(part, None if bias is None else bias[start : start + part.shape[0]]) for start, part in _packed(weight)])

    def hold(self, parts: list[tuple[torch.Tensor, torch.Tensor | None]]) -> None:
        """Multiply by ``parts`` from now on, those of a layer of the same sizes; none: it has no weights and is not to be run."""
        self.parts = parts
        self.weight: Any = parts[0][0] if parts else None
        self._bias = parts[0][1] if parts else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[-2]
        padded = padded_rows(rows)
        if padded == rows:
            return self._multiplied(x)
        return self._multiplied(pad(x, (0, 0, 0, padded - rows)))[..., :rows, :]

    def _multiplied(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.parts) == 1:
            out: torch.Tensor = self._multiply(x, self.weight, self._bias, "none", [], "")
            return out
        return torch.cat([self._multiply(x, weight, bias, "none", [], "") for weight, bias in self.parts], -1)


def padded_rows(rows: int) -> int:
    """How many rows are multiplied for ``rows``, the others zeros: few different numbers, none much larger than asked for.

    oneDNN writes a kernel for every number of rows that it meets, which takes half a millisecond and 0.7 MB each.
    """
    step = 1 if rows <= EXACT_ROWS else max(4, 1 << ((rows - 1).bit_length() - 5))
    return -(-rows // step) * step


class _Product:
    """The one product of several layers: made for the first that is called, kept until the last has had its part."""

    def __init__(self, packed: PackedLinear, sizes: list[int]) -> None:
        self.packed = packed
        self.sizes = sizes
        self.input: torch.Tensor | None = None
        self.parts: tuple[torch.Tensor, ...] = ()


class PackedPart(nn.Module):  # type: ignore[misc]
    """One layer of several that are multiplied as one. Handed another tensor than the layer before it, it multiplies anew.

    Attributes:
        packed: what all of them are multiplied by.
    """

    def __init__(self, product: _Product, number: int) -> None:
        super().__init__()
        self._product, self._number = product, number
        self._is_last = number == len(product.sizes) - 1

    @property
    def packed(self) -> PackedLinear:
        return self._product.packed

    @property
    def weight(self) -> torch.Tensor:
        """Of all of them."""
        return self.packed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = self._product
        if product.input is not x:
            product.parts = product.packed.forward(x).split(product.sizes, -1)
            product.input = x
        part = product.parts[self._number]
        if self._is_last:
            product.input, product.parts = None, ()
        return part


def pack_linears(
    model: nn.Module, groups: Iterable[tuple[nn.Linear, ...]] = (), on_packed: Callable[[], None] = lambda: None
) -> None:
    """Replace the linear layers of ``model``, in place, by packed ones.

    Left as they are: weights that share memory with others (a head tied to its embedding, which is looked up by
    rows), weights on another device than the CPU, dtypes for which oneDNN has no kernels here, subclasses of ``nn.Linear``.

    Args:
        groups: layers of one input, as a :class:`Watch` saw them; layers outside ``model`` are ignored.
        on_packed: called after each.

    Memory: ``CHUNK_BYTES`` more than before on Linux, one weight elsewhere. Time: one read and one write of the weights.
    """
    owners = Counter(p.untyped_storage().data_ptr() for _, p in model.named_parameters(remove_duplicate=False))
    places = {
        child: (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
        and child.weight.device.type == "cpu"
        and can_pack(child.weight.dtype)
        and owners[child.weight.untyped_storage().data_ptr()] == 1
    }
    for layers in groups:
        if all(layer in places for layer in layers) and _can_join(layers):
            product = _Product(PackedLinear(layers), [layer.out_features for layer in layers])
            for number, layer in enumerate(layers):
                setattr(*places.pop(layer), PackedPart(product, number))
            on_packed()
    for layer, place in places.items():
        setattr(*place, PackedLinear([layer]))
        on_packed()


def pack_like(model: nn.Module, packed: nn.Module) -> None:
    """Give ``model``, which is as ``packed`` was, packed layers in the same places, without weights."""
    twins: dict[PackedLinear, PackedLinear] = {}
    products: dict[_Product, _Product] = {}
    for path, module in packed.named_modules():
        if not isinstance(module, PackedLinear | PackedPart):
            continue
        source = _product_of(module)
        twin = twins.setdefault(source, PackedLinear(()))
        if isinstance(module, PackedPart):
            product = products.setdefault(module._product, _Product(twin, module._product.sizes))
            replacement: nn.Module = PackedPart(product, module._number)
        else:
            replacement = twin
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, replacement)


def back_by_huge_pages(model: nn.Module, on_backed: Callable[[], None] = lambda: None) -> None:
    """Put the memory of all packed weights below ``model`` into huge pages, where there are any; they may be multiplied with
    meanwhile.

    Args:
        on_backed: called after each part; what it raises ends it.

    Time: one read and one write of the weights, and as long as Linux looks for huge pages.
    """
    collapse({memory_of(weight) for module in model.modules() for weight in _weights(module)}, on_backed)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this processor, multiplies by packed weights of ``dtype``, and rightly."""
    weight = torch.linspace(-1, 1, 48 * 80).view(80, 48).to(dtype)
    rows = torch.linspace(1, 2, 3 * 48).view(3, 48).to(dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight.default(weight, ROWS)
        got = torch.ops.mkldnn._linear_pointwise.default(rows, packed, None, "none", [], "")
        memory_of(packed)
    except (RuntimeError, AttributeError):  # built without oneDNN; or this processor lacks the instructions
        return False
    return bool(torch.allclose(got.float(), linear(rows.float(), weight.float()), rtol=0.02, atol=0.05))


def empty(module: nn.Module) -> None:
    """Give back the memory of all weights below ``module``, which cannot be run any more; whoever still has it has its shell."""
    for one in module.modules():
        for packed in _weights(one):
            forget(*memory_of(packed))
        if isinstance(one, PackedLinear | PackedPart):
            _product_of(one).hold([])
        vars(one).pop("forward", None)  # one of ours, which has weights too
        for tensors in (one._parameters, one._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    let_go(tensor)
            tensors.clear()


def _weights(module: nn.Module) -> list[torch.Tensor]:
    return [weight for weight, _ in _product_of(module).parts] if isinstance(module, PackedLinear | PackedPart) else []


def _product_of(module: PackedLinear | PackedPart) -> PackedLinear:
    return module.packed if isinstance(module, PackedPart) else module


def memory_of(packed: torch.Tensor) -> tuple[int, int]:
    """(address, bytes) of a packed weight, which has no storage that torch would tell of."""
    return torch.ops.mkldnn.data_ptr(packed), torch.ops.mkldnn._nbytes(packed)


def _can_join(layers: Sequence[nn.Linear]) -> bool:
    kinds = {(layer.weight.dtype, layer.bias is None) for layer in layers}
    return len(kinds) == 1 and sum(int(layer.weight.nbytes) for layer in layers) <= CHUNK_BYTES


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensors[0].detach() if len(tensors) == 1 else torch.cat([tensor.detach() for tensor in tensors])


def _packed(weight: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, packed rows) of ``weight``, in parts of at most ``CHUNK_BYTES``; its memory goes as they come."""
    count = max(1, CHUNK_BYTES // (weight.shape[1] * weight.element_size()))
    for start in range(0, weight.shape[0], count):
        part = weight[start : start + count]
        yield start, torch.ops.mkldnn._reorder_linear_weight.default(part, ROWS)
        let_go(part)
