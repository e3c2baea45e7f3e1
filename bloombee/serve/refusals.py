"""What a program is told when it does not get what it asked for: OpenAI's shape and statuses, which its clients know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from bloombee.errors import BloomBeeError, CapacityError, ConfigError, GrammarFailed, Infeasible, RuntimeClosed
from bloombee.quote import printable

LEAST_RETRY_S, MOST_RETRY_S = 1, 60
"""That anybody is told to wait."""
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
PARAMETERS = {
    CHAT: {"max_new_tokens": "max_tokens", "prompt": "messages", "grammar": "response_format"},
    COMPLETIONS: {"max_new_tokens": "max_tokens"},
    RESPONSES: {"max_new_tokens": "max_output_tokens", "prompt": "input", "grammar": "text.format"},
}
"""What the Runtime's fields are called by programs, where that is otherwise, by the path that they ask at."""


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


def retry_after(seconds: float) -> dict[str, str]:
    """The header: whole seconds, within bounds."""
    return {"Retry-After": str(min(MOST_RETRY_S, max(LEAST_RETRY_S, math.ceil(seconds))))}


def not_now(message: str, again_s: float, *, code: str = "overloaded") -> Refusal:
    """Nothing is wrong with the request: the same one may be answered after so many seconds."""
    return Refusal(503, message, kind="overloaded_error", code=code, headers=retry_after(again_s))


def refusal_of(error: BloomBeeError, path: str, again_s: float = LEAST_RETRY_S) -> Refusal:
    """What a program is told about ``error``: whose fault it is, and whether it is of use to ask again.

    Args:
        path: at which it asked.
        again_s: when that is, if the error does not say so.
    """
    if isinstance(error, ConfigError):
        code = "context_length_exceeded" if "max_positions" in error.fields else None
        return Refusal(400, error.message, param=_named(error.fields.get("field"), path), code=code)
    if isinstance(error, Infeasible):
        return Refusal(400, error.message, param=_named("prompt", path), code="context_length_exceeded")
    if isinstance(error, GrammarFailed):
        return Refusal(400, error.message, param=_named("grammar", path))
    if error.retryable or isinstance(error, (CapacityError, RuntimeClosed)):
        told = error.fields.get("retry_after_s")
        return not_now(error.message, told if isinstance(told, float) else again_s)
    return Refusal(500, error.message, kind="server_error", code=error.code)


def _named(field: Any, path: str) -> Any:
    """As programs that ask at ``path`` call it."""
    return PARAMETERS.get(path, {}).get(field, field)
