"""The codec's public functions: what they give, refuse and guarantee."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bloombee.codec import api
from bloombee.codec.fit import fit
from bloombee.codec.table import Table, default_table
from bloombee.errors import CodecUnavailable, CorruptPayload
from bloombee.types import Dtype

BF16 = Dtype.BFLOAT16


def activations(rows: int, channels: int, seed: int = 0, row_spread: float = 0.0) -> np.ndarray:
    """[rows, channels] bf16 patterns: channels of different scale, rows of different scale if asked."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, channels)) * np.exp2(np.random.default_rng(99).uniform(-2, 2, channels))
    x *= np.exp2(rng.standard_normal((rows, 1)) * row_spread)
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def encoded(x: np.ndarray, table: Table | None, dtype: Dtype = BF16) -> bytes:
    out = bytearray(api.bound(x.size, dtype))
    size = api.encode(x, shape=x.shape, dtype=dtype, table=table, out=out)
    return bytes(out[:size])


def test_fitted_beats_default_beats_raw() -> None:
    x, later = activations(512, 256), activations(512, 256, seed=1)
    table = fit(x, BF16)
    sizes = [len(encoded(later, t)) for t in (table, default_table(BF16, 256), None)]
    assert sizes == sorted(sizes)
    assert later.nbytes / sizes[0] > 1.51  # a normal variable of known scale: 16 / 10.55
    assert later.nbytes / sizes[1] > 1.40
    assert sizes[2] == later.nbytes + 8


def test_rows_of_different_scale_get_offsets() -> None:
    spread = fit(activations(512, 512, row_spread=1.5), BF16)
    even = fit(activations(512, 512), BF16)
    assert (spread.row_bits > 0, even.row_bits) == (True, 0)
    later = activations(512, 512, seed=1, row_spread=1.5)
    assert later.nbytes / len(encoded(later, spread)) > 1.50


def test_zeros_are_cheap_once_seen() -> None:
    x = activations(256, 256)
    x[np.random.default_rng(2).random(x.shape) < 0.9] = 0
    assert x.nbytes / len(encoded(x, fit(x, BF16))) > 1.7


def test_fp32_that_was_bf16_loses_its_empty_planes() -> None:
    x = activations(128, 256).astype(np.uint32) << 16
    message = encoded(x, fit(x, Dtype.FLOAT32), Dtype.FLOAT32)
    assert x.nbytes / len(message) > 3


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (7, 333), (256, 1024)])
def test_random_bytes_grow_by_eight_at_most(dtype: Dtype, shape: tuple[int, int]) -> None:
    word = np.uint32 if dtype is Dtype.FLOAT32 else np.uint16
    x = np.random.default_rng(5).integers(0, np.iinfo(word).max, shape, dtype=word, endpoint=True)
    for table in (default_table(dtype, shape[1]), fit(x, dtype)):
        assert len(encoded(x, table, dtype)) <= x.nbytes + 8


def test_every_bf16_pattern() -> None:
    x = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    for table in (default_table(BF16, 256), fit(x, BF16), fit(activations(64, 256), BF16), None):
        out = np.zeros_like(x)
        api.decode(encoded(x, table), out, shape=x.shape, dtype=BF16, tables={table.key: table} if table else None)
        assert (out == x).all()


def test_unknown_table_is_a_typed_answer() -> None:
    x = activations(64, 256)
    table = fit(x, BF16)
    out = np.empty_like(x)
    for tables in (None, {}, {b"abcd": table}):
        with pytest.raises(CodecUnavailable) as caught:
            api.decode(encoded(x, table), out, shape=x.shape, dtype=BF16, tables=tables)
        assert caught.value.fields["table"] == table.key.hex() == api.table_key(encoded(x, table)).hex()  # type: ignore[union-attr]
    api.decode(encoded(x, default_table(BF16, 256)), out, shape=x.shape, dtype=BF16)
    assert (out == x).all()


def test_another_table_under_the_same_key_is_corrupt() -> None:
    x = activations(64, 256)
    table, other = fit(x, BF16), fit(activations(64, 256, seed=3, row_spread=1), BF16)
    message = bytearray(encoded(x, table))
    message[8:12] = other.key
    with pytest.raises(CorruptPayload):
        api.decode(message, np.empty_like(x), shape=x.shape, dtype=BF16, tables={other.key: other})


def test_any_flipped_bit_is_noticed() -> None:
    x = activations(2, 256)
    table = fit(activations(64, 256), BF16)
    message = encoded(x, table)
    out = np.empty_like(x)
    for bit in range(8 * len(message)):
        bad = bytearray(message)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CorruptPayload, CodecUnavailable)):
            api.decode(bad, out, shape=x.shape, dtype=BF16, tables={table.key: table})


@pytest.mark.parametrize("shape", [(2, 255), (1, 512), (4, 128), (2, 257), (0, 256)])
def test_another_shape_is_corrupt_or_unknown(shape: tuple[int, int]) -> None:
    x = activations(2, 256)
    table = default_table(BF16, 256)
    with pytest.raises((CorruptPayload, CodecUnavailable)):
        api.decode(encoded(x, table), bytearray(shape[0] * shape[1] * 2), shape=shape, dtype=BF16, tables={table.key: table})


def test_other_dtype_is_corrupt() -> None:
    x = activations(2, 256)
    with pytest.raises((CorruptPayload, CodecUnavailable)):
        api.decode(encoded(x, default_table(BF16, 256)), np.empty_like(x), shape=x.shape, dtype=Dtype.FLOAT16)
    with pytest.raises(CorruptPayload):
        api.decode(encoded(x, None), np.empty_like(x), shape=x.shape, dtype=Dtype.FLOAT16)


def test_rows_that_lie_apart() -> None:
    wide = activations(40, 600)
    table = default_table(BF16, 256)
    views = {"columns": wide[:, 100:356], "every other row": activations(80, 256)[::2], "transposed": activations(256, 40).T}
    for name, view in views.items():
        out = np.zeros((40, 400), np.uint16)
        target = out[:, 10:266]
        api.decode(encoded(view, table), target, shape=(40, 256), dtype=BF16)
        assert (target == view).all(), name
        assert not out[:, :10].any() and not out[:, 266:].any(), name  # noqa: PT018


def test_sizes_that_disagree() -> None:
    x = activations(4, 256)
    table = default_table(BF16, 256)
    with pytest.raises(ValueError, match="bound"):
        api.encode(x, shape=x.shape, dtype=BF16, table=table, out=bytearray(api.bound(x.size, BF16) - 1))
    with pytest.raises(ValueError, match="data"):
        api.encode(x, shape=(4, 255), dtype=BF16, table=None, out=bytearray(9999))
    with pytest.raises(ValueError, match="another dtype or width"):
        api.encode(x, shape=(8, 128), dtype=BF16, table=table, out=bytearray(9999))
    with pytest.raises(ValueError, match="out"):
        api.decode(encoded(x, table), bytearray(10), shape=x.shape, dtype=BF16)


def test_nothing_is_written_beyond_the_message() -> None:
    x = activations(50, 256)
    for table in (default_table(BF16, 256), None):
        out = bytearray(b"\xa5" * (api.bound(x.size, BF16) + 64))
        size = api.encode(x, shape=x.shape, dtype=BF16, table=table, out=out)
        assert out[api.bound(x.size, BF16) :] == b"\xa5" * 64
        assert size <= api.bound(x.size, BF16)


def test_blocks_decode_in_any_order() -> None:
    x = activations(1000, 256)
    table = fit(x[:100], BF16)
    blocks = list(api.encode_blocks(x, shape=x.shape, dtype=BF16, table=table, block_bytes=64 * 1024))
    assert [b[:2] for b in blocks] == api.row_blocks(x.shape, BF16, 64 * 1024)
    assert sum(len(m) for _, _, m in blocks) < 1.003 * len(encoded(x, table))
    out = np.zeros_like(x)
    for start, stop, message in reversed(blocks):
        api.decode(message, out[start:stop], shape=(stop - start, 256), dtype=BF16, tables={table.key: table})
    assert (out == x).all()


def test_threads_do_not_disturb_each_other() -> None:
    inputs = [activations(300, 256 + 64 * i, seed=i) for i in range(8)]

    def there_and_back(x: np.ndarray) -> bool:
        table, out = default_table(BF16, x.shape[1]), np.empty_like(x)
        for _ in range(20):
            api.decode(encoded(x, table), out, shape=x.shape, dtype=BF16)
            if not (out == x).all():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(there_and_back, inputs))


def test_fit_takes_bytes_and_refuses_none() -> None:
    x = activations(64, 256)
    assert fit(x.tobytes(), BF16, channels=256) == fit(x, BF16)
    for bad in (b"", b"abc", x.tobytes()[:-2]):
        with pytest.raises(ValueError):
            fit(bad, BF16, channels=256)
    with pytest.raises(ValueError):
        fit(x.tobytes(), BF16)
