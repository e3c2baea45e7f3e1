"""How much memory a device has for a worker."""

from __future__ import annotations

import torch

from bloombee import machine

CUDA_PROCESS_BYTES = 1 << 29
"""What a process takes of a GPU before it has a tensor there: context, kernels, the libraries' workspaces."""


def free_bytes(device: str) -> int:
    """Memory of ``device`` (torch's name of it) that nothing uses now and this process may use."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return machine.free_memory().amount


def offered_bytes(device: str, workers: int = 1) -> int:
    """What each of so many workers on ``device``, none of which has started, can hold of a model."""
    beside = workers * CUDA_PROCESS_BYTES if device.startswith("cuda") else 0
    return max(0, int(machine.MEMORY_SHARE * (free_bytes(device) - beside))) // workers
