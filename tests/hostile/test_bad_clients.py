"""Clients that read slowly, never, or are gone, those that say half of what they must, and too many of them, at ``bloombee
serve`` over a swarm that runs: other streams get the tokens that they get alone, and the process' memory stays what it was."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from netns_kit import Network, needs_namespaces, network
from process_kit import ENVIRONMENT

HASTY = """
import sys
from bloombee.serve import connections, intake
connections.HEAD_S, connections.UNREAD_S, intake.READ_S = 5.0, 2.0, 2.0
from bloombee.cli import main
sys.exit(main())
"""
"""The program, which is patient for a few seconds only."""
SERVED = re.compile(r"^demo is served at http://127\.0\.0\.1:(\d+)/v1")
MANY, SLOW = 1000, 24
MOST_GROWTH = 48 << 20
HUGE = json.dumps({"prompt": "x" * 10_000_000}).encode()
PATIENT = ("--silence-s", "20")
"""With its workers: a machine at its limits is slow, not gone."""
KEY = "0123456789abcdef"
ASKING = """
import sys, urllib.request
url, key, *body = sys.argv[1:]
headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
request = urllib.request.Request(url, body[0].encode() if body else None, headers)
sys.stdout.write(urllib.request.urlopen(request, timeout=60).read().decode())
"""
VANISHING = """
import http.client, json, socket, sys, time
host, port, key, body = sys.argv[1:]
silent = socket.create_connection((host, int(port)))
halfway = socket.create_connection((host, int(port)))
halfway.sendall(b"POST /v1/completions HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 100\\r\\n\\r\\n{")
connection = http.client.HTTPConnection(host, int(port))
headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
connection.request("POST", "/v1/completions", json.dumps({**json.loads(body), "stream": True}), headers)
assert connection.getresponse().readline()
print("streaming", flush=True)
time.sleep(600)
"""
PROMPTS = ("import ", "def add(a, b):", "class Stack:\n", "for i in ")


def ask(prompt: str = PROMPTS[0], tokens: int = 24, **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "user": "a friend", **fields}


def head(body: bytes | dict[str, Any], *, length: int | None = None) -> bytes:
    """A whole request for a completion; ``length``: that it claims to have."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = ("POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join((*lines, f"Content-Length: {length or len(data)}", "", "")).encode() + data


class Server:
    """``bloombee serve`` as a process."""

    def __init__(self) -> None:
        options = ("serve", "--workers", "2", "--dtype", "float32", "--http", "127.0.0.1:0", "--max-waiting", "64")
        command = [sys.executable, "-c", HASTY, *options, "--drain", "0", *PATIENT]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        assert self.process.stderr is not None
        self.port = served_at(self.process.stderr)
        self.said = drained(self.process.stderr)

    @property
    def memory_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    @property
    def num_connections(self) -> int:
        """Of TCP that the process has; what the system alone still sends is not among them."""
        return num_connections(self.process.pid, self.port)

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def stream(self, body: dict[str, Any], at_token: Callable[[], None] = lambda: None) -> str:
        """The text of a completion as it comes; ``at_token`` is called with each token."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(
                "POST", "/v1/completions", json.dumps({**body, "stream": True}), {"Content-Type": "application/json"}
            )
            answer, text = connection.getresponse(), ""
            assert answer.status == 200
            for line in answer:
                if line.startswith(b"data: {"):
                    text += json.loads(line.removeprefix(b"data: "))["choices"][0]["text"]
                    at_token()
            return text

    def await_idle(self) -> None:
        """No request is left, and nobody's connection; the test's time-out is the limit."""
        while self.num_connections or self.request("GET", "/health")[1]["requests"]:
            time.sleep(0.05)


def served_at(said: IO[str]) -> int:
    """The port, once it is told."""
    before = []
    for line in said:
        if found := SERVED.match(line):
            return int(found[1])
        before.append(line)
    pytest.fail(f"it has ended: {''.join(before)}")


def drained(said: IO[str]) -> list[str]:
    """What else comes, as it comes; nobody else reads it."""
    lines: list[str] = []
    threading.Thread(target=lambda: lines.extend(said), daemon=True).start()
    return lines


def num_connections(pid: int, port: int) -> int:
    """Established ones of the network that process ``pid`` is in, at its ``port``."""
    with open(f"/proc/{pid}/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    return sum(int(row[1].split(":")[1], 16) == port and row[3] in ("01", "08") for row in rows)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    running = Server()
    try:
        yield running
    finally:
        running.process.terminate()
        running.process.wait(60)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def alone(server: Server) -> dict[str, str]:
    """Each prompt's answer while nobody else is there."""
    return {prompt: server.stream(ask(prompt)) for prompt in PROMPTS}


def unhurt(server: Server, alone: dict[str, str], at_token: Callable[[], None] = lambda: None) -> None:
    """Streams beside whatever goes on are what they are alone."""
    assert {prompt: server.stream(ask(prompt), at_token) for prompt in PROMPTS} == alone


def flat(server: Server, deed: Callable[[], None]) -> None:
    """What ``deed`` costs the first time it does not cost again and again."""
    deed()
    server.await_idle()
    before = server.memory_bytes
    for _ in range(2):
        deed()
        server.await_idle()
    assert server.memory_bytes - before < MOST_GROWTH


def test_slow_readers_cost_others_nothing_and_are_hung_up_on(server: Server, alone: dict[str, str]) -> None:
    """A few bytes a token of somebody else's, of answers of megabytes; at last nothing any more."""
    fat = ask(tokens=300, logprobs=20, stream=True, user="a sloth")

    def read_slowly() -> None:
        with contextlib.ExitStack() as opened:
            slow = [opened.enter_context(socket.socket()) for _ in range(SLOW)]
            for one in slow:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                one.connect(("127.0.0.1", server.port))
                one.sendall(head(fat))

            def sip() -> None:
                for one in slow:
                    assert one.recv(4)

            unhurt(server, alone, sip)
            server.await_idle()  # nobody has read on, and nobody has hung up but the server

    flat(server, read_slowly)


def test_half_of_a_request_costs_others_nothing_and_is_ended(server: Server, alone: dict[str, str]) -> None:
    halves = (b"", b"POST /v1/comp", head(b'{"prompt": "x', length=1000), head(b"[" * 70_000, length=1 << 20))

    def say_half() -> None:
        with contextlib.ExitStack() as opened:
            said = []
            for number in range(400):
                one = opened.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                one.sendall(halves[number % 4])
                said.append(one)
            unhurt(server, alone)
            answers = [answered(one) for one in said]
        assert [answer[9:12] for answer in answers] == [b"", b"", b"408", answers[3][9:12]] * 100
        assert {answer[9:12] for answer in answers[3::4]} <= {b"408", b"503"}  # there is room for so many large ones

    flat(server, say_half)


def answered(one: socket.socket) -> bytes:
    """All that comes until the server hangs up."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := one.recv(1 << 16):
            found += part
    return found


def test_nonsense_costs_others_nothing(server: Server, alone: dict[str, str]) -> None:
    bodies: list[Any] = [b"{", b"\xff\xfe", b"[" * 500_000, ask(n=10**9), ask(tokens=10**9), ask(n=65), HUGE]

    def say_nonsense() -> None:
        for body in bodies:
            status, answer = server.request("POST", "/v1/completions", body)
            assert (status, answer["error"]["type"]) == (413 if body is HUGE else 400, "invalid_request_error")

    unhurt(server, alone, say_nonsense)
    flat(server, lambda: [say_nonsense() for _ in range(5)] and None)


def test_a_thousand_requests_at_once_are_answered_or_told_when_to_come(server: Server, alone: dict[str, str]) -> None:
    """Each has a connection; those that find a place get what they get alone."""
    text = server.stream(ask(tokens=4))

    async def one() -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head(ask(tokens=4, user="a crowd")).replace(b"localhost\r\n", b"localhost\r\nConnection: close\r\n"))
        told, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return told, body

    async def crowd() -> list[tuple[bytes, bytes]]:
        return await asyncio.gather(*(one() for _ in range(MANY)))

    def come() -> None:
        pushing = threading.Thread(target=lambda: came.append(asyncio.run(crowd())))
        pushing.start()
        unhurt(server, alone)
        pushing.join()
        taken = [json.loads(body) for told, body in came[-1] if told.startswith(b"HTTP/1.1 200")]
        refused = [told.lower() for told, _ in came[-1] if told.startswith(b"HTTP/1.1 503")]
        assert len(taken) + len(refused) == MANY
        assert {answer["choices"][0]["text"] for answer in taken} == {text}
        times = [int(re.findall(rb"retry-after: (\d+)", told)[0]) for told in refused]
        assert len(taken) >= 60
        assert all(1 <= seconds <= 60 for seconds in times)

    came: list[list[tuple[bytes, bytes]]] = []
    flat(server, come)


@needs_namespaces
def test_clients_that_vanish_without_a_word_are_noticed(alone: dict[str, str], tmp_path: Path) -> None:
    """In the middle of an answer, of a request, and before one: their machine is cut off, and nothing tells of it."""
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    with network("server", "gone", "friend") as net:
        options = ("serve", "--workers", "1", "--dtype", "float32", "--http", "*:8000", "--api-key-file", str(keys), *PATIENT)
        process = net.start("server", sys.executable, "-c", HASTY, *options)
        assert process.stderr is not None
        port = served_at(process.stderr)
        drained(process.stderr)
        client = net.start("gone", sys.executable, "-c", VANISHING, "10.77.0.1", str(port), KEY, json.dumps(ask(tokens=1900)))
        assert client.stdout is not None
        assert client.stdout.readline() == "streaming\n"
        net.unplug("gone")
        assert json.loads(asked(net, port, "/v1/completions", ask()))["choices"][0]["text"] == alone[PROMPTS[0]]
        while num_connections(process.pid, port):
            time.sleep(0.05)
        assert 'bloombee_requests_total{outcome="cancelled"} 1.0' in asked(net, port, "/metrics").splitlines()
        assert json.loads(asked(net, port, "/health"))["requests"] == 0


def asked(net: Network, port: int, path: str, body: Any = None) -> str:
    """The body of what a program on a machine that is there is answered."""
    data = [] if body is None else [json.dumps(body)]
    program = net.start("friend", sys.executable, "-c", ASKING, f"http://10.77.0.1:{port}{path}", KEY, *data)
    answer, said = program.communicate(timeout=60)
    assert program.returncode == 0, said
    return answer
