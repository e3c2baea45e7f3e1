"""Several microbatches side by side through layers that stream: each layer's weights are read once for all of them.

A forward is transformers' own from end to end, so it cannot be called layer by layer. Each runs on a stack of its own instead and
stops before every layer; once all have stopped before the same one, they go through it one after the other. What each computes,
and in which order at each layer, is what it would be one after the other altogether.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import nn

from bloombee.engine.streams import LayerStream
from bloombee.pipeline.work import Work

MOST_TOGETHER = 16
"""Each holds its rows and masks meanwhile."""


class Waves:
    """Of one span.

    Args:
        layers: all of the span. stream: of those that stream, which is not attached yet: all are to stop before one enters.
    """

    def __init__(self, layers: Sequence[nn.Module], stream: LayerStream) -> None:
        self._stream = stream
        self._driver: greenlet | None = None
        for layer in layers:
            layer.register_forward_pre_hook(self._stop)

    def run(self, forwards: Sequence[Callable[[], Any]]) -> list[Any]:
        """What each of ``forwards`` returns, or the exception that it raises, in order."""
        outcomes: list[Any] = [None] * len(forwards)
        stacks = [greenlet(self._caught(forward, outcomes, number)) for number, forward in enumerate(forwards)]
        self._driver = getcurrent()
        try:
            with torch.inference_mode():  # around all: each would put back what was there when it began
                while stacks:
                    self._stream.num_together = len(stacks)
                    for stack in stacks:
                        stack.switch()
                    stacks = [stack for stack in stacks if not stack.dead]
        finally:
            self._driver, self._stream.num_together = None, 1
        return outcomes

    def _stop(self, *_: Any) -> None:
        if self._driver is not None:
            self._driver.switch()

    def _caught(self, forward: Callable[[], Any], outcomes: list[Any], number: int) -> Callable[[], None]:
        def run() -> None:
            try:
                outcomes[number] = forward()
            except Exception as error:
                outcomes[number] = error

        return run


def together(works: Sequence[Work]) -> int:
    """How many of ``works``, from the first on, may go side by side: one that copies a page of others has to wait for what these
    write before it begins."""
    for number, work in enumerate(works[:MOST_TOGETHER]):
        if number and any(pages.source is not None for segment in work.segments for pages in segment.pages):
            return number
    return min(len(works), MOST_TOGETHER)
