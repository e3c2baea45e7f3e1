from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloombee.errors import LocalProtocolError, PoolExhausted
from bloombee.kv.pool import PagePool, PageTable, pages_for


def test_pages_for_rounds_up() -> None:
    assert [pages_for(n, 16) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_exhausted_pool_takes_nothing() -> None:
    pool = PagePool(4, 16)
    pool.take(3)
    with pytest.raises(PoolExhausted) as caught:
        pool.take(2)
    assert caught.value.fields == {"wanted": 2, "free": 1}
    assert pool.num_free == 1


def test_double_free_is_refused_and_changes_nothing() -> None:
    pool = PagePool(4, 16)
    pages = pool.take(2)
    pool.give(pages[:1])
    for bad in (pages, [pages[1], pages[1]]):
        with pytest.raises(LocalProtocolError):
            pool.give(bad)
    assert pool.num_free == 3


def test_low_pages_first() -> None:
    pool = PagePool(8, 1)
    assert pool.take(3) == [0, 1, 2]
    pool.give([1, 2])
    assert pool.take(2) == [1, 2]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60)), max_size=60))
def test_tables_never_share_a_page_and_nothing_leaks(steps: list[tuple[int, int]]) -> None:
    pool = PagePool(24, 4)
    tables = [PageTable(pool) for _ in range(5)]
    for which, size in steps:
        table = tables[which]
        if size > table.num_slots:
            if pool.can_take(table.pages_missing(size)):
                table.grow(size)
                assert table.num_slots >= size
            else:
                before = table.pages
                with pytest.raises(PoolExhausted):
                    table.grow(size)
                assert table.pages == before
        else:
            table.truncate(size)
        held = [page for t in tables for page in t.pages]
        assert len(set(held)) == len(held) == pool.num_pages - pool.num_free
    for table in tables:
        table.truncate(0)
    assert pool.num_free == pool.num_pages
