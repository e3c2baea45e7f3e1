import pytest

from bloombee import _native
from bloombee.codec.checksum import check_crc32c, crc32c
from bloombee.errors import CorruptPayload

# RFC 3720 appendix B.4, and the check value of every CRC catalogue.
VECTORS = [
    (b"", 0x00000000),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
]


def bitwise_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.fixture(params=_native.available_isas(), autouse=True)
def isa(request):
    before = _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


@pytest.mark.parametrize(("data", "expected"), VECTORS)
def test_known_vectors(data, expected):
    assert crc32c(data) == expected


# The sizes around which a stream of the interleaved kernel begins or ends (3 x 256, 3 x 4096), and odd ones.
@pytest.mark.parametrize("size", [1, 7, 8, 9, 767, 768, 769, 1537, 12287, 12288, 12289, 12288 + 768 + 13])
def test_matches_bit_by_bit_definition_at_any_alignment(size):
    data = bytes((i * 167 + (i >> 8) * 31) & 0xFF for i in range(size + 3))
    for offset in (0, 1, 3):
        piece = memoryview(data)[offset : offset + size]
        assert crc32c(piece) == bitwise_crc32c(bytes(piece))


def test_continues_from_what_came_before():
    data = bytes(range(256)) * 100
    whole = crc32c(data)
    for cut in (0, 1, 8, 1000, 12288, len(data)):
        assert crc32c(data[cut:], crc32c(data[:cut])) == whole


def test_every_single_bit_matters():
    data = bytearray(range(64))
    sums = {crc32c(data)}
    for bit in range(len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        sums.add(crc32c(data))
        data[bit // 8] ^= 1 << bit % 8
    assert len(sums) == len(data) * 8 + 1


def test_check_names_both_sums():
    check_crc32c(b"123456789", 0xE3069283)
    with pytest.raises(CorruptPayload) as caught:
        check_crc32c(b"123456788", 0xE3069283)
    assert caught.value.fields["expected"] == 0xE3069283
    assert caught.value.fields["actual"] == crc32c(b"123456788")


def test_refuses_what_is_no_buffer():
    with pytest.raises(TypeError):
        crc32c("text")
    with pytest.raises((BufferError, ValueError)):
        crc32c(memoryview(b"0123456789")[::2])
