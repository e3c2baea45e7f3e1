"""Heads as programs of their own, which can be killed, and workers from elsewhere that outlive them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = """
import asyncio, json, sys, bloombee

def say(**what):
    print(json.dumps(what), flush=True)

async def main(state, requests, settings):
    async def answer(tokens, id, count):
        ids, text = [], ""
        async for token in tokens:
            ids.append(token.token_id)
            text += token.text
            if len(ids) in (1, count):
                say(what="tokens", id=id, count=len(ids))
        say(what="answer", id=id, ids=ids, text=text, finish=token.finish_reason)

    runtime = bloombee.Runtime("demo", dtype="float32", state=state, **settings)
    await runtime.prepare(announce=lambda tokens: say(what="listening", tokens=tokens))
    say(what="running", requests=[[one.id, one.client, one.num_tokens] for one in runtime.running])
    await runtime.ready()
    say(what="up", stages=[[stage.name, stage.span.start, stage.span.stop] for stage in runtime.plan.stages])
    if runtime.running:
        work = [answer(runtime.resume(one.id), one.client, 10**9) for one in runtime.running]
    else:
        work = [answer(runtime.stream(prompt, client=id, **params), id, count) for id, prompt, params, count in requests]
    await asyncio.gather(*work)
    await runtime.close()

asyncio.run(main(*json.loads(sys.argv[1])))
"""


class HeadProgram:
    """One that begins its requests, or goes on with those of the head before, and says how it comes along.

    Args:
        state: the directory.
        requests: (id, prompt, parameters, the number of tokens at which it is said that it has them).
        settings: of the Runtime.
    """

    def __init__(self, state: Path, requests: Sequence[tuple[str, Any, dict[str, Any], int]] = (), **settings: Any) -> None:
        asked = json.dumps([str(state), list(requests), settings])
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM, asked], stdout=subprocess.PIPE, text=True)
        self.said: list[dict[str, Any]] = []

    def until(self, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first word of that kind; AssertionError if its process ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line))
            if is_it(self.said[-1]):
                return self.said[-1]
        raise AssertionError(f"the head ended with {self.process.wait()} after {self.said}")

    def until_it_says(self, what: str, **fields: Any) -> dict[str, Any]:
        """As :meth:`until`, by the fields that its word has."""
        wanted = {"what": what, **fields}
        return self.until(lambda said: wanted.items() <= said.items())

    def answers(self) -> dict[str, dict[str, Any]]:
        """Of all requests, by id, once it has ended by itself."""
        assert self.process.stdout is not None
        self.said += map(json.loads, self.process.stdout)
        assert self.process.wait(60) == 0
        return {said["id"]: said for said in self.said if said["what"] == "answer"}

    def kill(self) -> None:
        """As a crash does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def workers_of(tokens: Sequence[str], *options: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Workers from elsewhere, w0, w1, ..., one a join token; those that are left are killed at the end."""
    command = [sys.executable, "-m", "bloombee", "worker", "--threads", "1", *options]
    workers = [
        subprocess.Popen([*command, "--name", f"w{index}"], env={**os.environ, "BLOOMBEE_JOIN": token})
        for index, token in enumerate(tokens)
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
