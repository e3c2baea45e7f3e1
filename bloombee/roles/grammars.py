"""Grammars of requests, seen to be sound before anything runs: compiled in a process of their own, which one may cost."""

from __future__ import annotations

import asyncio
import select
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec

from bloombee.errors import ConfigError, DeviceError, RuntimeClosed
from bloombee.grammar import MOST_COMPILING_S
from bloombee.models.card import ModelCard
from bloombee.quote import printable
from bloombee.roles.child import start_child
from bloombee.wire.messages import Grammar

MOST_WAITING_S = 10.0
"""For what must have come by then: :data:`MOST_COMPILING_S` ends the process."""
MOST_STARTING_S = 30.0
TRIES = 2
ENDED_BY_OTHERS = (-signal.SIGKILL, -signal.SIGTERM)
"""By a person, by a system that is short of memory, or by us because it did not answer: no grammar ends its compiler so."""
MOST_KNOWN = 256
"""Grammars that are remembered as sound."""
MOST_SAID = 500
"""Signs of what llguidance says of a grammar; it quotes all of it."""


class GrammarCheck:
    """Of one head; belongs to one event loop. The process starts with the first grammar and stays."""

    def __init__(self, card: ModelCard) -> None:
        self._card = card
        self._sound: dict[Grammar, None] = {}
        self._thread = ThreadPoolExecutor(1, "bloombee-grammar-check")
        self._compiler = Compiler()

    async def check(self, grammar: Grammar, *, can_end: bool) -> None:
        """Cancelled: the compiler goes on for its time.

        Args:
            can_end: the request has end tokens.

        Raises:
            ConfigError: the grammar is not sound, or takes too long to compile; or nothing could end its text.
            DeviceError: no process can be started. RuntimeClosed: :meth:`close` was called meanwhile.
        """
        if self._card.tokenizer_json is None:
            raise ConfigError(f"{self._card.model} has no tokenizer, so no grammar can be obeyed", field="grammar")
        if not can_end:
            raise ConfigError(
                "a text that a grammar rules ends with an end token, and this request has none: the model names none, or"
                " ignore_eos was asked for",
                field="grammar",
            )
        if grammar in self._sound:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._compiler.check, grammar)
        except (asyncio.CancelledError, RuntimeError, DeviceError):
            if self._compiler.is_closed:
                raise RuntimeClosed("the Runtime was closed") from None
            raise
        self._sound[grammar] = None
        if len(self._sound) > MOST_KNOWN:
            del self._sound[next(iter(self._sound))]

    def close(self) -> None:
        """Ends the process; whoever waits gets RuntimeClosed, or ConfigError."""
        self._compiler.close()
        self._thread.shutdown(wait=False, cancel_futures=True)


class Compiler:
    """A process that compiles grammars, which starts with the first and stays. For one thread, but for :meth:`close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.is_closed = False

    def check(self, grammar: Grammar) -> None:
        """Raises ConfigError: it is not sound, or takes too long to compile. DeviceError, RuntimeClosed: as GrammarCheck."""
        if wrong := self._compile(grammar):
            raise ConfigError(f"the grammar ({grammar.kind}) cannot be obeyed: {wrong}", field="grammar")

    def close(self) -> None:
        """Ends the process. Callable from any thread."""
        self.is_closed = True
        if (process := self._process) is not None:
            process.kill()
            process.wait()

    def _compile(self, grammar: Grammar) -> str:
        """What is wrong with it; empty: nothing. Tried again where somebody else ended the process, or it stood still."""
        for _ in range(TRIES):
            process = self._started()
            answer = _asked(process, grammar)
            if answer is not None:
                return _short(str(msgspec.json.decode(answer)))
            if self._end(process) not in ENDED_BY_OTHERS:
                break
        return f"to compile it takes more than {MOST_COMPILING_S:g} s of a processor, or more memory than a thread has"

    def _started(self) -> subprocess.Popen[bytes]:
        """Raises DeviceError, RuntimeClosed."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        if self.is_closed:
            raise RuntimeClosed("the Runtime was closed")
        self._process = process = start_child(
            "bloombee.roles.grammar_checker", stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        if self.is_closed or _line(process, MOST_STARTING_S) is None:
            ended = self._end(process)
            raise DeviceError(f"the process that compiles grammars cannot be started: it ended with {ended}")
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """How it ended: by itself, if it had."""
        self._process = None
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        return process.wait()


def _asked(process: subprocess.Popen[bytes], grammar: Grammar) -> bytes | None:
    """As :func:`_line`."""
    assert process.stdin is not None
    try:
        process.stdin.write(msgspec.json.encode([grammar.kind, grammar.text]) + b"\n")
        process.stdin.flush()
        return _line(process, MOST_WAITING_S)
    except OSError:
        return None


def _short(said: str) -> str:
    """On one line; the end says more than the middle, which is the grammar's own text."""
    line = printable(" ".join(said.split()))
    return line if len(line) <= MOST_SAID else f"{line[: MOST_SAID // 2]} ... {line[-MOST_SAID // 2 :]}"


def _line(process: subprocess.Popen[bytes], most_s: float) -> bytes | None:
    """The next that ``process`` says; None: it does not in time, or has ended."""
    assert process.stdout is not None
    pieces: list[bytes] = []
    by = time.monotonic() + most_s
    waiting = select.poll()
    waiting.register(process.stdout, select.POLLIN)
    while not pieces or not pieces[-1].endswith(b"\n"):
        if not waiting.poll(max(0.0, by - time.monotonic()) * 1000):
            return None
        piece = process.stdout.read(1 << 16)
        if not piece:
            return None
        pieces.append(piece)
    return b"".join(pieces)
