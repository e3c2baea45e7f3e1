"""Codec tables: one form in bytes, everything in it checked, and where the default one comes from."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest

from bloombee.codec.fit import BELOW, SPAN, fit, normalise
from bloombee.codec.table import Symbols, Table, default_table
from bloombee.errors import CorruptPayload
from bloombee.types import Dtype


def fitted(channels: int, dtype: Dtype = Dtype.FLOAT32, rows: int = 64) -> Table:
    rng = np.random.default_rng(channels)
    x = rng.standard_normal((rows, channels)) * np.exp2(rng.uniform(-9, 9, channels))
    return fit(x.astype(np.float32).view(np.uint32), dtype)


@pytest.mark.parametrize("channels", [1, 63, 64, 65, 256, 300, 1000])
def test_bytes_and_back(channels: int) -> None:
    for table in (fitted(channels), default_table(Dtype.FLOAT32, channels)):
        again = Table.from_bytes(table.to_bytes())
        assert again == table
        assert all(getattr(again, f.name) == getattr(table, f.name) for f in dataclasses.fields(Table) if f.init)


def test_size_for_a_large_model() -> None:
    assert len(fitted(4096).to_bytes()) < 9 * 1024
    assert len(default_table(Dtype.BFLOAT16, 4096).to_bytes()) < 200


def test_cut_or_longer_bytes_are_no_table() -> None:
    blob = fitted(100).to_bytes()
    for size in range(len(blob)):
        with pytest.raises(CorruptPayload):
            Table.from_bytes(blob[:size])
    with pytest.raises(CorruptPayload):
        Table.from_bytes(blob + b"\0")


def test_changed_bytes_are_another_table_or_none() -> None:
    table = fitted(100)
    blob = table.to_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(2000):
        other = bytearray(blob)
        other[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
        try:
            assert Table.from_bytes(bytes(other)).digest != table.digest
        except CorruptPayload:
            refused += 1
    assert refused > 500


@pytest.mark.parametrize(
    "change",
    [
        {"row_bits": 3},
        {"row_base": -1},
        {"row_base": 1 << 16},
        {"channels": 0},
        {"channels": 65},
        {"groups": b"\x04"},
        {"order": bytes(64)},
        {"order": bytes(range(63))},
        {"shifts": bytes(63)},
        {"symbols": (Symbols(0, 1, 0, (255,)),) * 3},
        {"symbols": (Symbols(0, 1, 0, (254,)),) * 4},
        {"symbols": (Symbols(0, 0, 1, (255,)),) * 4},
        {"symbols": (Symbols(0, 1, 0, ()),) * 4},
        {"symbols": (Symbols(0, 1, 0, (255, 0)),) * 4},
        {"symbols": (Symbols(0, 1, 0, (225,) + (1,) * 30),) * 4},
        {"symbols": (Symbols(256, 1, 0, (255,)),) * 4},
    ],
)
def test_fields_that_do_not_fit(change: dict[str, object]) -> None:
    good = Table(Dtype.BFLOAT16, 64, 8, 500, b"\0", bytes(64), b"", (Symbols(0, 1, 0, (255,)),) * 4)
    with pytest.raises(CorruptPayload):
        dataclasses.replace(good, **change)  # type: ignore[arg-type]


def _normal(low: float, high: float) -> float:
    """P(low <= |X| < high) of a standard normal variable."""
    return math.erfc(low / math.sqrt(2)) - math.erfc(high / math.sqrt(2))


def _exponents(log2_scale: float) -> dict[int, float]:
    scale = 2.0**log2_scale
    return {k: _normal(2.0**k / scale, 2.0 ** (k + 1) / scale) for k in range(-40, 16)}


def test_the_default_is_a_normal_variable_of_roughly_known_scale() -> None:
    def mean(t: float) -> float:
        return sum(k * p for k, p in _exponents(t).items())

    lift = sum(mean(i / 16) - i / 16 for i in range(16)) / 16  # of the mean exponent over log2 of the scale
    for phase, symbols in enumerate(default_table(Dtype.BFLOAT16, 64).symbols):
        histogram = np.zeros(SPAN + 2)
        for z in np.arange(-24, 25) / 8:
            for u in range(-4, 5):
                weight = 1e6 * math.exp(-z * z / 2)
                for k, p in _exponents(phase / 4 - lift + 0.4 * z + u / 32).items():
                    histogram[k + BELOW if 0 <= k + BELOW < SPAN else SPAN + 1] += weight * p
        assert normalise(histogram)[0] == symbols


def test_default_tables_keep_their_names() -> None:
    # Other versions and machines must compute the same; see docs/codec.md section 4.
    names = {(dtype, d): default_table(dtype, d).digest.hex() for dtype in Dtype for d in (256, 4096)}
    assert names == DEFAULT_DIGESTS


DEFAULT_DIGESTS = {
    (Dtype.BFLOAT16, 256): "8255b645dee39e5dbbb76189d1aa919d",
    (Dtype.BFLOAT16, 4096): "1fe1d904c57770fcbde73e2ce37496d0",
    (Dtype.FLOAT16, 256): "6ac550b7ed2589842d00ba381e93b2a1",
    (Dtype.FLOAT16, 4096): "e747f662270d105f567021978c2b62ba",
    (Dtype.FLOAT32, 256): "2be5485a23c2fbf3ec774f8a32bff42e",
    (Dtype.FLOAT32, 4096): "f2694de367c9525eebba221143ce9556",
}
