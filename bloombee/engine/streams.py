"""Layers whose weights come from disk on every pass, through a ring of slots that is filled ahead of need.

A slot is the memory of one layer's weights, laid out as the kernels want them (``packed.py``), so that a layer computes the same
whether its weights stay or come. Readers fill free slots in the order in which layers are run, over and over: the first layers of
the next pass come while the last of this one run, and while the span waits for work. A layer holds a slot from when it is entered
until it has been left. Nothing is allocated after the start: slots, and of each reader a staging buffer that a chunk is read
into past the system's cache, checked, and copied from.

On a GPU slots are in its memory, staging is pinned, and copies go over a stream of their own: a slot that was left is written to
once what was asked of the device before has run, and is ready once the copies are done, for which readers wait and nobody else.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bloombee.engine.layer_file import LayerFile, padded, parts_of
from bloombee.engine.leaves import Area, Leaf, release
from bloombee.errors import BloomBeeError, DeviceError, WeightsUnavailable
from bloombee.plan.placement import BLOCK_BYTES, READS


@dataclass(eq=False)
class Slot:
    """Memory of one layer.

    Args:
        values: of its leaves, in order. areas: all that memory, as it is stored.
        targets: where each chunk goes: (number of the area, first byte in it, bytes).
    """

    values: Sequence[Any]
    areas: Sequence[Area]
    targets: Sequence[Sequence[tuple[int, int, int]]]
    layer: int = -1
    waiting: deque[int] = field(default_factory=deque)
    """Chunks that nobody reads yet."""
    num_open: int = 0
    """Chunks that are not there yet."""
    error: Exception | None = None
    left: Any = None
    """On a GPU: when what was asked of the device before the slot was left has run."""


@dataclass(slots=True)
class Traffic:
    """What streams have done. ``waited_s``: for which layers that were entered were not there yet."""

    read_bytes: int = 0
    layers: int = 0
    waited_s: float = 0.0


class LayerStream:
    """Of the layers of one span that stream; one thread runs them, any may close.

    Attributes:
        traffic: so far. num_together: forwards that go through the layers side by side, each layer's weights staying for all.

    Args:
        files: of each layer that streams, by its place in the span.
        leaves: of each, to hold the values of a slot while it runs.
        slots: (values, areas) of each, at least one; layers are alike.
    """

    def __init__(
        self,
        files: Mapping[int, LayerFile],
        leaves: Mapping[int, Sequence[Leaf]],
        slots: Sequence[tuple[Sequence[Any], Sequence[Area]]],
        device: torch.device,
    ) -> None:
        self.traffic = Traffic()
        self._files, self._leaves = files, leaves
        self._order = sorted(files)
        chunks = files[self._order[0]].chunks
        self._slots = [
            Slot(values, areas, [list(parts_of(areas, chunk.offset, chunk.num_bytes)) for chunk in chunks])
            for values, areas in slots
        ]
        self._next = 0
        """In the order: what is filled next."""
        self._free = deque(self._slots)
        self._ahead: deque[Slot] = deque()
        """Filled, or being filled, in the order of use."""
        self._is_turning = False
        """The order is being begun elsewhere: nothing is filled meanwhile."""
        self._held: Slot | None = None
        self._num_left = 0
        """Forwards that have left the layer that is held."""
        self.num_together = 1
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._changed = threading.Condition()
        self._is_closed = False
        stagings = [self._staging() for _ in range(READS)]  # what has no room fails here, and no thread
        self._readers = [
            threading.Thread(target=self._read, args=(staging,), name="bloombee-stream", daemon=True) for staging in stagings
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pass_bytes(self) -> int:
        """Read from disk for each pass."""
        return sum(file.stored_bytes for file in self._files.values())

    def attach(self, layers: Sequence[nn.Module]) -> None:
        """Have those of a span's ``layers`` that stream enter and leave as they run, in whatever order."""
        for place in self._order:
            layers[place].register_forward_pre_hook(self._entering(place))
            layers[place].register_forward_hook(self._leaving(place), always_call=True)

    def enter(self, place: int) -> None:
        """The layer at ``place`` has its weights when this returns, until it is left.

        Raises:
            WeightsUnavailable: they cannot be read, now, and could not be a moment ago; another try reads them again.
        """
        if self._held is not None and self._held.layer == place:
            return
        with self._changed:
            began = time.perf_counter()
            slot = self._there(self._seek(place))
            if slot.error is not None:  # perhaps long ago, and of something that has passed
                self._start_at(self._order.index(place))
                slot = self._there(self._ahead[0])
            self.traffic.waited_s += time.perf_counter() - began
            if slot.error is not None:
                raise _typed(slot.error, self._files[place])
            self._ahead.popleft()
        self._held = slot
        for leaf, value in zip(self._leaves[place], slot.values, strict=True):
            leaf.hold(value)

    def leave(self, place: int) -> None:
        """Its weights may go, once all forwards that go together have left it."""
        slot = self._held
        if slot is None or slot.layer != place:
            return
        self._num_left += 1
        if self._num_left >= self.num_together:
            self._let_go(slot)

    def close(self) -> None:
        """Read no more, and give the slots' memory back once nobody writes to them any more. No layer can be entered then."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for reader in self._readers:
            if reader is not threading.current_thread():
                reader.join()
        for file in self._files.values():
            file.close()
        if self._held is not None:
            self._let_go(self._held)
        for slot in self._slots:
            release(slot.areas)
            slot.values, slot.areas = (), ()

    # -- of the thread that runs ---------------------------------------------------------------

    def _entering(self, place: int) -> Callable[..., None]:
        return lambda *_: self.enter(place)

    def _leaving(self, place: int) -> Callable[..., None]:
        return lambda *_: self.leave(place)

    def _let_go(self, slot: Slot) -> None:
        self._held, self._num_left = None, 0
        for leaf in self._leaves[slot.layer]:
            leaf.hold(None)
        if self._copies is not None:
            slot.left = torch.cuda.current_stream(self._device).record_event()
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()

    def _there(self, slot: Slot) -> Slot:
        """Once it has been filled, or cannot be."""
        while slot.num_open and slot.error is None and not self._is_closed:
            self._changed.wait()
        if self._is_closed:
            raise DeviceError("the span has been let go")
        return slot

    def _seek(self, place: int) -> Slot:
        """The slot that ``place`` is in or comes into; what is ahead of it is not wanted."""
        if self._held is not None:  # of a forward that was given up
            self._let_go(self._held)
        if not any(slot.layer == place for slot in self._ahead):
            self._start_at(self._order.index(place))
        while self._ahead[0].layer != place:
            self._drop(self._ahead.popleft())
        return self._ahead[0]

    def _start_at(self, number: int) -> None:
        """Fill slots from there on in the order, whatever is in them."""
        self._is_turning = True
        while self._ahead:
            self._drop(self._ahead.popleft())
        self._next = number
        self._is_turning = False
        self._begin_next()

    def _drop(self, slot: Slot) -> None:
        """Not wanted; free once nobody writes to it."""
        slot.num_open -= len(slot.waiting)
        slot.waiting.clear()
        while slot.num_open:
            self._changed.wait()
        self._free.append(slot)
        self._changed.notify_all()

    def _begin_next(self) -> None:
        """Have the next layer's chunks read into a free slot."""
        slot = self._free.popleft()
        slot.layer, slot.error = self._order[self._next], None
        slot.waiting.extend(range(len(slot.targets)))
        slot.num_open = len(slot.targets)
        self._next = (self._next + 1) % len(self._order)
        self._ahead.append(slot)
        self.traffic.layers += 1
        self._changed.notify_all()

    # -- of readers ------------------------------------------------------------------------------

    def _staging(self) -> torch.Tensor:
        """[n] uint8, whole blocks, aligned to one: room for any chunk."""
        largest = max(padded(chunk.stored_bytes) for file in self._files.values() for chunk in file.chunks)
        room = torch.empty(largest + BLOCK_BYTES, dtype=torch.uint8, pin_memory=self._copies is not None)
        return room[-room.data_ptr() % BLOCK_BYTES :][:largest]

    def _read(self, staging: torch.Tensor) -> None:
        while (job := self._job()) is not None:
            slot, number = job
            error: Exception | None = None
            try:
                self._bring(slot, number, staging)
            except Exception as problem:  # whatever a disk may say; told to whoever enters the layer
                error = problem
            with self._changed:
                slot.error = slot.error or error
                slot.num_open -= 1
                self.traffic.read_bytes += padded(self._files[slot.layer].chunks[number].stored_bytes)
                if slot.num_open == 0 or error is not None:
                    self._changed.notify_all()

    def _job(self) -> tuple[Slot, int] | None:
        """The next chunk to read, of the layer that is needed first; None: there will be none."""
        with self._changed:
            while not self._is_closed:
                slot = next((slot for slot in self._ahead if slot.waiting), None)
                if slot is not None:
                    return slot, slot.waiting.popleft()
                if self._free and not self._is_turning:
                    self._begin_next()
                else:
                    self._changed.wait()
        return None

    def _bring(self, slot: Slot, number: int, staging: torch.Tensor) -> None:
        file = self._files[slot.layer]
        chunk = file.chunks[number]
        stored = file.read(chunk, memoryview(staging.numpy()))
        if chunk.is_coded:
            self._decode(slot, number, stored)
        elif self._copies is None:
            source = staging.data_ptr()
            for area, first, count in slot.targets[number]:
                ctypes.memmove(slot.areas[area].address + first, source, count)
                source += count
        else:
            self._copy(slot, number, staging)

    def _decode(self, slot: Slot, number: int, stored: memoryview) -> None:
        """To where it belongs, which is on the host; a chunk of one area."""
        file = self._files[slot.layer]
        ((area, first, count),) = slot.targets[number]
        file.decode(file.chunks[number], stored, (ctypes.c_char * count).from_address(slot.areas[area].address + first))

    def _copy(self, slot: Slot, number: int, staging: torch.Tensor) -> None:
        """To a GPU; returns when it is there, and ``staging`` can be read into again."""
        assert self._copies is not None
        with torch.cuda.device(self._device), torch.cuda.stream(self._copies):
            if slot.left is not None:
                self._copies.wait_event(slot.left)
            start = 0
            for area, first, count in slot.targets[number]:
                target = slot.areas[area].bytes()[first : first + count]
                target.copy_(staging[start : start + count], non_blocking=True)
                start += count
            done = self._copies.record_event()
        done.synchronize()


def _typed(error: Exception, file: LayerFile) -> WeightsUnavailable:
    """What a forward that needed a layer is told."""
    if isinstance(error, BloomBeeError):
        return WeightsUnavailable(f"weights of a streamed layer cannot be used: {error.message}", cause=error.code)
    said = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    return WeightsUnavailable(f"weights of a streamed layer cannot be read from {file.path}: {said}", path=str(file.path))
