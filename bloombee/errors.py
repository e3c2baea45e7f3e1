"""Every error the project raises, in one tree::

    BloomBeeError
    +-- ConfigError                  the caller's input: parameters, model, options       (exit 2)
    |   +-- ModelUnsupported         a checkpoint the engine cannot serve; says what
    +-- ProtocolError
    |   +-- LocalProtocolError       we tried something illegal: a bug of ours
    |   +-- RemoteProtocolError      the peer did: drop that link and go on
    |   |   +-- VersionMismatch      another protocol version
    |   +-- NotSpoken                a message or field of the protocol that this side does not speak yet
    |   +-- AuthenticationError      wrong or unknown key, spent or wrong join token
    +-- TransportError
    |   +-- LinkDown                 a peer is gone or cannot be reached                   (retryable)
    |   +-- DeadlineExceeded         a peer is there and does not answer                   (retryable)
    |   +-- AddressInUse             a port that something else holds
    +-- CodecError
    |   +-- CorruptPayload           bytes that do not decode, or a wrong checksum         (retryable)
    |   +-- CodecUnavailable         a codec or table this side does not have              (retryable)
    +-- PlanError
    |   +-- Infeasible               which constraint, on which worker, short by how much
    |   +-- StalePlan                a frame or message of a retired epoch                 (retryable)
    +-- CapacityError
    |   +-- PoolExhausted            no KV pages left                                      (retryable)
    |   +-- QueueFull                too many requests waiting                             (retryable)
    +-- DeviceError                  the device thread failed (out of memory, a kernel)
    |   +-- WeightsUnavailable       weights that stream cannot be read from disk, now     (retryable)
    +-- GrammarFailed                a sound grammar that the last stage cannot obey, or not in time
    +-- SequenceLost                 a running request lost its state                      (retryable)
    +-- RuntimeClosed                the Runtime was closed while the request ran

Facts are attributes (``error.fields``); the message says what, where, the value, what was allowed.
Errors cross the wire as ``(code, fields)``: see :func:`to_wire` and :func:`from_wire`.
"""

from __future__ import annotations

from typing import ClassVar

from bloombee.quote import printable

Fact = str | int | float | bool | None


class BloomBeeError(Exception):
    """Base of all. ``fields`` holds the facts by name; ``message`` the sentence a person reads."""

    retryable: ClassVar[bool] = False
    code: ClassVar[str] = "BloomBeeError"

    def __init_subclass__(cls) -> None:
        cls.code = cls.__name__
        _BY_CODE[cls.code] = cls

    def __init__(self, message: str, /, **fields: Fact) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields


_BY_CODE: dict[str, type[BloomBeeError]] = {"BloomBeeError": BloomBeeError}


class ConfigError(BloomBeeError):
    pass


class ModelUnsupported(ConfigError):
    pass


class ProtocolError(BloomBeeError):
    pass


class LocalProtocolError(ProtocolError):
    pass


class RemoteProtocolError(ProtocolError):
    pass


class VersionMismatch(RemoteProtocolError):
    pass


class NotSpoken(ProtocolError):
    pass


class AuthenticationError(ProtocolError):
    pass


class TransportError(BloomBeeError):
    pass


class LinkDown(TransportError):
    retryable = True


class DeadlineExceeded(TransportError):
    retryable = True


class AddressInUse(TransportError):
    pass


class CodecError(BloomBeeError):
    pass


class CorruptPayload(CodecError):
    retryable = True


class CodecUnavailable(CodecError):
    retryable = True


class PlanError(BloomBeeError):
    pass


class Infeasible(PlanError):
    pass


class StalePlan(PlanError):
    retryable = True


class CapacityError(BloomBeeError):
    pass


class PoolExhausted(CapacityError):
    retryable = True


class QueueFull(CapacityError):
    retryable = True


class DeviceError(BloomBeeError):
    pass


class GrammarFailed(BloomBeeError):
    pass


class WeightsUnavailable(DeviceError):
    retryable = True


class SequenceLost(BloomBeeError):
    retryable = True


class RuntimeClosed(BloomBeeError):
    pass


def to_wire(error: BloomBeeError) -> tuple[str, dict[str, Fact]]:
    """(code, fields) of ``error``; the sentence travels as the field ``message``."""
    return error.code, {**error.fields, "message": error.message}


def from_wire(code: str, fields: dict[str, Fact]) -> BloomBeeError:
    """Inverse of :func:`to_wire`; an unknown code becomes the base class with the code as a field.

    Whoever says it is another machine: what would move a terminal's cursor is written as escapes.
    """
    facts = {name: printable(fact) if isinstance(fact, str) else fact for name, fact in fields.items()}
    code = printable(code)
    message = str(facts.pop("message", code))
    kind = _BY_CODE.get(code)
    if kind is None:
        return BloomBeeError(message, **{**facts, "code": code})
    return kind(message, **facts)
