import numpy as np
import pytest

from bloombee import _native
from bloombee.codec.planes import join_planes, split_planes
from bloombee.errors import CodecError


@pytest.fixture(params=_native.available_isas(), autouse=True)
def isa(request):
    before = _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


def elements(n, element_bytes):
    return np.random.default_rng(n).integers(0, 256, (n, element_bytes), dtype=np.uint8)


@pytest.mark.parametrize("element_bytes", [1, 2, 4])
@pytest.mark.parametrize("n", [0, 1, 3, 15, 31, 32, 33, 63, 64, 65, 127, 128, 1000, 4099])
def test_planes_are_the_transpose_and_join_back(n, element_bytes):
    data = elements(n, element_bytes)
    planes = np.zeros((element_bytes, n), np.uint8)
    split_planes(data, planes, element_bytes=element_bytes)
    assert np.array_equal(planes, data.T)
    back = np.zeros_like(data)
    join_planes(planes, back, element_bytes=element_bytes)
    assert np.array_equal(back, data)


@pytest.mark.parametrize("element_bytes", [1, 2, 4])
@pytest.mark.parametrize(("source_offset", "target_offset"), [(1, 0), (0, 3), (5, 7)])
def test_any_alignment_and_nothing_written_outside(element_bytes, source_offset, target_offset):
    n = 197
    data = elements(n, element_bytes)
    size = data.size
    source = np.zeros(size + 64, np.uint8)
    source[source_offset : source_offset + size] = data.ravel()
    target = np.full(size + 64, 0xEE, np.uint8)
    inside = slice(target_offset, target_offset + size)
    split_planes(source[source_offset : source_offset + size], target[inside], element_bytes=element_bytes)
    assert np.array_equal(target[inside].reshape(element_bytes, n), data.T)
    assert (np.delete(target, np.arange(size) + target_offset) == 0xEE).all()
    planes = target[inside].copy()
    target[:] = 0xEE
    join_planes(planes, target[inside], element_bytes=element_bytes)
    assert np.array_equal(target[inside].reshape(n, element_bytes), data)
    assert (np.delete(target, np.arange(size) + target_offset) == 0xEE).all()


def test_plane_zero_is_the_least_significant_byte():
    values = np.array([0x11223344, 0x55667788], "<u4")
    planes = bytearray(8)
    split_planes(values, planes, element_bytes=4)
    assert planes.hex() == "4488337722661155"


@pytest.mark.parametrize("function", [split_planes, join_planes])
@pytest.mark.parametrize(
    ("size", "out_size", "element_bytes"), [(8, 6, 2), (7, 7, 2), (6, 6, 4), (9, 9, 3), (8, 8, 0), (8, 8, -1), (8, 8, 8)]
)
def test_refuses_sizes_that_disagree(function, size, out_size, element_bytes):
    out = bytearray(b"\xee" * out_size)
    with pytest.raises(CodecError):
        function(bytes(size), out, element_bytes=element_bytes)
    assert out == b"\xee" * out_size


@pytest.mark.parametrize("function", [split_planes, join_planes])
def test_refuses_overlap_and_read_only_targets(function):
    memory = np.zeros(64, np.uint8)
    with pytest.raises(CodecError, match="overlap"):
        function(memory[:32], memory[16:48], element_bytes=2)
    with pytest.raises((BufferError, TypeError)):
        function(bytes(8), bytes(8), element_bytes=2)
