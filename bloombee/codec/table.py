"""Tables of the activation codec: what a sender learned about one boundary, and the name it travels under.

A table has no state and never changes. Both sides hold it or they do not; a message says which one it needs by
the first bytes of its digest. Source: docs/codec.md section 4.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from dataclasses import dataclass, field

from bloombee import _native
from bloombee.errors import CorruptPayload
from bloombee.types import Dtype

GROUP = 64
"""Channels that share a table in one row."""
TILE = 256
"""The channel order permutes inside tiles of this many channels."""
MAX_WINDOW = 30
MAX_CHANNELS = 1 << 20
KEY_BYTES = 4
"""How much of a digest a message carries; the checksum covers the rest."""

DTYPE_CODES = {Dtype.BFLOAT16: 0, Dtype.FLOAT16: 1, Dtype.FLOAT32: 2}
_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}
_HEAD = struct.Struct("<2sBBIHBBBBH")


@dataclass(frozen=True, slots=True)
class Symbols:
    """Frequencies of one table, in 256ths: an escape, exponent 0 if it has a symbol of its own, a window of exponents.

    Args:
        low: exponent of the window's first symbol relative to the position of its group, modulo 256.
        escape: >= 1.
        zero: 0: exponent 0 has no symbol of its own.
        window: 1 to 30 frequencies, each >= 1. All add up to 256.
    """

    low: int
    escape: int
    zero: int
    window: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Fitted tables and channel order of one boundary.

    Args:
        dtype: of the values; the exponents are this dtype's.
        channels: d.
        row_bits: 0, 4 or 8 bits a row for its offset.
        row_base: mean exponent of a row of offset 0, quarter octaves.
        groups: [ceil(d / 64)] one byte each, phase | cluster << 2: which quarter octave, which tables.
        shifts: [d] one byte each, whole octaves, modulo 256; a channel's position is 4 * shift + phase.
        order: [d] one byte each, inside each tile of 256 channels: gathered position -> channel; empty: identity.
        symbols: [4 * clusters], index cluster * 4 + phase of the position.

    Raises:
        CorruptPayload: a field that does not fit the others.
    """

    dtype: Dtype
    channels: int
    row_bits: int
    row_base: int
    groups: bytes
    shifts: bytes
    order: bytes
    symbols: tuple[Symbols, ...]
    digest: bytes = field(init=False)
    """16 bytes, BLAKE2b of the table's bytes."""
    key: bytes = field(init=False)
    """What messages carry: the first 4 bytes of the digest."""
    native: _native.CodecTable = field(init=False, repr=False)
    _bytes: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            blob = _pack(self)
        except (struct.error, ValueError) as error:
            raise CorruptPayload(f"codec table: {error}") from error
        _name(self, blob)

    def to_bytes(self) -> bytes:
        """About 1.5 bytes a channel and 200 bytes of frequencies; :meth:`from_bytes` reads it."""
        return self._bytes

    @classmethod
    def from_bytes(cls, blob: bytes | memoryview) -> Table:
        """The table that ``blob`` holds; every field is checked.

        Raises:
            CorruptPayload: it holds none.
        """
        try:
            table = _unpack(bytes(blob))
        except (struct.error, IndexError, ValueError) as error:
            raise CorruptPayload(f"codec table of {len(blob)} bytes: {error}") from error
        if table.to_bytes() != bytes(blob):
            raise CorruptPayload(f"codec table of {len(blob)} bytes: not in the one form that this table has")
        return table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def _name(table: Table, blob: bytes) -> None:
    digest = hashlib.blake2b(blob, digest_size=16).digest()
    try:
        native = _native.CodecTable(blob, digest)
    except ValueError as error:
        raise CorruptPayload(f"codec table: {error}") from error
    for name, value in (("digest", digest), ("key", digest[:KEY_BYTES]), ("native", native), ("_bytes", blob)):
        object.__setattr__(table, name, value)


def _pack(table: Table) -> bytes:
    if len(table.shifts) != table.channels or len(table.order) not in (0, table.channels):
        raise ValueError("shifts and order must have one byte a channel")
    if len(table.symbols) % 4 or len(table.groups) != -(-table.channels // GROUP):
        raise ValueError("4 tables a cluster, one byte a group")
    low, shift_bits, packed = _pack_shifts(table.shifts)
    flags = (1 if table.order else 0) | shift_bits // 4 << 1
    head = _HEAD.pack(
        b"BT", 1, DTYPE_CODES[table.dtype], table.channels, table.row_base, table.row_bits, flags, len(table.symbols) // 4, low, 0
    )
    parts = [head, table.groups, packed, table.order]
    parts += [bytes((s.low, len(s.window), s.escape, s.zero, *s.window)) for s in table.symbols]
    return b"".join(parts)


def _pack_shifts(shifts: bytes) -> tuple[int, int, bytes]:
    """(smallest, bits each, the rest): 4 bits where they are enough, none where all are equal."""
    low, high = min(shifts), max(shifts)
    rest = [s - low for s in shifts]
    if high == low:
        return low, 0, b""
    if high - low > 15:
        return low, 8, bytes(rest)
    rest += [0] * (len(rest) % 2)
    return low, 4, bytes(a | b << 4 for a, b in zip(rest[::2], rest[1::2], strict=True))


def _unpack(blob: bytes) -> Table:
    magic, version, code, channels, row_base, row_bits, flags, clusters, low, reserved = _HEAD.unpack_from(blob)
    if magic != b"BT" or version != 1 or reserved or code not in _DTYPES:
        raise ValueError("not a table of version 1")
    if not 1 <= channels <= MAX_CHANNELS or clusters not in (1, 2, 3, 4) or flags >> 1 > 2:
        raise ValueError("channels, clusters or flags out of range")
    at = _HEAD.size

    def take(size: int) -> bytes:
        nonlocal at
        if size > len(blob) - at:
            raise ValueError("cut off")
        at += size
        return blob[at - size : at]

    groups = take(-(-channels // GROUP))
    shift_bits = (flags >> 1) * 4
    packed = take((channels * shift_bits + 7) // 8)
    if shift_bits == 4:
        packed = bytes(half for byte in packed for half in (byte & 15, byte >> 4))[:channels]
    shifts = bytes((low + s) & 255 for s in packed) if packed else bytes([low]) * channels
    order = take(channels if flags & 1 else 0)
    symbols = []
    for _ in range(4 * clusters):
        first, size, escape, zero = take(4)
        symbols.append(Symbols(first, escape, zero, tuple(take(size))))
    if at != len(blob):
        raise ValueError("bytes after the end")
    return Table(_DTYPES[code], channels, row_bits, row_base, groups, shifts, order, tuple(symbols))


# Frequencies of the exponents of a normal variable, one table for each quarter octave of its row's mean exponent. The
# scale of single channels is not known, so it is taken as log-normal with a standard deviation of 0.4 octaves.
# Written out, not computed: both ends must have the same bits. tests/unit/test_codec_table.py derives them.
_NORMAL = (
    Symbols(low=249, escape=1, zero=0, window=(1, 1, 3, 5, 10, 20, 38, 64, 75, 35, 3)),
    Symbols(low=249, escape=1, zero=0, window=(1, 1, 2, 4, 8, 17, 32, 57, 77, 49, 7)),
    Symbols(low=250, escape=1, zero=0, window=(1, 2, 4, 7, 14, 27, 50, 75, 61, 14)),
    Symbols(low=250, escape=1, zero=0, window=(1, 2, 3, 6, 12, 23, 44, 70, 70, 23, 1)),
)


@functools.lru_cache(maxsize=256)
def default_table(dtype: Dtype, channels: int) -> Table:
    """What both ends have before anything was fitted: normal values, the same scale in every channel, rows of any scale.

    Every row says its own scale (one byte), so that it serves activations of any size between 2**-32 and 2**31.
    """
    base = 4 * 15 if dtype is Dtype.FLOAT16 else 4 * 126
    return Table(dtype, channels, 8, base, bytes(-(-channels // GROUP)), bytes([base // 4]) * channels, b"", _NORMAL)
