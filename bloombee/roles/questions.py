"""What other programs of a user ask a head that runs, and where: a Unix socket of that user, lines of JSON.

    {"version": 1, "ask": "topology"}
    {"version": 1, "program": "0.1.0", "answer": {...}}   or   {"version": 1, "program": "0.1.0", "error": {...}}

A connection may ask again and again. Each head has a socket, named by its process, in a folder that its user alone may enter
(:func:`~bloombee.config.socket_folders`). ``roles/reception.py`` answers, ``roles/running_heads.py`` finds and asks. Why so:
docs/adr/0054-a-head-answers-on-a-unix-socket.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from bloombee.errors import BloomBeeError, Fact, RemoteProtocolError, VersionMismatch, from_wire, to_wire
from bloombee.types import VERSION as PROGRAM

VERSION = 1
MAX_QUESTION_BYTES = 4096
MAX_ANSWER_BYTES = 64 << 20
MAX_PATH_BYTES = 107
"""Of a Unix socket: ``sun_path`` without its last zero."""
SUFFIX = ".sock"
_NAME = re.compile(r"[0-9]{1,12}(-[0-9]{1,4})?\.sock")


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``about``: what an order is about, a worker's name; empty: it needs nothing more."""

    version: int
    ask: Annotated[str, Meta(max_length=64)]
    about: Annotated[str, Meta(max_length=1024)] = ""


class Failure(msgspec.Struct, frozen=True):
    """An error as :func:`~bloombee.errors.to_wire` has it."""

    code: str
    fields: dict[str, Fact]


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """``answer`` or ``error``."""

    version: int
    program: str
    answer: Any = None
    error: Failure | None = None


# -- lines -------------------------------------------------------------------------------------


def question_line(ask: str, about: str = "") -> bytes:
    return msgspec.json.encode(Question(VERSION, ask, about)) + b"\n"


def read_question(line: bytes) -> Question:
    """What is asked.

    Raises:
        RemoteProtocolError: it is no question; VersionMismatch: a newer program's.
    """
    try:
        question = msgspec.json.decode(line, type=Question)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"not a question: {str(error)[:200]}", path="question") from None
    if question.version != VERSION:
        raise VersionMismatch(f"a question of version {question.version}; this head speaks {VERSION}", version=VERSION)
    return question


def answer_line(answer: Any) -> bytes:
    """Of whatever JSON can hold, or of an error."""
    if isinstance(answer, BloomBeeError):
        return msgspec.json.encode(Answer(VERSION, PROGRAM, error=Failure(*to_wire(answer)))) + b"\n"
    return msgspec.json.encode(Answer(VERSION, PROGRAM, answer)) + b"\n"


def read_answer(line: bytes) -> Any:
    """What was answered.

    Raises:
        RemoteProtocolError: it is no answer; VersionMismatch: another program's.
        BloomBeeError: what the head answered with.
    """
    try:
        answer = msgspec.json.decode(line, type=Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"the head's answer is none: {str(error)[:200]}", path="answer") from None
    if answer.version != VERSION:
        said = f"the head (bloombee {answer.program[:40]}) answers in version {answer.version}; this program speaks {VERSION}"
        raise VersionMismatch(said, version=VERSION)
    if answer.error is not None:
        raise from_wire(answer.error.code, answer.error.fields)
    return answer.answer


# -- where -------------------------------------------------------------------------------------


@contextlib.contextmanager
def reachable(path: Path) -> Iterator[str]:
    """A name of ``path`` that is short enough for a socket: its own, or one by way of its open folder.

    Raises:
        OSError: the folder cannot be opened.
    """
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def is_private(folder: Path) -> bool:
    """Whether it is a folder of this user that no other may change."""
    try:
        facts = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o022


def is_own(peer: socket.socket) -> bool:
    """Whether this user's process is at the other end; where the system does not tell, the folder's rights have to do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    try:
        facts = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iIi"))
    except OSError:
        return False
    return bool(struct.unpack("iIi", facts)[1] == os.geteuid())


def sockets_in(folder: Path) -> list[Path]:
    """Those that heads may answer at; what dead processes have left is removed."""
    if not is_private(folder):
        return []
    with contextlib.suppress(OSError):
        return [
            path for path in sorted(folder.iterdir()) if _NAME.fullmatch(path.name) and path.is_socket() and not _is_stale(path)
        ]
    return []


def _is_stale(path: Path) -> bool:
    """Whether its process is gone and nobody answers, as one in another container would; it is removed then."""
    if _lives(int(re.split("[-.]", path.name)[0])):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.setblocking(False)
        try:
            with reachable(path) as name:
                caller.connect(name)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return True
        except OSError:
            pass
    return False


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # somebody else's
    return True
