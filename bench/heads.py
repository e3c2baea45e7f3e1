"""Heads that are killed while requests run: what another one, started at once with the same state, makes of them.

The head and its workers are processes of their own on this machine (bench/a_head.py, ``bloombee worker --join``); the workers
outlive every head.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from rich.table import Table

from bench.exact import Reference
from bench.kills import MODEL, REQUESTS, Series
from bench.program import BenchError
from bench.same import Comparison, Request, compare

WORKERS = 3
MOMENTS = ("prefill", "decode", "idle", "loading")
"""Idle: requests come to the next head. Loading: that is killed as well, while its workers load, and another one follows."""
SERVES_S = 5.0
"""The bound: a new head serves so long after its start."""
LIMIT_S = 180.0
SETTINGS = {"model": MODEL, "remote_workers": WORKERS, "split": [3, 3, 2], "dtype": "float32", "control_socket": False}


@dataclass
class HeadKill:
    """One kill and what came of it.

    Args:
        at: how far everything was when it happened, as a share of the prompts' time or of the tokens.
        up_s, first_token_s: from the start of the new head's process until its pipeline is up, and until a token came that the
            old one had not given.
        lost: requests that ended with an error, or not at all.
    """

    number: int
    moment: str
    at: float
    up_s: float = 0.0
    first_token_s: float = 0.0
    lost: int = 0
    reasons: list[str] = field(default_factory=list)
    same: Comparison = field(default_factory=Comparison)

    @property
    def is_good(self) -> bool:
        return not self.lost and not self.same.num_wrong and self.first_token_s <= SERVES_S

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Head:
    """A process of bench/a_head.py.

    Args:
        known: client -> tokens that need not come again.
    """

    def __init__(self, state: str, known: dict[str, int]) -> None:
        self.started_at = time.monotonic()
        command = [sys.executable, "-m", "bench.a_head", json.dumps({**SETTINGS, "state": state}), json.dumps(known)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[1]
        )
        self._said: SimpleQueue[tuple[float, list[Any]]] = SimpleQueue()
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):  # the last one may have been cut
                self._said.put((time.monotonic(), json.loads(line)))

    def said(self) -> Iterator[tuple[float, list[Any]]]:
        """What it says, with when. BenchError: nothing for too long."""
        while True:
            try:
                yield self._said.get(timeout=LIMIT_S)
            except Empty:
                raise BenchError(f"a head said nothing for {LIMIT_S:g} s") from None

    def until(self, what: str) -> list[Any]:
        return next(said for _, said in self.said() if said[0] == what)

    def ask(self, requests: Sequence[tuple[str, list[int], dict[str, Any]]]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()

    def kill(self) -> list[list[Any]]:
        """What it had said and nobody had heard."""
        self._process.kill()
        self._process.wait()
        left = []
        while True:
            try:
                left.append(self._said.get(timeout=0.2)[1])
            except Empty:
                return left

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()


class HeadKiller:
    """Kills the head ``count`` times, at each moment by turns.

    Args:
        say: called with each kill that is done.
    """

    def __init__(self, series: Series, say: Callable[[HeadKill], None]) -> None:
        self._series = series
        self._say = say
        self._requests = series.requests()
        self._expected: list[list[int]] = []
        self._prefill_s = 0.0
        self._up_s = 1.0
        """What the last head took until it was up; a guess before that."""

    def run(self, reference: Reference) -> list[HeadKill]:
        """Raises BenchError: a head says nothing any more."""
        rng = random.Random(self._series.seed)
        with ExitStack() as stack:
            state = stack.enter_context(tempfile.TemporaryDirectory())
            head = Head(state, {})
            for index, token in enumerate(head.until("tokens")[1]):
                stack.callback(_end, _worker(token, index))
            stack.callback(lambda: head.close())  # the newest
            head.until("up")
            self._undisturbed(head)
            kills = []
            for number in range(self._series.count):
                kill = HeadKill(number, MOMENTS[number % len(MOMENTS)], rng.uniform(0.1, 0.8))
                head = self._kill(head, state, kill, reference)
                kills.append(kill)
                self._say(kill)
            return kills

    def _undisturbed(self, head: Head) -> None:
        began = time.monotonic()
        answers = _Answers(0)
        head.ask(self._asked(0))
        for at, said in head.said():
            if answers.hear(said) and not self._prefill_s and all(answers.tokens.values()) and len(answers.tokens) == REQUESTS:
                self._prefill_s = at - began
            if len(answers.ended) == REQUESTS:
                break
        self._expected = [answers.tokens[client] for client in answers.clients]

    def _kill(self, head: Head, state: str, kill: HeadKill, reference: Reference) -> Head:
        """The new one; it has come to its requests' ends."""
        answers = _Answers(kill.number + 1)
        if kill.moment != "idle":
            head.ask(self._asked(kill.number + 1))
            self._wait(head, kill, answers)
        for said in head.kill():
            answers.hear(said)
        after = _after(state, answers)
        if kill.moment == "loading":
            time.sleep(kill.at * self._up_s)
            for said in after.kill():
                answers.hear(said)
            after = _after(state, answers)
        if kill.moment == "idle":
            after.ask(self._asked(kill.number + 1))  # it reads that once it is up
        for at, said in after.said():
            if said[0] == "up":
                self._up_s = kill.up_s = at - after.started_at
            if answers.hear(said) and not kill.first_token_s:
                kill.first_token_s = at - after.started_at
            if len(answers.ended) == REQUESTS and kill.up_s:
                break
        self._judge(kill, answers, reference)
        return after

    def _wait(self, head: Head, kill: HeadKill, answers: _Answers) -> None:
        """Until it is time for it."""
        if kill.moment == "prefill":
            time.sleep(kill.at * self._prefill_s)
            return
        wanted, until = kill.at * self._series.new * REQUESTS, time.monotonic() + LIMIT_S
        for _, said in head.said():
            answers.hear(said)
            if sum(map(len, answers.tokens.values())) >= wanted or time.monotonic() > until:
                return

    def _judge(self, kill: HeadKill, answers: _Answers, reference: Reference) -> None:
        for client, request, expected in zip(answers.clients, self._requests, self._expected, strict=True):
            if (error := answers.ended[client]) is not None:
                kill.lost += 1
                kill.reasons.append(error)
            else:
                kill.same.add(compare(reference, request, expected, answers.tokens.get(client, [])))

    def _asked(self, number: int) -> list[tuple[str, list[int], dict[str, Any]]]:
        return [
            (client, request.prompt, _fields(request, self._series.new))
            for client, request in zip(_Answers(number).clients, self._requests, strict=True)
        ]


def _after(state: str, answers: _Answers) -> Head:
    return Head(state, {client: len(answers.tokens.get(client, ())) for client in answers.clients})


class _Answers:
    """To the requests of one kill. ``ended``: client -> its error."""

    def __init__(self, number: int) -> None:
        self.clients = [f"{number}.{index}" for index in range(REQUESTS)]
        self.tokens: dict[str, list[int]] = {}
        self.ended: dict[str, str | None] = {}

    def hear(self, said: list[Any]) -> bool:
        """Whether it was a token of theirs."""
        if said[0] == "token" and said[1] in self.clients:
            self.tokens.setdefault(said[1], []).append(said[2])
            return True
        if said[0] == "end" and said[1] in self.clients:
            self.ended[said[1]] = said[2]
        return False


def _fields(request: Request, new: int) -> dict[str, Any]:
    return {**request.fields, "max_new_tokens": new, "ignore_eos": True}


def _worker(token: str, index: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bloombee", "worker", "--threads", "1", "--name", f"w{index}", "--log-level", "error"]
    return subprocess.Popen(command, env={**os.environ, "BLOOMBEE_JOIN": token})


def _end(worker: subprocess.Popen[bytes]) -> None:
    try:
        worker.wait(20)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def heads_table(kills: Sequence[HeadKill]) -> Table:
    table = Table(title=f"killed heads; seconds from the new one's start (bound: {SERVES_S:g})")
    for column in ("moment", "kills", "lost", "wrong", "flips", "up", "token", "most"):
        table.add_column(column, justify="right", no_wrap=True)
    for moment in MOMENTS:
        own = [kill for kill in kills if kill.moment == moment]
        if own:
            firsts = [kill.first_token_s for kill in own]
            table.add_row(
                moment,
                str(len(own)),
                str(sum(kill.lost for kill in own)),
                str(sum(kill.same.num_wrong for kill in own)),
                str(sum(kill.same.num_flips for kill in own)),
                f"{statistics.median(kill.up_s for kill in own):.2f}",
                f"{statistics.median(firsts):.2f}",
                f"{max(firsts):.2f}",
            )
    return table
