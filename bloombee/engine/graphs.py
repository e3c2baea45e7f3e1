"""Steps of a few rows a sequence, recorded once and repeated: one launch a step where torch makes hundreds from Python.

What a recording reads and writes lies in fixed memory: the step's tables (``paged.py``), the rows that arrive, and those that
come out. Rows are padded to one of a few numbers, and there is one recording for each; padding stores nothing, and its results
are thrown away. A forward that looks at values on the host cannot be recorded, nor one whose shapes depend on values: that is
found out before it is tried, and such a span runs as before.

On the CPU the same goes through :class:`Repeater`, which has the forward run each time: so what is here is tested without a GPU.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bloombee.engine.buffers import pinned
from bloombee.engine.cache import SlotCache
from bloombee.engine.paged import StepTables, is_narrow
from bloombee.pipeline.work import Segment

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Numbers of rows that steps are padded to."""

SPLITS_EACH, MORE_SPLITS = 2, 16
"""Of the keys of a step's rows, as many splits as its tables have room for at first, for each row and beyond."""

Forward = Callable[[StepTables, torch.Tensor | None], torch.Tensor]


class CannotRecord(Exception):
    """Why a forward cannot be recorded."""


class Recorder(Protocol):
    """Makes a recording of what ``run`` asks of the device."""

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """
        Args:
            run: has run before, just now.

        Returns:
            Asks all that again; gives what comes out, in memory that the next call writes to.

        Raises:
            CannotRecord: it failed. RuntimeError: so says torch.
        """
        ...


class Repeater:
    """For a device that is asked as it goes: ``run`` itself."""

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        return run


class CudaRecorder:
    """CUDA graphs. All of one recorder share their memory: one at a time is replayed, and what comes out is copied at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            run()  # once on this stream too: libraries set up what they keep a stream
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                out = run()
        except Exception as error:
            with contextlib.suppress(Exception):  # a capture that failed half-way may have left the allocator in it
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
            raise CannotRecord(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from error

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay


class _LooksAtValues(TorchDispatchMode):  # type: ignore[misc]
    """Meanwhile what could not be recorded raises CannotRecord."""

    TAGS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.TAGS.intersection(func.tags) and not _only_plain_indices(func, args):
            raise CannotRecord(f"{func} depends on values")
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.device.type != self._device.type and _has_tensor_on(self._device, args):
            raise CannotRecord(f"{func} copies off the device")
        return out


def _only_plain_indices(func: Any, args: Any) -> bool:
    """An index of numbers rather than of bools: the operator has its tag for the latter."""
    if "index" not in str(func) or len(args) < 2 or not isinstance(args[1], (list, tuple)):
        return False
    return not any(isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1])


def _has_tensor_on(device: torch.device, args: Any) -> bool:
    return any(isinstance(one, torch.Tensor) and one.device.type == device.type for one in args)


@dataclass
class _Size:
    """Steps of one number of rows: the tables that they are in, and what was recorded, by what the forward is made of."""

    tables: StepTables
    version: int = -1
    recordings: dict[Hashable, Callable[[], torch.Tensor]] = field(default_factory=dict)


class GraphRunner:
    """Of one span, on one thread.

    Args:
        cache: of the span.
        hidden_size: of the rows that arrive; None where token ids do.
        forward: makes a step of what lies in fixed memory: its tables, and [rows, d] that arrived; [rows, ...] comes out.
        most_rows: of a step.

    Attributes:
        sizes: numbers of rows that steps are padded to.
        failure: why nothing is recorded; empty as long as it may be.
    """

    def __init__(
        self, cache: SlotCache, hidden_size: int | None, forward: Forward, recorder: Recorder, *, most_rows: int = SIZES[-1]
    ) -> None:
        self.sizes = tuple(size for size in SIZES if size <= most_rows) or SIZES[:1]
        self.failure = ""
        self._cache = cache
        self._hidden = (
            torch.zeros(self.sizes[-1], hidden_size, dtype=cache.dtype, device=cache.device) if hidden_size is not None else None
        )
        self._forward = forward
        self._recorder = recorder
        self._by_size: dict[int, _Size] = {}
        self._has_run = False

    def can_run(self, segments: Sequence[Segment]) -> bool:
        """Whether a step of ``segments`` is one of those that are recorded."""
        return not self.failure and is_narrow(segments) and sum(one.num_rows for one in segments) <= self.sizes[-1]

    def run(self, segments: Sequence[Segment], hidden: torch.Tensor | None, key: Hashable = None) -> torch.Tensor | None:
        """One step, whose recording is made if there is none yet.

        Args:
            hidden: [rows, d] of what arrived, on any device.
            key: of what the forward is made of; recordings of one are of no use for another.

        Returns:
            [rows, ...], in memory that the next step writes to. None: it cannot be recorded, ``failure`` says why, and nothing
            has come of it that the same step run otherwise does not overwrite.

        Raises:
            LocalProtocolError: pages that do not hold the rows.
        """
        rows = sum(one.num_rows for one in segments)
        size = next(size for size in self.sizes if size >= rows)
        self._fill(size, segments)
        if hidden is not None and self._hidden is not None:
            self._hidden[:rows].copy_(pinned(hidden, self._cache.device), non_blocking=True)
        replay = self._recording(size, key)
        return None if replay is None else replay()[:rows]

    def prepare(self, size: int) -> None:
        """Make the recording of steps of ``size`` rows, if it can be."""
        if not self.failure:
            self._fill(size, ())
            self._recording(size, None)

    def _fill(self, size: int, segments: Sequence[Segment]) -> None:
        """Put a step, padded, into the tables of its size."""
        if size not in self._by_size:
            self._by_size[size] = _Size(StepTables(self._cache, max_rows=size, max_items=SPLITS_EACH * size + MORE_SPLITS))
        self._by_size[size].tables.fill(segments, num_rows=size, captured=True)

    def _recording(self, size: int, key: Hashable) -> Callable[[], torch.Tensor] | None:
        own = self._by_size[size]
        if own.version != own.tables.version:
            own.recordings.clear()  # they read where the tables were
            own.version = own.tables.version
        if key not in own.recordings:
            try:
                own.recordings[key] = self._record(own.tables, None if self._hidden is None else self._hidden[:size])
            except (CannotRecord, RuntimeError) as error:
                self._give_up(error)
        return own.recordings.get(key)

    def _record(self, tables: StepTables, hidden: torch.Tensor | None) -> Callable[[], torch.Tensor]:
        if not self._has_run:
            self._forward(tables, hidden)  # a first time may look at more, to know what it can do
            self._has_run = True
        # In inference mode operators that are made of others are seen as one, and what they look at is not.
        with torch.inference_mode(False), torch.no_grad(), _LooksAtValues(self._cache.device):
            self._forward(tables, hidden)
        return self._recorder.record(lambda: self._forward(tables, hidden))

    def _give_up(self, error: Exception) -> None:
        self.failure = str(error) or type(error).__name__
        self._by_size.clear()
        log.warning("steps are launched kernel by kernel, as they cannot be recorded: %s", self.failure)
