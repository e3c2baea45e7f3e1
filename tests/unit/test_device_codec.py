"""Where frames of a GPU's activations are coded: the choice, and that neither side sees which it was.

A double whose device is this processor and whose kernels are the processor's codec stands for the GPU; its clock goes on by
what each way costs.
"""

from __future__ import annotations

import threading

import pytest
import torch

from bloombee.codec import api
from bloombee.codec.choice import CodecMode, PlaceChoice, Timings
from bloombee.codec.table import Table, default_table
from bloombee.engine.buffers import to_buffer
from bloombee.engine.device_codec import DeviceCodec, ProcessorCoder, codec_of
from bloombee.errors import CodecUnavailable, CorruptPayload
from bloombee.roles.coding import FIT_ROWS, Receiver, Sender
from bloombee.types import Dtype

D = 512
CPU = torch.device("cpu")
TABLE = default_table(Dtype.BFLOAT16, D)


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class _Coder(ProcessorCoder):
    """Takes ``fixed_s`` and ``s_per_byte`` of the values for either direction."""

    def __init__(self, clock: _Clock, fixed_s: float, s_per_byte: float) -> None:
        super().__init__(Dtype.BFLOAT16, D, CPU)
        self._clock, self._fixed_s, self._s_per_byte = clock, fixed_s, s_per_byte

    def encode(self, values: torch.Tensor, table: Table) -> memoryview:
        self._clock.now += self._fixed_s + self._s_per_byte * 2 * values.numel()
        return super().encode(values, table)

    def decode(self, message: memoryview, table: Table, rows: int) -> torch.Tensor:
        self._clock.now += self._fixed_s + self._s_per_byte * 2 * D * rows
        return super().decode(message, table, rows)


def _codec(device: tuple[float, float], processor: tuple[float, float]) -> DeviceCodec:
    clock = _Clock()
    return DeviceCodec(Dtype.BFLOAT16, D, CPU, _Coder(clock, *device), _Coder(clock, *processor), clock)


def _large_only() -> DeviceCodec:
    """A device that takes 50 us and 100 GB/s, a processor of 2 us and 4 GB/s: quicker from some 200 kB on."""
    return _codec((50e-6, 1e-11), (2e-6, 2.5e-10))


def _rows(n: int) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(n)).to(torch.bfloat16)


def test_times_of_other_sizes_lie_on_lines_through_those_measured() -> None:
    timings = Timings(((100, 1.0), (200, 2.0), (400, 2.0)))
    assert [timings.seconds(n) for n in (0, 100, 150, 300, 800)] == [0.0, 1.0, 1.5, 2.0, 2.0]


def test_a_place_is_chosen_by_size() -> None:
    choice = PlaceChoice(Timings(((0, 50.0), (1000, 60.0))), Timings(((0, 2.0), (1000, 252.0))))
    assert [choice.on_device(n) for n in (0, 150, 250, 10**6)] == [False, False, True, True]
    assert choice.explain() == "0 B 50000000/2000000 us, 1000 B 60000000/252000000 us"


def test_large_frames_are_coded_on_the_device_and_small_ones_are_not() -> None:
    codec = _large_only()
    assert codec.encode(_rows(1), TABLE) is None
    assert codec.encode(_rows(100), TABLE) is None
    large = _rows(400)
    message = codec.encode(large, TABLE)
    assert message is not None
    assert codec.num_encoded == 1
    assert codec.decode(message, 400, {}).equal(large)  # type: ignore[union-attr]
    assert codec.num_decoded == 1


def test_a_device_that_is_slower_gets_nothing() -> None:
    codec = _codec((1e-3, 1e-9), (1e-6, 1e-10))
    assert codec.encode(_rows(4000), TABLE) is None
    out = bytearray(api.bound(4000 * D, Dtype.BFLOAT16))
    size = api.encode(to_buffer(_rows(4000)).data, shape=(4000, D), dtype=Dtype.BFLOAT16, table=TABLE, out=out)
    assert codec.decode(memoryview(out)[:size], 4000, {}) is None
    assert codec.num_encoded == codec.num_decoded == 0


def test_messages_of_the_values_as_they_are_are_left_to_the_processor() -> None:
    out = bytearray(api.bound(400 * D, Dtype.BFLOAT16))
    size = api.encode(to_buffer(_rows(400)).data, shape=(400, D), dtype=Dtype.BFLOAT16, table=None, out=out)
    assert _large_only().decode(memoryview(out)[:size], 400, {}) is None


def test_unknown_tables_and_damaged_messages_end_as_on_the_processor() -> None:
    codec = _large_only()
    message = bytearray(codec.encode(_rows(400), TABLE) or b"")
    message[-9] ^= 1
    with pytest.raises(CorruptPayload):
        codec.decode(message, 400, {})
    message[8] ^= 1
    with pytest.raises(CodecUnavailable):
        codec.decode(message, 400, {})


def test_a_sender_collects_rows_first_and_then_codes_on_the_device() -> None:
    """What it fits a table to must come off the device; the frames are the same bytes as another's who has no device."""
    fitted = threading.Event()
    shipped: list[Table] = []

    def ship(table: Table) -> None:
        shipped.append(table)
        fitted.set()

    codec = _large_only()
    sender, plain = Sender(Dtype.BFLOAT16, D, CodecMode.ON, ship), Sender(Dtype.BFLOAT16, D, CodecMode.ON, lambda _: None)
    receiver = Receiver(Dtype.BFLOAT16, D)
    rows = _rows(FIT_ROWS)
    first = sender.encode_apart(codec.apart(rows), FIT_ROWS)
    assert codec.num_encoded == 0
    assert fitted.wait(30)
    receiver.take(shipped[0].to_bytes())
    sender.held(shipped[0].key)
    later = sender.encode_apart(codec.apart(rows), FIT_ROWS)
    assert codec.num_encoded == 1
    assert first == plain.encode(to_buffer(rows).data, FIT_ROWS)
    assert later[0].encoded_bytes < first[0].encoded_bytes
    assert sender.num_encoded == 2
    assert sender.raw_bytes == 2 * rows.numel() * 2
    assert sender.sent_bytes == first[0].encoded_bytes + later[0].encoded_bytes
    for payload in (first, later):
        assert receiver.is_whole(payload)
        assert bytes(receiver.decode(payload)) == bytes(to_buffer(rows))
    decoded = codec.decode(later[1], FIT_ROWS, receiver.tables)
    assert decoded is not None
    assert decoded.equal(rows)


def test_frames_that_do_not_pay_leave_as_they_are() -> None:
    codec = _large_only()
    sender = Sender(Dtype.BFLOAT16, D, CodecMode.OFF, lambda _: None)
    header, buffer = sender.encode_apart(codec.apart(_rows(400)), 400)
    assert (header.codec, bytes(buffer)) == (0, bytes(to_buffer(_rows(400))))
    assert codec.num_encoded == 0


def test_activations_on_the_processor_have_no_device_codec() -> None:
    assert codec_of(CPU, Dtype.BFLOAT16, D) is None
