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
from dataclasses import dataclass, field

from bloombee.kv.pool import pages_for
from bloombee.pipeline.scheduler.fragments import Parts, is_idle
from bloombee.pipeline.scheduler.round import Round
from bloombee.pipeline.scheduler.sequence import SequenceState
from bloombee.spec.controller import Line, Load
from bloombee.spec.speculator import Speculator
from bloombee.spec.tree import Draft
from bloombee.types import SequenceId
from bloombee.wire.messages import MAX_PATH, Item

log = logging.getLogger(__name__)
UNKNOWN_LOAD = Load(Line(1.0, 0.02))
"""Before anything is known of what a row costs: a fiftieth of a round."""


@dataclass(slots=True)
class Rounds:
    """Of one scheduler.

    Args:
        speculator: asked for a draft with each row that decodes. None: nothing is drafted.
        parts: what is left of drafts that go in several frames. page_size: of KV memory. load: what a round costs.
    """

    speculator: Speculator | None
    parts: Parts
    page_size: int = 1
    load: Load = UNKNOWN_LOAD
    _tokens: dict[SequenceId, array[int]] = field(default_factory=dict)

    def item(self, sequence: SequenceState, room: int) -> Item | None:
        """The next row of a sequence that decodes, with up to ``room`` drafted ones; None: the row goes alone. More of the draft
        may be left for :meth:`Parts.next`."""
        chosen = self._chosen(sequence, min(room, self._room(sequence)), 1)
        if chosen is None:
            return None
        base = sequence.num_sent
        current = sequence.round = Round.of(base, int.from_bytes(sequence.tokens[4 * base :], "little"), chosen)
        return self.parts.first(sequence, current, self.load)

    def extend(self, sequence: SequenceState, current: Round) -> None:
        """Some of what was picked is known, and more is under way: what may follow on that is sent after it."""
        if not is_idle(self.load):
            return
        room = min(self._room(sequence) + 1 - len(current), self.parts.max_rows - len(current))
        chosen = self._chosen(sequence, room, len(current.path))
        if chosen is not None:
            current.graft(chosen)
            self.parts.left(sequence, current)

    def _chosen(self, sequence: SequenceState, room: int, depth: int) -> Draft | None:
        """What to send, behind ``depth`` nodes that are accepted; up to ``room`` nodes.

        A drafter that fails is asked no more: everything is decoded plainly from then on.
        """
        if self.speculator is None:
            return None
        try:
            draft = self.speculator.draft(sequence.id, self._known(sequence), self.load)
            return None if draft is None or room < 1 else _fitting(draft, sequence, room, MAX_PATH - depth)
        except Exception:
            log.warning("drafting has failed; tokens are decoded one at a time from now on", exc_info=True)
            self.speculator = None
            return None

    def _room(self, sequence: SequenceState) -> int:
        """Rows beyond those that are confirmed, and the next, for which the sequence has KV memory."""
        return pages_for(sequence.num_slots, self.page_size) * self.page_size - sequence.num_sent - 1

    def _known(self, sequence: SequenceState) -> array[int]:
        """All its tokens."""
        known = self._tokens.setdefault(sequence.id, array("I"))
        new = sequence.tokens[known.itemsize * len(known) :]
        known.extend(struct.unpack(f"<{len(new) // 4}I", new))
        return known

    def closed(self, sequence: SequenceId) -> None:
        self.parts.drop(sequence)
        self._tokens.pop(sequence, None)
        if self.speculator is not None:
            self.speculator.closed(sequence)

    def clear(self) -> None:
        for sequence in list(self._tokens):
            self.closed(sequence)


def _fitting(draft: Draft, sequence: SequenceState, room: int, most_depth: int) -> Draft | None:
    """The best of a draft for which there is room, and tokens to come; the likeliest path first, then the others."""
    deepest = min(sequence.max_new_tokens - sequence.num_output - 1, most_depth)
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
