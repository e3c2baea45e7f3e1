"""What the host does for messages that a device makes or reads."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from bloombee import _native
from bloombee.codec import api
from bloombee.codec import cuda as device
from bloombee.codec.table import default_table
from bloombee.errors import CodecUnavailable, CorruptPayload
from bloombee.types import Dtype

TABLE = default_table(Dtype.BFLOAT16, 256)


def message_of(rows: int, coded: bool = True) -> bytearray:
    x = np.full((rows, 256), 0x3F80, np.uint16)
    out = bytearray(api.bound(x.size, Dtype.BFLOAT16))
    size = api.encode(x, shape=x.shape, dtype=Dtype.BFLOAT16, table=TABLE if coded else None, out=out)
    return out[:size]


@pytest.mark.parametrize("coded", [True, False])
def test_sealing_writes_the_checksum(coded: bool) -> None:
    message = message_of(4, coded)
    unsealed = bytearray(message)
    unsealed[4:8] = bytes(4)
    device.seal(unsealed, TABLE)
    assert unsealed == message


def test_head_of_a_good_message() -> None:
    message = message_of(4)
    assert device.check_head(message, TABLE) == message[:12]


def test_bad_messages_do_not_reach_the_device() -> None:
    good = message_of(4)
    bad = bytearray(good)
    bad[40] ^= 1
    for message, table in (
        (bad, TABLE),
        (good, default_table(Dtype.BFLOAT16, 320)),
        (message_of(4, False), TABLE),
        (good[:8], TABLE),
    ):
        with pytest.raises(CorruptPayload):
            device.check_head(message, table)


def test_result() -> None:
    assert device.read_result(struct.pack("<QII", 1 << 33, 0, 1)) == device.Result(1 << 33, False, True)


def test_image_holds_the_table() -> None:
    image = TABLE.native.device_image()
    assert struct.unpack_from("<IIII", image) == (0, 256, 8, TABLE.row_base)
    shift, inverse, channel_shift, phase, cluster, size = struct.unpack_from("<6I", image, 20)
    assert size == len(image)
    assert image[inverse : inverse + 256] == bytes(range(256))
    assert image[shift : shift + 256] == image[channel_shift : channel_shift + 256] == bytes([126]) * 256
    assert image[phase : phase + 4] == image[cluster : cluster + 4] == bytes(4)


def test_without_a_device_it_says_so() -> None:
    try:
        device.native()
    except CodecUnavailable as error:
        assert error.fields["reason"] in ("build", "device")  # noqa: PT017
    else:
        assert _native.codec_isa()


def test_too_short_to_seal() -> None:
    with pytest.raises(ValueError):
        _native.codec_seal(bytearray(7), None)
