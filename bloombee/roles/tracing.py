"""Stamps of microbatches on their way through one process, handed to its tracer as chains without holes.

A stage, per microbatch::

    taken ........ the transport takes the frame off its socket
      receive
    took ......... the core has it
      queue        behind other works, until the device begins
    began
      decode       payload -> tensor, checksum
      compute
      encode       tensor -> payload, checksum
    encoded
      wait         for the event loop, for credit of the next stage
    sending
      send         header written, frame handed to ZeroMQ
    sent

What lies between ``sent`` here and ``taken`` in the next process is the wire's, encryption and the kernels' queues
included; ``bloombee.timeline`` computes it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from bloombee.errors import ConfigError
from bloombee.trace import Tracer
from bloombee.transport.endpoint import Endpoint
from bloombee.types import HEAD, Phase, WorkerId
from bloombee.wire.handshake import ClockEstimate
from bloombee.wire.messages import Forward, Load, Wire

log = logging.getLogger(__name__)

STAGE_CHAIN = ("receive", "queue", "decode", "compute", "encode", "wait", "send")
MAX_FLIGHTS = 4096
"""Microbatches whose frame never leaves (their epoch ended) must not pile up."""

Clock = Callable[[], int]


def open_tracer(directory: str | Path, name: str, process: dict[str, Any]) -> Tracer:
    """A tracer whose file is ``name.jsonl`` in ``directory``; ``process`` says how tables call it, if otherwise.

    Raises:
        ConfigError: the file cannot be written.
    """
    path = Path(directory) / (re.sub(r"[^\w.-]", "_", name) + ".jsonl")
    try:
        return Tracer(path, {"process": name, **process})
    except OSError as error:
        raise ConfigError(f"trace: cannot write {path}: {error.strerror}", field="trace", path=str(path)) from error


class StageTrace:
    """Of one stage. A microbatch's stamps are written by the loop, then the device thread, then the loop."""

    def __init__(self, tracer: Tracer, now: Clock = time.monotonic_ns) -> None:
        self.tracer = tracer
        self.now = now
        self._flights: dict[int, list[int]] = {}

    def took(self, microbatch: int, taken_ns: int) -> None:
        """A Forward is about to be given to the core; what is known already (a frame resent) stays."""
        if microbatch not in self._flights:
            if len(self._flights) >= MAX_FLIGHTS:
                self._flights.pop(next(iter(self._flights)))
            self._flights[microbatch] = [taken_ns, self.now()]

    def computed(self, microbatch: int, began: int, decoded: int, done: int) -> None:
        """On the device thread: the outcome is encoded as of now."""
        stamps = self._flights.get(microbatch)
        if stamps is not None and len(stamps) == 2:
            stamps += (began, decoded, done, self.now())

    def sent(self, microbatch: int, sending: int) -> None:
        """The outgoing frame has just been handed to the transport; resending it adds nothing."""
        stamps = self._flights.pop(microbatch, None)
        if stamps is not None and len(stamps) == 6:
            stamps += (sending, self.now())
            self.tracer.chain(STAGE_CHAIN, microbatch, stamps)


class StageTraces:
    """Of one worker.

    Args:
        directory: where they go.
        name: the worker's.
    """

    def __init__(self, endpoint: Endpoint, directory: str, name: str, worker: WorkerId) -> None:
        self._endpoint = endpoint
        self._directory = directory
        self._name = name
        self._worker = worker
        self._head_clock: ClockEstimate | None = None
        self._traces: list[StageTrace] = []

    def open(self, wire: Wire, load: Load) -> StageTrace | None:
        """Of a stage, as the head asked; a worker that cannot write it serves without."""
        name = f"{self._name}-{self._worker}" if wire.epoch == 1 else f"{self._name}-{self._worker}-{wire.epoch}"
        process = {
            "process": self._name,
            "worker": self._worker,
            "stage": wire.stage,
            "num_stages": wire.num_stages,
            "layers": [load.start, load.stop],
        }
        try:
            trace = StageTrace(open_tracer(self._directory, name, process))
        except ConfigError as error:
            log.warning("%s", error.message)
            return None
        self._endpoint.stamps = True
        self._traces.append(trace)
        if self._head_clock is not None:
            trace.tracer.clock(HEAD, self._head_clock.offset_ns, self._head_clock.error_ns)
        return trace

    def timed(self, clock: ClockEstimate) -> None:
        """How the head's clock stands. The best estimate is kept: loading spoils the first."""
        if self._head_clock is None or clock.round_trip_ns < self._head_clock.round_trip_ns:
            self._head_clock = clock
            for trace in self._traces:
                trace.tracer.clock(HEAD, clock.offset_ns, clock.error_ns)


class HeadTrace:
    """Of the scheduler and the head, in one process."""

    def __init__(self, tracer: Tracer, now: Clock = time.monotonic_ns) -> None:
        self.tracer = tracer
        self.now = now
        self._sent: set[int] = set()

    @classmethod
    def open(cls, directory: str, num_stages: int) -> Self:
        """Raises ConfigError if it cannot be written to ``directory``."""
        return cls(open_tracer(directory, "head", {"worker": HEAD, "stage": None, "num_stages": num_stages}))

    def sent(self, forward: Forward, sending: int) -> None:
        """A microbatch has just set out; resending it adds nothing."""
        if forward.microbatch not in self._sent:
            self._sent.add(forward.microbatch)
            is_prompt = any(item.opening is not None or item.num_rows > 1 for item in forward.items)  # some travel as decode
            facts = {
                "phase": int(Phase.PREFILL if is_prompt else forward.lane),
                "sequences": [item.sequence for item in forward.items],
            }
            self.tracer.chain(("send",), forward.microbatch, (sending, self.now()), facts)

    def came_home(self, microbatch: int, taken: int, took: int) -> None:
        """Its verdict was taken off the socket, then given to the core, and its tokens have been delivered as of now."""
        if microbatch in self._sent:
            self._sent.discard(microbatch)
            self.tracer.chain(("receive", "deliver"), microbatch, (taken, took, self.now()))
