"""Frames in memory of their own."""

from __future__ import annotations

import weakref

import numpy as np

from bloombee.codec.choice import CodecMode
from bloombee.roles.coding import Sender
from bloombee.roles.slabs import ALIGNMENT, SLAB_BYTES, Slabs
from bloombee.types import Dtype


def test_what_is_kept_lies_side_by_side_and_stays_as_it_was_written() -> None:
    slabs, kept = Slabs(), []
    for number in range(200):
        size = 1 + 977 * number % 30_000
        slabs.room(size + 500)[:size] = bytes([number]) * size
        kept.append(slabs.keep(size))
    for number, one in enumerate(kept):
        assert bytes(one) == bytes([number]) * (1 + 977 * number % 30_000)
    starts = [np.frombuffer(one, np.uint8).ctypes.data for one in kept]
    assert all(start % ALIGNMENT == 0 for start in starts)
    assert len({id(one.obj) for one in kept}) == -(-sum(-(-len(one) // ALIGNMENT) * ALIGNMENT for one in kept) // SLAB_BYTES)


def test_a_frame_that_is_larger_than_a_slab_has_one_of_its_own() -> None:
    slabs = Slabs()
    room = slabs.room(SLAB_BYTES + 1)
    room[-1] = 7
    assert len(room) == SLAB_BYTES + 1
    assert slabs.keep(SLAB_BYTES + 1)[-1] == 7


def test_a_slab_goes_with_the_last_of_its_frames() -> None:
    slabs = Slabs()
    slabs.room(100)
    first = slabs.keep(100)
    slabs.room(100)
    second = slabs.keep(100)
    slab = weakref.ref(first.obj)
    slabs.room(SLAB_BYTES)  # the next one is begun
    del first
    assert slab() is not None
    del second
    assert slab() is None


def test_a_frame_that_is_not_coded_outlives_the_rows_it_was_made_from() -> None:
    sender = Sender(Dtype.FLOAT32, 8, CodecMode.OFF, lambda _: None)
    rows = np.arange(32, dtype=np.float32).reshape(4, 8)
    _, buffer = sender.encode(rows.view(np.uint8).reshape(-1).data, 4)
    rows[:] = 0
    assert np.frombuffer(buffer, np.float32).tolist() == list(range(32))
