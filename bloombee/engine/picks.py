"""Which rows of a step get a token, and what is sampled for them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bloombee.engine.grammar import Grammars, Mask
from bloombee.engine.processors import Processors
from bloombee.engine.sampler import Sampled, SamplerRow, sample
from bloombee.errors import GrammarFailed, LocalProtocolError
from bloombee.pipeline.work import Segment
from bloombee.wire.messages import NO_GRAMMAR, NO_TOKEN, Pick

log = logging.getLogger(__name__)


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


def pick(logits: torch.Tensor, picked: Sequence[Picked], processors: Processors | None, grammars: Grammars | None) -> list[Pick]:
    """A pick for each row of ``logits``.

    Args:
        logits: [picked, v] float32 on the CPU, contiguous.
        grammars: of this stage; None: no request may have one.
    """
    masks = [_mask(one, grammars) for one in picked]
    rows = [_row(one, mask) for one, mask in zip(picked, masks, strict=True)]
    sampled = sample(logits.numpy(), rows, processors)
    picks = [_pick(one, mask, got) for one, mask, got in zip(picked, masks, sampled, strict=True)]
    if grammars is not None:
        newest = {one.segment.sequence: (one, pick) for one, pick in zip(picked, picks, strict=True)}
        grammars.picked(
            (one.segment, one.position, pick.token)
            for one, pick in newest.values()
            if one.segment.grammar and one.segment.tree is None and pick.token < NO_GRAMMAR
        )
    return picks


def _mask(one: Picked, grammars: Grammars | None) -> Mask | GrammarFailed | None:
    """What the row's grammar allows, or why that is not known; None: it has none."""
    if one.segment.grammar is None:
        return None
    if grammars is None:
        return GrammarFailed("this stage has no vocabulary for grammars")
    try:
        return grammars.mask(one.segment, one.position, one.node)
    except GrammarFailed as error:
        log.warning("sequence %d, position %d: %s", one.segment.sequence, one.position, error.message)
        return error


def _row(one: Picked, mask: Mask | GrammarFailed | None) -> SamplerRow:
    segment = one.segment
    assert segment.sampling is not None  # picked_rows has looked
    return SamplerRow(
        sampling=segment.sampling,
        position=one.position,
        history=one.history,
        num_prompt_tokens=segment.num_prompt_tokens,
        max_new_tokens=segment.max_new_tokens,
        end_tokens=segment.end_tokens,
        biases=segment.biases,
        mask=None if isinstance(mask, GrammarFailed) else mask,
    )


def _pick(one: Picked, mask: Mask | GrammarFailed | None, got: Sampled) -> Pick:
    sequence, generation = one.segment.sequence, one.segment.generation
    if got.is_finite and not isinstance(mask, GrammarFailed):
        return Pick(sequence, generation, one.position, got.token, got.logprob, got.top)
    return Pick(sequence, generation, one.position, NO_TOKEN if mask is None else NO_GRAMMAR, None, ())
