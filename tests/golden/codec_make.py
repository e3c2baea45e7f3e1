"""Makes tests/golden/codec.json with the plain-Python codec: ``python tests/golden/codec_make.py``.

A change of that file is a change of the format (docs/codec.md), which needs a new version number. The values come from
whole-number arithmetic, so that any language can make them again.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from bloombee.codec import reference  # noqa: E402
from bloombee.codec.table import Symbols, Table, default_table  # noqa: E402
from bloombee.types import Dtype  # noqa: E402

MASK = (1 << 64) - 1
LONGEST_WRITTEN_OUT = 700


def splitmix(state: int) -> Iterator[int]:
    """64-bit whole numbers; Steele, Lea and Flood 2014."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        yield z ^ z >> 31


def values(kind: str, seed: int, count: int, dtype: Dtype) -> bytes:
    """``count`` values. bits: any pattern. bell: sums of four 16-bit numbers. sparse: the same, three of four are 0."""
    numbers = splitmix(seed)
    if kind == "bits":
        return b"".join(struct.pack("<Q", next(numbers))[: dtype.num_bytes] for _ in range(count))
    out = bytearray()
    for _ in range(count):
        z = next(numbers)
        bell = sum(z >> s & 0xFFFF for s in (0, 16, 32, 48)) - 2 * 0xFFFF
        if kind == "sparse" and z % 4:
            bell = 0
        word = struct.unpack("<I", struct.pack("<f", bell / 32768))[0]
        if dtype is Dtype.FLOAT32:
            out += struct.pack("<I", word)
        else:
            out += struct.pack("<H", word >> 16) if dtype is Dtype.BFLOAT16 else struct.pack("<e", bell / 32768)
    return bytes(out)


def handmade_table(dtype: Dtype, channels: int) -> Table:
    """Every feature at once: an order, shifts of 4 bits, two clusters, row offsets of 4 bits, a symbol for exponent 0."""
    window = (2, 4, 8, 16, 30, 50, 70, 40, 20, 4)
    half = tuple(w // 2 for w in window)
    low = (118 if dtype is not Dtype.FLOAT16 else 6) - 8
    symbols = tuple(
        Symbols(low + s % 2 & 255, 2, 10, window) if s < 4 else Symbols(low + s % 2 & 255, 256 - sum(half) - 20, 20, half)
        for s in range(8)
    )
    order = bytearray()
    for tile in range(0, channels, 256):
        n = min(256, channels - tile)
        order += bytes(sorted(range(n), key=lambda c: (c * 37 % 11, c)))
    shifts = bytes(8 + c % 3 for c in range(channels))
    groups = bytes((g % 4) | (g % 2) << 2 for g in range(-(-channels // 64)))
    return Table(dtype, channels, 4, 500 if dtype is not Dtype.FLOAT16 else 56, groups, shifts, bytes(order), symbols)


CASES = [
    # kind, dtype, rows, channels, table, unit_log2
    ("bell", Dtype.BFLOAT16, 1, 256, "default", 14),
    ("bell", Dtype.BFLOAT16, 2, 300, "handmade", 14),
    ("bell", Dtype.BFLOAT16, 16, 256, "default", 14),
    ("bell", Dtype.BFLOAT16, 40, 300, "handmade", 10),
    ("bell", Dtype.BFLOAT16, 2, 1300, "handmade", 9),
    ("bits", Dtype.BFLOAT16, 3, 256, "default", 14),
    ("sparse", Dtype.BFLOAT16, 20, 100, "handmade", 12),
    ("bell", Dtype.FLOAT16, 1, 320, "default", 14),
    ("bell", Dtype.FLOAT16, 30, 320, "handmade", 11),
    ("bell", Dtype.FLOAT32, 1, 256, "default", 14),
    ("sparse", Dtype.FLOAT32, 9, 300, "handmade", 11),
    ("bell", Dtype.BFLOAT16, 2, 8, "default", 14),
    ("bits", Dtype.FLOAT32, 2, 5, "none", 14),
]


def table_of(name: str, dtype: Dtype, channels: int) -> Table | None:
    return {"default": default_table, "handmade": handmade_table, "none": lambda *_: None}[name](dtype, channels)


def vectors() -> Iterator[dict[str, object]]:
    for seed, (kind, dtype, rows, channels, name, unit_log2) in enumerate(CASES, 1):
        table = table_of(name, dtype, channels)
        data = values(kind, seed, rows * channels, dtype)
        message = reference.encode(data, shape=(rows, channels), dtype=dtype, table=table, unit_log2=unit_log2)
        assert reference.decode(message, shape=(rows, channels), dtype=dtype, table=table) == data
        row: dict[str, object] = {
            "kind": kind, "seed": seed, "dtype": dtype.value, "shape": [rows, channels], "table_name": name,
            "unit_log2": unit_log2, "table": table.to_bytes().hex() if table else None,
            "data_blake2b": hashlib.blake2b(data, digest_size=16).hexdigest(), "message_bytes": len(message),
            "message_blake2b": hashlib.blake2b(message, digest_size=16).hexdigest(),
        }  # fmt: skip
        if len(message) <= LONGEST_WRITTEN_OUT:
            row["message"] = message.hex()
        yield row


def main() -> None:
    text = "[\n" + ",\n".join(json.dumps(row) for row in vectors()) + "\n]\n"
    (HERE / "codec.json").write_text(text)


if __name__ == "__main__":
    main()
