"""Forwards that a device is asked for, and how those of a span whose layers stream go through it together."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bloombee.errors import BloomBeeError, WeightsUnavailable
from bloombee.pipeline.work import Outcome, Work
from bloombee.roles.work_thread import WorkThread

log = logging.getLogger(__name__)
PATIENCE = 0.25
"""Of the time that the last wave took: so long the next one waits to be as large. What comes meanwhile saves reading all that
streams once more; waves that have fallen apart come together again."""


@dataclass(slots=True)
class Run:
    """A forward that the device was asked for."""

    work: Work
    began_ns: int
    start_ns: int = 0
    """When the device was asked; ``stop_ns``: when it was done, as far as that is known."""
    stop_ns: int = 0
    result: Callable[[], Any] | None = None
    """Waits for the rows or picks; None: there was nothing to run."""
    error: Exception | None = None


OnDone = Callable[[Outcome], None]
OnError = Callable[[BloomBeeError], None]


class Wave:
    """Between the event loop, which asks, and the device's thread, which runs all that waits side by side.

    Args:
        queue: of the device's thread.
        model: an engine.model.SpanModel some of whose layers stream.
        decode: of the activations that came with a work. computed: is told of each run how many nanoseconds it took.
        finish: tells what came of a run.
    """

    def __init__(
        self,
        queue: WorkThread,
        model: Any,
        decode: Callable[[Work], Any],
        computed: Callable[[Run, int], None],
        finish: Callable[[Run, OnDone, OnError], None],
    ) -> None:
        self._queue, self._model = queue, model
        self._decode, self._computed, self._finish = decode, computed, finish
        self._waiting: list[tuple[Work, OnDone, OnError]] = []
        self._size = 0
        self._wave_s = 0.0
        self._changed = threading.Condition()

    def ask(self, work: Work, on_done: OnDone, on_error: OnError) -> None:
        with self._changed:
            self._waiting.append((work, on_done, on_error))
            self._changed.notify()
        self._queue.put(self._run)

    def _take(self) -> list[tuple[Work, OnDone, OnError]]:
        """All that wait, in order; as many as the last time if they come soon. None at all: they have been taken."""
        with self._changed:
            if self._waiting:
                self._changed.wait_for(lambda: len(self._waiting) >= self._size, PATIENCE * self._wave_s)
            taken, self._waiting = self._waiting, []
            return taken

    def _run(self) -> None:
        taken = self._take()
        if not taken:
            return
        began = time.monotonic_ns()
        runs = [Run(work, began, began, began) for work, _, _ in taken]
        self._launch([run for run in runs if run.work.segments])
        for run, (_, on_done, on_error) in zip(runs, taken, strict=True):
            if isinstance(run.error, WeightsUnavailable):
                log.warning("%s; what needed them ends", run.error.message)
                self._queue.post(on_done, Outcome(run.work.number, failed=True))
            else:
                self._finish(run, on_done, on_error)
        self._size, self._wave_s = len(taken), (time.monotonic_ns() - began) / 1e9

    def _launch(self, runs: Sequence[Run]) -> None:
        """Each has an equal share of the time that all take."""
        ready: list[tuple[Run, Any]] = []
        for run in runs:
            try:
                ready.append((run, self._decode(run.work) if run.work.hidden is not None else None))
            except Exception as error:
                run.error = error  # told in its turn
        began = time.monotonic_ns()
        results = self._model.run_together([(run.work, hidden) for run, hidden in ready])
        share = (time.monotonic_ns() - began) // max(1, len(ready))
        for number, ((run, _), result) in enumerate(zip(ready, results, strict=True)):
            run.start_ns = began + number * share
            self._computed(run, share)
            if isinstance(result, Exception):
                run.error = result
            else:
                run.result = partial(_given, result)


def _given(result: Any) -> Any:
    return result
