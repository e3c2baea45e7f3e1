"""A request of a head before this one: its tokens are kept until somebody comes to read them."""

from __future__ import annotations

import struct

from bloombee.errors import BloomBeeError, ConfigError
from bloombee.pipeline.journal import Asked
from bloombee.roles.requests import Sink
from bloombee.types import RunningRequest, Token


class Backlog:
    """The sink of one. Belongs to the head's loop.

    Args:
        asked: what it is.
    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._tokens: list[Token] = []
        self._is_over = False
        self._error: BloomBeeError | None = None
        self._reader: Sink | None = None

    def token(self, token: Token) -> None:
        """The next one."""
        self._tokens.append(token)
        if self._reader is not None:
            self._reader.token(token)

    def end(self, error: BloomBeeError | None) -> None:
        """After the last."""
        self._is_over, self._error = True, error
        if self._reader is not None:
            self._reader.end(error)

    def read(self, sink: Sink, from_token: int) -> None:
        """What is there from a token on, and all that comes, goes to ``sink``.

        Raises:
            ConfigError: it has fewer tokens, or somebody reads it already.
        """
        if not 0 <= from_token <= len(self._tokens):
            raise ConfigError(
                f"from_token = {from_token}: request {self.asked.request} has {len(self._tokens)} tokens so far, so give 0 to"
                f" {len(self._tokens)}",
                field="from_token",
            )
        if self._reader is not None:
            raise ConfigError(f"request {self.asked.request} is being read already", field="id")
        self._reader = sink
        for token in self._tokens[from_token:]:
            sink.token(token)
        if self._is_over:
            sink.end(self._error)

    def is_read_by(self, sink: Sink) -> bool:
        """Whether all goes there."""
        return self._reader is sink

    def told(self) -> RunningRequest:
        """For the application. From any thread."""
        return RunningRequest(
            id=self.asked.request,
            prompt_token_ids=unpacked(self.asked.prompt),
            client=self.asked.client,
            num_tokens=len(self._tokens),
            has_ended=self._is_over,
        )


def unpacked(ids: bytes) -> tuple[int, ...]:
    """Of [n] little-endian uint32."""
    return struct.unpack(f"<{len(ids) // 4}I", ids)
