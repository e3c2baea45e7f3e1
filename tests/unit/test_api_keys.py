"""Who may ask a server: keys in a file, and without them names of this machine alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bloombee.config import ServeConfig
from bloombee.errors import ConfigError
from bloombee.serve.keys import Clients, Guard, read_keys
from bloombee.serve.refusals import Refusal

ONE, TWO = "k" * 16, "q" * 40


def written(tmp_path: Path, text: str) -> str:
    (tmp_path / "keys").write_text(text, encoding="utf-8")
    return str(tmp_path / "keys")


def let_in(clients: Clients | None, **scope: Any) -> str | int | None:
    """Whose the request is said to be; the status of its refusal."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope.get("bloombee.client"))

    async def send(message: Any) -> None:
        seen.append(message.get("status"))

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    asyncio.run(Guard(app, clients)({"type": "http", "path": "/v1/models", "headers": [], **scope}, receive, send))
    return seen[0]


def test_a_file_has_keys_with_or_without_names(tmp_path: Path) -> None:
    clients = read_keys(written(tmp_path, f"# ours\n\n{ONE}\n ada  {TWO}\n"))
    assert sorted(clients.values(), key=len) == ["ada", next(name for name in clients.values() if name.startswith("key "))]
    assert let_in(clients, headers=[(b"authorization", b"Bearer " + TWO.encode())]) == "ada"
    assert str(let_in(clients, headers=[(b"authorization", b"bearer  " + ONE.encode())])).startswith("key ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is no key"),
        ("short\n", "line 1"),
        (f"a b {ONE}\n", "line 1"),
        (f"{ONE}\nx {ONE}\n", "line 2: that key is there twice"),
    ],
)
def test_a_file_that_will_not_do_is_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        read_keys(written(tmp_path, text))
    with pytest.raises(ConfigError, match="cannot read it"):
        read_keys(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "given", [b"", b"Bearer", b"Bearer ", b"Basic " + ONE.encode(), b"Bearer " + ONE.encode() + b"k", ONE.encode()]
)
def test_whoever_has_no_key_sees_that_the_server_is_there_and_nothing_else(given: bytes, tmp_path: Path) -> None:
    clients = read_keys(written(tmp_path, ONE))
    headers = [(b"authorization", given)] if given else []
    assert let_in(clients, headers=headers) == 401
    assert let_in(clients, headers=headers, path="/health") is None
    assert let_in(clients, headers=headers, path="/metrics") == 401


@pytest.mark.parametrize(
    "host", [b"localhost", b"localhost:8000", b"127.0.0.1:8000", b"127.9.9.9", b"[::1]:8000", b"[::1]", b"a.localhost"]
)
def test_without_keys_this_machine_is_called_by_its_own_name(host: bytes) -> None:
    assert let_in(None, headers=[(b"host", host)]) is None


@pytest.mark.parametrize(
    "host", [b"", b"example.com", b"example.com:8000", b"192.0.2.7:8000", b"localhost.example.com", b"\xff", b"*:80"]
)
def test_without_keys_no_page_of_another_site_gets_in(host: bytes) -> None:
    assert let_in(None, headers=[(b"host", host)]) == 403


def test_an_address_that_others_reach_needs_keys() -> None:
    for http in ("127.0.0.1:8000", "[::1]:0", "localhost:80"):
        assert ServeConfig(http=http).address.is_loopback
    for http in ("*:8000", "0.0.0.0:8000", "192.0.2.7:80", "[::]:80", "example.com:80"):
        with pytest.raises(ConfigError, match="needs keys"):
            ServeConfig(http=http)
        assert not ServeConfig(http=http, api_key_file="keys").address.is_loopback
    for http in ("", "8000", "http://localhost:80", "localhost:99999"):
        with pytest.raises(ConfigError, match="HOST:PORT"):
            ServeConfig(http=http)


def test_a_refusal_says_nothing_that_moves_a_cursor() -> None:
    assert b"\\u001b" not in Refusal(400, "a\x1b[2Jb").body
