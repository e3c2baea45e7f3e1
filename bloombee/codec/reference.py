"""The activation codec in plain Python: the oracle for the native paths, and the format in executable form.

Slow (microseconds a value). Same bytes as :mod:`bloombee.codec.api` in both directions. Section numbers are of
docs/codec.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bloombee.codec.checksum import crc32c
from bloombee.codec.table import DTYPE_CODES, GROUP, TILE, Symbols, Table
from bloombee.errors import CorruptPayload
from bloombee.types import Dtype

ESCAPE, ZERO = 0, 31
STATE_LOW = 1 << 15
RAW_UNIT = 0x3FFF
MIN_BEFORE_UNITS = 128
MIN_VALUES = 128


def lanes_for(num_values: int) -> int:
    return 8 if num_values <= 512 else 16 if num_values <= 2048 else 32


# -- values (section 3.2) ----------------------------------------------------------------------

EXPONENT_SHIFT = {Dtype.BFLOAT16: 7, Dtype.FLOAT16: 10, Dtype.FLOAT32: 23}
EXPONENT_MASK = {Dtype.BFLOAT16: 0xFF, Dtype.FLOAT16: 0x1F, Dtype.FLOAT32: 0xFF}
FP16_BITS = (8, 9, 15)


def _exponent(value: int, dtype: Dtype) -> int:
    return value >> EXPONENT_SHIFT[dtype] & EXPONENT_MASK[dtype]


def _seed_byte(value: int, dtype: Dtype) -> int:
    if dtype is Dtype.FLOAT16:
        return value & 0xFF
    top = value >> (16 if dtype is Dtype.FLOAT32 else 0)
    return (top & 0x7F) | (top >> 8 & 0x80)


def _value(exponent: int, seed: int, dtype: Dtype) -> int:
    if dtype is Dtype.FLOAT16:
        return (exponent & 0x1F) << 10 | seed
    top = exponent << 7 | (seed & 0x7F) | (seed & 0x80) << 8
    return top << 16 if dtype is Dtype.FLOAT32 else top


# -- layout (section 3.1) ----------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """Rows [row, row + rows) of channels [channel, channel + channels)."""

    row: int
    rows: int
    channel: int
    channels: int

    @property
    def num_values(self) -> int:
        return self.rows * self.channels

    @property
    def groups(self) -> int:
        return -(-self.channels // GROUP)


def units_of(rows: int, channels: int, unit_log2: int) -> list[Unit]:
    size = 1 << unit_log2
    if channels > size:
        return [Unit(row, 1, start, min(size, channels - start)) for row in range(rows) for start in range(0, channels, size)]
    per_unit = size // (-(-channels // GROUP) * GROUP)
    return [Unit(row, min(per_unit, rows - row), 0, channels) for row in range(0, rows, per_unit)]


# -- coder (section 3.4) -----------------------------------------------------------------------


class _Coder:
    """One :class:`Symbols` as frequencies, starts and slots of all 32 symbols."""

    def __init__(self, symbols: Symbols) -> None:
        self.low = symbols.low
        self.window = len(symbols.window)
        self.has_zero = symbols.zero > 0
        self.frequency = [symbols.escape, *symbols.window, *[0] * (30 - self.window), symbols.zero]
        self.start = [sum(self.frequency[:s]) for s in range(32)]
        self.slots = [s for s in range(32) for _ in range(self.frequency[s])]
        self.fill = 1 + symbols.window.index(max(symbols.window))

    def symbol(self, exponent: int, base: int) -> int:
        if self.has_zero and exponent == 0:
            return ZERO
        index = (exponent - base) & 0xFF
        return index + 1 if index < self.window else ESCAPE


def _encode_unit(symbols: list[int], coders: list[_Coder], lanes: int, seeds: bytes) -> tuple[list[int], list[int]]:
    """(words, final states) of one unit; ``coders`` has one a group of 64 symbols."""
    padded = seeds.ljust(2 * lanes, b"\0")
    states = [1 << 16 | padded[2 * lane] | padded[2 * lane + 1] << 8 for lane in range(lanes)]
    words: list[int] = []
    for step in reversed(range(0, len(symbols), lanes)):
        coder = coders[step // GROUP]
        for lane in range(lanes):
            symbol, x = symbols[step + lane], states[lane]
            frequency = coder.frequency[symbol]
            if x >= frequency << 23:
                words.append(x & 0xFFFF)
                x >>= 16
            states[lane] = x // frequency << 8 | x % frequency + coder.start[symbol]
    return words, states


def _decode_unit(num_symbols: int, coders: list[_Coder], lanes: int, words: list[int], states: list[int]) -> list[int]:
    """Inverse; leaves the seeds in ``states``. Consumes ``words`` from the end."""
    symbols: list[int] = []
    for step in range(0, num_symbols, lanes):
        coder = coders[step // GROUP]
        for lane in range(lanes):
            slot = states[lane] & 0xFF
            symbol = coder.slots[slot]
            symbols.append(symbol)
            states[lane] = coder.frequency[symbol] * (states[lane] >> 8) + slot - coder.start[symbol]
        needs = [lane for lane in range(lanes) if states[lane] < STATE_LOW]
        if len(needs) > len(words):
            raise CorruptPayload("words do not end where their unit starts")
        taken = words[len(words) - len(needs) :]
        del words[len(words) - len(needs) :]
        for lane, word in zip(needs, taken, strict=True):
            states[lane] = states[lane] << 16 | word
    return symbols


def _pack_states(states: list[int]) -> bytes:
    bits = total = 0
    for x in states:
        n = x.bit_length() - 1
        bits |= (x - (1 << n)) << total
        total += n
    lengths = [x.bit_length() - 16 for x in states]
    return bits.to_bytes((total + 7) // 8, "little") + bytes(a | b << 4 for a, b in zip(lengths[::2], lengths[1::2], strict=True))


def _unpack_states(unit: bytes, lanes: int) -> tuple[list[int], int]:
    """(states, where they start) from the end of a unit."""
    lengths = [15 + (byte >> s & 15) for byte in unit[len(unit) - lanes // 2 :] for s in (0, 4)]
    stop = len(unit) - lanes // 2
    start = stop - (sum(lengths) + 7) // 8
    if len(lengths) != lanes or start < 0:
        raise CorruptPayload("states do not fit into their unit")
    bits = int.from_bytes(unit[start:stop], "little")
    states = []
    for n in lengths:
        states.append(1 << n | bits & ((1 << n) - 1))
        bits >>= n
    if bits:
        raise CorruptPayload("states do not fit into their unit")
    return states, start


# -- rows and groups (section 3.3) ---------------------------------------------------------------


class _Places:
    """Where each channel of a table goes, and what its groups use in a row of a given offset."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.coders = [_Coder(s) for s in table.symbols]
        order = table.order or bytes(c % TILE for c in range(table.channels))
        self.channel = [j // TILE * TILE + order[j] for j in range(table.channels)]

    def group(self, index: int, offset: int) -> tuple[_Coder, int]:
        """(coder, base without the channel's shift)."""
        phase, cluster = self.table.groups[index] & 3, self.table.groups[index] >> 2
        position = phase + offset
        coder = self.coders[cluster * 4 + (position & 3)]
        return coder, (position >> 2) + coder.low

    def offset(self, exponents: list[int]) -> int:
        if self.table.row_bits == 0:
            return 0
        mean = (8 * sum(exponents) + len(exponents)) // (2 * len(exponents))
        most = 127 if self.table.row_bits == 8 else 7
        return max(-most - 1, min(most, mean - self.table.row_base))


def _pack_offsets(offsets: list[int], bits: int) -> bytes:
    if bits == 8:
        return bytes(q + 128 for q in offsets)
    if bits == 0:
        return b""
    even = [q + 8 for q in offsets] + [0] * (len(offsets) % 2)
    return bytes(a | b << 4 for a, b in zip(even[::2], even[1::2], strict=True))


def _unpack_offsets(data: bytes, rows: int, bits: int) -> list[int]:
    if bits == 8:
        return [byte - 128 for byte in data]
    if bits == 0:
        return [0] * rows
    return [(byte >> s & 15) - 8 for byte in data for s in (0, 4)][:rows]


# -- messages (section 2) ------------------------------------------------------------------------


def encode(data: bytes, *, shape: tuple[int, int], dtype: Dtype, table: Table | None, unit_log2: int = 14) -> bytes:
    """As :func:`bloombee.codec.api.encode`, for contiguous values."""
    rows, channels = shape
    if table is not None and rows * channels >= MIN_VALUES:
        message = _encode_coded(data, rows, channels, dtype, table, unit_log2)
        if message is not None:
            return message
    return _sealed(bytes((0x10, DTYPE_CODES[dtype], 0, 0)), data, 0)


def _sealed(head: bytes, rest: bytes, seed: int) -> bytes:
    return head + struct.pack("<I", crc32c(rest, crc32c(head, seed))) + rest


def _encode_coded(data: bytes, rows: int, channels: int, dtype: Dtype, table: Table, unit_log2: int) -> bytes | None:
    """The coded message, None if it would not be smaller than the bound or leaves too little before its units."""
    n = rows * channels
    values = list(struct.unpack(f"<{n}{'I' if dtype is Dtype.FLOAT32 else 'H'}", data))
    lanes = lanes_for(n)
    places = _Places(table)
    exponents = [_exponent(v, dtype) for v in values]
    seeds = bytes(_seed_byte(v, dtype) for v in values)
    offsets = [places.offset(exponents[r * channels : (r + 1) * channels]) for r in range(rows)]

    seed_plane, coded, directory = [], [], []
    units = units_of(rows, channels, unit_log2)
    for unit in units:
        first = unit.row * channels + unit.channel
        unit_seeds = seeds[first : first + unit.num_values]
        in_states, after = unit_seeds[: 2 * lanes], unit_seeds[2 * lanes :]
        body, escapes = _code(unit, exponents, first, channels, offsets, places, lanes, in_states)
        seed_plane.append(after)
        coded.append(body)
        directory.append(len(body) | escapes << 18)
    planes, missing = _other_planes(values, rows, channels, dtype)
    front = _pack_offsets(offsets, table.row_bits) + b"".join(seed_plane) + planes
    front += bytes(len(front) % 2)
    single = len(units) == 1
    trailer = b"" if single else struct.pack(f"<{len(units)}I", *directory)
    rest = table.key + front + b"".join(coded) + trailer
    escapes = directory[0] >> 18 if single else 0
    if 8 + len(rest) > len(data) + 8 or escapes > 255 or 12 + len(front) < MIN_BEFORE_UNITS:
        return None
    head = bytes((0x11, DTYPE_CODES[dtype] | {8: 0, 16: 1, 32: 2}[lanes] << 2, unit_log2 | missing << 4, escapes))
    return _sealed(head, rest, crc32c(table.digest))


def _code(
    unit: Unit, exponents: list[int], first: int, stride: int, offsets: list[int], places: _Places, lanes: int, seeds: bytes
) -> tuple[bytes, int]:
    """(bytes of one unit, number of its escapes or RAW_UNIT)."""
    symbols: list[int] = []
    coders: list[_Coder] = []
    escaped = bytearray()
    for row in range(unit.rows):
        for g in range(unit.groups):
            index = unit.channel // GROUP + g
            coder, base = places.group(index, offsets[unit.row + row])
            coders.append(coder)
            for j in range(index * GROUP, (index + 1) * GROUP):
                if j >= unit.channel + unit.channels:
                    symbols.append(coder.fill)
                    continue
                channel = places.channel[j]
                exponent = exponents[(unit.row + row) * stride + channel]
                symbols.append(coder.symbol(exponent, base + places.table.shifts[channel]))
                if symbols[-1] == ESCAPE:
                    escaped.append(exponent)
    words, states = _encode_unit(symbols, coders, lanes, seeds)
    tail = bytes(escaped) + _pack_states(states)
    body = struct.pack(f"<{len(words)}H", *words) + bytes(len(tail) % 2) + tail
    raw = seeds + bytes(exponents[first : first + unit.num_values])
    raw += bytes(len(raw) % 2)
    return (raw, RAW_UNIT) if len(body) >= len(raw) or len(escaped) >= RAW_UNIT else (body, len(escaped))


def _other_planes(values: list[int], rows: int, channels: int, dtype: Dtype) -> tuple[bytes, int]:
    """(fp16's bitmaps or fp32's low planes, which of those are missing: bit 0 for byte 0, bit 1 for byte 1)."""
    if dtype is Dtype.FLOAT16:
        size = (channels + 7) // 8
        out = bytearray()
        for r in range(rows):
            row = values[r * channels : (r + 1) * channels]
            for bit in FP16_BITS:
                out += sum((v >> bit & 1) << i for i, v in enumerate(row)).to_bytes(size, "little")
        return bytes(out), 0
    if dtype is Dtype.FLOAT32:
        plane0, plane1 = bytes(v & 0xFF for v in values), bytes(v >> 8 & 0xFF for v in values)
        missing = (not any(plane0)) | (not any(plane1)) << 1
        return (plane1 if any(plane1) else b"") + (plane0 if any(plane0) else b""), missing
    return b"", 0


def decode(message: bytes, *, shape: tuple[int, int], dtype: Dtype, table: Table | None = None) -> bytes:
    """As :func:`bloombee.codec.api.decode`, with the one table that the message may need.

    Raises:
        CorruptPayload: it is no message of this shape, dtype and table.
    """
    rows, channels = shape
    n = rows * channels
    if len(message) < 8 or message[0] not in (0x10, 0x11):
        raise CorruptPayload("not a message of version 1")
    seed = 0
    if message[0] == 0x11:
        if table is None or message[8:12] != table.key:
            raise CorruptPayload("message of another table")
        seed = crc32c(table.digest)
    if struct.unpack_from("<I", message, 4)[0] != crc32c(message[8:], crc32c(message[:4], seed)):
        raise CorruptPayload("wrong checksum")
    if message[0] == 0x10:
        if message[1:4] != bytes((DTYPE_CODES[dtype], 0, 0)) or len(message) != 8 + n * dtype.num_bytes:
            raise CorruptPayload("raw message of another dtype or size")
        return message[8:]
    assert table is not None
    values = _decode_coded(message, rows, channels, dtype, table)
    return struct.pack(f"<{n}{'I' if dtype is Dtype.FLOAT32 else 'H'}", *values)


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise CorruptPayload("message is too short for its shape")
        self.at += size
        return self.data[self.at - size : self.at]


def _decode_coded(message: bytes, rows: int, channels: int, dtype: Dtype, table: Table) -> list[int]:
    n = rows * channels
    lanes = lanes_for(n)
    unit_log2, missing = message[2] & 15, message[2] >> 4
    if message[1] != DTYPE_CODES[dtype] | {8: 0, 16: 1, 32: 2}[lanes] << 2 or n < MIN_VALUES:
        raise CorruptPayload("message of another dtype or size")
    if not 8 <= unit_log2 <= 14 or missing > (3 if dtype is Dtype.FLOAT32 else 0):
        raise CorruptPayload("unknown flags")
    units = units_of(rows, channels, unit_log2)
    reader = _Reader(message, 12)
    offsets = _unpack_offsets(reader.take((rows * table.row_bits + 7) // 8), rows, table.row_bits)
    seed_planes = [reader.take(u.num_values - min(2 * lanes, u.num_values)) for u in units]
    rest = [0] * n
    if dtype is Dtype.FLOAT16:
        size = (channels + 7) // 8
        for r in range(rows):
            for bit in FP16_BITS:
                bits = int.from_bytes(reader.take(size), "little")
                for c in range(channels):
                    rest[r * channels + c] |= (bits >> c & 1) << bit
    if dtype is Dtype.FLOAT32:
        plane1 = reader.take(0 if missing & 2 else n) or bytes(n)
        plane0 = reader.take(0 if missing & 1 else n) or bytes(n)
        rest = [a << 8 | b for a, b in zip(plane1, plane0, strict=True)]
    reader.take(reader.at % 2)
    if reader.at < MIN_BEFORE_UNITS:
        raise CorruptPayload("coded message of too few values")
    trailer = 0 if len(units) == 1 else 4 * len(units)
    if len(units) > 1 and message[3]:
        raise CorruptPayload("reserved byte is not 0")
    entries = [len(message) - reader.at | message[3] << 18]
    if trailer:
        entries = list(struct.unpack(f"<{len(units)}I", message[len(message) - trailer :]))
    body = _Reader(message[: len(message) - trailer], reader.at)

    places = _Places(table)
    for unit, plane, entry in zip(units, seed_planes, entries, strict=True):
        _decode_into(rest, unit, plane, body.take(entry & 0x3FFFF), entry >> 18, channels, dtype, offsets, places, lanes)
    if body.at != len(body.data):
        raise CorruptPayload("bytes between the units and the directory")
    return rest


def _decode_into(
    values: list[int], unit: Unit, plane: bytes, body: bytes, num_escapes: int, stride: int, dtype: Dtype,
    offsets: list[int], places: _Places, lanes: int,
) -> None:  # fmt: skip
    """ORs one unit's exponents and seed bytes into ``values``."""
    num_seeds = min(2 * lanes, unit.num_values)
    if num_escapes == RAW_UNIT:
        if len(body) != num_seeds + unit.num_values + (num_seeds + unit.num_values) % 2:
            raise CorruptPayload("raw unit of the wrong size")
        seeds, exponents = body[:num_seeds], list(body[num_seeds : num_seeds + unit.num_values])
    else:
        seeds, exponents = _decode_symbols(unit, body, num_escapes, offsets, places, lanes)
    for i, seed in enumerate(seeds[:num_seeds] + plane):
        row, channel = divmod(i, unit.channels)
        values[(unit.row + row) * stride + unit.channel + channel] |= _value(exponents[i], seed, dtype)


def _decode_symbols(
    unit: Unit, body: bytes, num_escapes: int, offsets: list[int], places: _Places, lanes: int
) -> tuple[bytes, list[int]]:
    """(seed bytes, exponents in channel order) of a unit that is not raw."""
    states, start = _unpack_states(body, lanes)
    escapes_at = start - num_escapes
    if escapes_at < 0:
        raise CorruptPayload("escapes do not fit into their unit")
    groups = [
        places.group(unit.channel // GROUP + g, offsets[unit.row + row]) for row in range(unit.rows) for g in range(unit.groups)
    ]
    words = list(struct.unpack(f"<{escapes_at // 2}H", body[: escapes_at // 2 * 2]))
    symbols = _decode_unit(len(groups) * GROUP, [coder for coder, _ in groups], lanes, words, states)
    if words:
        raise CorruptPayload("words do not end where their unit starts")
    if any(x >> 16 != 1 for x in states):
        raise CorruptPayload("a state does not end where it started")
    escapes = iter(body[escapes_at:start])
    exponents = [0] * unit.num_values
    for i, symbol in enumerate(symbols):
        row, j = divmod(i, unit.groups * GROUP)
        if j >= unit.channels:
            continue
        channel = places.channel[unit.channel + j]
        base = groups[i // GROUP][1] + places.table.shifts[channel]
        exponent = next(escapes, -1) if symbol == ESCAPE else 0 if symbol == ZERO else (symbol - 1 + base) & 0xFF
        if exponent < 0:
            raise CorruptPayload("too few escapes")
        exponents[row * unit.channels + channel - unit.channel] = exponent
    if next(escapes, None) is not None:
        raise CorruptPayload("escapes left over")
    return b"".join(struct.pack("<H", x & 0xFFFF) for x in states), exponents
