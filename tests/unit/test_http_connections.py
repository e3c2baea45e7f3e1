"""Connections that nobody speaks on, or reads from, cost what they may and end; so do bodies that do not come."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bloombee.address import read_listen
from bloombee.errors import AddressInUse, ConfigError
from bloombee.serve import connections, intake
from bloombee.serve.command import http_config, model_name
from bloombee.serve.intake import Intake
from bloombee.serve.listening import listen, url
from bloombee.serve.refusals import Refusal

LARGE = 3 << 20
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Body(msgspec.Struct):
    text: str = ""


class Site:
    """A server of one small application."""

    def __init__(self, port: int, state: dict[str, Any], server: uvicorn.Server) -> None:
        self.port = port
        self.server = server
        self.state = state

    async def dial(self) -> Streams:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, data: bytes) -> bytes:
        """All that comes back until the connection ends."""
        reader, writer = await self.dial()
        writer.write(data)
        with contextlib.suppress(ConnectionResetError):
            return await reader.read()
        writer.close()
        return b""


def _app(state: dict[str, Any]) -> Starlette:
    taking = Intake(0)
    state["intake"] = taking

    async def take(request: Request) -> Response:
        try:
            body = await taking.read(request, Body)
        except Refusal as refusal:
            return Response(refusal.body, refusal.status, refusal.headers)
        return Response(str(len(body.text)))

    async def flooding(request: Request) -> Any:
        async def flood(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(60):
                    watching = asyncio.create_task(_gone(receive, state["gone"]))
                    while not state["gone"].is_set():
                        state["sent"] += 1
                        await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
                    await watching

        return flood

    async def large(request: Request) -> Response:
        return Response(bytes(LARGE))

    return Starlette(routes=[Route("/take", take, methods=["POST"]), Route("/flood", flooding), Route("/large", large)])


async def _gone(receive: Any, event: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    event.set()


@contextlib.asynccontextmanager
async def site(most: int = 64) -> AsyncIterator[Site]:
    state: dict[str, Any] = {"gone": asyncio.Event(), "sent": 0}
    (bound,) = listen(read_listen("tcp://127.0.0.1:0"))
    server = uvicorn.Server(http_config(_app(state), drain_s=1, most_connections=most))
    serving = asyncio.create_task(server.serve([bound]))
    bound.listen()
    try:
        yield Site(bound.getsockname()[1], state, server)
    finally:
        server.should_exit = server.force_exit = True
        await serving


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(within())


@pytest.mark.parametrize("data", [b"", b"G", b"GET / HTTP/1.1\r\nHost: localh"])
def test_whoever_says_no_whole_request_is_hung_up_on(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.1)

    async def test() -> None:
        async with site() as at:
            assert await at.ask(data) == b""

    run(test)


def test_whoever_says_nothing_after_an_answer_is_hung_up_on_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.2)

    async def test() -> None:
        async with site() as at:
            reader, writer = await at.dial()
            writer.write(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"GET /again HTT")
            with contextlib.suppress(ConnectionResetError):
                assert b"HTTP/1.1" not in await reader.read()

    run(test)


def test_what_is_no_http_is_refused_in_openais_shape() -> None:
    async def test() -> None:
        async with site() as at:
            head, _, body = (await at.ask(b"what is this\r\n\r\n")).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400")
            assert json.loads(body)["error"]["type"] == "invalid_request_error"

    run(test)


def test_a_body_that_is_no_http_ends_its_answer_without_a_word_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """Before the answer has begun, and while it is given."""

    async def test() -> None:
        async with site() as at:
            ask = "{} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            answer = await at.ask(ask.format("POST /take").encode() + b"ZZZ\r\n")
            assert answer.startswith(b"HTTP/1.1 400")
            assert answer.count(b"HTTP/1.1") == 1
            reader, writer = await at.dial()
            writer.write(ask.format("GET /flood").encode())
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"ZZZ\r\n")
            await at.state["gone"].wait()
            with contextlib.suppress(ConnectionResetError):
                while await reader.read(1 << 20):
                    pass

    run(test)
    assert [record.message for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


def test_one_connection_too_many_is_told_to_come_again() -> None:
    async def test() -> None:
        async with site(most=2) as at:
            held = [await at.dial() for _ in range(2)]
            for _, writer in held:
                writer.write(b"GET /")
                await writer.drain()
            head, _, body = (await at.ask(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 20" in head.lower(), "by then the silent ones are hung up on"
            assert json.loads(body)["error"]["code"] == "overloaded"
            for _, writer in held:
                writer.close()

    run(test)


def test_an_answer_that_nobody_reads_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNREAD_S", 0.3)

    async def test() -> None:
        async with site() as at:
            deaf = socket.create_connection(("127.0.0.1", at.port))
            deaf.sendall(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await at.state["gone"].wait()
            assert at.state["sent"] < 1000, "what it does not take is not made"
            deaf.close()

    run(test)


def test_an_answer_that_is_taken_slowly_is_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes: its reader takes a little between any two looks at it, before and after the last byte was sent."""
    monkeypatch.setattr(connections, "HEAD_S", 0.05)
    monkeypatch.setattr(connections, "UNREAD_S", 0.05)
    looks = 0

    def counted(look: Callable[..., None]) -> Callable[..., None]:
        def counting(*arguments: Any) -> None:
            nonlocal looks
            look(*arguments)
            looks += 1

        return counting

    for name in ("_is_silent", "_is_deaf"):
        monkeypatch.setattr(connections.Connection, name, counted(getattr(connections.Connection, name)))

    async def test() -> None:
        async with site() as at:
            slow = socket.socket()
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", at.port))
            slow.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=slow, limit=4096)
            writer.write(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            taken = 0
            while taken < LARGE:
                seen = looks
                for _ in range(40):
                    taken += len(await reader.read(1 << 13)) if taken < LARGE else 0
                while looks == seen and taken < LARGE and not await _all_taken(at):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            assert taken == LARGE
            assert looks > 2
            writer.close()

    run(test)


async def _all_taken(at: Site) -> bool:
    """Of what the server has; what is left is on its way."""
    (connection,) = at.server.server_state.connections or (None,)
    return connection is None or connection.transport.get_write_buffer_size() == 0


def _post(length: int, body: bytes) -> bytes:
    return (
        b"POST /take HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % length + body
    )


def test_a_body_that_does_not_come_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "READ_S", 0.1)

    async def test() -> None:
        async with site() as at:
            reader, writer = await at.dial()
            writer.write(_post(100, b'{"te'))
            assert (await reader.readline()).startswith(b"HTTP/1.1 408")
            writer.close()

    run(test)


def test_bodies_are_bounded_one_by_one_and_together() -> None:
    async def test() -> None:
        async with site() as at:
            most = at.state["intake"].most_bytes
            fits = json.dumps({"text": "x" * (most - 20)}).encode()
            held = [await at.dial() for _ in range(intake.MOST_HELD)]
            for _, writer in held:
                writer.write(_post(len(fits), fits[:-1]))
                await writer.drain()
            while at.state["intake"]._held_bytes < intake.MOST_HELD * (len(fits) - 1):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            reader, writer = await at.dial()
            writer.write(_post(len(fits), fits))
            assert (await reader.readline()).startswith(b"HTTP/1.1 503")
            writer.close()
            small = json.dumps({"text": "x" * 1000}).encode()
            reader, writer = await at.dial()
            writer.write(_post(len(small), small))
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
            for reader, writer in held:
                writer.write(fits[-1:])
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                writer.close()
            assert at.state["intake"]._held_bytes == 0
            reader, writer = await at.dial()
            writer.write(_post(most + 1, b" " * (most + 1)))
            assert (await reader.readline()).startswith(b"HTTP/1.1 413")
            writer.close()

    run(test)


def test_it_listens_where_it_is_told() -> None:
    both = listen(read_listen("tcp://*:0"))
    try:
        port = both[0].getsockname()[1]
        assert {one.getsockname()[1] for one in both} == {port}
        assert url(both[0], read_listen("tcp://*:0")) == f"http://127.0.0.1:{port}"
        both[0].listen()
        with pytest.raises(AddressInUse, match=f"port {port}"):
            listen(read_listen(f"tcp://127.0.0.1:{port}"))
    finally:
        for one in both:
            one.close()
    with pytest.raises(ConfigError, match="no address of this machine"):
        listen(read_listen("tcp://192.0.2.1:80"))
    with pytest.raises(ConfigError, match="nothing is known of"):
        listen(read_listen("tcp://no-such-name.invalid:80"))


def test_a_model_is_called_by_its_id_or_its_folder() -> None:
    assert model_name("demo") == "demo"
    assert model_name("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert model_name("./some/folder/") == model_name("/x/folder") == "folder"
