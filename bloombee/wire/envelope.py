"""One ZeroMQ multipart = a header frame, then one payload frame per tensor.

The header is the msgpack array ``[version, swarm, message, tensors]``; its first two bytes are fixed
(0x94, then the version as a positive fixint), so that a peer of another version is recognised before
anything is parsed. Payloads are looked at only for their length: they are never copied, and their
checksum is verified by whoever decodes them (the device thread, not the event loop).

Source: docs/wire.md section 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from bloombee.errors import LocalProtocolError, RemoteProtocolError, VersionMismatch
from bloombee.types import Dtype
from bloombee.wire.messages import MAX_HEADER_BYTES, U16, U32, U63, U64, AnyMessage, Forward, KvPages, Message
from bloombee.wire.rules import check_message, refuse
from bloombee.wire.schema import SCHEMA_ERRORS, Buffer, schema_error

HEADER_VERSION = 1
MAX_TENSOR_BYTES = 1 << 26
"""Most bytes of one tensor, and of all tensors of a multipart together, raw or encoded; also the largest ZeroMQ frame a socket
takes."""
MAX_TENSORS = 8
"""Most payload frames of one multipart."""
HIDDEN = "hidden"
"""The tensor of a Forward that every stage knows: activations [rows, d]."""

Dimension = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class TensorHeader(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What one payload frame holds."""

    name: Annotated[str, Meta(min_length=1, max_length=32)]
    dtype: Dtype
    shape: Annotated[tuple[Dimension, ...], Meta(min_length=1, max_length=4)]
    codec: U16
    """How the payload is encoded (docs/codec.md); 0: raw little-endian elements, row-major."""
    raw_bytes: U63
    """prod(shape) * bytes of an element."""
    encoded_bytes: U63
    """Length of the payload frame."""
    checksum: U32
    """Of the payload frame as it travels (docs/codec.md)."""


class Envelope(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False, tag=HEADER_VERSION):
    """A message with its swarm and the headers of its tensors. The struct's tag is the version."""

    swarm: U64
    message: AnyMessage
    tensors: Annotated[tuple[TensorHeader, ...], Meta(max_length=MAX_TENSORS)] = ()


_ELEMENT_BYTES = {dtype: dtype.num_bytes for dtype in Dtype}
_decoder = msgspec.msgpack.Decoder(Envelope)
_encoder = msgspec.msgpack.Encoder()


def encode_envelope(swarm: int, message: AnyMessage, tensors: tuple[TensorHeader, ...] = ()) -> bytes:
    """The header frame.

    Raises:
        LocalProtocolError: tensors where none may be or not as described, a field that msgpack cannot
            hold, or more than ``MAX_HEADER_BYTES``.
    """
    name = type(message).__name__
    try:
        header = _encoder.encode(Envelope(swarm, message, tensors))
        if tensors:
            _check_tensors(message, tensors)
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise LocalProtocolError(f"{name} does not encode: {error}", path=name) from error
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"not sent: {error.message}", **error.fields) from None
    if len(header) > MAX_HEADER_BYTES:
        raise LocalProtocolError(f"{name} takes {len(header)} bytes, at most {MAX_HEADER_BYTES} are allowed", path=name)
    return header


def decode_envelope(frames: Sequence[Buffer]) -> Envelope:
    """Check a whole multipart (without the routing id) and parse its header.

    Args:
        frames: header, then payloads; byte buffers.

    Raises:
        VersionMismatch: the header says another version.
        RemoteProtocolError: anything else that docs/wire.md forbids; ``fields["path"]`` says where.
    """
    if not frames:
        raise RemoteProtocolError("an empty multipart", path="header")
    envelope = decode_header(frames[0])
    if len(frames) != 1 or envelope.tensors:
        check_payloads(envelope, [len(frame) for frame in frames[1:]])
    return envelope


def decode_header(header: Buffer) -> Envelope:
    """The header frame alone; see :func:`decode_envelope`. The payloads are still to be checked."""
    num_bytes = len(header)
    if not 4 <= num_bytes <= MAX_HEADER_BYTES:
        raise RemoteProtocolError(
            f"a header of {num_bytes} bytes: must be 4 to {MAX_HEADER_BYTES}", path="header", num_bytes=num_bytes
        )
    if header[0] != 0x94 or header[1] != HEADER_VERSION:
        raise _wrong_start(header)
    try:
        envelope: Envelope = _decoder.decode(header)
    except SCHEMA_ERRORS as error:
        raise schema_error(error, header, Envelope) from None
    check_message(envelope.message)
    if envelope.tensors:
        _check_tensors(envelope.message, envelope.tensors)
    elif type(envelope.message) is KvPages:
        raise refuse("tensors", 0, f"1 to {MAX_TENSORS}")
    return envelope


def check_payloads(envelope: Envelope, lengths: Sequence[int]) -> None:
    """Payload frames of these lengths are what the header promised.

    Raises:
        RemoteProtocolError: another number of frames, or another length.
    """
    if len(lengths) != len(envelope.tensors):
        raise refuse("tensors", len(lengths), f"as many payload frames as the header says ({len(envelope.tensors)})")
    for index, (header, length) in enumerate(zip(envelope.tensors, lengths, strict=True)):
        if header.encoded_bytes != length:
            raise refuse(f"tensors[{index}].encoded_bytes", header.encoded_bytes, f"the payload's length ({length})")


def _wrong_start(header: Buffer) -> RemoteProtocolError:
    if 0x90 <= header[0] <= 0x9F and 1 <= header[1] <= 0x7F and header[1] != HEADER_VERSION:
        return VersionMismatch(
            f"the peer's frames have version {header[1]}, this side speaks {HEADER_VERSION}: run the same release on both",
            theirs=int(header[1]),
            ours=HEADER_VERSION,
            path="header.version",
        )
    return refuse("header", bytes(header[:2]), f"to start with 0x94 and the version ({HEADER_VERSION})")


def _check_tensors(message: Message, tensors: tuple[TensorHeader, ...]) -> None:
    num_rows = _rows_of(message)
    if num_rows is None:
        raise refuse("tensors", len(tensors), f"absent: {type(message).__name__} carries none")
    for index, tensor in enumerate(tensors):
        shape = tensor.shape
        raw_bytes, encoded_bytes = tensor.raw_bytes, tensor.encoded_bytes
        if (
            shape[0] != num_rows
            or len(shape) != 2
            or raw_bytes != num_rows * shape[1] * _ELEMENT_BYTES[tensor.dtype]
            or raw_bytes > MAX_TENSOR_BYTES
            or not 1 <= encoded_bytes <= MAX_TENSOR_BYTES
            or (encoded_bytes != raw_bytes and tensor.codec == 0)
        ):
            _check_tensor(f"tensors[{index}]", tensor, num_rows)
    if len(tensors) > 1:
        _check_together(tensors)


def _rows_of(message: Message) -> int | None:
    """Of each of its tensors; None: it carries none."""
    if type(message) is Forward:
        return sum([len(item.tokens) for item in message.items]) >> 2
    return message.num_rows if type(message) is KvPages else None


def _check_tensor(path: str, tensor: TensorHeader, num_rows: int) -> None:
    """The rules of one tensor, told apart; the caller has seen that one may be broken."""
    if tensor.shape[0] != num_rows or (len(tensor.shape) != 2 and tensor.name == HIDDEN):
        raise refuse(f"{path}.shape", tensor.shape, f"[{num_rows} rows, d]")
    expected = math.prod(tensor.shape) * tensor.dtype.num_bytes
    if tensor.raw_bytes != expected:
        raise refuse(f"{path}.raw_bytes", tensor.raw_bytes, f"shape times element size ({expected})")
    if tensor.raw_bytes > MAX_TENSOR_BYTES:
        raise refuse(f"{path}.raw_bytes", tensor.raw_bytes, f"at most {MAX_TENSOR_BYTES}")
    if not 1 <= tensor.encoded_bytes <= MAX_TENSOR_BYTES:
        raise refuse(f"{path}.encoded_bytes", tensor.encoded_bytes, f"in [1, {MAX_TENSOR_BYTES}]")
    if tensor.codec == 0 and tensor.encoded_bytes != tensor.raw_bytes:
        raise refuse(f"{path}.encoded_bytes", tensor.encoded_bytes, f"raw_bytes ({expected}) when codec is 0")


def _check_together(tensors: tuple[TensorHeader, ...]) -> None:
    if len(tensors) > MAX_TENSORS:
        raise refuse("tensors", len(tensors), f"at most {MAX_TENSORS}")
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise refuse("tensors", [tensor.name for tensor in tensors], "of different names")
    for name in ("raw_bytes", "encoded_bytes"):
        together = sum(getattr(tensor, name) for tensor in tensors)
        if together > MAX_TENSOR_BYTES:
            raise refuse(f"tensors.{name}", together, f"at most {MAX_TENSOR_BYTES} together")
