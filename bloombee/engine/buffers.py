"""Hidden states <-> the bytes of a tensor frame, without a copy on the CPU."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch

from bloombee.errors import RemoteProtocolError
from bloombee.types import Dtype

TORCH_DTYPES: dict[Dtype, torch.dtype] = {
    Dtype.BFLOAT16: torch.bfloat16,
    Dtype.FLOAT16: torch.float16,
    Dtype.FLOAT32: torch.float32,
}


def to_buffer(hidden: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of ``hidden`` in row order.

    Args:
        hidden: [rows, d], any of our dtypes, any device.

    Returns:
        [rows * d * element bytes] uint8. On the CPU, of a contiguous tensor, a view that keeps it alive;
        from another device the copy off it.
    """
    array: np.ndarray[Any, np.dtype[np.uint8]] = hidden.detach().cpu().contiguous().view(torch.uint8).reshape(-1).numpy()
    return array


def from_buffer(buffer: Any, rows: int, d: int, dtype: Dtype) -> torch.Tensor:
    """The inverse of :func:`to_buffer`: a tensor over ``buffer``'s own memory.

    The tensor keeps ``buffer`` alive and must not be written to: a received frame is read-only, which
    torch cannot express (``torch.frombuffer`` on a read-only object warns and goes on).

    Args:
        buffer: contiguous bytes-like of exactly ``rows * d * dtype.num_bytes`` bytes.

    Returns:
        [rows, d] ``dtype`` on the CPU.

    Raises:
        RemoteProtocolError: the size disagrees with ``rows``, ``d`` and ``dtype``.
    """
    raw = np.frombuffer(buffer, dtype=np.uint8)
    expected = rows * d * dtype.num_bytes
    if raw.nbytes != expected:
        raise RemoteProtocolError(
            f"activations of {raw.nbytes} bytes: [{rows}, {d}] {dtype.value} takes {expected}", got=raw.nbytes, expected=expected
        )
    if not expected:
        return torch.empty(rows, d, dtype=TORCH_DTYPES[dtype])
    if raw.ctypes.data % dtype.num_bytes:
        raw = raw.copy()  # some kernels load whole elements; a slice of a larger frame may start anywhere
    memory = (ctypes.c_uint8 * expected).from_address(raw.ctypes.data)
    memory.owner = raw  # type: ignore[attr-defined]  # torch holds `memory`; `memory` holds the frame
    return torch.frombuffer(memory, dtype=TORCH_DTYPES[dtype]).view(rows, d)
