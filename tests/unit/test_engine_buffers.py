"""Hidden states as bytes: the same memory on both sides."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from bloombee.engine.buffers import TORCH_DTYPES, from_buffer, to_buffer
from bloombee.errors import RemoteProtocolError
from bloombee.types import Dtype


@pytest.mark.parametrize("dtype", list(Dtype))
def test_there_and_back_without_a_copy(dtype: Dtype) -> None:
    hidden = torch.randn(5, 8).to(TORCH_DTYPES[dtype])
    buffer = to_buffer(hidden)
    back = from_buffer(buffer, 5, 8, dtype)
    assert buffer.ctypes.data == hidden.data_ptr() == back.data_ptr()
    assert buffer.nbytes == 5 * 8 * dtype.num_bytes
    assert torch.equal(back, hidden)


def test_read_only_frames_are_viewed_silently_and_kept_alive(recwarn: pytest.WarningsRecorder) -> None:
    values = np.arange(4096, dtype=np.float32)
    back = from_buffer(values.tobytes(), 64, 64, Dtype.FLOAT32)
    gc.collect()
    bytes(1 << 20)
    assert torch.equal(back.reshape(-1), torch.arange(4096, dtype=torch.float32))
    assert not recwarn.list


def test_an_unaligned_part_of_a_frame_is_read_right() -> None:
    frame = b"x" + np.arange(6, dtype=np.float32).tobytes()
    assert from_buffer(memoryview(frame)[1:], 2, 3, Dtype.FLOAT32).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_rows_out_of_order_in_memory_are_packed() -> None:
    hidden = torch.arange(12, dtype=torch.float32).view(3, 4).t()
    assert np.array_equal(to_buffer(hidden).view(np.float32).reshape(4, 3), hidden.numpy())


@pytest.mark.parametrize("size", [0, 95, 97, 192])
def test_a_lying_size_is_the_peers_fault(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match="96"):
        from_buffer(bytes(size), 3, 8, Dtype.FLOAT32)
