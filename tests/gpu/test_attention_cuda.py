"""Attention over pages on a CUDA device: against the formula in float64, and bit against bit.

The same cases run lane by lane on the CPU in tests/unit/test_paged_attention.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from paged_kit import Case, Shape, require_close

from bloombee.engine.paged import kernels_of
from bloombee.engine.paged_items import NARROW_ROWS, SPLIT

REASON = "" if torch.cuda.is_available() else "needs a CUDA device; torch sees none"
REASON = REASON or ("" if kernels_of(torch.device("cuda")) else "built without CUDA")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REASON), reason=REASON)]

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = {
    "llama": Shape(heads=32, kv_heads=8, key_dim=128, value_dim=128),
    "one head each": Shape(heads=3, kv_heads=3),
    "many heads a key": Shape(heads=40, kv_heads=2, key_dim=32, value_dim=32),
    "window of one": Shape(window=1),
    "window of a split": Shape(window=SPLIT),
    "all": Shape(window=200, softcap=3.0, sinks=True),
    "odd widths": Shape(key_dim=80, value_dim=24, heads=6, kv_heads=2),
    "widest": Shape(key_dim=256, value_dim=256, heads=16, kv_heads=8, softcap=50.0),
    "odd pages": Shape(page=7),
}


def mixed(shape: Shape) -> tuple[Case, dict[int, int]]:
    """Decode at all kinds of lengths, with pieces of prompts of a few rows and of many beside it."""
    rows = {1: 1, 64: 1, 65: 1, 513: 1, 1100: 1, 5000: 1, 3: 3, 90: 5, 40: 40, 1600: 190}
    case = Case(shape, list(rows), device="cuda")
    for number, (length, count) in enumerate(rows.items()):
        case.store(number, length - count)
    return case, rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_rows_equal_the_formula(shape: Shape, dtype: torch.dtype) -> None:
    case, rows = mixed(replace(shape, dtype=dtype))
    segments = [case.segment(number, length - count, count) for number, (length, count) in enumerate(rows.items())]
    got, start = case.run(segments), 0
    for number, (length, count) in enumerate(rows.items()):
        require_close(got[start : start + count], case.expected(number, length - count, count))
        start += count


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["llama", "all", "many heads a key", "widest"])
def test_a_rows_bits_depend_on_its_own_sequence_only(name: str, dtype: torch.dtype) -> None:
    """Alone, among 63 others, in a few rows and in a chunk of its prompt; and again and again."""
    at, length = 2050, 2200
    case = Case(replace(SHAPES[name], dtype=dtype), [length, *(1 + 29 * number for number in range(63))], seed=4, device="cuda")
    for number, other in enumerate(case.lengths):
        case.store(number, other)
    others = [case.segment(number, case.lengths[number] - 1, 1) for number in range(1, 64)]
    alone = case.run([case.segment(0, at, 1)])[0]
    require_close(alone[None], case.expected(0, at, 1))
    for _ in range(3):
        assert torch.equal(alone, case.run([*others[:40], case.segment(0, at, 1), *others[40:]])[40])
    assert torch.equal(alone, case.run([*others, case.segment(0, at - 6, 7)])[69])
    for first, rows in ((at - 100, 101), (at - 17, 40), (at, NARROW_ROWS + 1), (0, length)):
        assert torch.equal(alone, case.run([others[1], case.segment(0, first, rows)])[1 + at - first])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_one_long_sequence_beside_many_short_ones(dtype: torch.dtype) -> None:
    lengths = [32768] + [100] * 31
    case = Case(Shape(heads=32, kv_heads=8, key_dim=128, value_dim=128, dtype=dtype), lengths, device="cuda")
    for number, length in enumerate(lengths):
        case.store(number, length - 1)
    got = case.run([case.segment(number, length - 1, 1) for number, length in enumerate(lengths)])
    for number in (0, 1, 31):
        require_close(got[number : number + 1], case.expected(number, lengths[number] - 1, 1))


def test_a_captured_step_is_replayed_with_other_tables() -> None:
    """What is launched depends on nothing that changes: lengths, pages, padding."""
    lengths = [700, 90, 33, 1500]
    case = Case(SHAPES["llama"], lengths, device="cuda")
    for number, length in enumerate(lengths):
        case.store(number, length)
    q = torch.randn(1, 32, 4, 128, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        case.tables.fill([case.segment(1, 80, 1)], num_rows=4, captured=True)
        case.tables.attend(3, q)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            out = case.tables.attend(3, q)
        for segments in ([case.segment(i, length - 1, 1) for i, length in enumerate(lengths)], [case.segment(0, 650, 3)]):
            case.tables.fill(segments, num_rows=4, captured=True)
            graph.replay()
            replayed = out.clone()
            case.tables.fill(segments, num_rows=4)
            assert torch.equal(replayed, case.tables.attend(3, q))
    stream.synchronize()
    assert case.tables.version == 1
