"""Activations coded where they are: on a GPU, before they are copied off it or after they were copied on.

The same messages as the processor makes (``codec/cuda.py``), so that neither the wire nor the other side sees a difference.
A kernel's launch and a copy's latency are more than a processor takes for a small frame; for a large one fewer bytes cross
PCIe and the processor has nothing to do. Which of the two a frame takes is decided by its size, from what both ways took when
the span was loaded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from bloombee.codec import api, cuda
from bloombee.codec.choice import PlaceChoice, Timings
from bloombee.codec.table import Table, default_table
from bloombee.engine.buffers import TORCH_DTYPES, from_buffer, to_buffer
from bloombee.errors import BloomBeeError, CorruptPayload
from bloombee.types import Dtype

log = logging.getLogger(__name__)
LEAST_VALUES = 128
"""Of a coded message."""
AT_ONCE_BYTES = 64 << 10
"""A message that may be so long is copied whole before its length is known: to wait for that costs more."""
MEASURED_BYTES = (8 << 10, 256 << 10, 4 << 20)
"""Sizes of frames that are measured, at least; in whole rows. All can be coded."""
REPEATS = 5


class Coder(Protocol):
    """One of the ways from values on a device to a message on the host and back. Both return when they are done."""

    def encode(self, values: torch.Tensor, table: Table) -> memoryview:
        """The message of [rows, d] ``values``; valid until the next call."""
        ...

    def decode(self, message: memoryview, table: Table, rows: int) -> torch.Tensor:
        """[rows, d] on the device. Raises CorruptPayload."""
        ...


class ProcessorCoder:
    """By the processor, from and to copies."""

    def __init__(self, dtype: Dtype, channels: int, device: torch.device) -> None:
        self._dtype, self._channels, self._device = dtype, channels, device
        self._scratch = bytearray()

    def encode(self, values: torch.Tensor, table: Table) -> memoryview:
        bound = api.bound(values.numel(), self._dtype)
        if len(self._scratch) < bound:
            self._scratch = bytearray(bound)
        shape = (values.shape[0], self._channels)
        size = api.encode(to_buffer(values).data, shape=shape, dtype=self._dtype, table=table, out=self._scratch)
        return memoryview(self._scratch)[:size]

    def decode(self, message: memoryview, table: Table, rows: int) -> torch.Tensor:
        raw = bytearray(rows * self._channels * self._dtype.num_bytes)
        api.decode(message, raw, shape=(rows, self._channels), dtype=self._dtype, tables={table.key: table})
        return from_buffer(raw, rows, self._channels, self._dtype).to(self._device)


class CudaCoder:
    """By the device's kernels: encodes in the stream that is current, decodes in one of its own, which waits for no forward. All
    calls on one thread.

    Its buffers grow with the longest frame: two of its size on the device and one in page-locked memory.
    """

    MAX_IMAGES = 64

    def __init__(self, dtype: Dtype, channels: int, device: torch.device) -> None:
        self._dtype, self._channels, self._device = dtype, channels, device
        self._stream = torch.cuda.Stream(device)
        self._rows = 0
        self._work = self._message = self._host = torch.empty(0, dtype=torch.uint8)
        self._images: dict[bytes, torch.Tensor] = {}

    def encode(self, values: torch.Tensor, table: Table) -> memoryview:
        rows = values.shape[0]
        if values.stride(1) != 1:
            values = values.contiguous()
        with torch.cuda.device(self._device):
            self._reserve(rows, table)
            stream = torch.cuda.current_stream()
            cuda.encode(
                values.data_ptr(), shape=(rows, self._channels), dtype=self._dtype, table=table, image=self._image(table),
                out=self._message.data_ptr(), workspace=self._work.data_ptr(), stream=stream.cuda_stream,
                stride_bytes=values.stride(0) * values.element_size(),
            )  # fmt: skip
            bound = api.bound(values.numel(), self._dtype)
            copied = bound if bound <= AT_ONCE_BYTES else 0
            size = self._fetch(stream, copied).size
            if size > copied:
                self._host[cuda.RESULT_BYTES :][:size].copy_(self._message[:size], non_blocking=True)
                stream.synchronize()
        message = memoryview(self._host.numpy()[cuda.RESULT_BYTES :][:size])
        cuda.seal(message, table)
        return message

    def decode(self, message: memoryview, table: Table, rows: int) -> torch.Tensor:
        head, size, shape = cuda.check_head(message, table), memoryview(message).nbytes, (rows, self._channels)
        if size > api.bound(rows * self._channels, self._dtype):
            raise CorruptPayload(f"codec message for {shape} {self._dtype}: too long", reason="too long")
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._reserve(rows, table)
            stream = self._stream
            self._host.numpy()[:size] = np.frombuffer(message, np.uint8)
            self._message[:size].copy_(self._host[:size], non_blocking=True)
            values = torch.empty(shape, dtype=TORCH_DTYPES[self._dtype], device=self._device)
            try:
                cuda.decode(
                    head, self._message.data_ptr(), size, out=values.data_ptr(), shape=shape, dtype=self._dtype, table=table,
                    image=self._image(table), workspace=self._work.data_ptr(), stream=stream.cuda_stream,
                )  # fmt: skip
            except ValueError as error:
                raise CorruptPayload(f"codec message for {shape} {self._dtype}: {error}", reason=str(error)) from error
            if self._fetch(stream, 0).error:
                raise CorruptPayload(f"codec message for {shape} {self._dtype}: corrupt unit", reason="corrupt unit")
        values.record_stream(torch.cuda.current_stream(self._device))  # which reads them later
        return values

    def _fetch(self, stream: torch.cuda.Stream, message_bytes: int) -> cuda.Result:
        """Wait for what is under way; the result, and the first bytes of the message, are in ``_host`` then."""
        head = self._host[: cuda.RESULT_BYTES]
        head.copy_(self._work[: cuda.RESULT_BYTES], non_blocking=True)
        if message_bytes:
            self._host[cuda.RESULT_BYTES :][:message_bytes].copy_(self._message[:message_bytes], non_blocking=True)
        stream.synchronize()
        return cuda.read_result(head.numpy().tobytes())

    def _reserve(self, rows: int, table: Table) -> None:
        if rows <= self._rows:
            return
        self._rows = max(rows, self._rows * 5 // 4)  # page-locking memory takes long
        bound = api.bound(self._rows * self._channels, self._dtype)
        # Row offsets take no part in the size of the workspace, so that any table of this boundary may be meant.
        size = cuda.workspace_bytes((self._rows, self._channels), self._dtype, table)
        self._work = torch.zeros(size, dtype=torch.uint8, device=self._device)
        self._message = torch.empty(bound, dtype=torch.uint8, device=self._device)
        self._host = torch.empty(bound + cuda.RESULT_BYTES, dtype=torch.uint8, pin_memory=True)

    def _image(self, table: Table) -> int:
        """Address of the table on the device."""
        image = self._images.get(table.key)
        if image is None:
            image = torch.frombuffer(bytearray(table.native.device_image()), dtype=torch.uint8).to(self._device)
            self._images[table.key] = image
            while len(self._images) > self.MAX_IMAGES:
                del self._images[next(iter(self._images))]
        return int(image.data_ptr())


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """What a forward has left on the device; ``roles.coding.Apart``."""

    codec: DeviceCodec
    values: torch.Tensor

    def raw(self) -> memoryview:
        return to_buffer(self.values).data

    def encoded(self, table: Table) -> memoryview | None:
        return self.codec.encode(self.values, table)


class DeviceCodec:
    """Codes frames on the device where that is quicker. One thread encodes, one decodes.

    Args:
        near: codes on the device. far: what the frames take that are not coded there; for comparison.
        clock: seconds. near_in: decodes on the device, where that is on another thread than encoding; by default ``near``.
    """

    def __init__(
        self, dtype: Dtype, channels: int, device: torch.device, near: Coder, far: Coder,
        clock: Callable[[], float] = time.perf_counter, near_in: Coder | None = None,
    ) -> None:  # fmt: skip
        self._dtype, self._channels = dtype, channels
        self._near, self._far, self._clock = near, far, clock
        self._near_in = near_in or near
        self.num_encoded = self.num_decoded = 0
        """Frames that were coded on the device."""
        self._table = default_table(dtype, channels)
        row_bytes = channels * dtype.num_bytes
        noise = torch.Generator().manual_seed(0)
        samples = [
            torch.randn(rows, channels, generator=noise).to(TORCH_DTYPES[dtype]).to(device)
            for rows in sorted({-(-size // row_bytes) for size in MEASURED_BYTES} | {2})
        ]
        self.encoding = PlaceChoice(*(self._timed(samples, self._encodes, coder) for coder in (near, far)))
        self.decoding = {
            unit_log2: PlaceChoice(*(self._timed(samples, self._decodes(unit_log2), coder) for coder in (near, far)))
            for unit_log2 in (cuda.SMALL_UNIT_LOG2, api.UNIT_LOG2)
        }
        """By the units of the message: a GPU codes large ones for longer."""

    def codes(self, rows: int) -> bool:
        """Whether a frame of so many rows is coded on the device."""
        num_values = rows * self._channels
        return num_values >= LEAST_VALUES and self.encoding.on_device(num_values * self._dtype.num_bytes)

    def apart(self, values: torch.Tensor) -> DeviceRows:
        return DeviceRows(self, values)

    def encode(self, values: torch.Tensor, table: Table) -> memoryview | None:
        """The message of [rows, d] values on the device, valid until the next call; None: the processor is quicker."""
        if not self.codes(values.shape[0]):
            return None
        self.num_encoded += 1
        return self._near.encode(values, table)

    def decode(self, message: Any, rows: int, tables: Mapping[bytes, Table]) -> torch.Tensor | None:
        """[rows, d] on the device of a coded frame; None: the processor is quicker, or the message holds the values as they are.

        Raises:
            CorruptPayload: the bytes do not decode.
            CodecUnavailable: its table is not held.
        """
        key = api.table_key(message)
        if key is None:
            return None
        unit_log2 = memoryview(message)[2] & 15
        choice = self.decoding[cuda.SMALL_UNIT_LOG2 if unit_log2 <= cuda.UNIT_LOG2 else api.UNIT_LOG2]
        if not choice.on_device(rows * self._channels * self._dtype.num_bytes):
            return None
        table = api.known_table(key, self._dtype, self._channels, tables)
        self.num_decoded += 1
        return self._near_in.decode(message, table, rows)

    # -- measuring -------------------------------------------------------------------------

    def _encodes(self, values: torch.Tensor, coder: Coder) -> Callable[[], Any]:
        return lambda: coder.encode(values, self._table)

    def _decodes(self, unit_log2: int) -> Callable[[torch.Tensor, Coder], Callable[[], Any]]:
        def made(values: torch.Tensor, coder: Coder) -> Callable[[], Any]:
            rows = values.shape[0]
            message = bytearray(api.bound(values.numel(), self._dtype))
            size = api.encode(
                to_buffer(values).data, shape=(rows, self._channels), dtype=self._dtype, table=self._table, out=message,
                unit_log2=unit_log2,
            )  # fmt: skip
            return lambda: coder.decode(memoryview(message)[:size], self._table, rows)

        return made

    def _timed(
        self, samples: list[torch.Tensor], make: Callable[[torch.Tensor, Coder], Callable[[], Any]], coder: Coder
    ) -> Timings:
        """The best of a few runs for each sample."""
        points = []
        for values in samples:
            run = make(values, coder)
            spent = []
            for _ in range(REPEATS):
                start = self._clock()
                run()
                spent.append(self._clock() - start)
            points.append((values.numel() * self._dtype.num_bytes, min(spent)))
        return Timings(tuple(points))


def codec_of(device: torch.device, dtype: Dtype, channels: int) -> DeviceCodec | None:
    """For activations on ``device``; None where it cannot code them, which the log says of a GPU. Takes some 50 ms."""
    if device.type != "cuda":
        return None
    try:
        cuda.native()
        near, near_in = CudaCoder(dtype, channels, device), CudaCoder(dtype, channels, device)
        codec = DeviceCodec(dtype, channels, device, near, ProcessorCoder(dtype, channels, device), near_in=near_in)
    except (BloomBeeError, RuntimeError) as error:
        log.warning("activations are coded by the processor, after the copy off the device: %s", error)
        return None
    log.info("coding on the device/by the processor: encode %s", codec.encoding.explain())
    for unit_log2, choice in codec.decoding.items():
        log.info("coding on the device/by the processor: decode of units of %d values %s", 1 << unit_log2, choice.explain())
    return codec
