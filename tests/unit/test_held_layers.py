"""What a worker that has lost its head keeps on its device until it is told to load something."""

from __future__ import annotations

from bloombee.roles.loading import Loader
from bloombee.types import Span

MODEL = ("digest",)


def test_what_is_held_stays_until_a_span_takes_it_and_makes_room_for_what_it_does_not() -> None:
    loader = Loader(memory_bytes=2**20)
    store = loader.store
    reservation = store.reserve(Span(0, 3), 30, 5)
    store.keep(MODEL, dict.fromkeys(range(3), (None, 10)), reservation)
    loader.hold()
    loader.hold()  # once more, by a head that is lost too
    store.give(MODEL, range(3))
    store.release(reservation)
    assert store.num_bytes == 30
    loader._let_go(Span(1, 8))
    assert store.num_bytes == 20
    assert set(store.take(MODEL, Span(0, 8))) == {1, 2}
    loader._let_go()
    assert store.num_bytes == 20, "the span has them"
    store.give(MODEL, [1, 2])
    assert store.num_bytes == 0
