"""Run one large language model over several ordinary machines joined by the internet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bloombee.errors import BloomBeeError
from bloombee.grammar import Grammar
from bloombee.plan.plan import Plan
from bloombee.types import VERSION as __version__
from bloombee.types import Dtype, FinishReason, Generation, LoadProgress, SamplingParams, SwarmEvent, SwarmEventKind, Token

if TYPE_CHECKING:
    from bloombee.runtime import Runtime

__all__ = [
    "BloomBeeError",
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
    """Runtime on first use: the cores can be imported without its event loop and sockets."""
    if name == "Runtime":
        from bloombee.runtime import Runtime

        return Runtime
    raise AttributeError(f"module 'bloombee' has no attribute {name!r}")
