"""Loading of spans, each on a thread of its own and one after the other: what is served meanwhile goes on."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bloombee.config import Disk
from bloombee.engine.spans import ModelKey, SpanStore, trim
from bloombee.errors import BloomBeeError, ConfigError, DeviceError
from bloombee.models.standin import is_standin
from bloombee.pace import Pace
from bloombee.plan.placement import streamed_of
from bloombee.plan.profile import Profile
from bloombee.roles.paging import Pager
from bloombee.roles.work_thread import WorkThread
from bloombee.types import Dtype, PageGroup, Span
from bloombee.wire.messages import Load

log = logging.getLogger(__name__)
PROGRESS_EVERY_S = 0.1
SETTLING = 0.2
"""Of the time until a span is settled, the share in which it is held up."""

TellBytes = Callable[[int, int], None]
"""Called with (loaded bytes, total bytes); from any thread. It may take its time, or raise to give up."""


class Stopped(Exception):
    """Nobody wants what is being loaded any more."""


@dataclass(frozen=True, slots=True)
class LoadedSpan:
    """A span that can be run.

    Args:
        model: an engine.model.SpanModel, or what stands in for one.
        pace: how long a forward takes at least, of an emulated device.
    """

    model: Any
    dtype: Dtype
    pace: Pace | None


class Loader:
    """Of one worker: where its models are, and what of them is on its device.

    Args:
        model: overrides an order's model reference (a checkpoint that lies elsewhere on this machine).
        pace: of an emulated device.
        memory_bytes: of the device, for weights and KV; None: as much as there is.
        load_bytes_per_s: weights load no faster, of an emulated disk.
        host_bytes: of the machine's memory, of each span for kept rows that the device has no room for.
        disk: where layers that stream are kept, and rows; None: only the former, in the cache directory.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        threads: int | None = None,
        model: str | None = None,
        pace: Pace | None = None,
        memory_bytes: int | None = None,
        load_bytes_per_s: float | None = None,
        host_bytes: int = 0,
        disk: Disk | None = None,
    ) -> None:
        self.memory_bytes, self.host_bytes = memory_bytes, host_bytes
        self.store = SpanStore(memory_bytes)
        self.device = device
        self.threads = threads
        self.pace = pace
        self.load_bytes_per_s = load_bytes_per_s
        self.turn = threading.Lock()
        """Held by whoever loads or measures: one at a time."""
        self._override = model
        self._disk, self._keeps_rows = disk or Disk(), disk is not None
        self._files: Any = None
        """An engine.layer_files.LayerFiles, once a layer streams."""
        self._held: dict[ModelKey, list[int]] = {}

    def hold(self) -> None:
        """Layers that are on the device stay there, whoever lets go of them, until the next span is loaded."""
        held = self.store.hold()
        self._let_go()
        self._held = held

    def _let_go(self, but: Span | None = None) -> None:
        """Of what is held, but for the layers of a span that is to be loaded: it takes them."""
        held, self._held = self._held, {}
        gone: list[Any] = []
        for model, numbers in held.items():
            self._held[model] = [number for number in numbers if but is not None and number in but]
            gone += self.store.give(model, [number for number in numbers if number not in self._held[model]])
        if gone := [weights for weights in gone if weights is not None]:
            from bloombee.engine.packed import empty

            for weights in gone:
                empty(weights)
            trim()

    def load(
        self,
        load: Load,
        *,
        stopped: threading.Event,
        on_progress: TellBytes,
        on_done: Callable[[LoadedSpan], None],
        on_error: Callable[[BloomBeeError], None],
    ) -> None:
        """Load a span. Each of the three is called on the thread that loads; none any more once ``stopped`` is set.

        Args:
            on_progress: ten times a second at most.
        """

        def task() -> None:
            with self.turn:
                span = self._load(load, self._paced(on_progress, stopped), on_done, on_error)
            if span is not None:
                _settle(span, stopped)  # whoever waits for the span, or for another, need not wait for this

        threading.Thread(target=task, name="bloombee-load", daemon=True).start()

    def with_disk(self, profile: Profile) -> Profile:
        """With the speed of the disk that layers stream from, as it is now; as it was where that cannot be had. Imports torch."""
        from bloombee.engine.profiling.hardware import directory_speed

        speed = directory_speed(self._disk.layers)
        hardware = replace(profile.hardware, disk_bytes_per_s=speed or profile.hardware.disk_bytes_per_s)
        return replace(profile, hardware=hardware)

    def checkpoint(self, model: str, config_digest: bytes, on_bytes: Callable[[], None]) -> Any:
        """The engine.checkpoint.Checkpoint that an order means, where this worker has it. Imports torch.

        Args:
            on_bytes: called while files are fetched, now or later.

        Raises:
            ConfigError: there is none, or it is another model. ModelUnsupported: it cannot be served.
        """
        from bloombee.engine.checkpoint import resolve

        found = resolve(self._override or model, on_bytes)
        same_model(found.config_digest, config_digest, str(found.directory or found.ref))
        return found

    def _load(
        self,
        load: Load,
        progress: TellBytes,
        on_done: Callable[[LoadedSpan], None],
        on_error: Callable[[BloomBeeError], None],
    ) -> LoadedSpan | None:
        try:
            progress(0, 0)  # it may have been stopped while it waited for its turn
            self._let_go(Span(load.start, load.stop))  # others take room that it may need
            span = self._build_standin(load, progress) if is_standin(load.model) else self._build(load, progress)
            self._let_go()  # what was held for it, it has
            on_done(span)
        except Stopped:
            log.debug("stopped while loading layers [%d, %d)", load.start, load.stop)
        except BloomBeeError as error:
            on_error(error)
        except Exception as error:
            log.debug("loading failed", exc_info=True)
            on_error(DeviceError(f"loading layers [{load.start}, {load.stop}) failed: {say(error)}"))
        else:
            return span
        return None

    def _build(self, load: Load, progress: TellBytes) -> LoadedSpan:
        from bloombee.engine.model import SpanModel, pick_device, set_threads

        freeze()
        set_threads(self.threads)
        checkpoint = self.checkpoint(load.model, load.config_digest, lambda: progress(0, 0))
        dtype = Dtype(load.dtype)
        streamed = streamed_of(load.start, load.placement)
        if streamed:
            log.info("%d of %d layers stream from %s", len(streamed), load.stop - load.start, self._disk.layers)
        model = SpanModel.load(
            checkpoint,
            Span(load.start, load.stop),
            num_layers=load.num_layers,
            dtype=dtype,
            device=pick_device(self.device),
            groups=_groups(load),
            page_size=load.page_size,
            weight_digests=load.weight_digests,
            progress=progress,
            rules=load.rules,
            store=self.store,
            streamed=streamed,
            files=self._layer_files() if streamed else None,
        )
        return LoadedSpan(model, dtype, self.pace)

    def pager(self, queue: WorkThread, model: Any, load: Load) -> Pager | None:
        """What keeps rows of a span beyond the device, if anything does."""
        return Pager.of(queue, model, load, self.host_bytes, self._disk if self._keeps_rows else None)

    def _layer_files(self) -> Any:
        from bloombee.engine.layer_files import LayerFiles

        if self._files is None:
            self._files = LayerFiles(self._disk.layers, self._disk.num_bytes)
        return self._files

    def _build_standin(self, load: Load, progress: TellBytes) -> LoadedSpan:
        import torch

        from bloombee.engine.standin import StandIn

        freeze()
        torch.set_num_threads(1)  # it copies some rows; threads would cost more than they save
        dtype = Dtype(load.dtype)
        model = StandIn.load(
            load.model,
            Span(load.start, load.stop),
            dtype=dtype,
            groups=_groups(load),
            page_size=load.page_size,
            progress=progress,
            store=self.store,
        )
        return LoadedSpan(model, dtype, self.pace or model.default_pace)

    def _paced(self, on_progress: TellBytes, stopped: threading.Event) -> TellBytes:
        """``on_progress`` now and then, as bytes come from an emulated disk; raises Stopped once nobody waits any more."""
        began, last, told, rate = time.monotonic(), 0.0, False, self.load_bytes_per_s

        def progress(loaded: int, total: int) -> None:
            nonlocal began, last, told
            now = time.monotonic()
            began = began if total else now  # nothing is read yet: what a download takes is not the disk's time
            if stopped.wait(max(0.0, began + loaded / rate - now) if rate is not None else 0.0):
                raise Stopped
            now = time.monotonic()
            is_end = 0 < total == loaded and not told
            if is_end or now - last >= PROGRESS_EVERY_S:
                last, told = now, told or is_end
                on_progress(loaded, total)

        return progress


def _settle(span: LoadedSpan, stopped: threading.Event) -> None:
    """Make it faster to read while it is served already, for a part of the time: it holds up what is served."""
    began = time.monotonic()

    def go_on() -> None:
        nonlocal began
        if stopped.wait((1 / SETTLING - 1) * (time.monotonic() - began)):
            raise Stopped
        began = time.monotonic()

    try:
        span.model.settle(go_on)
    except Stopped:
        log.debug("stopped while settling %s", span.model.span)
    except Exception:  # it serves as it is
        log.debug("settling failed", exc_info=True)


_frozen = threading.Lock()


def freeze() -> None:
    """What has been imported stays: to walk it again and again would only make a step late now and then. Once a process, and
    before anything is loaded: what a span is made of must be found by the collector when it is let go."""
    if _frozen.acquire(blocking=False):
        gc.collect()
        gc.freeze()


def same_model(found: bytes, asked: bytes, place: str) -> None:
    """Raises ConfigError: the digest of the config at ``place`` is not the one that is asked for."""
    if found != asked:
        raise ConfigError(
            f"{place} holds another model than the head's: its config.json differs; copy the head's files there, or name a"
            " directory that has them with worker --model",
            path=place,
        )


def say(error: Exception) -> str:
    """One line of it."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _groups(load: Load) -> list[PageGroup]:
    return [PageGroup(group.window, group.num_pages) for group in load.groups]
