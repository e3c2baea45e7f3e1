"""A span on the device: its forwards, and what they say over its boundaries. Never touches a socket or a core.

Everything slow is put in the device's queue (``work_thread.py``), and what came of it comes back to the event loop. A device that
works on after it was asked is asked for the next work at once: another thread waits for what comes of each, encodes and tells it.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

from bloombee.codec.choice import CodecMode
from bloombee.codec.table import Table
from bloombee.errors import BloomBeeError, DeviceError
from bloombee.pace import Pace
from bloombee.pipeline.profiles import paced
from bloombee.pipeline.work import Outcome, Piece, Work
from bloombee.plan.profile import Hardware, Profile
from bloombee.roles.coding import RAW, Payload, Receiver, Sender
from bloombee.roles.loading import LoadedSpan, Loader, say
from bloombee.roles.paging import Pager
from bloombee.roles.precise_sleep import sleep_until, wake_exactly
from bloombee.roles.tracing import StageTrace
from bloombee.roles.wave import Run, Wave
from bloombee.roles.work_thread import WorkThread
from bloombee.types import Dtype, Phase
from bloombee.wire.messages import Load, Tally

log = logging.getLogger(__name__)
BRIEF_NS = 3_000_000
"""For so long the event loop may stand still for a forward."""


class SpanExecutor:
    """One span, from the order to load it on.

    Args:
        queue: the device's, in which all spans of a worker take turns.
        loader: what loads it.
    """

    def __init__(self, queue: WorkThread, loader: Loader) -> None:
        self._queue = queue
        self.pager: Pager | None = None
        """Once it is loaded; None: nothing is kept beyond the device."""
        self._loader = loader
        self._stopped = threading.Event()
        self._model: Any = None
        self._buffers: Any = None
        """The module engine.buffers, once something is loaded: importing it costs a worker torch."""
        self._clock: Any = None
        """An engine.device_clock.DeviceClock, once something is loaded."""
        self._device_codec: Any = None
        """An engine.device_codec.DeviceCodec where activations are on a GPU and may be coded."""
        self._pace: Pace | None = None
        self._is_processor = False
        """Whether this machine's processor is the device, not another that the thread waits for."""
        self._dtype = Dtype.FLOAT32
        self.sender: Sender | None = None
        self.receiver: Receiver | None = None
        """Of the boundaries after and before this stage, once it is loaded."""
        self._tallies: dict[Phase, list[int]] = {phase: [0, 0, 0, 0, 0, 0] for phase in Phase}
        """As wire.messages.Tally, of forwards since the start."""
        self.trace: StageTrace | None = None
        self._profiling: Iterator[Profile | None] = iter(())
        self._results: WorkThread | None = None
        """Waits for what the device works on, and alone uses the sender then; None: the device is done when it has been asked."""
        self._wave: Wave | None = None
        """Has the forwards run where layers stream, and nobody knows how long one takes."""
        self._last_decode = (0, 0, 0)
        """Of the last work of decode that this processor did itself: rows, nanoseconds, and when it was done."""

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
        """Load the span beside what the device does; ``on_done(weight_bytes, kv_bytes)``. ``on_table`` gets each table fitted to
        what leaves the stage. All four are called on the event loop."""
        post = self._queue.post

        def loaded(span: LoadedSpan) -> None:
            try:
                self._take(span, load, partial(post, on_table))
            except BaseException:
                span.model.close()
                raise
            post(on_done, span.model.weight_bytes, span.model.kv_bytes)

        self._loader.load(
            load,
            stopped=self._stopped,
            on_progress=partial(post, on_progress),
            on_done=loaded,
            on_error=partial(post, on_error),
        )

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
        assert self.sender is not None
        self._ask_after_runs(partial(self.sender.recode, payload), on_done, on_error)

    def unpack(self, body: bytes, *, on_done: Callable[[bytes], None], on_error: Callable[[BloomBeeError], None]) -> None:
        """Hold the table that came for the boundary before this stage; ``on_done`` gets its key."""
        assert self.receiver is not None
        self._queue.ask(partial(self.receiver.take, body), on_done, on_error)

    def run(self, work: Work, *, on_done: Callable[[Outcome], None], on_error: Callable[[BloomBeeError], None]) -> None:
        """Run ``work`` after everything asked before."""
        if self._wave is not None:
            self._wave.ask(work, on_done, on_error)
        else:
            put = self._queue.put_brief if self._is_brief(work) else self._queue.put
            put(lambda: self._run(work, on_done, on_error))

    def _is_brief(self, work: Work) -> bool:
        """Whether a forward takes no longer, going by the last, than the event loop may stand still, on a device that idles more
        than it works: one with much to do has it beside what the loop does for the works to come."""
        rows, spent_ns, ended_ns = self._last_decode
        idle_ns = time.monotonic_ns() - ended_ns
        return work.computes is Phase.DECODE and work.num_rows <= rows and spent_ns < min(BRIEF_NS, idle_ns)

    def gather(
        self, pieces: Sequence[Piece], *, on_done: Callable[[Payload], None], on_error: Callable[[BloomBeeError], None]
    ) -> None:
        """Put rows that have left the span together again, as one frame for the next stage, after everything asked before."""
        self._ask_after_runs(lambda: self._gather(pieces), on_done, on_error)

    def profile(self, on_step: Callable[[Profile | None, bool], None]) -> None:
        """One step of measuring the loaded span, at most one pass long: ``on_step(profile or None, whether that was all)`` on
        the event loop. The first only looks for what is known already. Not to be asked while a sequence has rows here."""

        def task() -> None:
            try:
                found = next(self._profiling)
            except StopIteration:
                self._queue.post(on_step, None, True)
            except Exception:  # it serves without
                log.debug("measuring failed", exc_info=True)
                self._queue.post(on_step, None, True)
            else:
                self._queue.post(on_step, found, found is not None)

        self._queue.put(task)

    def stop(self) -> None:
        """Load no further, or let the span go after what was asked before; does not wait."""
        self._stopped.set()
        self._queue.put(self._let_go)

    def _ask_after_runs(
        self, make: Callable[[], Payload], on_done: Callable[[Payload], None], on_error: Callable[[BloomBeeError], None]
    ) -> None:
        """``make`` uses what came of the works that were asked for before."""
        results = self._results
        if results is None:
            self._queue.ask(make, on_done, on_error)
        else:
            self._queue.put(lambda: results.ask(make, on_done, on_error))

    # -- while it is loaded, and let go ----------------------------------------------------

    def _take(self, span: LoadedSpan, load: Load, ship: Callable[[Table], None]) -> None:
        import torch

        from bloombee.engine import buffers
        from bloombee.engine.device_clock import HostClock, clock_of
        from bloombee.engine.device_codec import codec_of

        self._buffers, self._dtype, self._pace = buffers, span.dtype, span.pace
        self._clock = HostClock() if span.pace is not None else clock_of(span.model.device)
        self._is_processor = span.pace is None and span.model.device.type == "cpu"
        if span.pace is None and span.model.stream is not None:
            self._wave = Wave(self._queue, span.model, self._decode, self._computed, self._finish)
        has_boundary = load.start > 0 or load.stop < load.num_layers
        if has_boundary and span.pace is None and CodecMode(load.codec) is not CodecMode.OFF:
            self._device_codec = codec_of(span.model.device, span.dtype, span.model.hidden_size)
        if load.start > 0:
            self.receiver = Receiver(span.dtype, span.model.hidden_size)
        if load.stop < load.num_layers:
            self.sender = Sender(span.dtype, span.model.hidden_size, CodecMode(load.codec), ship)
        self._profiling = _profiler(span, load, self._loader.memory_bytes or 0)
        # OpenMP knows a number of threads for each thread that asks it: that of loading is to be the device's too.
        for hand in (self._queue.put, self._queue.post):
            hand(partial(torch.set_num_threads, torch.get_num_threads()))
        if span.pace is not None:
            self._queue.put(wake_exactly)
        elif span.model.device.type != "cpu" and self._wave is None:  # a wave waits for all of it, on the device's thread
            self._results = _results_thread(self._queue, span.model)
        self._model, self.pager = span.model, self._loader.pager(self._queue, span.model, load)
        if self._stopped.is_set():
            self._queue.put(self._let_go)

    def _let_go(self) -> None:
        model, self._model, self._profiling = self._model, None, iter(())
        if model is not None:
            model.close()
        for part in (self._results, self.pager):
            if part is not None:
                part.stop()

    # -- on the device's thread ------------------------------------------------------------

    def _run(self, work: Work, on_done: Callable[[Outcome], None], on_error: Callable[[BloomBeeError], None]) -> None:
        now = time.monotonic_ns()
        run = Run(work, now, now, now)
        try:
            if work.segments:
                self._launch(run)
        except Exception as error:
            run.error = error  # told in its turn
        if self._results is None:
            self._finish(run, on_done, on_error)
        else:
            self._results.put(lambda: self._finish(run, on_done, on_error))

    def _launch(self, run: Run) -> None:
        work = run.work
        hidden = self._decode(work) if work.hidden is not None else None
        run.start_ns = time.monotonic_ns()
        mark = self._clock.begin()
        if self._results is None:
            rows = self._model.run(work, hidden)
            run.result = lambda: rows
        else:
            stay = self._device_codec is not None and self._device_codec.codes(work.num_rows)
            run.result = self._model.launch(work, hidden, stay=stay).result
        if self._pace is not None:
            sleep_until(run.start_ns + round(1e9 * self._pace.seconds(work.computes, work.num_rows, len(self._model.span))))
        run.stop_ns = time.monotonic_ns()
        self._clock.end(mark, partial(self._computed, run))

    # -- on the thread of results, or the device's -----------------------------------------

    def _finish(self, run: Run, on_done: Callable[[Outcome], None], on_error: Callable[[BloomBeeError], None]) -> None:
        work = run.work
        try:
            if run.error is not None:
                raise run.error
            outcome = self._outcome(work, run.result()) if run.result is not None else Outcome(work.number)
            if self._is_processor and work.computes is Phase.DECODE:
                done = time.monotonic_ns()
                self._last_decode = (work.num_rows, done - run.began_ns, done)
            if self.trace is not None:
                self.trace.computed(work.microbatch, run.began_ns, run.start_ns, run.stop_ns)
            self._queue.post(on_done, outcome)
        except BloomBeeError as error:
            self._queue.post(on_error, error)
        except Exception as error:
            log.debug("a forward failed", exc_info=True)
            self._queue.post(on_error, DeviceError(f"a forward of {work.num_rows} rows failed: {say(error)}", rows=work.num_rows))

    def _outcome(self, work: Work, result: Any) -> Outcome:
        if isinstance(result, list):
            outcome = Outcome(work.number, picks=tuple(result))
        else:
            payload = self._encode(result)
            outcome = Outcome(work.number, hidden=payload, num_bytes=payload[0].encoded_bytes)
        self._clock.settle()
        return outcome

    def _computed(self, run: Run, spent: int) -> None:
        """The device has been at ``run`` for ``spent`` nanoseconds."""
        run.stop_ns = run.start_ns + spent
        work = run.work
        tally = self._tallies[work.computes]
        tally[0] += 1
        tally[1] += work.num_rows
        tally[2] += spent
        tally[3] += work.num_rows * work.num_rows
        tally[4] += work.num_rows * spent
        tally[5] += work.num_attended

    # -- on the device's thread ------------------------------------------------------------

    def _decode(self, work: Work) -> Any:
        """[rows, d] of the segments' rows from the frame that came in.

        Raises:
            CorruptPayload: it does not decode.
        """
        header, buffer = payload = cast(Payload, work.hidden)
        assert self.receiver is not None  # a stage that holds the embedding takes none
        rows = None
        if self._device_codec is not None and header.codec != RAW:
            rows = self._device_codec.decode(buffer, header.shape[0], self.receiver.tables)
        if rows is None:
            rows = self._buffers.from_buffer(self.receiver.decode(payload), *header.shape, self._dtype)
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
        if self._device_codec is not None and hidden.device.type != "cpu":
            return self.sender.encode_apart(self._device_codec.apart(hidden), hidden.shape[0])
        return self.sender.encode(self._buffers.to_buffer(hidden).data, hidden.shape[0])


def _profiler(span: LoadedSpan, load: Load, memory_bytes: int) -> Iterator[Profile | None]:
    """Of a span; none where layers stream, for it would be the disk that is measured."""
    digest = load.config_digest.hex()
    if span.pace is not None:
        return iter((paced(span.pace, digest, load.dtype, Hardware(memory_bytes)),))
    if span.model.stream is not None:
        return iter(())
    from bloombee.engine.profiling.idle import idle_profile

    return idle_profile(span.model, digest, str(span.model.device))


def _results_thread(queue: WorkThread, model: Any) -> WorkThread:
    """For what comes of ``model`` on a GPU; what it asks of the device waits for no forward. Has ``queue`` warm it up."""
    import torch

    results = queue.beside("bloombee-results")
    results.put(lambda: torch.cuda.set_stream(torch.cuda.Stream(model.device)))
    for part in model.warm_up():
        queue.put(part)
    return results
