"""What a peer's program says and hears; imported by programs that run in the peers' own environments: standard library only.

JSON lines, one answer a question. The first question is the configuration (:mod:`bench.peers.peer` makes it), answered with
``{"version": text}`` when tokens can flow. Then, in turns:

    {"prefill": [[id, ...], ...], "room": n}   all sequences anew, of equal length; room for n tokens more of each
        -> {"first_s": seconds until all have their first token, "tokens": [id, ...]}
    {"decode": n, "again": bool}               n tokens more of each, greedy, all sequences in step; again: from the prompts' end
        -> {"steps_s": [seconds, ...], "cpu_s": [this process's processor seconds, ...], "tokens": [[id, ...], ...]}

At the end of its input a program ends everything that it started: it leads a process group.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, Protocol, cast

Json = dict[str, Any]


class Decoder(Protocol):
    """What a program implements."""

    version: str

    def prepare(self, batch: int, length: int) -> None:
        """Forget all sequences; ``batch`` new ones of up to ``length`` tokens will come. Not timed."""

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        """The first token of each."""

    def step(self, tokens: list[int]) -> list[int]:
        """The token after each of ``tokens``."""


class Rewinder(Decoder, Protocol):
    """One that can decode again after the same prompts."""

    def rewind(self) -> None:
        """Forget what came after the prompts. Not timed."""


class Server:
    """Answers on what standard output was; all else that is printed goes to standard error."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        # Not sys.stdin: a child that multiprocessing forks closes that, and would wait for the reading thread's lock for ever.
        self._input = os.fdopen(os.dup(0))
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        self._questions: queue.SimpleQueue[Json] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def configuration(self) -> Json:
        return self._questions.get()

    def serve(self, decoder: Decoder) -> None:
        """Until the input ends, and the process with it."""
        self._answer({"version": decoder.version})
        first: list[int] = []
        tokens: list[int] = []
        while True:
            question = self._questions.get()
            if "prefill" in question:
                prompts = question["prefill"]
                decoder.prepare(len(prompts), len(prompts[0]) + question["room"])
                start = time.perf_counter()
                first = tokens = decoder.prefill(prompts)
                self._answer({"first_s": time.perf_counter() - start, "tokens": tokens})
                continue
            if question.get("again"):
                cast(Rewinder, decoder).rewind()
                tokens = first
            steps, cpu, rows = [], [], []
            start, cpu_start = time.perf_counter(), time.process_time()
            for _ in range(question["decode"]):
                tokens = decoder.step(tokens)
                now, cpu_now = time.perf_counter(), time.process_time()
                steps.append(now - start)
                cpu.append(cpu_now - cpu_start)
                rows.append(tokens)
                start, cpu_start = now, cpu_now
            self._answer({"steps_s": steps, "cpu_s": cpu, "tokens": [list(one) for one in zip(*rows)]})  # noqa: B905 - for old Pythons

    def _read(self) -> None:
        """In a thread of its own, so that whoever asks may end at any moment and nothing is left running."""
        for line in self._input:
            self._questions.put(json.loads(line))
        end_group()

    def _answer(self, answer: Json) -> None:
        print(json.dumps(answer), file=self._answers)


def wait_for(port: int, patience_s: float = 120.0) -> None:
    """Until something listens there.

    Raises:
        TimeoutError: nothing did for so long.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing listened on port {port} for {patience_s:.0f} s") from None
            time.sleep(0.1)


def end_group() -> None:
    """End this process and all that it started."""
    sys.stderr.flush()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


@contextlib.contextmanager
def ends_its_group() -> Iterator[None]:
    """Whatever happens inside, nothing of this process group outlives the block."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
    finally:
        end_group()
