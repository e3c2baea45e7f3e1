"""The device thread: loads a span, runs works in order, never touches a socket or a core.

What it does is handed to it through one queue and what came of it is posted back to the event loop, so that
nothing slow ever runs on the loop and the device never waits for it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

from bloombee.codec.choice import CodecMode
from bloombee.codec.table import Table
from bloombee.errors import BloomBeeError, ConfigError, DeviceError, RemoteProtocolError
from bloombee.models.standin import is_standin
from bloombee.pace import Pace
from bloombee.pipeline.work import Outcome, Piece, Work
from bloombee.plan.profile import Profile
from bloombee.roles.coding import Payload, Receiver, Sender
from bloombee.roles.precise_sleep import sleep_until, wake_exactly
from bloombee.roles.profiles import paced
from bloombee.roles.tracing import StageTrace
from bloombee.types import Dtype, PageGroup, Phase, Span
from bloombee.wire.messages import Load, Tally

log = logging.getLogger(__name__)
PROGRESS_EVERY_S = 0.1


class DeviceThread:
    """One thread, one span.

    Args:
        model: overrides the order's model reference (a checkpoint that lies elsewhere on this machine).
        pace: how long a forward takes at least, of an emulated device.
        memory_bytes: what weights and KV of a stand-in have to fit; a real model finds out by itself.
        load_bytes_per_s: weights load no faster, of an emulated disk.
        post: runs a function on the event loop; callable from any thread.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        device: str = "auto",
        threads: int | None = None,
        model: str | None = None,
        pace: Pace | None = None,
        memory_bytes: int | None = None,
        load_bytes_per_s: float | None = None,
    ) -> None:
        self._loop = loop
        self._device = device
        self._threads = threads
        self._override = model
        self._pace = pace
        self._memory_bytes = memory_bytes
        self._load_bytes_per_s = load_bytes_per_s
        self._stopped = threading.Event()
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._model: Any = None
        self._buffers: Any = None
        """The module engine.buffers, once something is loaded: importing it costs a worker torch."""
        self._clock: Any = None
        """An engine.device_clock.DeviceClock, once something is loaded."""
        self._dtype = Dtype.FLOAT32
        self.sender: Sender | None = None
        self.receiver: Receiver | None = None
        """Of the boundaries after and before this stage, once it is loaded."""
        self._tallies: dict[Phase, list[int]] = {phase: [0, 0, 0, 0, 0, 0] for phase in Phase}
        """As wire.messages.Tally, of forwards since the start."""
        self.trace: StageTrace | None = None
        self._profiling: Iterator[Profile | None] = iter(())
        self._forward_ns = (0, 0)
        """When the last forward began and ended."""
        self._thread = threading.Thread(target=self._main, name="bloombee-device", daemon=True)
        self._thread.start()

    def tally(self, phase: Phase) -> Tally:
        """Forwards of ``phase`` since the start."""
        return Tally(*self._tallies[phase])

    # -- from the event loop ---------------------------------------------------------------

    def load(
        self,
        load: Load,
        *,
        on_progress: Callable[[int, int], None],
        on_done: Callable[[int, int], None],
        on_error: Callable[[BloomBeeError], None],
        on_table: Callable[[Table], None],
    ) -> None:
        """Load the span; ``on_done(weight_bytes, kv_bytes)``. ``on_table`` gets each table fitted to what leaves the stage.
        All four are called on the event loop."""
        self._queue.put(lambda: self._load(load, on_progress, on_done, on_error, on_table))

    def next_stage_changed(self) -> None:
        """What leaves the span goes to another worker from now on."""
        if self.sender is not None:
            self.sender.restart()

    def forgo_codec(self) -> None:
        """The other side does not have it."""
        if self.sender is not None:
            self.sender.choice = dataclasses.replace(self.sender.choice, mode=CodecMode.OFF)

    def recode(self, payload: Payload, *, on_done: Callable[[Payload], None], on_error: Callable[[BloomBeeError], None]) -> None:
        """The same frame coded with the default table."""

        sender = self.sender
        assert sender is not None
        self._queue.put(lambda: self._answer(lambda: sender.recode(payload), on_done, on_error))

    def run(self, work: Work, *, on_done: Callable[[Outcome], None], on_error: Callable[[BloomBeeError], None]) -> None:
        """Run ``work`` after everything asked before."""
        self._queue.put(lambda: self._run(work, on_done, on_error))

    def gather(
        self, pieces: Sequence[Piece], *, on_done: Callable[[Payload], None], on_error: Callable[[BloomBeeError], None]
    ) -> None:
        """Put rows that have left the span together again, as one frame for the next stage, after everything asked before."""
        self._queue.put(lambda: self._answer(lambda: self._gather(pieces), on_done, on_error))

    def profile(self, on_step: Callable[[Profile | None, bool], None]) -> None:
        """One step of measuring the loaded span, at most one pass long: ``on_step(profile or None, whether that was all)`` on
        the event loop. The first only looks for what is known already. Not to be asked while a sequence has rows here."""

        def task() -> None:
            try:
                found = next(self._profiling)
            except StopIteration:
                self._post(on_step, None, True)
            except Exception:  # it serves without
                log.debug("measuring failed", exc_info=True)
                self._post(on_step, None, True)
            else:
                self._post(on_step, found, found is not None)

        self._queue.put(task)

    def stop(self) -> None:
        """End the thread after what it is doing now, a load that an emulated disk makes slow at once; does not wait."""
        self._stopped.set()
        self._queue.put(None)

    # -- on the thread ---------------------------------------------------------------------

    def _main(self) -> None:
        if self._pace is not None:
            wake_exactly()
        while (task := self._queue.get()) is not None:
            task()

    def _post(self, action: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(action, *args)
        except RuntimeError:
            log.debug("the event loop has ended; result dropped")

    def _answer(
        self, make: Callable[[], Payload], on_done: Callable[[Payload], None], on_error: Callable[[BloomBeeError], None]
    ) -> None:
        try:
            self._post(on_done, make())
        except BloomBeeError as error:
            self._post(on_error, error)

    def _load(
        self,
        load: Load,
        on_progress: Callable[[int, int], None],
        on_done: Callable[[int, int], None],
        on_error: Callable[[BloomBeeError], None],
        on_table: Callable[[Table], None],
    ) -> None:
        try:
            self._model = self._build(load, on_progress)
            from bloombee.engine import buffers
            from bloombee.engine.device_clock import HostClock, clock_of

            self._buffers = buffers
            self._clock = HostClock() if self._pace is not None else clock_of(self._model.device)
            if load.start > 0:
                self.receiver = Receiver(self._dtype, self._model.hidden_size)
            if load.stop < load.num_layers:
                ship = partial(self._post, on_table)
                self.sender = Sender(self._dtype, self._model.hidden_size, CodecMode(load.codec), ship)
            self._profiling = self._profiler(load)
            self._post(on_done, self._model.weight_bytes, self._model.kv_bytes)
        except _Stopped:
            log.debug("stopped while loading layers [%d, %d)", load.start, load.stop)
        except BloomBeeError as error:
            self._post(on_error, error)
        except Exception as error:
            log.debug("loading failed", exc_info=True)
            self._post(on_error, DeviceError(f"loading layers [{load.start}, {load.stop}) failed: {_say(error)}"))

    def _build(self, load: Load, on_progress: Callable[[int, int], None]) -> Any:
        progress = self._throttled(on_progress)
        if is_standin(load.model):
            return self._build_standin(load, progress)
        from bloombee.engine.checkpoint import resolve
        from bloombee.engine.model import SpanModel, pick_device, set_threads

        set_threads(self._threads)
        checkpoint = resolve(self._override or load.model, lambda: progress(0, 0))
        if checkpoint.config_digest != load.config_digest:
            place = checkpoint.directory or checkpoint.ref
            raise ConfigError(
                f"{place} holds another model than the head's: its config.json differs; copy the head's files there, or name a"
                " directory that has them with worker --model",
                path=str(place),
            )
        self._dtype = Dtype(load.dtype)
        return SpanModel.load(
            checkpoint,
            Span(load.start, load.stop),
            num_layers=load.num_layers,
            dtype=self._dtype,
            device=pick_device(self._device),
            groups=_groups(load),
            page_size=load.page_size,
            weight_digests=load.weight_digests,
            progress=progress,
            rules=load.rules,
        )

    def _throttled(self, on_progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """``on_progress`` on the event loop, ten times a second at most, as bytes come from an emulated disk; callable from any
        thread. Where that is emulated it raises _Stopped when the device is to end."""
        began, last, told, rate = time.monotonic(), 0.0, False, self._load_bytes_per_s

        def progress(loaded: int, total: int) -> None:
            nonlocal began, last, told
            now = time.monotonic()
            began = began if total else now  # nothing is read yet: what a download takes is not the disk's time
            if rate is not None and self._stopped.wait(max(0.0, began + loaded / rate - now)):
                raise _Stopped
            now = time.monotonic()
            is_end = 0 < total == loaded and not told
            if is_end or now - last >= PROGRESS_EVERY_S:
                last, told = now, told or is_end
                self._post(on_progress, loaded, total)

        return progress

    def _profiler(self, load: Load) -> Iterator[Profile | None]:
        digest = load.config_digest.hex()
        if self._pace is not None:
            return iter((paced(self._pace, digest, load.dtype, self._memory_bytes or 0),))
        from bloombee.engine.profiling.idle import idle_profile

        return idle_profile(self._model, digest, str(self._model.device))

    def _build_standin(self, load: Load, progress: Callable[[int, int], None]) -> Any:
        import torch

        from bloombee.engine.standin import StandIn

        torch.set_num_threads(1)  # it copies some rows; threads would cost more than they save
        self._dtype = Dtype(load.dtype)
        model = StandIn.load(
            load.model,
            Span(load.start, load.stop),
            dtype=self._dtype,
            groups=_groups(load),
            page_size=load.page_size,
            memory_bytes=self._memory_bytes,
            progress=progress,
        )
        self._pace = self._pace or model.default_pace
        wake_exactly()
        return model

    def _run(self, work: Work, on_done: Callable[[Outcome], None], on_error: Callable[[BloomBeeError], None]) -> None:
        began = time.monotonic_ns()
        self._forward_ns = (began, began)
        try:
            outcome = self._forward(work) if work.segments else Outcome(work.number)
            if self.trace is not None:
                self.trace.computed(work.microbatch, began, *self._forward_ns)
            self._post(on_done, outcome)
        except BloomBeeError as error:
            self._post(on_error, error)
        except Exception as error:
            log.debug("a forward failed", exc_info=True)
            self._post(on_error, DeviceError(f"a forward of {work.num_rows} rows failed: {_say(error)}", rows=work.num_rows))

    def _forward(self, work: Work) -> Outcome:
        hidden = self._decode(work) if work.hidden is not None else None
        start = time.monotonic_ns()
        mark = self._clock.begin()
        result = self._model.run(work, hidden)
        if self._pace is not None:
            sleep_until(start + round(1e9 * self._pace.seconds(work.computes, work.num_rows, len(self._model.span))))
        self._forward_ns = (start, time.monotonic_ns())
        self._clock.end(mark, partial(self._computed, work, start))
        if isinstance(result, list):
            outcome = Outcome(work.number, picks=tuple(result))
        else:
            payload = self._encode(result)  # takes the rows from the device: it is done then
            outcome = Outcome(work.number, hidden=payload, num_bytes=payload[0].raw_bytes)
        self._clock.settle()
        return outcome

    def _computed(self, work: Work, start: int, spent: int) -> None:
        """The device has been at ``work``, which it was handed at ``start``, for ``spent`` nanoseconds."""
        if self._forward_ns[0] == start:  # not one of before, known only now
            self._forward_ns = (start, start + spent)
        tally = self._tallies[work.computes]
        tally[0] += 1
        tally[1] += work.num_rows
        tally[2] += spent
        tally[3] += work.num_rows * work.num_rows
        tally[4] += work.num_rows * spent
        tally[5] += work.num_attended

    def _decode(self, work: Work) -> Any:
        """[rows, d] of the segments' rows from the frame that came in.

        Raises:
            CorruptPayload: the checksum does not match.
            RemoteProtocolError: another dtype or width than this model's.
        """
        payload = cast(Payload, work.hidden)
        header = payload[0]
        if self.receiver is None:
            raise RemoteProtocolError("activations came to the stage that holds the embedding", path="tensors[0]")
        buffer = self.receiver.decode(payload)
        rows = self._buffers.from_buffer(buffer, header.shape[0], header.shape[1], self._dtype)
        if work.num_rows != header.shape[0]:
            import torch

            rows = torch.cat([rows[start:stop] for start, stop in work.hidden_rows])
        return rows

    def _gather(self, pieces: Sequence[Piece]) -> Payload:
        import torch

        assert self.sender is not None
        rows: list[Any] = []
        latest: object = None
        values: Any = None
        for piece in pieces:
            if piece.payload is not latest:
                latest, payload = piece.payload, cast(Payload, piece.payload)
                values = self._buffers.from_buffer(self.sender.decode(payload), *payload[0].shape, self._dtype)
            rows.append(values[piece.start : piece.stop])
        return self._encode(torch.cat(rows))

    def _encode(self, hidden: Any) -> Payload:
        assert self.sender is not None
        return self.sender.encode(self._buffers.to_buffer(hidden).data, hidden.shape[0])


class _Stopped(Exception):
    """The thread was asked to end while it loaded."""


def _groups(load: Load) -> list[PageGroup]:
    return [PageGroup(group.window, group.num_pages) for group in load.groups]


def _say(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
