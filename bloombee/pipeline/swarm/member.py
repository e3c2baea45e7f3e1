"""What the head knows of a worker."""

from __future__ import annotations

from dataclasses import dataclass

from bloombee.types import Span, WorkerId


@dataclass(slots=True)
class Member:
    """A worker that has joined."""

    id: WorkerId
    name: str
    endpoint: str
    key: bytes
    memory_bytes: int
    is_away: bool = False
    """Its connection is broken and may come back."""
    had: Span | None = None
    """Layers that it had when it was here before: it may still hold them, and has their files at hand."""
    is_draining: bool = False
    """It is to leave, and gets no stage any more."""
    is_loaded: bool = False
    """It has the span that it was last told to load."""
    wired: int = 0
    """The newest epoch that it has said to be wired in."""
    asked_at: float = 0.0
    """When it was last told to load, or its neighbours."""
    progress_at: float = 0.0
    """When it was told to load, or said last that more of the span is there."""
