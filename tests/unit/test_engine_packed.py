"""Packed linear layers give what plain ones give, whichever are joined or cut."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import nn

from bloombee.engine import hugepages, packed
from bloombee.engine.packed import PackedLinear, PackedPart, Watch, can_pack, pack_linears, padded_rows

needs_kernels = pytest.mark.skipif(not can_pack(torch.float32), reason="this torch has no packed kernels for this processor")


class Layer(nn.Module):
    """Two projections of one input, one of their product, and one layer that is called twice."""

    def __init__(self, bias: bool = False, up_bias: bool | None = None) -> None:
        super().__init__()
        self.gate = nn.Linear(24, 40, bias=bias)
        self.up = nn.Linear(24, 36, bias=bias if up_bias is None else up_bias)
        self.down = nn.Linear(36, 24, bias=bias)
        self.twice = nn.Linear(24, 24, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(self.gate(x)[..., :36] * self.up(x))
        return self.twice(self.twice(y) + x)


def pack(model: nn.Module, rows: torch.Tensor) -> None:
    with Watch(model) as watch:
        model(rows)
    pack_linears(model, watch.groups)


@pytest.fixture(autouse=True)
def inference() -> None:
    torch.manual_seed(3)


@needs_kernels
@pytest.mark.parametrize("rows", [0, 1, 7, 70])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_model_computes_the_same(rows: int, bias: bool) -> None:
    with torch.inference_mode():
        model, x = Layer(bias), torch.randn(1, rows, 24)
        expected = model(x)
        pack(model, torch.randn(1, 2, 24))
        assert [type(one) for one in (model.gate, model.up, model.down, model.twice)] == [
            PackedPart, PackedPart, PackedLinear, PackedLinear,
        ]  # fmt: skip
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(x + 1), model(x + 1), atol=0, rtol=0)


@needs_kernels
def test_a_part_called_alone_or_out_of_turn_sees_its_own_input() -> None:
    with torch.inference_mode():
        model, x, y = Layer(), torch.randn(1, 3, 24), torch.randn(1, 3, 24)
        gate, up = model.gate(y), model.up(x)
        pack(model, x)
        torch.testing.assert_close(model.up(x), up, atol=1e-5, rtol=1e-5)
        model.gate(x)
        torch.testing.assert_close(model.gate(y), gate, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.up(x), up, atol=1e-5, rtol=1e-5)
        assert model.gate._product.input is None, "the last part lets go of the input"


@needs_kernels
def test_layers_of_different_kinds_are_not_joined() -> None:
    with torch.inference_mode():
        model, x = Layer(bias=False, up_bias=True), torch.randn(1, 3, 24)
        expected = model(x)
        pack(model, x)
        assert type(model.gate) is type(model.up) is PackedLinear
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


@needs_kernels
@pytest.mark.parametrize("bias", [False, True])
def test_a_large_weight_is_packed_by_parts(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "CHUNK_BYTES", 300 * 128 * 4)
    with torch.inference_mode():
        layer, x = nn.Linear(128, 1000, bias=bias), torch.randn(1, 5, 128)
        expected = layer(x)
        model = nn.Sequential(layer)
        pack_linears(model)
        assert [weight.shape[0] for weight, _ in model[0].parts] == [300, 300, 300, 100]
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


@needs_kernels
def test_weights_that_others_use_and_other_classes_stay_as_they_are() -> None:
    class Own(nn.Linear):
        pass

    embedding, head = nn.Embedding(50, 24), nn.Linear(24, 50, bias=False)
    head.weight = nn.Parameter(embedding.weight.detach())  # the same memory, as a stage of the whole model has it
    model = nn.ModuleList([embedding, head, Own(24, 24), nn.Linear(24, 24, dtype=torch.float64)])
    pack_linears(model)
    assert [type(one) for one in model] == [nn.Embedding, nn.Linear, Own, nn.Linear]


def test_rows_are_padded_to_few_numbers_and_by_little() -> None:
    padded = [padded_rows(rows) for rows in range(513)]
    assert padded[:17] == list(range(17))
    assert all(rows <= more <= rows + max(3, rows / 16) for rows, more in enumerate(padded))
    assert [padded_rows(more) for more in padded] == padded
    assert len(set(padded)) < 80


@needs_kernels
@pytest.mark.parametrize("bias", [False, True])
def test_kernels_are_written_for_few_numbers_of_rows_and_padding_changes_nothing(bias: bool) -> None:
    seen: set[int] = set()
    with torch.inference_mode():
        plain = nn.Linear(24, 40, bias=bias)
        weight = plain.weight.clone()
        layer = PackedLinear([plain])
        multiply = layer._multiply

        def noted(x: torch.Tensor, *rest: object) -> torch.Tensor:
            seen.add(x.shape[-2])
            return multiply(x, *rest)

        layer._multiply = noted
        for rows in range(1, 300):
            x = torch.randn(1, rows, 24)
            torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, plain.bias), atol=1e-5, rtol=1e-5)
    assert len(seen) < 64


def test_a_dtype_without_kernels_is_not_packed() -> None:
    assert not can_pack(torch.float64)


def test_collapsed_memory_holds_what_it_held() -> None:
    held = torch.randn(3 << 20)
    before = held.clone()
    count = hugepages.collapse([(held.data_ptr(), held.nbytes)])
    assert 0 <= count <= 7
    assert torch.equal(held, before)


def test_memory_is_collapsed_by_parts_each_of_which_is_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[tuple[int, int]] = []
    told: list[int] = []
    monkeypatch.setattr(hugepages, "_page_size", lambda: 1000)
    monkeypatch.setattr(hugepages, "_madvise", lambda: lambda address, count, _: parts.append((address, count)) or 0)
    assert hugepages.collapse([(5000, 30_000), (200_000, 1000)], lambda: told.append(len(parts))) == 31
    assert parts == [(5000, 16_000), (21_000, 14_000), (200_000, 1000)]
    assert told == [1, 2, 3]


@pytest.mark.skipif(not hugepages.sys.platform.startswith("linux"), reason="only Linux takes pages back")
def test_forgotten_memory_is_zero_within_its_bounds() -> None:
    held = (ctypes.c_char * 100_000)(*b"x" * 100_000)
    hugepages.forget(ctypes.addressof(held) + 10_000, 50_000)
    data = bytes(held)
    assert data[:10_000] == b"x" * 10_000
    assert data[60_000:] == b"x" * 40_000
    assert data[20_000:50_000] == bytes(30_000)
