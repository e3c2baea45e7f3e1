"""What clients may do to a server over a swarm that runs: others keep their answers, and memory stays what it was."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from serve_kit import MODEL, Served, served
from swarm_kit import Swarm

PROMPT, NEW = "import ", 24
MANY = 1000


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    swarm = Swarm(model="demo", workers=2, dtype="float32", kv_tokens=1024, max_waiting=40)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with served(swarm, most_connections=MANY + 100) as running:
        yield running
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    swarm.close()


def ask(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": PROMPT, "max_tokens": NEW, "temperature": 0, "ignore_eos": True, **fields}


def beside(server: Served, deed: Callable[[], Any]) -> Any:
    """``deed`` while a stream runs that must be as without; what comes of it."""
    alone = server.request("POST", "/v1/completions", ask())[2]["choices"][0]["text"]
    with server.client() as client:
        stream = iter(client.completions.create(**_known(ask()), extra_body={"ignore_eos": True}, stream=True))
        text = next(stream).choices[0].text
        came = deed()
        text += "".join(chunk.choices[0].text for chunk in stream)
    assert text == alone
    server.swarm.await_idle()
    return came


def _known(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "ignore_eos"}


def test_prompts_of_ten_megabytes_are_refused_and_not_kept(server: Served) -> None:
    huge = json.dumps(ask(prompt="x" * 10_000_000)).encode()
    process = psutil.Process()

    def send() -> list[int]:
        return [server.request("POST", "/v1/completions", huge)[0] for _ in range(5)]

    assert beside(server, send) == [413] * 5
    before = process.memory_info().rss
    assert [status for _ in range(6) for status in send()] == [413] * 30
    assert process.memory_info().rss - before < 50_000_000


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b"[" * 500_000, json.dumps(ask(n=10**9)).encode(), json.dumps(ask(max_tokens=10**9)).encode()]
)
def test_absurd_bodies_are_refused_beside_others(body: bytes, server: Served) -> None:
    status, _, answer = beside(server, lambda: server.request("POST", "/v1/completions", body))
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"


def test_more_answers_than_may_be_open_are_never_to_be_had(server: Served) -> None:
    status, _, answer = beside(server, lambda: server.request("POST", "/v1/completions", ask(n=60)))
    assert status == 400
    assert answer["error"]["param"] == "n"
    assert "at most 40 answers" in answer["error"]["message"]


def test_more_than_may_wait_is_told_when_to_come_again(server: Served) -> None:
    """Whoever is refused later is told a later time, and may come in when the others have ended."""

    def crowd() -> list[tuple[int, dict[str, str], Any]]:
        with ThreadPoolExecutor(1) as pool:
            full = pool.submit(server.request, "POST", "/v1/completions", ask(n=39, max_tokens=100))
            while server.swarm.runtime.num_requests < 40:
                time.sleep(0.01)
            refused = [server.request("POST", "/v1/completions", ask()) for _ in range(5)]
            assert full.result()[0] == 200
        return refused

    refused = beside(server, crowd)
    assert [(status, answer["error"]["code"]) for status, _, answer in refused] == [(503, "overloaded")] * 5
    told = [int(headers["retry-after"]) for _, headers, _ in refused]
    assert told == sorted(told)
    assert 1 <= told[0] <= told[-1] <= 60
    assert server.request("POST", "/v1/completions", ask())[0] == 200


def test_a_client_that_goes_without_a_word_frees_what_it_had(server: Served) -> None:
    async def leave(body: dict[str, Any]) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        data = json.dumps(body).encode()
        lines = (
            "POST /v1/completions HTTP/1.1",
            "Host: localhost",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
        )
        writer.write("\r\n".join((*lines, "", "")).encode() + data)
        await writer.drain()
        while not server.swarm.runtime.num_requests:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        writer.transport.abort()

    for stream in (False, True):
        asyncio.run(leave(ask(max_tokens=900, stream=stream)))
        server.swarm.await_idle()


def test_a_thousand_connections_cost_the_others_nothing(server: Served) -> None:
    async def crowd() -> list[bytes]:
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MANY)]
        for number, (_, writer) in enumerate(held):
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" if number % 2 else b"GET /hea")
        firsts = [await reader.readline() for number, (reader, _) in enumerate(held) if number % 2]
        for _, writer in held:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return firsts

    assert beside(server, lambda: asyncio.run(crowd())) == [b"HTTP/1.1 200 OK\r\n"] * (MANY // 2)
