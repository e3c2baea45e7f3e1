"""Random weights for models that exist only as a shape (``llama:1024x16``), and for layers that are only to be measured."""

from __future__ import annotations

import hashlib

import torch

from bloombee.engine.weights import LoadProgress

STD = 0.02
TILE = 1_048_573
"""Values that are drawn for a parameter; a larger one has them again and again. A prime: no two rows of a matrix are alike."""


def fill_random(memory: dict[str, torch.Tensor], progress: LoadProgress | None = None) -> int:
    """Fill parameters by name: norms with ones, the rest normal with deviation 0.02.

    The values of a parameter depend on its name and shape only, so any split gives the same model.

    Returns:
        Bytes filled.
    """
    total: int = sum(t.numel() * t.element_size() for t in memory.values())
    done = 0
    for name, tensor in memory.items():
        tile = _values(name, min(TILE, tensor.numel())) if tensor.dim() > 1 else torch.ones(tensor.numel())
        for part in tensor.view(-1).split(TILE):
            part.copy_(tile[: part.numel()])
            done += part.numel() * part.element_size()
            if progress is not None:
                progress(done, total)
    return total


def _values(name: str, count: int) -> torch.Tensor:
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "little")
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).mul_(STD)
