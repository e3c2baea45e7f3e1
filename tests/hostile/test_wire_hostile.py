"""Damaged bytes of every message: truncated at each byte, a bit flipped at each place, surplus, nested, oversized."""

import json
import tracemalloc
from pathlib import Path

import msgpack
import pytest

from bloombee.errors import RemoteProtocolError
from bloombee.pipeline.cuts import Cuts
from bloombee.wire.envelope import decode_envelope
from bloombee.wire.messages import MAX_HEADER_BYTES, MAX_ROWS, Cut
from bloombee.wire.schema import decode_message

VECTORS = json.loads((Path(__file__).resolve().parents[1] / "golden" / "wire.json").read_text())
MESSAGES = [bytes.fromhex(vector["message"]) for vector in VECTORS]
HEADERS = [bytes.fromhex(vector["header"]) for vector in VECTORS]
PAYLOADS = [[bytes(length) for length in vector["payloads"]] for vector in VECTORS]
each_message = pytest.mark.parametrize("data", MESSAGES, ids=[f"tag{v['tag']}-{i}" for i, v in enumerate(VECTORS)])
each_header = pytest.mark.parametrize(
    ("data", "payloads"), list(zip(HEADERS, PAYLOADS, strict=True)), ids=[f"tag{v['tag']}-{i}" for i, v in enumerate(VECTORS)]
)


def refusal(header: bytes | bytearray, payloads: list[bytes]) -> RemoteProtocolError | None:
    """The error, if it is refused; any other error is the test's failure."""
    try:
        decode_envelope([header, *payloads])
    except RemoteProtocolError as error:
        return error
    return None


@each_message
def test_truncated_at_every_byte(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(RemoteProtocolError):
            decode_message(data[:length])


@each_header
def test_header_truncated_at_every_byte(data: bytes, payloads: list[bytes]) -> None:
    for length in range(len(data)):
        with pytest.raises(RemoteProtocolError):
            decode_envelope([data[:length], *payloads])


@each_header
def test_every_bit_flipped(data: bytes, payloads: list[bytes]) -> None:
    refused = 0
    for index in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[index] ^= 1 << bit
            error = refusal(damaged, payloads)
            assert error is None or error.fields["path"]
            refused += error is not None
    assert refused > len(data)  # the structure bytes, at least, do not survive a flip


@each_message
def test_trailing_bytes(data: bytes) -> None:
    for tail in (b"\x00", b"\xc1", data):
        with pytest.raises(RemoteProtocolError):
            decode_message(data + tail)


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd\xff\xff\xff\xff\x20",  # an array that says it has 4 G elements
        b"\x92\x01\xc6\xff\xff\xff\xff",  # 4 GB of bytes
        b"\x98\x20\x00\x01\x05\x09\x00\x00\xdd\xff\xff\xff\xff",  # a Forward with 4 G items
        b"\x94\x27\x00\x01\xdd\xff\xff\xff\xff",  # a Commit with 4 G cuts
        b"\x98\x33\x00\x01\x00\xdd\xff\xff\xff\xff",  # a Snapshot with 4 G sequences
        b"\x97\x35\x00\x01\x00\xdd\xff\xff\xff\xff",  # an Ask with 4 G requests
        b"\x97\x35\x00\x01\x00\x90\xdd\xff\xff\xff\xff",  # an Ask that cancels 4 G sequences
        b"\x96\x36\x00\x01\x00\xdd\xff\xff\xff\xff",  # a Told with 4 G tokens
        b"\x99\x32\x00\x01\x01\x00\x05\xc6\xff\xff\xff\xff",  # a Draft of 4 GB
        b"\x93\x03\xa1x\xdf\xff\xff\xff\xff",  # a map with 4 G facts
        b"\x91" * MAX_HEADER_BYTES,  # nesting
        b"\x98\x20" + b"\x91" * (MAX_HEADER_BYTES - 2),
        b"\x98\x20\x00\x01\x05\x09\x00\x00" + b"\xdc\xff\xff" + b"\xc0" * 65535,
        msgpack.packb([34, 0, 1, 0, 5, list(range(5, 200_000)), 5, 9, 0]),
        msgpack.packb([39, 0, 1, [[1, 1, 0, list(range(1, 100_000))]]]),
        msgpack.packb([7, "x" * (MAX_HEADER_BYTES - 10)]),
        msgpack.packb([0x63] + [None] * 900_000),
    ],
    ids=lambda b: f"{bytes(b[:4]).hex()}-{len(b)}",
)
def test_bombs_cost_no_more_than_their_size(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        for data in (bomb, b"\x94\x01\x07" + bomb):
            with pytest.raises(RemoteProtocolError):
                decode_message(data)
            with pytest.raises(RemoteProtocolError):
                decode_envelope([data])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MAX_HEADER_BYTES


def test_oversized_is_refused_by_its_length_alone() -> None:
    big = msgpack.packb([7, "x" * 2 * MAX_HEADER_BYTES])
    for decode in (decode_message, lambda data: decode_envelope([data])):
        with pytest.raises(RemoteProtocolError, match=r"at most|must be"):
            decode(big)


def test_most_rows_in_one_item() -> None:
    item = [1, 0, 0, 5, bytes(4 * MAX_ROWS), 1, None, None]
    assert decode_message(msgpack.packb([32, 0, 1, 0, 0, 1, 2, [item]])).items[0].num_rows == MAX_ROWS
    item[4] = bytes(4 * MAX_ROWS + 4)
    with pytest.raises(RemoteProtocolError):
        decode_message(msgpack.packb([32, 0, 1, 0, 0, 1, 2, [item]]))


def test_a_generation_that_is_far_ahead_costs_nothing() -> None:
    """Numbers are 32 bits wide: nobody counts up to them."""
    cuts = Cuts()
    cuts.note(Cut(1, 2**32 - 1, 5, ()))
    assert cuts.following(1, 0) == []
    assert cuts.alive(1, 0, 2**32 - 1) == 0
