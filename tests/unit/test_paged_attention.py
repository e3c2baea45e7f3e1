"""The attention kernels' arithmetic, lane by lane on the CPU: against the plain formula, and bit against bit."""

from __future__ import annotations

import pytest
import torch
from paged_kit import LAYER, Case, Shape, require_close

from bloombee.engine.paged_items import NARROW_ROWS, SPLIT

SHAPES = {
    "plain": Shape(),
    "one head each": Shape(heads=3, kv_heads=3),
    "many heads a key": Shape(heads=20, kv_heads=1, key_dim=32, value_dim=32),
    "window": Shape(window=70),
    "window of one": Shape(window=1),
    "window of a split": Shape(window=SPLIT),
    "cap": Shape(softcap=2.0),
    "sinks": Shape(sinks=True),
    "all": Shape(window=200, softcap=3.0, sinks=True),
    "narrow rows": Shape(key_dim=8, value_dim=8),
    "odd widths": Shape(key_dim=80, value_dim=24, heads=6, kv_heads=2),
    "widest": Shape(key_dim=256, value_dim=256, heads=2, kv_heads=1),
    "pages of one": Shape(page=1),
    "odd pages": Shape(page=7),
    "bfloat16": Shape(dtype=torch.bfloat16, key_dim=128, value_dim=128),
    "float16": Shape(dtype=torch.float16, window=200, sinks=True),
    "bfloat16, widest": Shape(dtype=torch.bfloat16, key_dim=256, value_dim=256, heads=2, kv_heads=1),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_rows_equal_the_formula(shape: Shape) -> None:
    """Decode at all kinds of lengths, with pieces of prompts of a few rows and of many beside it."""
    rows = {1: 1, 64: 1, 65: 1, 513: 1, 1100: 1, 3: 3, 90: 5, 40: 40, 600: 90}
    case = Case(shape, list(rows))
    for number, (length, count) in enumerate(rows.items()):
        case.store(number, length - count)
    segments = [case.segment(number, length - count, count) for number, (length, count) in enumerate(rows.items())]
    got, start = case.run(segments), 0
    for number, (length, count) in enumerate(rows.items()):
        require_close(got[start : start + count], case.expected(number, length - count, count))
        start += count


@pytest.mark.parametrize("length", [2, 63, 127, 512, 1025, 5000])
def test_a_long_sequence_equals_the_formula(length: int) -> None:
    case = Case(Shape(kv_heads=1, heads=4), [length])
    case.store(0, length - 1)
    require_close(case.run([case.segment(0, length - 1, 1)]), case.expected(0, length - 1, 1))


@pytest.mark.parametrize("name", ["plain", "window", "all", "many heads a key", "odd widths", "bfloat16", "float16"])
def test_a_rows_bits_depend_on_its_own_sequence_only(name: str) -> None:
    """Alone, among others, at another place of the batch, in a few rows and in a chunk of its prompt."""
    shape, at, length = SHAPES[name], 530, 560
    case = Case(shape, [length, 100, 5, 700, 1], seed=4)
    for number, other in enumerate(case.lengths):
        case.store(number, other)
    others = [case.segment(number, case.lengths[number] - 1, 1) for number in (1, 2, 3, 4)]
    alone = case.run([case.segment(0, at, 1)])[0]
    require_close(alone[None], case.expected(0, at, 1))
    assert torch.equal(alone, case.run([*others[:2], case.segment(0, at, 1), *others[2:]])[2])
    assert torch.equal(alone, case.run([case.segment(0, at, 1), others[0]], num_rows=9)[0])
    few = case.run([others[0], case.segment(0, at - 6, 7)])
    assert torch.equal(alone, few[7])
    for first, rows in ((at - 100, 101), (at - 17, 40), (at, NARROW_ROWS + 1), (0, length)):
        assert torch.equal(alone, case.run([others[1], case.segment(0, first, rows)])[1 + at - first])


def test_rows_of_padding_store_nothing_and_give_zeros() -> None:
    case = Case(Shape(), [20, 3])
    case.store(0, 19)
    got = case.run([case.segment(0, 19, 1), case.segment(1, 0, 3)], num_rows=11)
    require_close(got[:1], case.expected(0, 19, 1))
    require_close(got[1:4], case.expected(1, 0, 3))
    assert torch.equal(got[4:], torch.zeros_like(got[4:]))
    written = int((~case.cache.rows(LAYER)[0][0, :, 0].isnan()).sum())
    assert written == 23
    assert case.tables.slots(0)[4:].tolist() == [-1] * 7
    assert case.tables.positions.tolist() == [19, 0, 1, 2] + [0] * 7


def test_buffers_stay_where_they_are_until_a_step_is_larger() -> None:
    case = Case(Shape(), [5000])
    case.store(0, 4999)
    case.run([case.segment(0, 10, 1)])
    version, address = case.tables.version, case.tables.positions.data_ptr()
    case.run([case.segment(0, 4999, 1)])
    assert (case.tables.version, case.tables.positions.data_ptr()) == (version, address)
    case.run([case.segment(0, 4900, 100)])
    assert case.tables.version > version
    version = case.tables.version
    require_close(case.run([case.segment(0, 4900, 100)])[-1:], case.expected(0, 4999, 1))
    assert case.tables.version == version
