from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from bloombee.errors import LocalProtocolError, PoolExhausted
from bloombee.kv.pool import MAX_ROLLBACK, WINDOW_SHARE, PagePool, PageTable, can_go_back, make_groups, most_pages, pages_for
from bloombee.types import PageGroup


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


def test_a_sequence_of_any_length_needs_a_bounded_number_of_pages_in_a_window() -> None:
    assert most_pages(100, 16, window=0, rows=8) == 7
    assert most_pages(100, 16, window=512, rows=8) == 7
    need = most_pages(10**6, 16, window=512, rows=8)
    assert need == pages_for(511 + MAX_ROLLBACK + 8 - 1, 16) + 1
    assert most_pages(10**7, 16, window=512, rows=8) == need


def test_narrow_groups_get_a_share_and_room_for_any_sequence() -> None:
    full, wide, narrow = make_groups((0, 1024, 16), 1024, 16, rows=64)
    assert (full.window, full.num_pages) == (0, 1024)
    assert (wide.window, wide.num_pages) == (1024, 1024 // WINDOW_SHARE)
    assert (narrow.window, narrow.num_pages) == (16, 1024 // WINDOW_SHARE)
    for num_pages in (1, 9, 10, 300):
        for group in make_groups((0, 1024, 16), num_pages, 16, rows=64):
            assert most_pages(num_pages * 16, 16, window=group.window, rows=64) <= group.num_pages <= num_pages
    assert make_groups((4096,), 20, 16, rows=64) == (PageGroup(4096, 20),)


def test_a_fork_shares_pages_until_one_of_the_two_writes() -> None:
    pool = PagePool(8, 4)
    table = PageTable(pool)
    table.place(0, 10)
    twin = table.fork(10)
    assert twin.pages == table.pages == (0, 1, 2)
    assert pool.num_free == 5
    assert twin.place(10, 11) == 2
    assert twin.pages == (0, 1, 3)
    assert table.place(10, 11) is None
    assert pool.num_free == 4
    table.truncate(0)
    assert pool.num_free == 5
    twin.truncate(0)
    assert pool.num_free == 8


def test_a_fork_at_the_end_of_a_page_copies_nothing() -> None:
    pool = PagePool(8, 4)
    table = PageTable(pool)
    table.place(0, 10)
    twin = table.fork(8)
    assert twin.pages == (0, 1)
    assert twin.place(8, 9) is None
    assert twin.pages == (0, 1, 3)


def test_a_window_slides_and_goes_back_no_further_than_the_longest_draft() -> None:
    pool = PagePool(200, 4)
    table = PageTable(pool, window=6)
    newest = 4 * MAX_ROLLBACK
    for position in range(newest):
        table.place(position, position + 1)
        table.slide(position + 1)
    oldest = newest - MAX_ROLLBACK - 6 + 1
    assert table.start == oldest - oldest % 4
    assert len(table.pages) == 200 - pool.num_free == (newest - table.start) // 4
    before = table.pages
    for act in (table.truncate, table.fork, lambda position: table.place(position, position + 1)):
        with pytest.raises(LocalProtocolError, match="are held for"):
            act(table.start + 4)
    assert table.pages == before
    assert can_go_back(newest - MAX_ROLLBACK, newest, 6)
    assert not can_go_back(newest - MAX_ROLLBACK - 1, newest, 6)
    assert can_go_back(1, newest, 0)
    assert can_go_back(1, MAX_ROLLBACK + 5, 6)
    table.place(newest - MAX_ROLLBACK, newest - MAX_ROLLBACK + 1)
    table.place(0, 3)
    assert (table.start, len(table.pages)) == (0, 1)


PAGE, PAGES, MOST_ROWS = 4, 120, 9


class Memory(RuleBasedStateMachine):
    """Tables of one pool against lists of tokens, with the slots' contents: what a sequence reads is what it wrote."""

    sequences = Bundle("sequences")

    @initialize(window=st.sampled_from([0, 1, 6, 30]))
    def start(self, window: int) -> None:
        self.window = window
        self.pool = PagePool(PAGES, PAGE)
        self.slots = [-1] * (PAGES * PAGE)
        self.tables: dict[int, PageTable] = {}
        self.tokens: dict[int, list[int]] = {}
        self.newest: dict[int, int] = {}
        self.written = 0
        self.most_held = 0

    @rule(target=sequences)
    def open(self) -> int:
        return self._add(PageTable(self.pool, self.window), [], 0)

    @rule(sequence=sequences, back=st.integers(0, 70), rows=st.integers(1, MOST_ROWS), long=st.booleans())
    def place(self, sequence: int, back: int, rows: int, long: bool) -> None:
        for _ in range(12 if long else 1):
            self._place(sequence, max(0, len(self.tokens[sequence]) - back), rows)
            back = 0

    @rule(target=sequences, sequence=sequences, back=st.integers(0, 12))
    def fork(self, sequence: int, back: int) -> int:
        position = max(0, len(self.tokens[sequence]) - back)
        if not can_go_back(position, self.newest[sequence], self.window):
            position = len(self.tokens[sequence])
        twin = self.tables[sequence].fork(position)
        # What it shares may reach as far back as the other's: the bound on going back is the other's too.
        return self._add(twin, self.tokens[sequence][:position], self.newest[sequence] if position else 0)

    @rule(sequence=sequences)
    def close(self, sequence: int) -> None:
        self.tables[sequence].truncate(0)
        self.tokens[sequence] = []
        self.newest[sequence] = 0

    @rule(sequence=sequences, back=st.integers(0, 70))
    def truncate(self, sequence: int, back: int) -> None:
        position = max(0, len(self.tokens[sequence]) - back)
        if can_go_back(position, self.newest[sequence], self.window):
            self.tables[sequence].truncate(position)
            self._cut(sequence, position)

    @invariant()
    def every_holder_is_counted_and_every_page_accounted_for(self) -> None:
        held = Counter(page for table in self.tables.values() for page in table.pages)
        assert [held[page] for page in range(PAGES)] == [self.pool.sharers(page) for page in range(PAGES)]
        assert self.pool.num_free == PAGES - len(held)

    @invariant()
    def memory_is_touched_for_the_most_pages_ever_held_at_once(self) -> None:
        touched = {slot // PAGE for slot, token in enumerate(self.slots) if token >= 0}
        assert len(touched) <= self.most_held

    @invariant()
    def what_is_seen_is_what_was_written(self) -> None:
        for sequence, table in self.tables.items():
            tokens = self.tokens[sequence]
            oldest = max(0, len(tokens) - self.window + 1) if self.window else 0
            assert [self._read(table, q) for q in range(oldest, len(tokens))] == tokens[oldest:]
            assert len(table.pages) <= most_pages(10**6, PAGE, window=self.window, rows=MOST_ROWS)

    def _add(self, table: PageTable, tokens: list[int], newest: int) -> int:
        number = len(self.tables)
        self.tables[number], self.tokens[number], self.newest[number] = table, tokens, newest
        return number

    def _place(self, sequence: int, position: int, rows: int) -> None:
        table = self.tables[sequence]
        if not can_go_back(position, self.newest[sequence], self.window):
            return
        self._cut(sequence, position)
        try:
            source = table.place(position, position + rows)
        except PoolExhausted:
            return
        if source is not None:
            first = table.pages[(position - table.start) // PAGE] * PAGE
            self.slots[first : first + PAGE] = self.slots[source * PAGE : source * PAGE + PAGE]
        for q in range(position, position + rows):
            self.slots[self._slot(table, q)] = self.written
            self.tokens[sequence].append(self.written)
            self.written += 1
        self.newest[sequence] = max(self.newest[sequence], position + rows)
        self.what_is_seen_is_what_was_written()
        self.most_held = max(self.most_held, PAGES - self.pool.num_free)
        table.slide(position + rows)

    def _cut(self, sequence: int, position: int) -> None:
        del self.tokens[sequence][position:]
        if position == 0:
            self.newest[sequence] = 0

    def _slot(self, table: PageTable, position: int) -> int:
        return table.pages[(position - table.start) // PAGE] * PAGE + position % PAGE

    def _read(self, table: PageTable, position: int) -> int:
        assert position >= table.start
        return self.slots[self._slot(table, position)]


TestMemory = Memory.TestCase
TestMemory.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
