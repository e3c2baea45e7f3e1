"""The head's end of a drafter process (``roles/drafter.py`` says how it is spoken with).

Nothing that such a process does or leaves undone is an error of a request: whatever is wrong with it, it is ended, a warning says
so once, and tokens come as they would without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import queue
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bloombee.errors import BloomBeeError, DeviceError, RemoteProtocolError, from_wire
from bloombee.roles.child import start_child
from bloombee.roles.vocabulary import vocabulary_digest
from bloombee.spec.speculator import Query
from bloombee.spec.tree import Draft

log = logging.getLogger(__name__)
HANGS_S = 30.0
"""Without an answer to a question, once it can be asked."""
LOADS_S = 600.0
MOST_SOURCE = 1 << 8
END_S = 2.0


@dataclass(frozen=True, slots=True)
class Program:
    """What to start: a module that speaks as ``roles/drafter.py``, with its arguments."""

    module: str
    arguments: tuple[str, ...]


def model_program(model: str, device: str = "cpu", threads: int = 1) -> Program:
    """That drafts with ``model``."""
    return Program("bloombee.roles.drafter", (model, device, str(threads)))


def program_for(draft: str, model: str) -> Program | None:
    """What the option ``draft`` starts for ``model``; None: no process drafts."""
    if draft == "auto":
        return model_program("demo:draft") if model == "demo" else None
    if draft in ("off", "ngrams"):
        return None
    kind, *words = draft.split(":")
    return Program(words[0], tuple(words[1:])) if kind == "module" else model_program(draft)


class DrafterClient:
    """Starts the process and speaks with it. All methods belong to one event loop.

    Args:
        tokenizer_json: the target's; None: it has none. num_tokens: that the target knows.
        on_draft: called with (sequence, tokens it had, draft) for each answer.
        on_up: called with True once it can be asked, and with False, once, when it can't be any more or never could.
    """

    def __init__(
        self,
        program: Program,
        *,
        tokenizer_json: str | None,
        num_tokens: int,
        on_draft: Callable[[int, int, Draft], None],
        on_up: Callable[[bool], None],
    ) -> None:
        self._program = program
        self._tokenizer_json, self._num_tokens = tokenizer_json, num_tokens
        self._vocabulary: str | None = None
        self._on_draft, self._on_up = on_draft, on_up
        self._process: subprocess.Popen[bytes] | None = None
        self._is_up = False
        self._budgets: dict[tuple[int, int], int] = {}
        """(sequence, tokens it had) -> most nodes: questions without an answer."""
        self._deadline: asyncio.TimerHandle | None = None
        self._orders: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        """A pipe may be full: only the writing thread ever waits for it."""

    def start(self) -> None:
        """Where no process can be started that is a warning too."""
        self._loop = asyncio.get_running_loop()
        try:
            self._process = start_child(
                self._program.module,
                *self._program.arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        except DeviceError as error:
            return self._give_up(error.message)
        except (KeyError, AttributeError):
            return self._give_up("its package is not imported here")
        self._expect(LOADS_S)
        for work in (self._read, self._write):
            threading.Thread(target=work, args=(self._process,), name="bloombee-drafter", daemon=True).start()
        return None

    def ask(self, query: Query, *, temperature: float, seed: int) -> None:
        """Its answer goes to ``on_draft``."""
        if not self._is_up:
            return
        self._budgets[query.sequence, query.first + len(query.tokens)] = query.budget
        question = {"sequence": query.sequence, "first": query.first, "tokens": query.tokens, "budget": query.budget}
        self._say({"ask": {**question, "least": query.least, "rate": query.rate, "temperature": temperature, "seed": seed}})
        if self._deadline is None:
            self._expect(HANGS_S)

    def closed(self, sequence: int) -> None:
        if self._is_up:
            self._say({"closed": sequence})

    async def close(self) -> None:
        """End it; returns when it is gone."""
        process, self._process = self._process, None
        self._stop_expecting()
        if process is not None:
            self._orders.put(None)
            process.kill()  # it keeps nothing that anybody would miss
            await asyncio.to_thread(process.wait, END_S)

    # -- what comes ------------------------------------------------------------------------

    def _heard(self, line: bytes) -> None:
        if self._process is None:
            return
        try:
            said = json.loads(line)
            if self._is_up:
                self._answered(*_draft_of(said))
            else:
                self._greeted(said)
        except BloomBeeError as error:
            self._give_up(error.message)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            self._give_up(f"it says what is no answer: {type(error).__name__}: {error}")

    def _answered(self, sequence: int, length: int, draft: Draft) -> None:
        budget = self._budgets.pop((sequence, length), None)
        if budget is None:
            raise RemoteProtocolError(
                f"it answers for sequence {sequence} at {length} tokens, which nobody asked for", path="draft"
            )
        draft.check(vocabulary=self._num_tokens, most=budget)
        self._stop_expecting()
        if self._budgets:
            self._expect(HANGS_S)
        self._on_draft(sequence, length, draft)

    def _greeted(self, said: dict[str, Any]) -> None:
        if "error" in said:
            raise from_wire(*said["error"])
        theirs, tokens = said["ready"]["vocabulary"], said["ready"]["tokens"]
        if theirs != self._vocabulary or (theirs is None and tokens != self._num_tokens):
            raise RemoteProtocolError("its tokens are not the model's: another tokenizer", path="ready.vocabulary")
        self._stop_expecting()
        self._is_up = True
        self._on_up(True)

    def _ended(self) -> None:
        if self._process is not None:
            self._give_up("its process has ended")

    def _give_up(self, why: str) -> None:
        """It is of no use any more; said once."""
        process, self._process = self._process, None
        log.warning("no drafts come from %s %s: %s", self._program.module, " ".join(self._program.arguments), why)
        self._stop_expecting()
        self._budgets.clear()
        self._orders.put(None)
        if process is not None:
            process.kill()
            threading.Thread(target=process.wait, name="bloombee-drafter-end", daemon=True).start()
        self._is_up = False
        self._on_up(False)

    def _expect(self, seconds: float) -> None:
        self._deadline = self._loop.call_later(seconds, self._give_up, f"it has said nothing for {seconds:.0f} s")

    def _stop_expecting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # -- threads ---------------------------------------------------------------------------

    def _say(self, order: dict[str, Any]) -> None:
        self._orders.put(json.dumps(order).encode() + b"\n")

    def _write(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError), process.stdin as stream:
            while (line := self._orders.get()) is not None:
                stream.write(line)
                stream.flush()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        if self._tokenizer_json is not None:  # of a large one that takes a while
            self._vocabulary = vocabulary_digest(self._tokenizer_json)
        with process.stdout as stream:
            for line in stream:
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._heard, line)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended)


def _draft_of(said: dict[str, Any]) -> tuple[int, int, Draft]:
    """(sequence, tokens it had, draft). Raises RemoteProtocolError, or whatever comes of fields that are none."""
    numbers = [tuple(said[name]) for name in ("tokens", "parents", "sources")]
    scores = tuple(float(score) for score in said["scores"])
    for values in (*numbers, (said["sequence"], said["length"])):
        if not all(type(value) is int for value in values):
            raise RemoteProtocolError("what must be whole numbers are none", path="draft")
    tokens, parents, sources = numbers
    if not all(0 < source < MOST_SOURCE for source in sources):
        raise RemoteProtocolError("a source is no bit of a drafter", path="draft.sources")
    return said["sequence"], said["length"], Draft(tokens, parents, scores, sources)
