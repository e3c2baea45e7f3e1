"""Run one large language model over several ordinary machines joined by the internet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bloombee.errors import BloomBeeError
from bloombee.plan.plan import Plan
from bloombee.types import VERSION as __version__
from bloombee.types import Dtype, FinishReason, Generation, LoadProgress, SamplingParams, SwarmEvent, SwarmEventKind, Token

if TYPE_CHECKING:
    from bloombee.grammar import Grammar
    from bloombee.runtime import Chat, Runtime

__all__ = [
    "BloomBeeError",
    "Chat",
    "Dtype",
    "FinishReason",
    "Generation",
    "Grammar",
    "LoadProgress",
    "Plan",
    "Runtime",
    "SamplingParams",
    "SwarmEvent",
    "SwarmEventKind",
    "Token",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Runtime and what it takes on first use: the cores can be imported without its event loop and sockets, and whoever names the
    folders that give code (``__main__``) without what those might hold."""
    if name == "Grammar":
        from bloombee.grammar import Grammar

        return Grammar
    if name in ("Chat", "Runtime"):
        from bloombee import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module 'bloombee' has no attribute {name!r}")
