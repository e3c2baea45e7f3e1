"""What a program is told when it does not get what it asked for: OpenAI's shape and statuses, which its clients know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from bloombee.errors import BloomBeeError, CapacityError, ConfigError, GrammarFailed, Infeasible, RuntimeClosed
from bloombee.quote import printable

RETRY_AFTER_S = 1
"""Some requests end within it; a client waits longer by itself, the second time."""
PARAMETERS = {"max_new_tokens": "max_tokens", "prompt": "messages", "grammar": "response_format"}
"""What the Runtime's fields are called by programs."""


class Fault(msgspec.Struct, kw_only=True):
    """What is wrong.

    Args:
        type: of a few kinds, as ``invalid_request_error``. param: of the request. code: for programs, as ``model_not_found``.
    """

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, kw_only=True):
    """The body of every answer whose status is not 200."""

    error: Fault


class Refusal(Exception):
    """Of one request, with its status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.fault = Fault(message=printable(message), type=kind, param=param, code=code)

    @property
    def body(self) -> bytes:
        return msgspec.json.encode(ErrorBody(error=self.fault))


def not_now(message: str) -> Refusal:
    """Nothing is wrong with the request: the same one may be answered later."""
    retry = {"Retry-After": str(RETRY_AFTER_S)}
    return Refusal(503, message, kind="overloaded_error", code="overloaded", headers=retry)


def refusal_of(error: BloomBeeError) -> Refusal:
    """What a program is told about ``error``: whose fault it is, and whether it is of use to ask again."""
    if isinstance(error, ConfigError):
        return _of_config(error)
    if isinstance(error, Infeasible):
        return Refusal(400, error.message, param="messages", code="context_length_exceeded")
    if isinstance(error, GrammarFailed):
        return Refusal(400, error.message, param="response_format")
    if error.retryable or isinstance(error, (CapacityError, RuntimeClosed)):
        return not_now(error.message)
    return Refusal(500, error.message, kind="server_error", code=error.code)


def _of_config(error: ConfigError) -> Refusal:
    code = "context_length_exceeded" if "max_positions" in error.fields else None
    field: Any = error.fields.get("field")
    return Refusal(400, error.message, param=PARAMETERS.get(field, field), code=code)
