"""The codec's golden vectors, on every native path."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bloombee import _native
from bloombee.codec import api, reference
from bloombee.codec.table import DTYPE_CODES, Table
from bloombee.types import Dtype

GOLDEN = Path(__file__).parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))
from codec_make import values, vectors  # noqa: E402

ROWS: list[dict[str, Any]] = json.loads((GOLDEN / "codec.json").read_text())
IDS = [f"{r['kind']}-{r['dtype']}-{r['shape'][0]}x{r['shape'][1]}-{r['table_name']}" for r in ROWS]


@pytest.fixture(params=_native.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


def name_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def test_the_file_is_what_the_reference_makes() -> None:
    assert list(vectors()) == ROWS


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_vector(row: dict[str, Any], isa: str) -> None:
    dtype, (rows, channels) = Dtype(row["dtype"]), row["shape"]
    data = values(row["kind"], row["seed"], rows * channels, dtype)
    assert name_of(data) == row["data_blake2b"]
    table = Table.from_bytes(bytes.fromhex(row["table"])) if row["table"] else None
    native = table.native if table else None
    out = bytearray(api.bound(rows * channels, dtype))
    size = _native.codec_encode(data, rows, channels, DTYPE_CODES[dtype], native, out, row["unit_log2"])
    message = bytes(out[:size])
    assert (size, name_of(message)) == (row["message_bytes"], row["message_blake2b"])
    assert message.hex() == row.get("message", message.hex())

    decoded = bytearray(len(data))
    api.decode(message, decoded, shape=(rows, channels), dtype=dtype, tables={table.key: table} if table else {})
    assert decoded == data
    assert reference.decode(message, shape=(rows, channels), dtype=dtype, table=table) == data


def test_vectors_cover_what_they_should() -> None:
    coded = [r for r in ROWS if r["message_bytes"] < r["shape"][0] * r["shape"][1] * Dtype(r["dtype"]).num_bytes]
    assert {r["dtype"] for r in coded} == {d.value for d in Dtype}
    assert {r["table_name"] for r in coded} == {"default", "handmade"}
