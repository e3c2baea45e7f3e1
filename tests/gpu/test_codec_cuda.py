"""The codec's CUDA kernels against its CPU paths: the same bytes out, the same values back.

What the kernels run per unit is tested without a GPU too (tests/property/test_codec_roundtrip.py, ``by_lanes``).
"""

from __future__ import annotations

import numpy as np
import pytest

from bloombee import _native
from bloombee.codec import api
from bloombee.codec import cuda as device
from bloombee.codec.fit import fit
from bloombee.codec.table import DTYPE_CODES, Table, default_table
from bloombee.errors import CodecUnavailable, CorruptPayload
from bloombee.types import Dtype

torch = pytest.importorskip("torch")

try:
    device.native()
    REASON = "" if torch.cuda.is_available() else "torch sees no CUDA device"
except CodecUnavailable as error:
    REASON = error.message
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REASON), reason=REASON)]


def to_device(data: bytes | np.ndarray) -> object:
    return torch.frombuffer(bytearray(data.tobytes() if isinstance(data, np.ndarray) else data), dtype=torch.uint8).cuda()


def encoded_on_device(x: np.ndarray, dtype: Dtype, table: Table) -> bytes:
    values, image = to_device(x), to_device(table.native.device_image())
    out = torch.zeros(api.bound(x.size, dtype), dtype=torch.uint8, device="cuda")
    work = torch.zeros(device.workspace_bytes(x.shape, dtype, table), dtype=torch.uint8, device="cuda")
    device.encode(
        values.data_ptr(), shape=x.shape, dtype=dtype, table=table, image=image.data_ptr(), out=out.data_ptr(),
        workspace=work.data_ptr(), stream=torch.cuda.current_stream().cuda_stream,
    )  # fmt: skip
    result = device.read_result(work[: device.RESULT_BYTES].cpu().numpy().tobytes())
    message = bytearray(out[: result.size].cpu().numpy().tobytes())
    device.seal(message, table)
    return bytes(message)


def decoded_on_device(message: bytes, head: bytes, shape: tuple[int, int], dtype: Dtype, table: Table) -> np.ndarray | None:
    held, image = to_device(message), to_device(table.native.device_image())
    out = torch.zeros(shape[0] * shape[1] * dtype.num_bytes, dtype=torch.uint8, device="cuda")
    work = torch.zeros(device.workspace_bytes(shape, dtype, table), dtype=torch.uint8, device="cuda")
    device.decode(
        head, held.data_ptr(), len(message), out=out.data_ptr(), shape=shape, dtype=dtype, table=table, image=image.data_ptr(),
        workspace=work.data_ptr(), stream=torch.cuda.current_stream().cuda_stream,
    )  # fmt: skip
    if device.read_result(work[: device.RESULT_BYTES].cpu().numpy().tobytes()).error:
        return None
    words: np.ndarray = out.cpu().numpy().view(np.uint32 if dtype.num_bytes == 4 else np.uint16).reshape(shape)
    return words


def bits_of(x: np.ndarray, dtype: Dtype) -> np.ndarray:
    if dtype is Dtype.FLOAT16:
        return x.astype(np.float16).view(np.uint16)
    words = x.astype(np.float32).view(np.uint32)
    return words if dtype is Dtype.FLOAT32 else (words >> 16).astype(np.uint16)


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("shape", [(1, 256), (3, 100), (16, 256), (41, 300), (3, 40000), (2048, 4096)])
@pytest.mark.parametrize("kind", ["channels", "rows", "sparse", "short", "bits"])
def test_the_same_bytes_and_back(dtype: Dtype, shape: tuple[int, int], kind: str) -> None:
    rng = np.random.default_rng(shape[0] + len(kind))
    x = rng.standard_normal(shape)
    x *= np.exp2(rng.uniform(-3, 3, shape[1] if kind == "channels" else (shape[0], 1)))
    if kind == "sparse":
        x[rng.random(shape) < 0.7] = 0
    words = bits_of(x, dtype)
    if kind == "short":
        words &= words.dtype.type(0xFFFF0000 if dtype is Dtype.FLOAT32 else 0xFFF0)
    if kind == "bits":
        words = rng.integers(0, np.iinfo(words.dtype).max, shape, dtype=words.dtype)
    for table in (default_table(dtype, shape[1]), fit(words[:64], dtype)):
        out = bytearray(api.bound(words.size, dtype))
        expected = bytes(
            out[: api.encode(words, shape=shape, dtype=dtype, table=table, out=out, unit_log2=device.unit_log2(shape))]
        )
        assert encoded_on_device(words, dtype, table) == expected
        if expected[0] == 0x11:
            head = device.check_head(expected, table)
            decoded = decoded_on_device(expected, head, shape, dtype, table)
            assert decoded is not None
            assert (decoded == words).all()


def test_damaged_messages_are_noticed_by_their_checksum_and_end_as_on_the_host_without() -> None:
    """docs/codec.md section 5: safety does not rest on the checksum; with it, every damaged byte is noticed."""
    rng = np.random.default_rng(0)
    words = bits_of(rng.standard_normal((64, 1024)), Dtype.BFLOAT16)
    table = default_table(Dtype.BFLOAT16, 1024)
    out = bytearray(api.bound(words.size, Dtype.BFLOAT16))
    size = api.encode(words, shape=words.shape, dtype=Dtype.BFLOAT16, table=table, out=out)
    head = device.check_head(memoryview(out)[:size], table)
    for place in rng.integers(12, size, 50):
        bad = bytearray(out[:size])
        bad[place] ^= 0xFF
        with pytest.raises(CorruptPayload):
            device.check_head(bad, table)
        values = np.zeros_like(words)
        is_sound = _native.codec_decode_by_lanes(bad, values, *words.shape, DTYPE_CODES[Dtype.BFLOAT16], table.native)
        got = decoded_on_device(bytes(bad), head, words.shape, Dtype.BFLOAT16, table)
        assert (got is not None) == is_sound
        assert got is None or (got == values).all()
