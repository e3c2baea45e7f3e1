"""The two sides of a boundary's codec: choice, fitting, shipping, and tables that one side lost."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from bloombee.codec.choice import CodecMode, CodecSpeed, LinkChoice
from bloombee.codec.table import Table
from bloombee.errors import BloomBeeError, CodecUnavailable, RemoteProtocolError
from bloombee.roles.coding import FIT_ROWS, Payload, Receiver, Sender
from bloombee.types import Dtype

D = 512


def _rows(rng: np.random.Generator, rows: int, scale: float = 1.0) -> memoryview:
    """bf16 rows whose channels differ in scale."""
    values = (rng.standard_normal((rows, D)) * np.exp2(np.arange(D) % 7) * scale).astype(np.float32)
    return memoryview((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


class _Boundary:
    def __init__(self, mode: CodecMode = CodecMode.ON) -> None:
        self.shipped: list[Table] = []
        self.fitted = threading.Event()
        self.sender = Sender(Dtype.BFLOAT16, D, mode, self._ship)
        self.receiver = Receiver(Dtype.BFLOAT16, D)

    def _ship(self, table: Table) -> None:
        self.shipped.append(table)
        self.fitted.set()

    def carry(self, raw: memoryview) -> Payload:
        payload = self.sender.encode(raw, raw.nbytes // (2 * D))
        assert self.receiver.missing(payload) is None
        assert bytes(self.receiver.decode(payload)) == bytes(raw)
        return payload

    def until_fitted(self, rng: np.random.Generator) -> Table:
        for _ in range(FIT_ROWS // 32):
            self.carry(_rows(rng, 32))
        assert self.fitted.wait(30)
        self.fitted.clear()
        return self.shipped[-1]


def test_a_fitted_table_is_used_only_once_it_is_held_and_is_better() -> None:
    boundary, rng = _Boundary(), np.random.default_rng(0)
    table = boundary.until_fitted(rng)
    before = boundary.carry(_rows(rng, 64))
    assert boundary.receiver.take(table.to_bytes()) == table.key
    boundary.sender.held(table.key)
    after = boundary.carry(_rows(rng, 64))
    assert after[0].encoded_bytes < before[0].encoded_bytes < before[0].raw_bytes


def test_a_receiver_that_lost_the_table_gets_the_frame_again_with_the_default() -> None:
    boundary, rng = _Boundary(), np.random.default_rng(1)
    table = boundary.until_fitted(rng)
    boundary.sender.held(table.key)
    raw = _rows(rng, 8)
    payload = boundary.sender.encode(raw, 8)
    assert boundary.receiver.missing(payload) == table.key
    with pytest.raises(CodecUnavailable):
        boundary.receiver.decode(payload)
    again = boundary.sender.recode(payload)
    assert boundary.receiver.missing(again) is None
    assert bytes(boundary.receiver.decode(again)) == bytes(raw)
    boundary.sender.unknown(table.key)
    assert boundary.receiver.missing(boundary.sender.encode(raw, 8)) is None
    boundary.until_fitted(rng)
    assert len(boundary.shipped) == 2


def test_off_means_no_call_of_the_encoder() -> None:
    boundary, rng = _Boundary(CodecMode.OFF), np.random.default_rng(2)
    for _ in range(50):
        payload = boundary.carry(_rows(rng, 16))
        assert payload[0].codec == 0
    assert boundary.sender.num_encoded == 0
    assert boundary.sender.raw_bytes == boundary.sender.sent_bytes > 0
    assert not boundary.shipped


def test_traffic_that_changes_brings_a_new_table() -> None:
    boundary, rng = _Boundary(), np.random.default_rng(3)
    first = boundary.until_fitted(rng)
    boundary.receiver.take(first.to_bytes())
    boundary.sender.held(first.key)
    for _ in range(40):
        boundary.carry(_rows(rng, 16))
    permuted = np.random.default_rng(4).permutation(D)
    for _ in range(400):
        raw = np.frombuffer(_rows(rng, 16), np.uint16).reshape(16, D)[:, permuted]
        boundary.carry(memoryview(np.ascontiguousarray(raw)).cast("B"))
        if len(boundary.shipped) > 1:
            break
    assert boundary.fitted.wait(30)
    assert len(boundary.shipped) > 1


@pytest.mark.parametrize("damage", ["checksum", "body", "dtype", "width", "codec"])
def test_what_is_damaged_or_of_another_boundary_is_refused(damage: str) -> None:
    boundary, rng = _Boundary(), np.random.default_rng(5)
    header, buffer = boundary.sender.encode(_rows(rng, 4), 4)
    body = bytearray(buffer)
    if damage == "body":
        body[40] ^= 1
    changes = {
        "checksum": {"checksum": header.checksum ^ 1},
        "body": {},
        "dtype": {"dtype": Dtype.FLOAT16},
        "width": {"shape": (8, D // 2)},
        "codec": {"codec": 9},
    }[damage]
    fields = {name: getattr(header, name) for name in header.__struct_fields__} | changes
    payload = type(header)(**fields), bytes(body)
    if damage in ("checksum", "body"):
        assert not boundary.receiver.is_whole(payload)
        return
    with pytest.raises(RemoteProtocolError):
        boundary.receiver.is_whole(payload)


def test_tables_of_other_boundaries_and_garbage_are_refused() -> None:
    boundary, rng = _Boundary(), np.random.default_rng(6)
    table = boundary.until_fitted(rng)
    with pytest.raises(RemoteProtocolError):
        Receiver(Dtype.BFLOAT16, 2 * D).take(table.to_bytes())
    for bad in (b"", b"table", table.to_bytes()[:-1], bytes(100)):
        with pytest.raises(BloomBeeError):
            boundary.receiver.take(bad)


SPEED = CodecSpeed(4e9, 4e9, 20e-6)


def test_the_break_even_is_the_formula_of_the_design() -> None:
    limit = SPEED.break_even_bytes_per_s(16384, 1.5)
    assert limit == pytest.approx((1 - 1 / 1.5) / (1 / 4e9 + 1 / 4e9 + 20e-6 / 16384))
    for factor, pays in ((0.99, True), (1.01, False)):
        assert LinkChoice(CodecMode.AUTO, SPEED, 1.5, bandwidth_bytes_per_s=factor * limit).pays(16384) is pays


def test_an_unknown_link_is_judged_by_its_length() -> None:
    assert not LinkChoice(CodecMode.AUTO, SPEED, 1.5, rtt_s=0.0002).pays(1 << 20)
    assert LinkChoice(CodecMode.AUTO, SPEED, 1.5, rtt_s=0.020).pays(4096)
    assert LinkChoice(CodecMode.ON, SPEED, 1.5, bandwidth_bytes_per_s=1e12).pays(1)
    assert not LinkChoice(CodecMode.OFF, SPEED, 1.5, bandwidth_bytes_per_s=1.0).pays(1 << 20)


def test_the_choice_explains_itself() -> None:
    slow = LinkChoice(CodecMode.AUTO, SPEED, 1.5, bandwidth_bytes_per_s=2.5e6)
    assert slow.explain(16384).startswith("on: 20 Mbit/s against a break-even of ")
    assert LinkChoice(CodecMode.AUTO, SPEED, 1.0, bandwidth_bytes_per_s=2.5e6).explain(16384).startswith("off")
