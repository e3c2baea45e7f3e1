import numpy as np
import pytest

from bloombee import _native

_native_cuda = pytest.importorskip("bloombee._native_cuda", reason="built without CUDA")

needs_device = pytest.mark.skipif(_native_cuda.device_count() == 0, reason="no CUDA device")


@pytest.mark.skipif(_native_cuda.device_count() > 0, reason="there is a CUDA device")
def test_without_a_device_it_imports_and_says_so():
    with pytest.raises(RuntimeError, match="CUDA"):
        _native_cuda.split_planes(256, 512, 64, 2)


@pytest.mark.parametrize("element_bytes", [0, 3, 8])
def test_refuses_other_element_sizes(element_bytes):
    with pytest.raises(ValueError, match="must be 1, 2 or 4"):
        _native_cuda.split_planes(256, 512, 64, element_bytes)


@pytest.mark.gpu
@needs_device
@pytest.mark.parametrize("element_bytes", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 3, 4, 255, 1024, 4099, 1 << 20])
@pytest.mark.parametrize("offset", [0, 1])
def test_same_bytes_as_the_cpu(n, element_bytes, offset):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    data = np.random.default_rng(n).integers(0, 256, n * element_bytes, dtype=np.uint8)
    expected = np.empty_like(data)
    _native.split_planes(data, expected, element_bytes)
    size = data.size
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        source, planes, back = (torch.zeros(size + offset, dtype=torch.uint8, device="cuda")[offset:] for _ in range(3))
        source.copy_(torch.from_numpy(data))
        _native_cuda.split_planes(source.data_ptr(), planes.data_ptr(), n, element_bytes, stream.cuda_stream)
        _native_cuda.join_planes(planes.data_ptr(), back.data_ptr(), n, element_bytes, stream.cuda_stream)
    stream.synchronize()
    assert np.array_equal(planes.cpu().numpy(), expected)
    assert np.array_equal(back.cpu().numpy(), data)
