"""What a program may say, or not say, at a head's socket: the head answers the next one all the same."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from reception_kit import STATUS, TOLD, all_that_comes, always, call, reception

from bloombee.roles import reception as module
from bloombee.roles.questions import question_line
from bloombee.roles.running_heads import ask, running_heads


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    with reception([tmp_path], {**TOLD, "much": always("x" * (32 << 20)), "bug": lambda _: always(1 / 0)}):
        (socket_path,) = tmp_path.iterdir()
        yield socket_path


@pytest.mark.parametrize(
    "said",
    [
        b"\n",
        b"\x00" * 100 + b"\n",
        b"\xff\xfe\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"null\n",
        b'"topology"\n',
        b'{"version": 1}\n',
        b'{"version": "1", "ask": "status"}\n',
        b'{"version": 1, "ask": 3}\n',
        b'{"version": 1e999, "ask": "status"}\n',
        b'{"version": 1, "ask": "status", "more": 1}\n',
        b'{"version": 1, "ask": "' + b"a" * 65 + b'"}\n',
        b'{"version": 99, "ask": "status"}\n',
        b"[" * 4000 + b"\n",
        b"x" * (1 << 20),
    ],
)
def test_nonsense_gets_one_error_and_the_end_of_the_connection(path: Path, said: bytes) -> None:
    with call(path) as caller:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it had heard enough
            caller.sendall(said)
        came = all_that_comes(caller)
    assert came == b"" or (came.count(b"\n") == 1 and b'"error":{"code":' in came)
    assert ask(path, "status") == STATUS


def test_who_leaves_in_the_middle_of_a_word_leaves_nothing_behind(path: Path) -> None:
    for _ in range(3 * module.MOST_CALLERS):
        with call(path) as caller:
            caller.sendall(b'{"version": 1, "as')
    assert ask(path, "status") == STATUS


def test_who_says_nothing_more_is_hung_up_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    with call(path) as silent, call(path) as slow:
        slow.sendall(b"{")
        assert all_that_comes(silent) == all_that_comes(slow) == b""
    assert ask(path, "status") == STATUS


def test_who_does_not_take_the_answer_is_hung_up_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    with call(path) as deaf:
        deaf.sendall(question_line("much"))
        assert ask(path, "status") == STATUS
        hung_up = select.poll()
        hung_up.register(deaf, select.POLLRDHUP)
        assert hung_up.poll(30_000)
        assert len(all_that_comes(deaf)) < 32 << 20
    assert len(ask(path, "much")) == 32 << 20


def test_no_more_than_so_many_are_heard_at_once(path: Path) -> None:
    callers = [call(path) for _ in range(module.MOST_CALLERS)]
    for caller in callers:
        caller.sendall(question_line("status"))
        assert caller.recv(1 << 16)
    with call(path) as one_more:
        assert all_that_comes(one_more) == b""
    callers.pop().close()
    served = False
    while not served:  # as soon as the head has seen that one go
        with call(path) as caller:
            try:
                caller.sendall(question_line("status"))
            except BrokenPipeError:
                continue
            served = all_that_comes_first(caller)
    for caller in callers:
        caller.close()


def all_that_comes_first(caller: socket.socket) -> bool:
    try:
        return bool(caller.recv(1 << 16))
    except ConnectionResetError:
        return False


def test_a_bug_of_an_answer_is_a_line_of_the_log(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), call(path) as caller:
        caller.sendall(question_line("bug"))
        assert all_that_comes(caller) == b""
    assert ask(path, "status") == STATUS
    assert "a question could not be answered: division by zero" in caplog.text


NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="to be another user takes root")
def test_another_user_is_not_heard_even_where_he_could_write() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        with reception([folder]):
            (path,) = folder.iterdir()
            assert _as_nobody(path) == (b"", PermissionError)  # 0600
            path.chmod(0o666)
            assert _as_nobody(path) == (b"", None)
            assert ask(path, "status") == STATUS
    finally:
        shutil.rmtree(folder)


def _as_nobody(path: Path) -> tuple[bytes, type[Exception] | None]:
    """What another user's process gets to hear, and what keeps it from asking."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(NOBODY)
            with call(path) as caller:
                caller.sendall(question_line("status"))
                os.write(writer, b"heard " + all_that_comes(caller))
        except PermissionError:
            os.write(writer, b"refused")
        except OSError:
            os.write(writer, b"heard ")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return (b"", PermissionError) if said == b"refused" else (said.removeprefix(b"heard "), None)


@pytest.mark.skipif(os.geteuid() != 0, reason="to be another user takes root")
def test_another_users_socket_is_not_asked() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        with reception([folder]):
            os.chown(folder, NOBODY, NOBODY)
            assert running_heads([folder]) == []
    finally:
        shutil.rmtree(folder)
