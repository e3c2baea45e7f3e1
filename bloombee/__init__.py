"""Run one large language model over several ordinary machines joined by the internet."""

from __future__ import annotations

from bloombee.types import Dtype, SamplingParams

__version__ = "0.1.0"
__all__ = ["Dtype", "SamplingParams", "__version__"]
