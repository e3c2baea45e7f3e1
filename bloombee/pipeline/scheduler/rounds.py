"""Drafts under way: with a sequence's next row go rows of tokens that may follow, and what the model picks after each says which
do. Pure.

The row of the last confirmed token is node 1 of a tree, the draft's nodes follow, the likeliest path first. The last stage
samples after every row as it samples after any; a node is accepted iff its token is what was picked after its parent. So the
tokens are those of plain decoding, whatever was drafted: no probability of a draft decides anything. The first pick that no
child has is a token as well, and ends the round; a Commit tells the stages which rows stay.
"""

from __future__ import annotations

import logging
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from bloombee.kv.pool import pages_for
from bloombee.pipeline.scheduler.sequence import Round, SequenceState
from bloombee.spec.controller import Line, Load
from bloombee.spec.speculator import Speculator
from bloombee.spec.tree import Draft
from bloombee.types import Kind, SequenceId
from bloombee.wire.messages import MAX_PATH, Item, Tree

log = logging.getLogger(__name__)
UNKNOWN_LOAD = Load(Line(1.0, 0.02))
"""Before anything is known of what a row costs: a fiftieth of a round."""


@dataclass(slots=True)
class Rounds:
    """Of one scheduler.

    Args:
        speculator: asked for a draft with each row that decodes. None: nothing is drafted.
        page_size: of KV memory. load: what a round costs.
    """

    speculator: Speculator | None = None
    page_size: int = 1
    load: Load = UNKNOWN_LOAD
    _tokens: dict[SequenceId, array[int]] = field(default_factory=dict)

    def item(self, sequence: SequenceState, room: int) -> Item | None:
        """The next row of a sequence that decodes, with up to ``room`` drafted ones; None: the row goes alone.

        A drafter that fails is asked no more: everything is decoded plainly from then on.
        """
        if self.speculator is None:
            return None
        try:
            draft = self.speculator.draft(sequence.id, self._known(sequence), self.load)
            chosen = None if draft is None else _fitting(draft, sequence, min(room, self._room(sequence)))
        except Exception:
            log.warning("drafting has failed; tokens are decoded one at a time from now on", exc_info=True)
            self.speculator = None
            return None
        return _item(sequence, chosen) if chosen else None

    def _room(self, sequence: SequenceState) -> int:
        """Drafted rows for which the sequence has KV memory."""
        return pages_for(sequence.num_slots, self.page_size) * self.page_size - sequence.num_tokens

    def _known(self, sequence: SequenceState) -> array[int]:
        """All its tokens."""
        known = self._tokens.setdefault(sequence.id, array("I"))
        new = sequence.tokens[known.itemsize * len(known) :]
        known.extend(struct.unpack(f"<{len(new) // 4}I", new))
        return known

    def closed(self, sequence: SequenceId) -> None:
        self._tokens.pop(sequence, None)
        if self.speculator is not None:
            self.speculator.closed(sequence)

    def clear(self) -> None:
        for sequence in list(self._tokens):
            self.closed(sequence)


def _fitting(draft: Draft, sequence: SequenceState, room: int) -> Draft | None:
    """The best of a draft for which there is room, and tokens to come; the likeliest path first, then the others."""
    deepest = min(sequence.max_new_tokens - sequence.num_output, MAX_PATH) - 1
    nodes = [node for node, depth in enumerate(draft.depths()[1:], start=1) if depth <= deepest]
    best = draft.only(nodes).best(room)
    if not best:
        return None
    below: list[list[int]] = [[] for _ in range(len(best) + 1)]
    for node in best.by_score():
        below[best.parents[node - 1]].append(node)
    number, order, waiting = {0: 0}, list[int](), below[0][::-1]
    while waiting:
        node = waiting.pop()
        order.append(node)
        number[node] = len(order)
        waiting += below[node][::-1]
    at = [node - 1 for node in order]
    return Draft(
        tokens=tuple([best.tokens[i] for i in at]),
        parents=tuple([number[best.parents[i]] for i in at]),
        scores=tuple([best.scores[i] for i in at]),
        sources=tuple([best.sources[i] for i in at]),
    )


def _item(sequence: SequenceState, draft: Draft) -> Item:
    """The row of the last token and a draft's, which are under way from now on."""
    base = sequence.num_sent
    last: Sequence[int] = struct.unpack("<I", sequence.tokens[4 * base :])
    tokens = (*last, *draft.tokens)
    parents = (0, *(parent + 1 for parent in draft.parents))
    sequence.round = Round(base, tokens, parents)
    num_rows = len(tokens)
    picks = ((1 << num_rows) - 1).to_bytes((num_rows + 7) // 8, "little")
    packed = struct.pack(f"<{num_rows}I", *tokens)
    return Item(sequence.id, sequence.generation, _DRAFT, base, packed, num_rows, None, Tree(1, parents, picks))


_DRAFT = int(Kind.DRAFT)
