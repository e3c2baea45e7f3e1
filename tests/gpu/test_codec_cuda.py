"""The codec's CUDA kernels against its CPU paths: the same bytes out, the same values back.

What the kernels run per unit is tested without a GPU too (tests/property/test_codec_roundtrip.py, ``by_lanes``).
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

import bloombee
from bloombee import _native
from bloombee.codec import api
from bloombee.codec import cuda as device
from bloombee.codec.choice import PlaceChoice
from bloombee.codec.fit import fit
from bloombee.codec.table import DTYPE_CODES, Table, default_table
from bloombee.config import WorkerConfig
from bloombee.errors import CodecUnavailable, CorruptPayload
from bloombee.roles.worker import WorkerRole
from bloombee.types import Dtype

torch = pytest.importorskip("torch")

from bloombee.engine.buffers import TORCH_DTYPES, to_buffer  # noqa: E402
from bloombee.engine.device_codec import CudaCoder, DeviceCodec, ProcessorCoder, codec_of  # noqa: E402

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


def message_of(words: np.ndarray, dtype: Dtype, table: Table, unit_log2: int) -> bytes:
    out = bytearray(api.bound(words.size, dtype))
    return bytes(out[: api.encode(words, shape=words.shape, dtype=dtype, table=table, out=out, unit_log2=unit_log2)])


SIZES = [(1, 128), (1, 256), (2, 512), (4, 512), (1, 4096), (4, 4096), (8, 4096), (64, 4096), (128, 4096), (255, 4096)]
LARGE = [(256, 4096), (257, 4096), (1025, 4096), (40, 5120), (5, 16384), (3, 70000), (16384, 4096), (300000, 65)]


@pytest.mark.parametrize("shape", SIZES + LARGE)
def test_every_size_from_512_bytes_to_128_mib(shape: tuple[int, int]) -> None:
    """By a block a unit and by a warp a unit, whole rows a unit and pieces of rows."""
    rng = np.random.default_rng(shape[0])
    words = rng.integers(0x3E00, 0x4100, shape, dtype=np.uint16)
    words[rng.random(shape) < 0.001] = 0x7F80  # escapes
    words |= rng.integers(0, 2, shape, dtype=np.uint16) << 15
    table = default_table(Dtype.BFLOAT16, shape[1])
    expected = message_of(words, Dtype.BFLOAT16, table, device.unit_log2(shape))
    assert encoded_on_device(words, Dtype.BFLOAT16, table) == expected
    for message in (expected, message_of(words, Dtype.BFLOAT16, table, api.UNIT_LOG2)):
        if message[0] == 0x11:
            decoded = decoded_on_device(message, device.check_head(message, table), shape, Dtype.BFLOAT16, table)
            assert decoded is not None
            assert (decoded == words).all()


def test_one_workspace_serves_runs_of_all_sizes_one_after_the_other() -> None:
    """Every run leaves it as it found it: large after small, small after large, encoding after decoding, raw after coded."""
    rng = np.random.default_rng(5)
    dtype, d = Dtype.FLOAT32, 512
    table = default_table(dtype, d)
    coder = CudaCoder(dtype, d, torch.device("cuda"))
    for rows in (6000, 1, 9, 5000, 2, 700, 6000, 1):
        words = bits_of(rng.standard_normal((rows, d)), dtype)
        if rows in (2, 5000):
            words = rng.integers(0, 1 << 32, (rows, d), dtype=np.uint32)  # ends up raw
        values = to_device(words).view(torch.float32).view(rows, d)
        message = bytes(coder.encode(values, table))
        assert message == message_of(words, dtype, table, device.unit_log2((rows, d)))
        if message[0] == 0x11:
            assert (coder.decode(memoryview(message), table, rows).view(torch.int32) == values.view(torch.int32)).all()


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("rows", [1, 16, 3000])
def test_frames_of_a_cuda_worker_are_those_of_a_processor_and_the_reverse(dtype: Dtype, rows: int) -> None:
    d = 640
    values = torch.randn(rows, 2 * d, device="cuda").to(TORCH_DTYPES[dtype])[:, :d]  # rows apart
    cuda, processor = CudaCoder(dtype, d, values.device), ProcessorCoder(dtype, d, values.device)
    table = fit(bytes(to_buffer(values.contiguous())), dtype, channels=d)
    for one, other in ((cuda, processor), (processor, cuda)):
        message = bytearray(one.encode(values, table))
        assert other.decode(memoryview(message), table, rows).equal(values)
        message[len(message) // 2] ^= 1
        with pytest.raises(CorruptPayload):
            other.decode(memoryview(message), table, rows)


def test_the_choice_on_this_gpu_is_measured() -> None:
    codec = codec_of(torch.device("cuda"), Dtype.BFLOAT16, 4096)
    assert codec is not None
    for choice in (codec.encoding, *codec.decoding.values()):
        assert all(seconds > 0 for _, seconds in choice.device.points + choice.processor.points)
    print(codec.encoding.explain())


def test_a_ring_of_cuda_workers_says_the_same_with_the_codec_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame that can be is coded on the device, against none."""
    codecs: list[DeviceCodec] = []
    made = DeviceCodec.__init__

    def init(codec: DeviceCodec, *args: Any) -> None:
        made(codec, *args)
        codecs.append(codec)

    async def tokens(codec: str) -> list[tuple[int, ...]]:
        runtime = bloombee.Runtime("demo", remote_workers=2, split=(4, 4), dtype="float32", codec=codec, microbatches=1)
        await runtime.prepare()
        roles = [WorkerRole(WorkerConfig(join=token, threads=1, device="cuda")) for token in runtime.join_tokens]
        serving = [asyncio.ensure_future(role.serve()) for role in roles]
        try:
            await runtime.ready()
            prompts = [[(7 * i + j) % 4000 + 1 for j in range(30)] for i in range(12)]  # rows to fit a table to, and more
            found = [await runtime.generate(prompt, max_new_tokens=24, ignore_eos=True) for prompt in prompts]
            return [one.token_ids for one in found]
        finally:
            await runtime.close()
            await asyncio.gather(*serving)

    want = asyncio.run(tokens("off"))
    monkeypatch.setattr(DeviceCodec, "__init__", init)
    monkeypatch.setattr(PlaceChoice, "on_device", lambda choice, num_bytes: True)
    assert asyncio.run(tokens("on")) == want
    assert sum(codec.num_encoded for codec in codecs) > 0
    assert sum(codec.num_decoded for codec in codecs) > 0
