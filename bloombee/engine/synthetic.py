"""Random weights for models that exist only as a shape (``llama:1024x16``)."""

from __future__ import annotations

import hashlib

import torch

from bloombee.engine.weights import LoadProgress

STD = 0.02


def fill_random(memory: dict[str, torch.Tensor], progress: LoadProgress | None = None) -> int:
    """Fill parameters by name: norms with ones, the rest normal with deviation 0.02.

    The values of a parameter depend on its name and shape only, so any split gives the same model.

    Returns:
        Bytes filled.
    """
    total: int = sum(t.numel() * t.element_size() for t in memory.values())
    done = 0
    for name, tensor in memory.items():
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "little")
        generator = torch.Generator().manual_seed(seed)
        for rows in tensor.split(max(1, (1 << 20) // tensor.shape[-1])):
            if tensor.dim() < 2:
                rows.fill_(1.0)
            else:
                rows.copy_(torch.randn(rows.shape, generator=generator).mul_(STD))
            done += rows.numel() * rows.element_size()
            if progress is not None:
                progress(done, total)
    return total
