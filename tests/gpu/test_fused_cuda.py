"""The fused kernels on a GPU: bit for bit their lanes on the CPU, where arithmetic is exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_kit import load_chain, make_checkpoint

from bloombee.engine import fused

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(fused.cuda_kernels() is None, reason="needs a CUDA device and the extension built for it"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def noise(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize(
    ("rows", "width"), [(1, 4096), (65, 4096), (7, 1000), (300, 128), pytest.param(3, 60, id="smallest"), (2, 8192)]
)
def test_norms(rows: int, width: int, kind: int, dtype: torch.dtype) -> None:
    x, weight = noise(1, rows, width, dtype=dtype), noise(width, dtype=dtype, seed=1)
    got = fused.norm(x.cuda(), weight.cuda(), 1e-5, kind)
    assert torch.equal(got.cpu(), fused.norm(x, weight, 1e-5, kind))
    alone = fused.norm(x[:, -1:].cuda(), weight.cuda(), 1e-5, kind)
    assert torch.equal(alone, got[:, -1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize(("rows", "width"), [(1, 14336), (64, 100), pytest.param(3, 7, id="smallest")])
def test_gates(rows: int, width: int, kind: int, dtype: torch.dtype) -> None:
    """Exponentials are not the same bits on both sides."""
    gates, ups = noise(1, rows, 2 * width, dtype=dtype).chunk(2, -1)
    got = fused.gate(*(x.cuda() for x in (gates, ups)), kind).cpu()
    expected = fused.gate(gates, ups, kind)
    eps = torch.finfo(dtype).eps
    assert torch.allclose(got.float(), expected.float(), rtol=16 * eps if dtype == torch.float32 else 2 * eps, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("angles", "turned"), [(128, 128), (32, 32), (64, 128)])
@pytest.mark.parametrize("tokens", [pytest.param(1, id="smallest"), 65])
def test_rotary_embeddings(tokens: int, angles: int, turned: int, dtype: torch.dtype) -> None:
    qkv = noise(1, tokens, 48 * 128, dtype=dtype)
    cos, sin = (noise(1, tokens, angles, dtype=dtype, seed=seed) for seed in (1, 2))

    def turn(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        heads = qkv.view(1, tokens, 48, 128).transpose(1, 2)
        return fused.rotary(heads[:, :32], heads[:, 32:40], cos, sin, turned)

    for got, expected in zip(turn(qkv.cuda(), cos.cuda(), sin.cuda()), turn(qkv, cos, sin), strict=True):
        assert torch.equal(got.cpu(), expected)


def test_a_loaded_span_has_them(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    for stage in load_chain(tmp_path, (2,), device="cuda"):
        replaced = [type(vars(module).get("forward")).__name__ for module in stage.module.modules()]
        assert replaced.count("FusedNorm") == 4 + stage.is_last
        assert replaced.count("FusedGate") == 2
        assert replaced.count("JoinedPart") == 2 * 5
