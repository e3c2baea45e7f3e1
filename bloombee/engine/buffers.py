"""Hidden states <-> the bytes of a tensor frame, without a copy on the CPU."""

from __future__ import annotations

import warnings
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
    if hidden.device.type != "cpu":
        hidden = hidden.cpu()
    array: np.ndarray[Any, np.dtype[np.uint8]] = hidden.detach().contiguous().view(torch.uint8).numpy()
    return array.reshape(-1)


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor`` in memory from which a copy to ``device`` is only queued: from pages that may move it would hold this thread
    until all that was asked of a GPU before is done."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor`` on ``device``, queued in its order of work."""
    return pinned(tensor, device).to(device, non_blocking=True)


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
    view = memoryview(buffer)
    expected = rows * d * dtype.num_bytes
    if view.nbytes != expected:
        raise RemoteProtocolError(
            f"activations of {view.nbytes} bytes: [{rows}, {d}] {dtype.value} takes {expected}",
            got=view.nbytes,
            expected=expected,
        )
    if not expected:
        return torch.empty(rows, d, dtype=TORCH_DTYPES[dtype])
    whole = torch.frombuffer(view, dtype=TORCH_DTYPES[dtype])
    if whole.data_ptr() % dtype.num_bytes:
        whole = whole.clone()  # some kernels load whole elements; a slice of a larger frame may start anywhere
    return whole.view(rows, d)


def _say_nothing_of_read_only_buffers() -> None:
    """torch warns of the first one of a process; let that be one of ours, unheard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.frombuffer(bytes(4), dtype=torch.uint8)


_say_nothing_of_read_only_buffers()
