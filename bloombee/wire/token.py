"""The join token: what a worker must know to find a head, to trust it and to be let in.

``bb1-`` + base64url without padding of the msgpack array ``[key, secret, endpoints]``: the head's
CURVE public key (32 bytes), a secret that lets one worker in (16 to 64 bytes), and where the head
may be reached: a worker dials all of it at once, and the first to prove the key is the head.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from bloombee.address import read_dialled
from bloombee.errors import ConfigError
from bloombee.wire.messages import Key, Path

PREFIX = "bb1-"
MAX_TOKEN_CHARS = 4096
MAX_ENDPOINTS = 8


class JoinToken(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Content of a token.

    Args:
        key: public key of the head, 32 bytes.
        secret: 16 to 64 bytes; good for one worker unless the head says otherwise.
        endpoints: ``tcp://host:port`` that lead to the head, best first; 1 to 8.
    """

    key: Key
    secret: Annotated[bytes, Meta(min_length=16, max_length=64)]
    endpoints: Annotated[tuple[Path, ...], Meta(min_length=1, max_length=MAX_ENDPOINTS)]

    def __repr__(self) -> str:
        return f"JoinToken(key={self.key[:4].hex()}..., secret=..., endpoints={self.endpoints})"


def encode_token(token: JoinToken) -> str:
    """The text of ``token``.

    Raises:
        ConfigError: a field that :func:`decode_token` would refuse.
    """
    text = PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(token)).rstrip(b"=").decode("ascii")
    decode_token(text)
    return text


def decode_token(text: str) -> JoinToken:
    """The content of a token; white space around it is ignored.

    Raises:
        ConfigError: not a token, of another version, cut off, or with an endpoint that is not ``tcp://host:port``.
            The secret is never part of the message.
    """
    text = text.strip()
    if not text.startswith(PREFIX):
        version = text[:3]
        if len(text) > 4 and text[3] == "-" and version[:2] == "bb" and version[2].isdigit():
            raise ConfigError(f"join token of version {version}: this side reads {PREFIX[:-1]}; run the same release on both")
        raise ConfigError(f"not a join token: it must start with {PREFIX!r}; copy the whole text that the head printed")
    if len(text) > MAX_TOKEN_CHARS:
        raise ConfigError(f"join token of {len(text)} characters: at most {MAX_TOKEN_CHARS}")
    body = text[len(PREFIX) :]
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        token = msgspec.msgpack.decode(raw, type=JoinToken)
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError):
        raise ConfigError("join token is damaged or cut off: copy the whole text that the head printed") from None
    for endpoint in token.endpoints:
        try:
            read_dialled(endpoint)
        except ValueError as error:
            raise ConfigError(f"join token names the endpoint {endpoint!r}: must be tcp://host:port; {error}") from None
    return token
