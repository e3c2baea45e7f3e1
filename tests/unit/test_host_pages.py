"""KV pages that go to the host's memory and come back."""

from __future__ import annotations

import pytest
import torch

from bloombee.engine.cache import LayerCache, SlotCache
from bloombee.engine.host_pages import HostPages, num_host_pages, page_bytes
from bloombee.errors import CorruptPayload
from bloombee.types import PageGroup

PAGE = 4


def _a_cache(dtype: torch.dtype) -> SlotCache:
    """Two groups, in which layers store what is of different sizes."""
    layers = [LayerCache(0, (2, 8), (2, 6)), LayerCache(1, (1, 4), (1, 4), window=8), LayerCache(2, (3, 2), (3, 2))]
    return SlotCache(layers, [PageGroup(0, 80), PageGroup(8, 20)], PAGE, dtype, torch.device("cpu"))


def _fill(cache: SlotCache) -> None:
    generator = torch.Generator().manual_seed(1)
    for layer in cache.layers:
        for held in cache.rows(layer):
            held.copy_(torch.randn(held.shape, generator=generator))


def _rows(cache: SlotCache, group: int, page: int) -> list[torch.Tensor]:
    return [
        held[:, page * PAGE : (page + 1) * PAGE].clone()
        for layer in cache.layers
        if cache.group_of[layer] == group
        for held in cache.rows(layer)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pages_come_back_elsewhere_bit_for_bit(dtype: torch.dtype) -> None:
    cache = _a_cache(dtype)
    _fill(cache)
    pages = HostPages(cache, (75, 3))
    out = [*((0, page, 74 - page) for page in range(70)), (1, 7, 2), (1, 0, 0)]  # more than are copied at once
    before = [_rows(cache, group, page) for group, page, _ in out]
    untouched = _rows(cache, 0, 75)
    pages.take(out)
    _fill(cache)
    cache.clear(70 * PAGE)
    back = [(group, place, (page + 3) % 70 if group == 0 else page + 5) for group, page, place in out]
    pages.give(back)
    for rows, (group, _, page) in zip(before, back, strict=True):
        for want, got in zip(rows, _rows(cache, group, page), strict=True):
            assert torch.equal(want.view(torch.uint8), got.view(torch.uint8))
    for want, got in zip(untouched, _rows(cache, 0, 75), strict=True):
        assert torch.equal(want, got)


def test_a_page_that_is_not_what_it_was_does_not_come_back() -> None:
    cache = _a_cache(torch.float32)
    _fill(cache)
    pages = HostPages(cache, (4, 4))
    pages.take([(0, 0, 1)])
    pages.read(0, 1)[3] ^= 1
    with pytest.raises(CorruptPayload):
        pages.give([(0, 1, 2)])


def test_a_budget_holds_the_same_part_of_each_group_and_no_more() -> None:
    cache = _a_cache(torch.float32)
    sizes = [page_bytes(cache, group) for group in range(2)]
    assert 80 * sizes[0] + 20 * sizes[1] == cache.num_bytes
    assert num_host_pages(cache, cache.num_bytes) == (80, 20)
    some = num_host_pages(cache, cache.num_bytes // 3)
    assert some == (26, 6)
    assert sum(count * size for count, size in zip(some, sizes, strict=True)) <= cache.num_bytes // 3
    assert num_host_pages(cache, 0) == (0, 0)
