"""Finds the heads of this user that run on this machine, and asks them (``roles/questions.py``)."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bloombee.config import socket_folders
from bloombee.errors import (
    AuthenticationError,
    BloomBeeError,
    ConfigError,
    DeadlineExceeded,
    LinkDown,
    RemoteProtocolError,
    VersionMismatch,
)
from bloombee.plan.document import Document, parse
from bloombee.quote import quoted
from bloombee.roles.questions import MAX_ANSWER_BYTES, SUFFIX, is_own, question_line, reachable, read_answer, sockets_in
from bloombee.roles.status import VERSION as STATUS_VERSION
from bloombee.roles.status import SwarmStatus

STATUS_S, ANSWER_S = 2.0, 30.0
"""How long a head may take to say who it is; to answer anything else."""
MOST_AT_A_TIME = 64
"""Heads that are asked who they are."""


class Status(msgspec.Struct, frozen=True):
    """Who a head says that it is."""

    process: int
    model: str
    workers: int
    epoch: int
    requests: int


@dataclass(frozen=True, slots=True)
class RunningHead:
    """One that answers. ``name``: its process, with a number if that has several heads."""

    name: str
    path: Path
    status: Status

    def ask(self, what: str, about: str = "") -> Any:
        """Its answer, as JSON has it. Raises as :func:`ask`."""
        return ask(self.path, what, about)

    def swarm(self) -> SwarmStatus:
        """How its swarm is. Raises as :func:`ask`; VersionMismatch if it says so in words that this program does not know."""
        answer = self.ask("swarm")
        version = answer.get("version") if isinstance(answer, dict) else None
        if version != STATUS_VERSION:
            raise VersionMismatch(f"that head tells of its swarm in version {version}; this program reads {STATUS_VERSION}")
        try:
            return msgspec.convert(answer, SwarmStatus)
        except msgspec.ValidationError as error:
            raise RemoteProtocolError(f"what that head tells of its swarm cannot be read: {error}", path="swarm") from error

    def topology(self) -> Document:
        """What it knows of its swarm. Raises as :func:`ask`; RemoteProtocolError if that is no document."""
        try:
            return parse(self.ask("topology"))
        except ConfigError as error:
            raise RemoteProtocolError(f"the head's topology is none: {error.message}", path="topology") from error

    def __str__(self) -> str:
        workers = f"{self.status.workers} worker{'s' * (self.status.workers != 1)}"
        return f"{self.name} ({self.status.model}, {workers})"


def running_heads(folders: Sequence[Path]) -> list[RunningHead]:
    """Those of this user that answer. All are asked at a time: one that stands still is waited for."""
    paths = [path for folder in folders for path in sockets_in(folder)]
    with ThreadPoolExecutor(MOST_AT_A_TIME) as pool:
        return [head for head in pool.map(_head_at, paths) if head is not None]


def _head_at(path: Path) -> RunningHead | None:
    try:
        status = msgspec.convert(ask(path, "status", patience_s=STATUS_S), Status)
    except (BloomBeeError, msgspec.ValidationError):
        return None  # it is ending, stands still, or is no head
    return RunningHead(path.name.removesuffix(SUFFIX), path, status)


def running_head(name: str | None, otherwise: str = "") -> RunningHead:
    """The head of this user that is meant; without a name the only one there is.

    Args:
        otherwise: what else to do where there is none, after "start one (bloombee head)".

    Raises:
        ConfigError: there is none of that name, none at all, or several; says which.
    """
    heads = running_heads(socket_folders())
    found = [head for head in heads if name in (None, head.name)]
    if len(found) == 1:
        return found[0]
    there = f"there are {', '.join(map(str, heads))}" if heads else "none of this user runs here"
    if name is not None:
        raise ConfigError(f"no head {quoted(name)} answers; {there}", field="head", value=quoted(name))
    if found:
        raise ConfigError(f"several heads run; say which with --head: {there}", field="head")
    raise ConfigError(f"no head answers; {there}: start one (bloombee head){otherwise}", field="head")


def ask(path: Path, what: str, about: str = "", *, patience_s: float = ANSWER_S) -> Any:
    """The answer of the head at ``path``, as JSON has it.

    Raises:
        LinkDown: nobody is there; DeadlineExceeded: no answer in time; AuthenticationError: another user's process is there.
        RemoteProtocolError, VersionMismatch: what came is no answer that this program knows.
        BloomBeeError: what the head answered with.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(patience_s)
        try:
            with reachable(path) as name:
                line.connect(name)
            if not is_own(line):
                raise AuthenticationError(f"{path} is another user's", path=str(path))
            line.sendall(question_line(what, about))
            return read_answer(_received(line, time.monotonic() + patience_s))
        except (TimeoutError, BlockingIOError):  # the latter: too many wait to be taken
            raise DeadlineExceeded(f"the head at {path} gave no answer in {patience_s:g} s", path=str(path)) from None
        except OSError as error:
            raise LinkDown(f"no head answers at {path}: {error.strerror or error}", path=str(path)) from error


def _received(line: socket.socket, deadline: float) -> bytes:
    """Raises TimeoutError: it has not come to its end by then."""
    data = bytearray()
    while not data.endswith(b"\n"):
        line.settimeout(max(1e-3, deadline - time.monotonic()))
        part = line.recv(1 << 16)
        if not part:
            break
        data += part
        if len(data) > MAX_ANSWER_BYTES:
            raise RemoteProtocolError(f"the head's answer has more than {MAX_ANSWER_BYTES} bytes", path="answer")
    return bytes(data)
