"""``bloombee serve`` as a process: what it prints, that it answers, how it ends, and what it does not load."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BLOOMBEE = [sys.executable, "-m", "bloombee"]
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if not k.startswith("BLOOMBEE_")}, "HF_HUB_OFFLINE": "1"}
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


def test_a_second_one_ends_it_at_once() -> None:
    with serving() as (process, port):
        answer = begun(port, 1900)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert next(line for line in process.stderr if "no more requests" in line)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(http.client.IncompleteRead, ConnectionResetError):
            assert not answer.read().endswith(b"data: [DONE]\n\n")
        assert process.wait(60) == 0


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
