"""Bytes <-> messages, closed and bounded.

``msgspec`` checks types, lengths and ranges while it parses (nothing is allocated for a field that is
refused); what one field cannot know about another is in ``wire/rules.py``. Everything that is
wrong with a peer's bytes is one error, :class:`~bloombee.errors.RemoteProtocolError`, whose ``path``
names the field: ``Forward.items[3].tokens``.

Why msgspec and not checks by hand over msgpack: docs/adr/0010-msgspec-on-the-wire.md.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from bloombee.errors import LocalProtocolError, RemoteProtocolError
from bloombee.wire import messages as m
from bloombee.wire.messages import AnyMessage
from bloombee.wire.rules import check_message

Buffer = bytes | bytearray | memoryview

SCHEMA_ERRORS = (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError)
"""All that msgspec raises on bytes that it does not like."""

_decoder = msgspec.msgpack.Decoder(AnyMessage)
_encoder = msgspec.msgpack.Encoder()
_PATH = re.compile(r" - at (?:`key` in )?`\$(?P<path>[^`]*)`$")
_MAX_NAMED_BYTES = 1 << 16
"""Beyond it errors carry no field names: a refused header must not cost more than its own size."""
_STEP = re.compile(r"\[(\d+|\.\.\.)\]")


def encode_message(message: AnyMessage) -> bytes:
    """msgpack bytes of ``message``.

    Raises:
        LocalProtocolError: a field that msgpack cannot hold, or more than ``MAX_HEADER_BYTES``.
    """
    try:
        data = _encoder.encode(message)
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise LocalProtocolError(f"{type(message).__name__} does not encode: {error}", path=type(message).__name__) from error
    if len(data) > m.MAX_HEADER_BYTES:
        raise LocalProtocolError(
            f"{type(message).__name__} takes {len(data)} bytes, at most {m.MAX_HEADER_BYTES} are allowed",
            path=type(message).__name__,
        )
    return data


def decode_message(data: Buffer) -> AnyMessage:
    """The message in ``data``, every field checked.

    Raises:
        RemoteProtocolError: too long, truncated, of an unknown tag, or with a missing, surplus, out-of-range
            or contradictory field; ``fields["path"]`` names it.
    """
    num_bytes = len(data)
    if num_bytes > m.MAX_HEADER_BYTES:
        raise RemoteProtocolError(
            f"a message of {num_bytes} bytes, at most {m.MAX_HEADER_BYTES} are allowed", path="message", num_bytes=num_bytes
        )
    try:
        message: AnyMessage = _decoder.decode(data)
    except SCHEMA_ERRORS as error:
        raise schema_error(error, data, AnyMessage) from None
    check_message(message)
    return message


# -- where it is wrong -------------------------------------------------------------------------


def schema_error(error: Exception, data: Buffer, root: Any) -> RemoteProtocolError:
    """``error`` of msgspec as ours, ``path`` in field names instead of array indices.

    Only names are looked up in ``data`` (its tags); nothing else of it is built.
    """
    text = str(error)
    if len(text) > 400:  # msgspec quotes the value of an enum
        text = text[:200] + " ... " + text[-200:]
    if not isinstance(error, msgspec.ValidationError):
        return RemoteProtocolError(f"the bytes do not parse: {text}", path="message")
    match = _PATH.search(text)  # none: it is the array as a whole
    path = _named_path(_STEP.findall(match["path"]) if match else [], data, root)
    return RemoteProtocolError(f"{path}: {text[: match.start()] if match else text}", path=path)


def _named_path(steps: list[str], data: Buffer, root: Any) -> str:
    info: Any = msgspec.inspect.type_info(root)
    raw: Buffer | None = data
    path = "message"
    for step in steps:
        info, raw = _resolve(info, raw)
        index = int(step) if step.isdigit() else 0
        if isinstance(info, msgspec.inspect.StructType):
            if info.tag is not None and not issubclass(info.cls, m.Part):
                path = info.cls.__name__  # a message is named by itself, wherever it is kept
            fields = info.fields if info.tag is None else (None, *info.fields)
            field = fields[index] if index < len(fields) else None
            path += f".{field.encode_name}" if field is not None else ".tag"
            info = field.type if field is not None else None
        else:
            path += ".tag" if info is None else f"[{step}]"
            info = getattr(info, "item_type", None) or _nth(getattr(info, "item_types", ()), index)
        raw = _child(raw, index) if step.isdigit() else None
    info, _ = _resolve(info, raw)
    if isinstance(info, msgspec.inspect.StructType) and info.tag is not None and not issubclass(info.cls, m.Part):
        path = info.cls.__name__
    return "header" if path == "Envelope" else path.removeprefix("Envelope.")


def _resolve(info: Any, raw: Buffer | None) -> tuple[Any, Buffer | None]:
    """The member of a union that ``raw`` is: by its tag, or the only one that is not None."""
    if not isinstance(info, msgspec.inspect.UnionType):
        return info, raw
    members = [t for t in info.types if not isinstance(t, msgspec.inspect.NoneType)]
    if len(members) == 1:
        return members[0], raw
    tag = _tag(raw)
    for member in members:
        if isinstance(member, msgspec.inspect.StructType) and member.tag == tag:
            return member, raw
    return None, raw


def _tag(raw: Buffer | None) -> object:
    first = _child(raw, 0)
    try:
        return None if first is None else msgspec.msgpack.decode(first, type=int)
    except SCHEMA_ERRORS:
        return None


def _child(raw: Buffer | None, index: int) -> Buffer | None:
    """Element ``index`` of the msgpack array ``raw``, if it parses and is small enough to be worth a name."""
    if raw is None or len(raw) > _MAX_NAMED_BYTES:
        return None
    try:
        parts = msgspec.msgpack.decode(raw, type=list[msgspec.Raw])
    except SCHEMA_ERRORS:
        return None
    return memoryview(parts[index]) if index < len(parts) else None


def _nth(types: Any, index: int) -> Any:
    return types[index] if index < len(types) else None
