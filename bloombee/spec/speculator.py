"""What the scheduler asks: which draft goes with a sequence's next row, if any. Pure.

It learns how good drafters are from the tokens alone: what was proposed is kept until the next call, whether it was sent or not,
and held against what has come. So drafting that does not pay costs no rows, and is on again as soon as it would pay.

A drafter elsewhere takes time, which is only worth waiting for if a round becomes better by more than that. What its drafts are
like is known from earlier ones; where it would not pay it is asked now and then, for a small share of the time
(``elsewhere.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bloombee.spec.calibrate import Calibration
from bloombee.spec.controller import Load, Shape, worth_sending
from bloombee.spec.drafter import Drafter
from bloombee.spec.elsewhere import ALWAYS, Elsewhere
from bloombee.spec.ngram import NgramDrafter
from bloombee.spec.tree import EMPTY, Draft, merge

MOST_NODES = 128
"""Of a draft."""
NODE_S = 50e-6
"""What proposing a node costs the process of the scheduler."""
SHARE = 0.01
"""Of a round, that may go to that, whether or not anything is sent."""
SKILL = 0.3
"""Of what is known of the drafter elsewhere with one sequence, that its latest draft makes out."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a drafter elsewhere is asked.

    Args:
        first: tokens before are known to it.
        tokens: of the sequence, from there on.
        budget: most nodes. least: paths that are less likely are worth nothing.
        rate: tokens per second that the sequence makes: what the drafter's time is worth.
        until_s: from then on the sequence goes on without.
    """

    sequence: int
    first: int
    tokens: tuple[int, ...]
    budget: int
    least: float
    rate: float
    until_s: float


@dataclass(slots=True)
class _Known:
    """Of a sequence."""

    length: int = -1
    """Tokens there were at the last call; -1: there was none."""
    own: Draft = EMPTY
    """Behind these, by the drafters of this process. Not calibrated, as all below."""
    proposed: Draft = EMPTY
    """By all, sent or not."""
    offered: Draft = EMPTY
    """By the drafter elsewhere, for when it had ``told`` tokens."""
    told: int = 0
    """Tokens that drafter knows."""
    is_read: bool = False
    """It has answered once."""
    is_sent: bool = False
    """Whatever goes behind these has been sent."""
    is_fresh: bool = False
    """Its last answer came in time for what is proposed."""
    asked_s: float | None = None
    """When it was asked what it has not answered yet."""
    skill: float = 1.0
    """How much more than usual that drafter's drafts of this sequence are worth."""
    tried_s: float = 0.0
    """Of the wait for that, what was only to know more."""


class Speculator:
    """Holds the drafters of this process, and what one elsewhere offers.

    Args:
        drafters: asked at every call. None: n-grams.
    """

    def __init__(self, drafters: Sequence[Drafter] | None = None) -> None:
        self.drafters = (NgramDrafter(),) if drafters is None else tuple(drafters)
        self.shape: Shape | None = None
        """Always send that, whatever it is worth, for comparison; None: what pays."""
        self._known: dict[int, _Known] = {}
        self.calibration = Calibration()
        self._elsewhere: Elsewhere | None = None

    def has_other(self, is_there: bool) -> None:
        """A drafter elsewhere is there from now on, and knows no sequence; or is gone."""
        self._elsewhere = Elsewhere() if is_there else None
        for known in self._known.values():
            known.offered, known.told, known.is_read, known.asked_s = EMPTY, 0, False, None

    @property
    def other_is_there(self) -> bool:
        return self._elsewhere is not None

    def ask(self, sequence: int, tokens: Sequence[int], now: float, load: Load) -> Query | None:
        """What to ask the drafter elsewhere before :meth:`draft`; None: nothing. Nobody waits where ``until_s`` is ``now``."""
        other = self._elsewhere
        known = self._catch_up(sequence, tokens, load)
        if other is None or known.asked_s is not None:
            return None
        other.began(load)
        own = self.calibration.apply(sequence, known.own)
        worth = ALWAYS if self.shape else other.worth(own, load, is_new=not known.is_read, skill=known.skill)
        if worth is None:
            return None
        new = tuple(tokens[known.told :])
        query = Query(sequence, known.told, new, MOST_NODES, worth.least, worth.rate, now + worth.wait_s)
        known.told, known.asked_s, known.tried_s = len(tokens), now, worth.tried_s
        return query

    def offered(self, sequence: int, at_length: int, draft: Draft, now: float) -> None:
        """The drafter elsewhere expects ``draft`` behind the first ``at_length`` tokens. It has been checked
        (:meth:`Draft.check`)."""
        known = self._known.get(sequence)
        if known is not None and known.asked_s is not None and self._elsewhere is not None and at_length == known.told:
            self._elsewhere.took(now - known.asked_s, is_new=not known.is_read, tried_s=known.tried_s)
            known.offered, known.asked_s, known.is_read = draft, None, True
            known.is_fresh = at_length == known.length and not known.is_sent

    def draft(self, sequence: int, tokens: Sequence[int], load: Load) -> Draft | None:
        """What to send behind ``tokens``, all the confirmed ones; None: the row of the last alone. Called once in every round.

        Time: in the length of the draft, and of what is new.
        """
        known = self._catch_up(sequence, tokens, load)
        known.is_sent = True
        offered = _still_good(known, tokens)
        known.proposed = merge([known.own, offered], MOST_NODES)
        calibrated = self.calibration.apply(sequence, known.proposed)
        return (self.shape.cut(calibrated) if self.shape else worth_sending(calibrated, load)) or None

    def closed(self, sequence: int) -> None:
        self._known.pop(sequence, None)
        self.calibration.closed(sequence)
        for drafter in self.drafters:
            drafter.closed(sequence)

    def _catch_up(self, sequence: int, tokens: Sequence[int], load: Load) -> _Known:
        """Learn from what is new, and have the drafters of this process propose behind it."""
        known = self._known.setdefault(sequence, _Known())
        if known.length == len(tokens):
            return known
        if known.proposed:
            self.calibration.learn(sequence, known.proposed, tokens[known.length :])
        if known.is_fresh and self._elsewhere is not None:
            known.is_fresh = False
            proposed, own = (self.calibration.apply(sequence, draft) for draft in (known.proposed, known.own))
            known.skill += SKILL * (self._elsewhere.saw(proposed, without=own) - known.skill)
        budget = min(MOST_NODES, max(1, int(SHARE * load.round_s(0) / (NODE_S * load.sequences))))
        known.own = merge([drafter.propose(sequence, tokens, budget) for drafter in self.drafters], budget)
        known.proposed, known.length, known.is_sent = known.own, len(tokens), False
        return known


def _still_good(known: _Known, tokens: Sequence[int]) -> Draft:
    """What was offered, from where the sequence is by now."""
    if not known.offered:
        return EMPTY
    node = known.offered.follow(tokens[known.told :])
    return EMPTY if node is None else known.offered.below(node)
