"""What a forward will come to, while the device is still at it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Outlet:
    """Takes results off a device on a stream of its own, so that they do not wait for what is asked next, nor that for them.

    Args:
        device: of the results; on the CPU they are there already.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def take(self, rows: torch.Tensor, make: Callable[[torch.Tensor], T]) -> Pending[T]:
        """What ``make`` makes of ``rows`` on the CPU, once they are there. Nothing else may write to them meanwhile."""
        if self._stream is None:
            return Pending(rows, make)
        here = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(rows.device))
        with torch.cuda.stream(self._stream):
            here.copy_(rows, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        rows.record_stream(self._stream)
        return Pending(here, make, copied)

    def leave(self, rows: torch.Tensor) -> Pending[torch.Tensor]:
        """``rows`` where they are, once they are there."""
        ready = None
        if self._stream is not None:
            ready = torch.cuda.Event()
            ready.record()
        return Pending(rows, lambda rows: rows, ready)


class Pending(Generic[T]):
    """A result that is on its way."""

    def __init__(self, rows: torch.Tensor, make: Callable[[torch.Tensor], T], done: torch.cuda.Event | None = None) -> None:
        self._rows, self._make, self._done = rows, make, done

    def result(self) -> T:
        """Waits for it, without holding up other threads. On any thread, once.

        Raises:
            What ``make`` raises; RuntimeError: the device failed.
        """
        if self._done is not None:
            self._done.synchronize()
        return self._make(self._rows)
