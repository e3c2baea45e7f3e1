"""Linear layers on the CPU with their weights laid out once for the matrix kernels.

torch's plain linear hands oneDNN the weights as they lie in the file, and the kernels put them in order on every
call: a decode step of one row then reads weights at about half the speed of memory. Here each weight is put in
order once, when the span has been filled, and the original is let go at once, so that no weight is held
twice. docs/adr/0030 has the measurements; with packed weights no number of rows is slower than without, so
there is no second path to choose.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import torch
from torch import nn
from torch.nn.functional import linear

ROWS = 32
"""Rows that the layout is made for. Those for 4 to 512 rows measure alike; the one for a single row is slower from 2 on."""


class PackedLinear(nn.Module):  # type: ignore[misc]
    """What ``original`` does. Takes its weight over: ``original`` has none afterwards.

    Attributes:
        weight: [out, in], in an order that only oneDNN knows; ``shape`` and ``dtype`` are the original's.
        bias: [out] or None.
    """

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = original.in_features, original.out_features
        self.weight = _packed(original.weight.detach())
        self.bias = None if original.bias is None else original.bias.detach()
        self._multiply = torch.ops.mkldnn._linear_pointwise.default  # its packet would look up the overload on every call
        del original.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._multiply(x, self.weight, self.bias, "none", [], "")
        return out


def pack_linears(model: nn.Module) -> None:
    """Replace the linear layers of ``model``, in place, by packed ones.

    Left as they are: weights that share memory with others (a head tied to its embedding, which is looked up by
    rows), weights on another device than the CPU, dtypes for which oneDNN has no kernels here, subclasses of ``nn.Linear``.

    Memory: one weight more than before, while it is packed. Time: one read and one write of the weights.
    """
    owners = Counter(p.untyped_storage().data_ptr() for _, p in model.named_parameters(remove_duplicate=False))
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear or child.weight.device.type != "cpu" or not can_pack(child.weight.dtype):
                continue
            if owners[child.weight.untyped_storage().data_ptr()] == 1:
                setattr(parent, name, PackedLinear(child))


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this processor, multiplies by packed weights of ``dtype``, and rightly."""
    weight = torch.linspace(-1, 1, 48 * 80).view(80, 48).to(dtype)
    rows = torch.linspace(1, 2, 3 * 48).view(3, 48).to(dtype)
    try:
        got = torch.ops.mkldnn._linear_pointwise.default(rows, _packed(weight), None, "none", [], "")
    except (RuntimeError, AttributeError):  # built without oneDNN; or this processor lacks the instructions
        return False
    return bool(torch.allclose(got.float(), linear(rows.float(), weight.float()), rtol=0.02, atol=0.05))


def _packed(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight.default(weight, ROWS)
