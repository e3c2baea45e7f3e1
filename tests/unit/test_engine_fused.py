"""The fused kernels' lanes on the CPU against transformers' own modules, and models in which they stand in for them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_kit import FAMILIES, generate, load_chain, make_checkpoint, ragged_prompts, reference_tokens
from kernel_kit import restore_rotary
from transformers import LlamaConfig
from transformers.activations import ACT2FN

from bloombee import _native
from bloombee.engine import fused, model

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def modelling(family: str) -> Any:
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


@pytest.fixture(autouse=True)
def own_rotary() -> Iterator[None]:
    yield
    restore_rotary()


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def agrees(expected: torch.Tensor, got: torch.Tensor, *, flips: float = 1e-3, tail: float = 4e-6) -> bool:
    """Equal up to the order of a sum: in float32 to a few bits (of what is subtracted, where that nearly cancels, as in the tail
    of a GELU), in 16 bits but for roundings the other way."""
    is_wide = expected.dtype == torch.float32
    rtol = 2e-6 if is_wide else 2 * torch.finfo(expected.dtype).eps
    near = torch.allclose(expected.float(), got.float(), rtol=rtol, atol=tail)
    return near and (is_wide or float((expected != got).float().mean()) <= flips)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8, 60, 128, 1000, 4096])
@pytest.mark.parametrize(("family", "kind"), [("llama", 0), ("olmo2", 1), ("gemma2", 2)])
def test_a_norm_rounds_where_transformers_does(family: str, kind: int, width: int, dtype: torch.dtype) -> None:
    (name,) = [name for name in dir(modelling(family)) if name.endswith("RMSNorm")]
    module = getattr(modelling(family), name)(width, eps=1e-5).to(dtype)
    with torch.no_grad():
        module.weight.copy_(noise(width, seed=1) * 0.2 + (kind != 2))
        x = noise(64, width, dtype=dtype, seed=2) * 3
        assert agrees(module(x), fused.norm(x, module.weight, 1e-5, kind))


def test_a_norm_of_another_type_than_its_rows_is_transformers() -> None:
    module = modelling("llama").LlamaRMSNorm(64)
    x = noise(1, 3, 64, dtype=torch.bfloat16)
    expected = module(x)
    assert fused.install(torch.nn.Sequential(module), torch.device("cpu")) == 2, "the norm, and the function of its file"
    assert torch.equal(module(x), expected)


def test_a_rows_norm_is_the_same_bits_in_any_batch() -> None:
    x, weight = noise(1, 65, 4096, dtype=torch.bfloat16), noise(4096, dtype=torch.bfloat16, seed=1)
    whole = fused.norm(x, weight, 1e-6, 0)
    for row in (0, 31, 64):
        assert torch.equal(whole[:, row], fused.norm(x[:, row : row + 1].clone(), weight, 1e-6, 0)[:, 0])


def test_a_layer_whose_weights_are_on_disk_is_left_alone() -> None:
    config = LlamaConfig(hidden_size=16, intermediate_size=32, num_attention_heads=4)
    layer = torch.nn.Sequential(modelling("llama").LlamaRMSNorm(16), modelling("llama").LlamaMLP(config))
    for module in layer.modules():
        for name in module._parameters:
            module._parameters[name] = None
    assert fused.install(layer, torch.device("cpu")) == 1, "the function of its file"


def test_a_norm_takes_rows_that_lie_apart() -> None:
    whole, weight = noise(1, 5, 96), noise(8, seed=1)
    heads = whole[..., 16:48].view(1, 5, 4, 8)
    assert torch.equal(fused.norm(heads, weight, 1e-6, 0), fused.norm(heads.contiguous(), weight, 1e-6, 0))
    turned = heads.transpose(1, 2)
    assert torch.equal(fused.norm(turned, weight, 1e-6, 0), fused.norm(turned.contiguous(), weight, 1e-6, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "kind"), [("silu", 0), ("gelu_pytorch_tanh", 1), ("gelu", 2)])
def test_a_gate_rounds_where_transformers_does(name: str, kind: int, dtype: torch.dtype) -> None:
    both = noise(33, 2 * 80, dtype=dtype) * 4
    gates, ups = both.chunk(2, -1)
    assert agrees(
        ACT2FN[name](gates) * ups,
        fused.gate(gates, ups, kind),
        flips=0.003 if kind == 0 else 0.03,
        tail=4e-6 if kind == 0 else 1e-4,
    )
    assert torch.equal(fused.gate(gates, ups, kind), fused.gate(gates.contiguous(), ups.contiguous(), kind))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("family", "width"),
    [("llama", 16), ("phi3", 8), ("gpt_neox", 4), ("gpt_oss", 8)],
)
def test_rotary_embedding_is_bit_for_bit_that_of_transformers(family: str, width: int, dtype: torch.dtype) -> None:
    qkv = noise(1, 7, 10 * 16, dtype=dtype)
    q, k = qkv[..., :96].view(1, 7, 6, 16).transpose(1, 2), qkv[..., 96:128].view(1, 7, 2, 16).transpose(1, 2)
    cos, sin = noise(1, 7, width, dtype=dtype, seed=1), noise(1, 7, width, dtype=dtype, seed=2)
    original = getattr(modelling(family), fused.ROTARY)
    expected = original.original(q, k, cos, sin) if isinstance(original, fused.FusedRotary) else original(q, k, cos, sin)
    for a, b in zip(expected, fused.rotary(q, k, cos, sin, 16 if family == "gpt_oss" else width), strict=True):
        assert torch.equal(a, b)


def test_sixteen_bit_numbers_are_rounded_as_torch_rounds_them() -> None:
    """Every float16, and floats about each of them: halves between neighbours, what is too large, what is too small."""
    halves = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.float16).float()
    floats = torch.cat([halves * (1 + n * 2.0**-12) for n in range(-3, 4)] + [torch.tensor([65519.0, 65520.0, 6e-8, 2e-8])])
    floats = floats[floats.isfinite()]
    for dtype in (torch.float16, torch.bfloat16):
        x = floats.to(dtype)
        sixty, out = torch.full_like(x, 60), torch.empty_like(x)
        addresses = (sixty.data_ptr(), x.data_ptr(), out.data_ptr())
        _native.fused_gate_by_lanes((1, x.numel(), x.numel(), 0), fused.CODES[dtype], *addresses)
        assert torch.equal((sixty * x).view(torch.int16), out.view(torch.int16))


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What installing changes in a family's file is undone afterwards."""

    def keep(family: str) -> None:
        family = family.removesuffix("_text")
        module = modelling(family)
        if hasattr(module, fused.ROTARY):
            monkeypatch.setattr(module, fused.ROTARY, getattr(module, fused.ROTARY))

    return keep


REPLACED = {
    # norms, gates and the function of four layers
    "llama": 4 * 3 + 1 + 1, "qwen3": 4 * 5 + 1 + 1, "gemma2": 4 * 5 + 1 + 1, "gemma3_text": 4 * 7 + 1 + 1, "phi3": 4 * 3 + 1 + 1,
    "olmo2": 4 * 5 + 1 + 1, "gpt_oss": 4 * 2 + 1 + 1, "gpt_neox": 1, "cohere2": 4 + 1,
}  # fmt: skip


@pytest.mark.parametrize("family", REPLACED)
def test_tokens_with_fused_kernels_are_transformers(
    family: str, tmp_path: Path, on_the_cpu: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ragged_prompts(5)
    expected = reference_tokens(make_checkpoint(family, tmp_path), prompts, 8)
    on_the_cpu(family)
    monkeypatch.setattr(model, "pack_linears", lambda *_: None)  # on a GPU the products stay torch's
    (stage,) = load_chain(tmp_path, ())
    count = fused.install(stage.module, torch.device("cpu"))
    assert count == REPLACED[family]
    assert generate([stage], prompts, 8, chunk=5) == expected


@pytest.mark.parametrize(("turned", "angles"), [(16, 8), (6, 2), (7, 7)])
def test_no_more_of_a_head_is_turned_than_there_is(turned: int, angles: int) -> None:
    q, k, table = noise(1, 2, 3, 8), noise(1, 1, 3, 8), noise(1, 3, angles)
    with pytest.raises(ValueError, match="elements turned"):
        fused.rotary(q, k, table, table, turned)


def test_what_does_something_else_is_left_alone(on_the_cpu: Callable[[str], None]) -> None:
    """A norm with another power, an MLP whose gate is another, a rotary function of interleaved pairs."""

    class Cubic(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(16))
            self.eps = 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x / (x.abs().pow(3).mean(-1, keepdim=True) + self.eps)

    class Tanh(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = torch.nn.Linear(16, 24), torch.nn.Linear(16, 24), torch.nn.Linear(24, 16)
            self.act = torch.nn.Tanh()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(self.act(self.gate(x)) * self.up(x))

    both = torch.nn.Sequential(Cubic(), Tanh())
    assert fused.install(both, torch.device("cpu")) == 0
    assert not any("forward" in vars(module) for module in both.modules())
    interleaved = fused.FusedRotary(getattr(modelling("cohere2"), fused.ROTARY))
    interleaved.devices.add("cpu")
    q, k, cos = noise(1, 2, 3, 8), noise(1, 2, 3, 8, seed=1), noise(1, 3, 8, seed=2)
    for a, b in zip(interleaved(q, k, cos, cos), interleaved.original(q, k, cos, cos), strict=True):
        assert torch.equal(a, b)


def test_all_families_here_are_known() -> None:
    assert REPLACED.keys() <= FAMILIES.keys()
