"""The codec on a GPU: the same messages, made and read where the activations are, so that fewer bytes cross PCIe.

Memory is the caller's: everything is a device address (an int), nothing is allocated and nothing waits. The checksum
is the host's part, which has the message anyway on its way to or from the network: :func:`seal` after the message
came from the device, :func:`check_head` before it goes there. Tables are copied to the device once
(``Table.native.device_image()``, at an address that is a multiple of 64).
"""

from __future__ import annotations

import importlib
import struct
from dataclasses import dataclass
from typing import Any

from bloombee import _native
from bloombee.codec.table import DTYPE_CODES, Table
from bloombee.errors import CodecUnavailable, CorruptPayload
from bloombee.types import Dtype

UNIT_LOG2, SMALL_UNIT_LOG2 = 12, 11
"""See :func:`unit_log2`."""
SMALL_VALUES = 1 << 20
"""Messages of so many values and fewer have units of half the size: their time is that of one unit."""
RESULT_BYTES = 16
"""First bytes of the workspace after a run; see :func:`read_result`."""
_RESULT = struct.Struct("<QII")


@dataclass(frozen=True, slots=True)
class Result:
    """What a run left behind: the size of the encoded message, whether it is raw, whether decoding failed."""

    size: int
    error: bool
    raw: bool


def native() -> Any:
    """The module with the kernels.

    Raises:
        CodecUnavailable: built without CUDA, or no device.
    """
    try:
        module = importlib.import_module("bloombee._native_cuda")
    except ImportError as error:
        raise CodecUnavailable("bloombee was built without CUDA", reason="build") from error
    if module.device_count() == 0:
        raise CodecUnavailable("no CUDA device", reason="device")
    return module


def unit_log2(shape: tuple[int, int]) -> int:
    """Of the messages that :func:`encode` makes. A unit's symbols are coded one step of 32 after the other, and there are
    warps enough for all units of a small message: those of 2048 values halve its time and cost 0.7 % in size, those of 4096
    values cost 0.4 %."""
    return SMALL_UNIT_LOG2 if shape[0] * shape[1] <= SMALL_VALUES else UNIT_LOG2


def workspace_bytes(shape: tuple[int, int], dtype: Dtype, table: Table) -> int:
    """Bytes of workspace that :func:`encode` and :func:`decode` need for a shape, whatever the message's units.

    All of them must be 0 before the first use. Every run leaves them fit for the next one, of this or any smaller shape, in
    the same stream.
    """
    return int(native().codec_workspace_bytes(shape[0], shape[1], DTYPE_CODES[dtype], table.row_bits, 8))


def encode(
    values: int, *, shape: tuple[int, int], dtype: Dtype, table: Table, image: int, out: int, workspace: int, stream: int = 0,
    stride_bytes: int | None = None,
) -> None:  # fmt: skip
    """Queues the encoding of a matrix.

    Args:
        values: [rows, d] on the device, rows ``stride_bytes`` apart (default: contiguous), aligned to their size.
        image: the table's device image. out: at least ``api.bound()`` bytes, aligned to 4.
        workspace: :func:`workspace_bytes`; its first bytes are the :class:`Result` when the stream gets there.
        stream: a cudaStream_t.

    Raises:
        ValueError: fewer than 128 values: send those raw.
    """
    stride = shape[1] * dtype.num_bytes if stride_bytes is None else stride_bytes
    native().codec_encode(
        values,
        stride,
        shape[0],
        shape[1],
        DTYPE_CODES[dtype],
        table.row_bits,
        unit_log2(shape),
        image,
        table.key,
        out,
        workspace,
        stream,
    )


def decode(
    head: bytes, message: int, size: int, *, out: int, shape: tuple[int, int], dtype: Dtype, table: Table, image: int,
    workspace: int, stream: int = 0, stride_bytes: int | None = None,
) -> None:  # fmt: skip
    """Queues the decoding of a coded message of ``size`` bytes; ``head`` is its first 12 bytes, on the host.

    ``Result.error`` says afterwards whether its units were corrupt (then ``out`` is undefined); no byte outside of
    ``out`` is written either way.

    Raises:
        ValueError: the head does not fit the shape.
    """
    stride = shape[1] * dtype.num_bytes if stride_bytes is None else stride_bytes
    native().codec_decode(
        head, message, size, out, stride, shape[0], shape[1], DTYPE_CODES[dtype], table.row_bits, image, workspace, stream
    )


def read_result(head: bytes) -> Result:
    """The :class:`Result` in the first RESULT_BYTES of a workspace, copied to the host."""
    size, error, raw = _RESULT.unpack_from(head)
    return Result(size, bool(error), bool(raw))


def seal(message: Any, table: Table) -> None:
    """Writes the checksum into a message that a device made (writable buffer of exactly the message)."""
    _native.codec_seal(message, table.native if memoryview(message)[0] == 0x11 else None)


def check_head(message: Any, table: Table) -> bytes:
    """First 12 bytes of a coded message whose checksum and table are right.

    Raises:
        CorruptPayload: they are not.
    """
    head = bytes(memoryview(message)[:12])
    if len(head) < 12 or head[0] != 0x11 or head[8:] != table.key or not _native.codec_check(message, table.native):
        raise CorruptPayload("codec message: wrong checksum or table")
    return head
