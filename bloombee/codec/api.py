"""Lossless compression of activations: the few functions that the rest of the program uses.

A message is complete in itself but for its table, which it names. Nothing here keeps state between messages, so lost,
repeated and reordered ones do no harm. All functions are safe to call from any thread and give up the GIL while they
work. The format is docs/codec.md; ``bloombee/codec/reference.py`` is the same in plain Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bloombee import _native
from bloombee.codec.table import DTYPE_CODES, Table, default_table
from bloombee.errors import CodecUnavailable, CorruptPayload
from bloombee.types import Dtype

CODEC_ID = 1
"""Of this format in a frame's header; 0: the values as they are."""
RAW_OVERHEAD_BYTES = 8
UNIT_LOG2 = 14

Key = bytes
"""The first 4 bytes of a table's digest (``Table.key``)."""


def bound(num_values: int, dtype: Dtype) -> int:
    """Most bytes that :func:`encode` writes for so many values."""
    return num_values * dtype.num_bytes + RAW_OVERHEAD_BYTES


def encode(data: Any, *, shape: tuple[int, int], dtype: Dtype, table: Table | None, out: Any, unit_log2: int = UNIT_LOG2) -> int:
    """Encodes a matrix into ``out``; returns how many bytes.

    Args:
        data: buffer of [rows, d] values, any item format. Rows may lie apart (a 2-D buffer whose rows are contiguous is
            read in place); anything else that is not contiguous is copied first.
        shape: (rows, d).
        table: fitted to this boundary, or :func:`default_table`; None: raw (8 bytes of header, no compression).
        out: writable contiguous buffer of at least :func:`bound` bytes.
        unit_log2: 8 to 14; a GPU makes messages of smaller units (``codec.cuda.unit_log2``) and decodes those in less time.

    Raises:
        ValueError: sizes that disagree, or a table for another dtype or width.

    Time: about 0.2 ns a byte with AVX-512; allocates nothing for messages of one unit.
    """
    native = None if table is None else table.native
    return _native.codec_encode(data, shape[0], shape[1], DTYPE_CODES[dtype], native, out, unit_log2)


def decode(encoded: Any, out: Any, *, shape: tuple[int, int], dtype: Dtype, tables: Mapping[Key, Table] | None = None) -> None:
    """Decodes a message into ``out``.

    Args:
        encoded: contiguous buffer, exactly one message.
        out: writable buffer of [rows, d] values, rows contiguous; undefined after an exception.
        shape, dtype: as they were encoded; a message of others is corrupt.
        tables: by key; the default table is always known.

    Raises:
        CorruptPayload: the bytes are no such message.
        CodecUnavailable: it needs a table that is not in ``tables``; field ``table`` has the key in hex.
        ValueError: ``out`` does not fit ``shape``.
    """
    key = table_key(encoded)
    table = None if key is None else known_table(key, dtype, shape[1], tables)
    reason = _native.codec_decode(encoded, out, shape[0], shape[1], DTYPE_CODES[dtype], None if table is None else table.native)
    if reason is not None:
        raise CorruptPayload(f"codec message for {shape} {dtype}: {reason}", reason=reason)


def known_table(key: Key, dtype: Dtype, channels: int, tables: Mapping[Key, Table] | None = None) -> Table:
    """That of ``tables`` or the default.

    Raises:
        CodecUnavailable: it is neither; field ``table`` has the key in hex.
    """
    table = tables.get(key) if tables is not None else None
    if table is None and channels > 0:
        table = default_table(dtype, channels)
    if table is None or table.key != key:
        raise CodecUnavailable(f"codec table {key.hex()} is not known here", table=key.hex())
    return table


def table_key(encoded: Any) -> Key | None:
    """Key of the table that a message needs; None for a raw message or bytes that are no message."""
    head = bytes(memoryview(encoded)[:12])
    return head[8:] if len(head) == 12 and head[0] == 0x11 else None


def row_blocks(shape: tuple[int, int], dtype: Dtype, block_bytes: int = 1 << 18) -> list[tuple[int, int]]:
    """[start, stop) of rows to encode as messages of their own, so that one can be sent while the next is encoded.

    Blocks of 256 KiB cost 0.1 % in size against one message and are encoded in some 50 microseconds each.
    """
    rows = max(1, block_bytes // max(1, shape[1] * dtype.num_bytes))
    return [(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]


def encode_blocks(
    data: Any, *, shape: tuple[int, int], dtype: Dtype, table: Table | None, block_bytes: int = 1 << 18
) -> Iterator[tuple[int, int, memoryview]]:
    """Encodes block by block: yields (start, stop, message) as each is ready; ``data`` must be contiguous.

    The receiver decodes each message into rows [start, stop) of its own matrix, in any order.
    """
    row_bytes = shape[1] * dtype.num_bytes
    view = memoryview(data).cast("B")
    for start, stop in row_blocks(shape, dtype, block_bytes):
        out = bytearray(bound((stop - start) * shape[1], dtype))
        size = encode(
            view[start * row_bytes : stop * row_bytes], shape=(stop - start, shape[1]), dtype=dtype, table=table, out=out
        )
        yield start, stop, memoryview(out)[:size]


__all__ = [
    "CodecUnavailable",
    "CorruptPayload",
    "Key",
    "Table",
    "bound",
    "decode",
    "default_table",
    "encode",
    "encode_blocks",
    "row_blocks",
    "table_key",
]
