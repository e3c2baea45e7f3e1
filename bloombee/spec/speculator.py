"""What the scheduler asks: which draft goes with a sequence's next row, if any. Pure.

It learns how good each drafter is from the tokens alone: what was proposed is kept until the next call, whether it was sent or
not, and held against what has come. So drafting that did not pay is on again as soon as it would, and costs no rows meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bloombee.spec.controller import Load, worth_sending
from bloombee.spec.drafter import Drafter
from bloombee.spec.ngram import NgramDrafter
from bloombee.spec.tree import EMPTY, Draft, merge

MOST_NODES = 64
"""Of a draft."""


@dataclass(slots=True)
class _Known:
    """Of a sequence."""

    offered: Draft = EMPTY
    """By a drafter elsewhere, for when it had ``at_length`` tokens."""
    at_length: int = 0


class Speculator:
    """Holds the drafters of this process, and what others offer.

    Args:
        drafters: asked at every call. None: n-grams.
        most_nodes: of one draft.
    """

    def __init__(self, drafters: Sequence[Drafter] | None = None, *, most_nodes: int = MOST_NODES) -> None:
        self._drafters = (NgramDrafter(),) if drafters is None else tuple(drafters)
        self._most_nodes = most_nodes
        self._known: dict[int, _Known] = {}

    def draft(self, sequence: int, tokens: Sequence[int], now: float, load: Load) -> Draft | None:
        """What to send behind ``tokens``, all the confirmed ones; None: the row of the last alone.

        Time: in the length of the draft, and of what is new.
        """
        known = self._known.setdefault(sequence, _Known())
        proposed = [drafter.propose(sequence, tokens, self._most_nodes) for drafter in self._drafters]
        proposed.append(_still_good(known, tokens))
        chosen = worth_sending(merge(proposed, self._most_nodes), load)
        return chosen or None

    def offered(self, sequence: int, at_length: int, draft: Draft) -> None:
        """A drafter elsewhere expects ``draft`` behind the first ``at_length`` tokens. It has been checked
        (:meth:`Draft.check`)."""
        known = self._known.get(sequence)
        if known is not None and at_length >= known.at_length:
            known.offered, known.at_length = draft, at_length

    def closed(self, sequence: int) -> None:
        self._known.pop(sequence, None)
        for drafter in self._drafters:
            drafter.closed(sequence)


def _still_good(known: _Known, tokens: Sequence[int]) -> Draft:
    """What was offered, from where the sequence is by now."""
    if not known.offered or known.at_length > len(tokens):
        return EMPTY
    node = known.offered.follow(tokens[known.at_length :])
    return EMPTY if node is None else known.offered.below(node)
