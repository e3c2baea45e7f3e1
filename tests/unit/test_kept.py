"""Frames in memory of their own."""

from __future__ import annotations

import mmap
import weakref

import numpy as np
import pytest

from bloombee.codec.choice import CodecMode
from bloombee.roles.coding import Sender
from bloombee.roles.kept import OWN_PAGES_BYTES, kept
from bloombee.types import Dtype


@pytest.mark.parametrize("size", [1, OWN_PAGES_BYTES - 1, OWN_PAGES_BYTES, 3 * OWN_PAGES_BYTES + 7])
def test_what_is_kept_is_a_copy_and_nothing_more(size: int) -> None:
    data = bytearray(bytes(range(256)) * (size // 256 + 1))
    copy = kept(memoryview(data)[:size])
    want = bytes(data[:size])
    data[:] = bytes(len(data))
    assert bytes(copy) == want


def test_a_large_frame_has_pages_of_its_own_that_go_with_it_while_others_stay() -> None:
    first, second = (kept(memoryview(bytearray(OWN_PAGES_BYTES))) for _ in range(2))
    pages = weakref.ref(first.obj)
    assert isinstance(first.obj, mmap.mmap)
    assert first.obj is not second.obj
    del first
    assert pages() is None


@pytest.mark.parametrize("mode", [CodecMode.OFF, CodecMode.ON])
def test_a_frame_outlives_the_rows_that_it_was_made_from_and_the_frames_after_it(mode: CodecMode) -> None:
    sender = Sender(Dtype.FLOAT32, 8, mode, lambda _: None)
    first, second = (np.random.default_rng(seed).standard_normal((4, 8)).astype(np.float32) for seed in (1, 2))
    want = first.tobytes()
    payload = sender.encode(first.view(np.uint8).reshape(-1).data, 4)
    first[:] = 0
    sender.encode(second.view(np.uint8).reshape(-1).data, 4)
    assert bytes(sender.decode(payload)) == want
