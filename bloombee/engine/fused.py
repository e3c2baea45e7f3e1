"""RMSNorm, the gate of an MLP and rotary embedding in one kernel each, in place of the five, two and ten that torch launches.

There is no code per family: what transformers' module does is compared with what the kernel does, on random rows of its own
shape, and replaced only where both do the same (:func:`install`). "The same" is each rounding to a 16-bit type at the same place;
sums are taken in another order than torch's, so that a value in a thousand may round the other way, and in float32 the last bits
differ. A row's bits are the same in any batch, which torch's kernels do not promise.

The same arithmetic runs on the CPU, thread by thread, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from bloombee import _native

CODES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
NORMS = ("rounded", "wide", "one plus")
"""Where the weight comes in: after the row was rounded to its type, before, or before and as 1 + weight."""
GATES = ("silu", "gelu_tanh", "gelu")
MOST_FLIPS = 0.01
"""Of 16-bit values, the part that may round the other way; where a rounding is at another place it is a quarter of them."""
NOTHING = 4e-6
ROTARY = "apply_rotary_pos_emb"
"""What transformers calls it, in the file of each family."""
PROBE_ROWS = 4


@cache
def cuda_kernels() -> Any:
    """The extension, where it was built with CUDA and finds a device; else None."""
    try:
        from bloombee import _native_cuda
    except ImportError:
        return None
    return _native_cuda if _native_cuda.device_count() else None


def norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, kind: int) -> torch.Tensor:
    """RMSNorm of the last axis.

    Args:
        x: [..., n], its last axis dense. weight: [n], of the same type. kind: of ``NORMS``.
    """
    if x.stride(-1) != 1 or sum(size > 1 for size in x.shape[:-2]) > 1:
        x = x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    inner, inner_stride = (x.shape[-2], x.stride(-2)) if x.dim() > 1 else (1, 0)
    outer_stride = next((x.stride(axis) for axis in range(x.dim() - 2) if x.shape[axis] > 1), 0)
    width = x.shape[-1]
    shape = (x.numel() // width, max(1, inner), outer_stride, inner_stride, width, kind)
    addresses = (x.data_ptr(), weight.data_ptr(), out.data_ptr())
    if x.device.type == "cpu":
        _native.fused_norm_by_lanes(shape, epsilon, CODES[x.dtype], *addresses)
    else:
        cuda_kernels().fused_norm(shape, epsilon, CODES[x.dtype], *addresses, _stream(x))
    return out


def gate(gates: torch.Tensor, ups: torch.Tensor, kind: int) -> torch.Tensor:
    """``activation(gates) * ups``, element by element.

    Args:
        gates, ups: [..., n] of one shape and type, rows equally far apart. kind: of ``GATES``.
    """
    gates, ups = _as_rows(gates), _as_rows(ups)
    if gates.stride(0) != ups.stride(0):
        gates, ups = gates.contiguous(), ups.contiguous()
    out = torch.empty(gates.shape, dtype=gates.dtype, device=gates.device)
    shape = (gates.shape[0], gates.stride(0), gates.shape[1], kind)
    addresses = (gates.data_ptr(), ups.data_ptr(), out.data_ptr())
    if out.device.type == "cpu":
        _native.fused_gate_by_lanes(shape, CODES[out.dtype], *addresses)
    else:
        cuda_kernels().fused_gate(shape, CODES[out.dtype], *addresses, _stream(out))
    return out


def rotary(
    q: torch.Tensor, k: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, turned: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys turned by their positions.

    Args:
        q, k: [1, heads, t, e]. cosines, sines: [1, t, w] of the same type.
        turned: how many of a head's first elements are: w of them, or 2 w where the table has each angle once.

    Returns:
        Two of the same shapes, whose memory is [t, heads, e].

    Raises:
        ValueError: a head has fewer elements, or the tables fewer angles.
    """
    if turned % 2 or turned > min(q.shape[-1], k.shape[-1]) or 2 * cosines.shape[-1] < turned:
        raise ValueError(f"{turned} elements turned of heads of {q.shape[-1]}, by {cosines.shape[-1]} angles")
    cosines, sines = cosines.contiguous(), sines.contiguous()
    angles = cosines.shape[-1]
    pair = [x if x.stride(-1) == 1 else x.contiguous() for x in (q, k)]
    shapes = [(x.shape[2], x.stride(2), x.stride(1), x.shape[1], x.shape[3], turned, angles) for x in pair]
    outs = [torch.empty((1, x.shape[2], x.shape[1], x.shape[3]), dtype=x.dtype, device=x.device) for x in pair]
    code = CODES[q.dtype]
    if q.device.type == "cpu":
        for shape, x, out in zip(shapes, pair, outs, strict=True):
            _native.fused_rotary_by_lanes(shape, code, x.data_ptr(), cosines.data_ptr(), sines.data_ptr(), out.data_ptr())
    else:
        addresses = [x.data_ptr() for x in (*pair, cosines, sines, *outs)]
        cuda_kernels().fused_rotary(*shapes, code, *addresses, _stream(q))
    return outs[0].transpose(1, 2), outs[1].transpose(1, 2)


class FusedNorm:
    """In place of a norm's forward, for rows of its weight's type."""

    def __init__(self, module: nn.Module, epsilon: float, kind: int) -> None:
        self._original, self._weight = module.forward, module.weight
        self._epsilon, self._kind = epsilon, kind

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != self._weight.dtype:
            out: torch.Tensor = self._original(x)
            return out
        return norm(x, self._weight, self._epsilon, self._kind)


class FusedGate:
    """In place of an MLP's forward.

    Args:
        first: the layers of gate and of ups, or the one layer of both. is_swapped: the ups come first.
    """

    def __init__(self, first: Sequence[nn.Module], down: nn.Module, kind: int, is_swapped: bool) -> None:
        self._first, self._down, self._kind, self._is_swapped = first, down, kind, is_swapped

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._down(self.gated(x))
        return out

    def gated(self, x: torch.Tensor) -> torch.Tensor:
        """What goes into the last product."""
        both = [layer(x) for layer in self._first] if len(self._first) == 2 else self._first[0](x).chunk(2, -1)
        ups, gates = both if self._is_swapped else both[::-1]
        return gate(gates, ups, self._kind).view(ups.shape)


class FusedRotary:
    """In place of the function of a family's file, for all of the process: tensors of devices it was not asked for, and families
    whose function does something else, go the old way.

    Attributes:
        devices: types of those it was asked for.
    """

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original
        self.devices: set[str] = set()
        self._turned: dict[tuple[object, ...], int] = {}
        """How many elements of a head are turned, by what is known of a call; 0: it does something else."""

    def __call__(self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *more: Any, **options: Any) -> Any:
        turned = 0 if more or options or q.device.type not in self.devices else self._find(q, k, cos, sin)
        return rotary(q, k, cos, sin, turned) if turned else self.original(q, k, cos, sin, *more, **options)

    def _find(self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> int:
        if (
            q.dim() != 4
            or k.dim() != 4
            or q.shape[0] != 1
            or cos.shape != sin.shape
            or cos.shape != (1, q.shape[2], cos.shape[-1])
        ):
            return 0
        if len({q.dtype, k.dtype, cos.dtype, sin.dtype}) != 1 or q.dtype not in CODES:
            return 0
        key = (q.shape[1], k.shape[1], q.shape[3], cos.shape[2], q.dtype, q.device)
        found = self._turned.get(key)
        if found is None:
            found = self._turned[key] = self._try(q, k, cos)
        return found

    def _try(self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor) -> int:
        """On random rows of the same kind. The first of a kind is never seen while a graph is recorded: it has run before."""
        t, e, w = PROBE_ROWS, int(q.shape[3]), int(cos.shape[2])
        some_q, some_k = (_random((1, t, x.shape[1], e), x).transpose(1, 2) for x in (q, k))
        some_cos, some_sin = (_random((1, t, w), cos, seed) for seed in (1, 2))
        for turned in (w, 2 * w):
            with contextlib.suppress(RuntimeError, ValueError):
                expected = self.original(some_q, some_k, some_cos, some_sin)
                got = rotary(some_q, some_k, some_cos, some_sin, turned)
                if all(_flips(a, b) <= MOST_FLIPS for a, b in zip(expected, got, strict=True)):
                    return turned
        return 0


def install(model: nn.Module, device: torch.device) -> int:
    """Give the modules of ``model``, whose weights are on ``device``, such forwards, wherever they do the same.

    Returns:
        How many modules were replaced, functions of a family's file counted once.
    """
    count = 0
    for module in model.modules():
        if "forward" in vars(module):
            continue  # as it is used by another span too
        if _is_norm(module):
            count += _replace_norm(module)
        elif (parts := _parts_of_gate(module)) is not None:
            count += _replace_gate(module, *parts)
        scope = getattr(inspect.unwrap(type(module).forward), "__globals__", {})
        if (found := scope.get(ROTARY)) is not None:
            if not isinstance(found, FusedRotary):
                found = scope[ROTARY] = FusedRotary(found)
                count += 1
            found.devices.add(device.type)
    return count


def _is_norm(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    alone = len(module._parameters) == 1 and not module._modules and not module._buffers
    return alone and weight is not None and weight.dim() == 1 and weight.dtype in CODES and len(_epsilons(module)) == 1


def _epsilons(module: nn.Module) -> list[float]:
    return [value for name, value in vars(module).items() if isinstance(value, float) and "eps" in name]


def _replace_norm(module: nn.Module) -> bool:
    weight, (epsilon,) = module._parameters["weight"], _epsilons(module)
    assert weight is not None
    x = _random((1, PROBE_ROWS, weight.shape[0]), weight)
    with torch.inference_mode():
        expected = module.forward(x)
        if expected.dtype != weight.dtype or expected.shape != x.shape:
            return False
        flips = [_flips(expected, norm(x, weight, epsilon, kind)) for kind in range(len(NORMS))]
    best = min(range(len(NORMS)), key=flips.__getitem__)
    if flips[best] > MOST_FLIPS:
        return False
    module.forward = FusedNorm(module, epsilon, best)
    return True


def _parts_of_gate(module: nn.Module) -> tuple[list[nn.Linear], nn.Linear] | None:
    """(first layers, last layer) of what may be an MLP with a gate: products, one of them back to the input's width, and an
    activation without weights."""
    children = list(module.children())
    linears = [child for child in children if type(child) is nn.Linear]
    if module._parameters or len(children) != len(linears) + 1 or len(linears) not in (2, 3):
        return None
    if any(layer._parameters["weight"] is None for layer in linears):  # of a layer that streams there is nothing to compare
        return None
    if any(True for child in children if child not in linears for _ in child.parameters()):
        return None
    *first, down = linears
    widths = [layer.out_features for layer in first]
    fits = len(set(widths)) == 1 and sum(widths) == 2 * down.in_features
    return (first, down) if fits else None


def _replace_gate(module: nn.Module, first: list[nn.Linear], down: nn.Linear) -> bool:
    x = _random((1, PROBE_ROWS, first[0].in_features), first[0].weight)
    seen: list[torch.Tensor] = []
    hook = down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with torch.inference_mode():
            module.forward(x)
            ways = [FusedGate(first, down, kind, swapped) for swapped in (False, True) for kind in range(len(GATES))]
            flips = [_flips(seen[0], way.gated(x)) for way in ways] if len(seen) == 1 else [1.0]
    finally:
        hook.remove()
    best = min(range(len(flips)), key=flips.__getitem__)
    if flips[best] > MOST_FLIPS:
        return False
    module.forward = ways[best]
    return True


def _random(shape: tuple[int, ...], like: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Normal noise, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(like.dtype).to(like.device)


def _flips(expected: torch.Tensor, got: torch.Tensor) -> float:
    """Of 16-bit values, the part that differs, save for what is next to nothing; 1 if one differs by more than a rounding, or in
    float32 by more than sums in another order make."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return 1.0
    is_wide = expected.dtype == torch.float32
    a, b = expected.double(), got.double()
    most = torch.finfo(expected.dtype).eps * (16 if is_wide else 4) * a.abs().clamp(min=0.25)
    if not bool(((a - b).abs() <= most).all()):
        return 1.0
    return 0.0 if is_wide else float(((a - b).abs() > NOTHING).double().mean())


def _as_rows(x: torch.Tensor) -> torch.Tensor:
    """[..., n] -> [rows, n], without a copy where rows are equally far apart."""
    return (
        x.view(-1, x.shape[-1])
        if x.is_contiguous() or sum(size > 1 for size in x.shape[:-1]) <= 1
        else x.reshape(-1, x.shape[-1])
    )


def _stream(x: torch.Tensor) -> int:
    return int(torch.cuda.current_stream(x.device).cuda_stream)
