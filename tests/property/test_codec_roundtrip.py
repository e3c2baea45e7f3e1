"""Every native path gives the reference's bytes and the values back, whatever the values and shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloombee import _native
from bloombee.codec import api, reference
from bloombee.codec.fit import fit
from bloombee.codec.table import DTYPE_CODES, Table, default_table
from bloombee.errors import CodecUnavailable, CorruptPayload
from bloombee.types import Dtype

CHANNELS = st.one_of(st.integers(1, 70), st.sampled_from([128, 192, 255, 256, 257, 320, 384, 512, 600, 1000]))
KINDS = ("bits", "channels", "rows", "sparse", "specials", "short")


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, Dtype]:
    dtype, kind = draw(st.sampled_from(list(Dtype))), draw(st.sampled_from(KINDS))
    channels = draw(CHANNELS)
    rows = draw(st.integers(0, max(1, 6000 // channels)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.standard_normal((rows, channels))
    if kind == "bits":
        words = rng.integers(0, 2**32, (rows, channels), dtype=np.uint32)
        return (words if dtype is Dtype.FLOAT32 else words.astype(np.uint16)), dtype
    if kind == "channels":
        x *= np.exp2(rng.uniform(-8, 8, channels))
    if kind == "rows":
        x *= np.exp2(rng.uniform(-8, 8, (rows, 1)))
    if kind == "sparse":
        x[rng.random(x.shape) < 0.8] = 0
    if kind == "specials":
        x = np.where(rng.random(x.shape) < 0.3, rng.choice([np.nan, np.inf, -np.inf, -0.0, 1e-40, 6e-8], x.shape), x)
    words = x.astype(np.float32).view(np.uint32)
    if kind == "short":  # low bytes that are 0
        words &= np.uint32(rng.choice([0xFFFF0000, 0xFFFFFF00, 0xFFFF00FF]))
    if dtype is Dtype.FLOAT32:
        return words, dtype
    if dtype is Dtype.FLOAT16:
        return words.view(np.float32).astype(np.float16).view(np.uint16), dtype
    return (words >> 16).astype(np.uint16), dtype


def tables_for(x: np.ndarray, dtype: Dtype) -> list[Table | None]:
    found: list[Table | None] = [None, default_table(dtype, x.shape[1])]
    if len(x):
        found += [fit(x, dtype), fit(x[:1], dtype)]
    return found


@pytest.mark.filterwarnings("ignore:overflow")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(matrix=matrices(), unit_log2=st.integers(8, 14), data=st.data())
def test_paths_agree_and_values_come_back(matrix: tuple[np.ndarray, Dtype], unit_log2: int, data: st.DataObject) -> None:
    x, dtype = matrix
    rows, channels = x.shape
    table = data.draw(st.sampled_from(tables_for(x, dtype)))
    expected = reference.encode(x.tobytes(), shape=x.shape, dtype=dtype, table=table, unit_log2=unit_log2)
    assert len(expected) <= x.nbytes + 8
    assert reference.decode(expected, shape=x.shape, dtype=dtype, table=table) == x.tobytes()
    before = _native.current_isa()
    try:
        for isa in _native.available_isas():
            _native.set_isa(isa)
            out = bytearray(api.bound(x.size, dtype))
            size = _native.codec_encode(x, rows, channels, DTYPE_CODES[dtype], table.native if table else None, out, unit_log2)
            assert bytes(out[:size]) == expected, isa
            decoded = np.full_like(x, 0x55)
            api.decode(expected, decoded, shape=x.shape, dtype=dtype, tables={table.key: table} if table else {})
            assert (decoded == x).all(), isa
    finally:
        _native.set_isa(before)
    if expected[0] == 0x11:
        assert table is not None
        by_lanes(x, dtype, table, unit_log2, expected)


def by_lanes(x: np.ndarray, dtype: Dtype, table: Table, unit_log2: int, expected: bytes) -> None:
    """The code that the CUDA kernels run, on the host."""
    rows, channels = x.shape
    missing = expected[2] >> 4
    message = _native.codec_encode_by_lanes(
        x, rows, channels, DTYPE_CODES[dtype], table.native, unit_log2, not missing & 1, not missing & 2
    )
    assert message == expected
    decoded = np.full_like(x, 0x55)
    assert _native.codec_decode_by_lanes(expected, decoded, rows, channels, DTYPE_CODES[dtype], table.native)
    assert (decoded == x).all()


@settings(max_examples=150, deadline=None)
@given(message=st.binary(max_size=600), rows=st.integers(0, 5), dtype=st.sampled_from(list(Dtype)), key=st.booleans())
def test_arbitrary_bytes_are_refused(message: bytes, rows: int, dtype: Dtype, key: bool) -> None:
    table = default_table(dtype, 96)
    if key:
        message = b"\x11" + message[:7] + table.key + message[7:]
    with pytest.raises((CorruptPayload, CodecUnavailable)):
        api.decode(message, bytearray(rows * 96 * dtype.num_bytes), shape=(rows, 96), dtype=dtype)
