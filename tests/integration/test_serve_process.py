"""``bloombee serve`` as a process: what it prints, that it answers, how it ends, and what it does not load."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from process_kit import BLOOMBEE, ENVIRONMENT, awaiting

SERVED = re.compile(r"^demo is served at http://127\.0\.0\.1:(\d+)/v1")


@contextlib.contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process and its port; whatever a test does, it leaves none behind."""
    command = [*BLOOMBEE, "serve", "--workers", "1", "--http", "127.0.0.1:0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        assert process.stderr is not None
        found = next(match for line in process.stderr if (match := SERVED.match(line)))
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


def begun(port: int, tokens: int) -> http.client.HTTPResponse:
    """A stream of which the first line has come."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {"prompt": "import ", "max_tokens": tokens, "stream": True, "ignore_eos": True, "temperature": 0}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.readline().startswith(b"data: ")
    return answer


def test_ctrl_c_lets_a_request_end_and_takes_no_other() -> None:
    with serving() as (process, port):
        answer = begun(port, 120)
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text(), "the head's process has no torch"
        process.send_signal(signal.SIGINT)
        assert answer.read().endswith(b"data: [DONE]\n\n")
        assert process.wait(60) == 0
        with pytest.raises(ConnectionRefusedError):
            http.client.HTTPConnection("127.0.0.1", port).connect()


@pytest.mark.parametrize("drain_s", ["0", "60"])
def test_who_may_not_end_is_told_so(drain_s: str) -> None:
    """At once, or when somebody asks a second time: a stream ends with an error, an answer that has not come is one."""
    with serving("--drain", drain_s) as (process, port), ThreadPoolExecutor(1) as pool:
        answer = begun(port, 1900)
        whole = pool.submit(asked, port, "/v1/completions", {"prompt": "x", "max_tokens": 1900, "ignore_eos": True})
        while json.loads(asked(port, "/health")[2])["requests"] < 2:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert next(line for line in process.stderr if "no more requests" in line)
        if drain_s != "0":
            process.send_signal(signal.SIGTERM)
            assert "2 requests that still ran had to end" in process.stderr.readline()
        *_, last, nothing = answer.read().split(b"\n\n")
        assert nothing == b""
        assert json.loads(last.strip().removeprefix(b"data: "))["error"]["code"] == "overloaded"
        status, again, _ = whole.result()
        assert (status, 1 <= int(again or 0) <= 60) == (503, True)
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()


def deaf(port: int, path: str, body: bytes, length: int) -> socket.socket:
    """Asks, and takes nothing of the answer."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect(("127.0.0.1", port))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    one.sendall(head.encode() + body)
    return one


def said_at_its_end(process: subprocess.Popen[str]) -> str:
    """On stderr; it is asked to end, and does."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert process.stderr is not None
    return process.stderr.read()


def test_whoever_takes_nothing_holds_up_the_end_no_longer_than_others_may() -> None:
    """A request that is never whole, and a stream that nobody reads: the server ends, and says why it took so long."""
    asks = {"prompt": "import ", "max_tokens": 1900, "stream": True, "ignore_eos": True, "logprobs": 20}
    stream = json.dumps(asks).encode()
    with (
        serving("--drain", "2") as (process, port),
        deaf(port, "/v1/completions", b"{", 100),
        deaf(port, "/v1/completions", stream, len(stream)),
    ):
        while not json.loads(asked(port, "/health")[2])["requests"]:
            time.sleep(0.01)
        said = said_at_its_end(process)
    assert "no more requests are taken; 1 request may end, for 2 s" in said
    assert "1 request that still ran had to end" in said
    assert "had to be cut: nothing comes, or nothing is taken" in said
    assert "Traceback" not in said


def test_half_a_request_holds_up_the_end_no_longer_than_others_may() -> None:
    with serving("--drain", "2") as (process, port), deaf(port, "/v1/completions", b"{", 100):
        asked(port, "/health")
        said = said_at_its_end(process)
    assert "no more requests are taken; 1 connection may end, for 2 s" in said
    assert "1 connection had to be cut" in said


def asked(port: int, path: str, body: Any = None) -> tuple[int, str | None, bytes]:
    """Status, Retry-After and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        data = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Retry-After"), answer.read()
    finally:
        connection.close()


def test_it_answers_from_the_start_and_says_what_it_waits_for() -> None:
    """Programs are told to come again, people see the page, and both are served as soon as a worker has joined."""
    with awaiting() as server:
        process, port = server.process, server.port
        while json.loads((told := asked(port, "/health"))[2])["status"] == "starting":
            assert (told[0], 1 <= int(told[1] or 0) <= 60) == (503, True)
        status, again, body = told
        assert (status, 1 <= int(again or 0) <= 60) == (503, True)
        assert json.loads(body) == {"status": "waiting", "reason": "waiting for 1 worker", "model": "demo", "requests": 0}
        for path, sent in (("/v1/models", None), ("/v1/completions", {"prompt": "import ", "max_tokens": 1})):
            status, again, body = asked(port, path, sent)
            assert (status, 1 <= int(again or 0) <= 60) == (503, True)
            assert json.loads(body)["error"]["code"] == "waiting"
        assert asked(port, "/")[0] == 200
        assert b'bloombee_state{bloombee_state="waiting"} 1.0' in asked(port, "/metrics")[2]
        worker = server.worker()
        assert process.stderr is not None
        assert next(line for line in process.stderr if SERVED.match(line))
        assert (asked(port, "/health")[0], asked(port, "/v1/completions", {"prompt": "import ", "max_tokens": 1})[0]) == (
            200,
            200,
        )
        process.send_signal(signal.SIGTERM)
        assert (process.wait(60), worker.wait(60)) == (0, 0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--http", "*:8000"], "needs keys"),
        (["--http", "127.0.0.1:0", "--api-key-file", "/none"], "cannot read it"),
        (["--http", "127.0.0.1:0", "--api-key-file", __file__], "line 1"),
        (["--workers", "0", "--listen", "tcp://127.0.0.1:0"], "workers = 0"),
    ],
)
def test_bad_input_is_exit_2_and_a_sentence(options: list[str], says: str) -> None:
    done = subprocess.run([*BLOOMBEE, "serve", *options], capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr.splitlines()[-1]
