"""Which rows of a step get a token, and what is sampled for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bloombee.engine.processors import Processors
from bloombee.engine.sampler import SamplerRow, sample
from bloombee.errors import LocalProtocolError
from bloombee.pipeline.work import Segment
from bloombee.wire.messages import NO_TOKEN, Pick


@dataclass(frozen=True, slots=True)
class Picked:
    """A row that gets a token: row ``row`` of the batch, which is ``node`` of a tree; the token takes absolute position
    ``position``."""

    segment: Segment
    row: int
    position: int
    node: int = 0

    @property
    def history(self) -> NDArray[np.uint32]:
        """All token ids up to the row's, if the segment has them."""
        segment, tree = self.segment, self.segment.tree
        if tree is None or not segment.history:
            return np.frombuffer(segment.history, dtype="<u4")[: self.position]
        return np.frombuffer(segment.history + tree.tokens_on(self.node), dtype="<u4")


def picked_rows(segments: Sequence[Segment]) -> list[Picked]:
    """
    Raises:
        LocalProtocolError: a row is to be sampled and there are no parameters for it.
    """
    found, start = [], 0
    for segment in segments:
        if segment.num_picks and segment.sampling is None:
            raise LocalProtocolError(
                f"sequence {segment.sequence}: rows to sample and no sampling parameters", sequence=segment.sequence
            )
        positions, first = segment.positions(), 0 if segment.tree is None else segment.tree.first
        found += [Picked(segment, start + row, positions[row] + 1, first and first + row) for row in segment.picked()]
        start += segment.num_rows
    return found


def pick(logits: torch.Tensor, picked: Sequence[Picked], processors: Processors | None) -> list[Pick]:
    """A pick for each row of ``logits``.

    Args:
        logits: [picked, v] float32 on the CPU, contiguous.
    """
    rows = [
        SamplerRow(
            sampling=one.segment.sampling,
            position=one.position,
            history=one.history,
            num_prompt_tokens=one.segment.num_prompt_tokens,
            max_new_tokens=one.segment.max_new_tokens,
            end_tokens=one.segment.end_tokens,
        )
        for one in picked
        if one.segment.sampling is not None
    ]
    return [
        Pick(one.segment.sequence, one.segment.generation, one.position, got.token, got.logprob, got.top)
        if got.is_finite
        else Pick(one.segment.sequence, one.segment.generation, one.position, NO_TOKEN, None, ())
        for one, got in zip(picked, sample(logits.numpy(), rows, processors), strict=True)
    ]
