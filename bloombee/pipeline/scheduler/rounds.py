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
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from bloombee.kv.pool import pages_for
from bloombee.pipeline.commands import AskDraft, DraftClosed
from bloombee.pipeline.events import Drafted, DrafterSeen, Priced
from bloombee.pipeline.scheduler.fragments import Parts
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
SHARE = 0.1
"""Of what is known of others' rows, that each new microbatch's are."""
T = TypeVar("T")


@dataclass(slots=True)
class Rounds:
    """Of one scheduler.

    Args:
        speculator: asked for a draft with each row that decodes. None: nothing is drafted.
        parts: what is left of drafts that go in several frames. page_size: of KV memory.
        load: what a round costs. num_flights: microbatches that decode under way, with the next one.
    """

    speculator: Speculator | None
    parts: Parts
    page_size: int = 1
    load: Load = UNKNOWN_LOAD
    num_flights: int = 1
    _said: list[AskDraft | DraftClosed] = field(default_factory=list)
    """To the drafter in another process, and not sent yet."""
    _tokens: dict[SequenceId, array[int]] = field(default_factory=dict)
    _rows: float = 1.0
    _promised: float = 1.0
    """Of a sequence in a microbatch, on the whole: rows, and tokens that they promise."""

    def informed(self, event: Priced | DrafterSeen | Drafted) -> None:
        """What others know of drafts and their price."""
        match event:
            case Priced(load=load):
                self.load = load
            case DrafterSeen(is_there=is_there) if self.speculator is not None:
                self.speculator.has_other(is_there)
            case Drafted() if self.speculator is not None:
                self.speculator.offered(event.sequence, event.length, event.draft, event.now)

    def say(self) -> list[AskDraft | DraftClosed]:
        """What is new for the drafter in another process."""
        said, self._said = self._said, []
        return said

    @property
    def asks(self) -> bool:
        """There is a drafter in another process."""
        return self.speculator is not None and self.speculator.other_is_there

    def ask(self, sequence: SequenceState, others: int, now: float) -> float | None:
        """Ask it, if that is worth it; until when to wait for its answer. ``others``: sequences in the microbatch."""
        query = self._try(lambda one: one.ask(sequence.id, self._known(sequence), now, self._load(others)))
        if query is None:
            return None
        self._said.append(AskDraft(query, sequence.sampling.temperature, sequence.sampling.seed))
        return query.until_s

    def item(self, sequence: SequenceState, room: int, others: int) -> Item | None:
        """The next row of a sequence that decodes, with up to ``room`` drafted ones; None: the row goes alone. More of the draft
        may be left for :meth:`Parts.next`."""
        load = self._load(others)
        chosen = self._chosen(sequence, min(room, self._room(sequence)), load)
        rows, promised = (1.0, 1.0) if chosen is None else (1.0 + len(chosen), 1.0 + sum(chosen.scores))
        self._rows += SHARE * (rows - self._rows)
        self._promised += SHARE * (promised - self._promised)
        if chosen is None:
            return None
        base = sequence.num_sent
        current = sequence.round = Round.of(base, int.from_bytes(sequence.tokens[4 * base :], "little"), chosen)
        return self.parts.first(sequence, current, load)

    def _chosen(self, sequence: SequenceState, room: int, load: Load) -> Draft | None:
        """What to send, up to ``room`` nodes."""

        def choose(speculator: Speculator) -> Draft | None:
            draft = speculator.draft(sequence.id, self._known(sequence), load)
            return None if draft is None else _fitting(draft, sequence, room)

        return self._try(choose)

    def _try(self, ask: Callable[[Speculator], T | None]) -> T | None:
        """A speculator that fails is asked no more: everything is decoded plainly from then on."""
        if self.speculator is None:
            return None
        try:
            return ask(self.speculator)
        except Exception:
            log.warning("drafting has failed; tokens are decoded one at a time from now on", exc_info=True)
            self.speculator = None
            return None

    def may_part(self, num_flights: int) -> bool:
        """Whether so many may be under way, of however few sequences, and nobody has to wait for another."""
        return self.speculator is not None and replace(self.load, num_microbatches=num_flights, rows=self._rows - 1).is_idle

    def _load(self, others: int) -> Load:
        return replace(self.load, num_microbatches=self.num_flights, rows=others * self._rows, tokens=others * self._promised)

    def _room(self, sequence: SequenceState) -> int:
        """Rows beyond those that are confirmed, and the next, for which the sequence has KV memory."""
        return pages_for(sequence.num_covered, self.page_size) * self.page_size - sequence.num_sent - 1

    def _known(self, sequence: SequenceState) -> array[int]:
        """All its tokens."""
        known = self._tokens.setdefault(sequence.id, array("I"))
        new = sequence.tokens[known.itemsize * len(known) :]
        known.extend(struct.unpack(f"<{len(new) // 4}I", new))
        return known

    def closed(self, sequence: SequenceId) -> None:
        self.parts.drop(sequence)
        if self._tokens.pop(sequence, None) is not None and self.asks:
            self._said.append(DraftClosed(sequence))
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
