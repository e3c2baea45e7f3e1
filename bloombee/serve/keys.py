"""Who may ask: programs with a key, and without any those of this machine alone."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from bloombee.address import read_listen
from bloombee.errors import ConfigError
from bloombee.serve.refusals import Refusal
from bloombee.utf8 import read_file

OPEN = ("/", "/health")
"""What everybody may see, and what is below STATIC: nothing of a swarm is in there."""
STATIC = "/static/"
LEAST_CHARACTERS = 16
Clients = Mapping[bytes, str]
"""Digest of a key -> whose it is."""


def read_keys(path: str) -> Clients:
    """The keys in a file: one a line, a name before it if wanted; blank lines and those that begin with # are none.

    Raises:
        ConfigError: it cannot be read, has none, or one that is too short or twice there.
    """
    try:
        text = read_file(path)
    except ValueError as error:
        raise ConfigError(f"api_key_file = {path}: cannot read it: {error}", field="api_key_file") from error
    clients: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2 or len(words[-1]) < LEAST_CHARACTERS:
            said = f"must be a key of at least {LEAST_CHARACTERS} characters, or a name and a key"
            raise ConfigError(f"{path}, line {number}: {said}", field="api_key_file")
        digest = _digest(words[-1].encode())
        if digest in clients:
            raise ConfigError(f"{path}, line {number}: that key is there twice", field="api_key_file")
        clients[digest] = words[0] if len(words) == 2 else f"key {digest.hex()[:8]}"
    if not clients:
        raise ConfigError(f"api_key_file = {path}: there is no key in it", field="api_key_file")
    return clients


def is_read_by_all(path: str) -> bool:
    """Whether every user of this machine may read that file."""
    return bool(Path(path).stat().st_mode & stat.S_IROTH)


def _digest(key: bytes) -> bytes:
    """Looked up instead of the key: how long that takes tells nothing of it."""
    return hashlib.sha256(key).digest()


class Guard:
    """Lets requests through to ``app``, and says whose they are (``bloombee.client`` of the scope).

    Args:
        clients: None: no key is asked for. Then the server is reached from this machine alone, and by no page of another site:
            a browser would have to name this machine, and its page is not of this machine.
    """

    def __init__(self, app: ASGIApp, clients: Clients | None) -> None:
        self._app = app
        self._clients = clients

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except Refusal as refusal:
                await refuse(refusal, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self._clients is None:
            _check_host(headers.get(b"host", b"").decode("latin-1"))
            return
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        client = self._clients.get(_digest(key.strip())) if kind.lower() == b"bearer" else None
        if client is not None:
            scope["bloombee.client"] = client
        elif scope["path"] not in OPEN and not scope["path"].startswith(STATIC):
            said = "that API key is not known here" if key else "an API key is needed: Authorization: Bearer KEY"
            raise Refusal(401, said, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _check_host(host: str) -> None:
    """Raises Refusal: it is a name that leads here by accident, or by somebody's intent."""
    try:
        address = read_listen(f"tcp://{host if host.rpartition(']')[2].count(':') else host + ':0'}")
        if address.is_loopback:
            return
    except ValueError:
        pass
    raise Refusal(403, "without API keys this server answers as localhost alone", code="unknown_host")


async def refuse(refusal: Refusal, send: Send) -> None:
    """The whole answer."""
    body = refusal.body
    told = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in told.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
