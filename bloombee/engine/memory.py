"""How much memory a device has for a worker."""

from __future__ import annotations

import torch

from bloombee import machine
from bloombee.pipeline.log import default_log_bytes

CUDA_PROCESS_BYTES = 1 << 29
"""What a process takes of a GPU before it has a tensor there: context, kernels, the libraries' workspaces."""


def free_bytes(device: str) -> int:
    """Memory of ``device`` (torch's name of it) that nothing uses now and this process may use."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return machine.free_memory().amount


def offered_bytes(device: str, workers: int = 1, *, log_bytes: int | None = None) -> int:
    """What each of so many workers on ``device``, none of which has started, can hold of a model.

    Args:
        log_bytes: of host memory that each keeps for activations that have left it; None: as much as is usual.
    """
    is_cuda = device.startswith("cuda")
    beside = workers * CUDA_PROCESS_BYTES if is_cuda else 0
    share = max(0, int(machine.MEMORY_SHARE * (free_bytes(device) - beside))) // workers
    return share if is_cuda else max(0, share - (default_log_bytes(share) if log_bytes is None else log_bytes))
