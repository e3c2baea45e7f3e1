"""What a drafter in another process is worth, from what came of asking it before. Pure."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from bloombee.spec.controller import Load, best_size
from bloombee.spec.tree import Draft

STRENGTHS = (0.25, 0.75, 1.5, 3.0)
"""Tokens that a draft without it promises: what it adds is known apart between these."""
FADE = 0.9
"""What is left of what was known with each further draft."""
PATIENCE = 4.0
"""How many times as long as usual it is waited for."""
MOST_WAIT_S = 1.0
LEAST = 0.01
"""Probability of the paths that are worth something, before anything is known."""
HALF = 0.5
"""A draft is asked for down to that share of the probability that just pays: what it says is not calibrated."""
TRIES = 0.005
"""Of the time of rounds, that goes to waiting for what is not known to pay: so that is never worse than without by more."""
FIRST_S, LEAST_S = 0.05, 0.005
"""Of that, what there is from the start, if a round takes as long; and with how little it is not tried."""


@dataclass(frozen=True, slots=True)
class Worth:
    """Of asking.

    Args:
        wait_s: how long to wait for the draft; 0: it is asked for later.
        least: the probability below which a path is worth nothing.
        rate: tokens per second that the sequence makes with it.
        tried_s: what of the wait is only to know more.
    """

    wait_s: float
    least: float
    rate: float
    tried_s: float = 0.0


ALWAYS = Worth(MOST_WAIT_S, 0.0, 0.0)
"""Wait for it, and for all of it."""


class Elsewhere:
    """Figures of one such drafter, over all sequences."""

    def __init__(self) -> None:
        self._seconds: dict[bool, float] = {}
        """From a question to its answer; apart for those for which a whole prompt is read."""
        self._profiles: dict[int, tuple[int, list[float]]] = {}
        """By strength: of how many, and [n] the score of the n-th likeliest node of a merged draft, on the whole."""
        self._credit_s: float | None = None
        """That may be waited for the sake of knowing more."""

    def began(self, load: Load) -> None:
        """A round of a sequence. Before the load is known nobody knows what share of a round a wait is."""
        round_s = load.round_s(0)
        before_s = min(FIRST_S, round_s) if self._credit_s is None else self._credit_s
        self._credit_s = min(MOST_WAIT_S, before_s + (TRIES * round_s / load.sequences if load.busy else 0.0))

    def took(self, seconds: float, *, is_new: bool, tried_s: float) -> None:
        """From the question to the answer; ``tried_s``: of the wait for it, what was only to know more."""
        before_s = self._seconds.get(is_new, seconds)
        self._seconds[is_new] = FADE * before_s + (1 - FADE) * seconds
        if self._credit_s is not None:
            self._credit_s += max(0.0, tried_s - seconds)

    def saw(self, merged: Draft, *, without: Draft) -> float:
        """What came of asking: ``merged`` instead of ``without``, both calibrated. How much more that is than usual, as a
        factor."""
        scores = sorted(merged.scores, reverse=True)
        count, old = self._profiles.get(_strength(without), (0, []))
        self._profiles[_strength(without)] = count + 1, _mean(old, scores, min(FADE, count / (count + 1)))
        return sum(scores) / max(sum(old), LEAST) if count else 1.0

    def worth(self, without: Draft, load: Load, *, is_new: bool, skill: float = 1.0) -> Worth | None:
        """What asking now comes to; None: it is not to be asked.

        Args:
            without: what there is to send, calibrated. is_new: of the sequence it knows nothing yet.
            skill: how much more than usual its drafts of this sequence are worth, as a factor.
        """
        _, profile = self._profiles.get(_strength(without), (0, None))
        usual_s = self._seconds.get(False)
        if profile is None or usual_s is None:
            return self._try(LEAST, 1.0 / load.round_s(0), is_new=is_new)
        profile = [min(1.0, skill * score) for score in profile]
        _, otherwise = best_size(sorted(without.scores, reverse=True), load)
        size, rate = best_size(profile, load, wait_s=usual_s)
        least = HALF * rate * (load.round_s(size + 1) - load.round_s(size))
        own_rate = (1 + sum(profile[:size])) / load.round_s(size)
        if rate <= otherwise or not size:
            return self._try(least, own_rate, is_new=is_new)
        seconds = self._seconds.get(is_new, usual_s)
        pays_now = not is_new or best_size(profile, load, wait_s=seconds)[1] > otherwise
        return Worth(min(PATIENCE * seconds, MOST_WAIT_S) if pays_now else 0.0, least, own_rate)

    def _try(self, least: float, rate: float, *, is_new: bool) -> Worth | None:
        """To know more of it, as far as that is not dear."""
        usual_s = self._seconds.get(is_new, self._seconds.get(False, 0.0))
        credit_s = self._credit_s or 0.0
        if credit_s < max(LEAST_S, usual_s):
            return None
        tried_s = min(credit_s, PATIENCE * usual_s) if usual_s else credit_s
        self._credit_s = credit_s - tried_s
        return Worth(tried_s, least, rate, tried_s)


def _strength(draft: Draft) -> int:
    return bisect_right(STRENGTHS, sum(draft.scores))


def _mean(old: list[float], new: list[float], share: float) -> list[float]:
    """``share``: of what was known before."""
    length = max(len(old), len(new))
    pairs = zip(old + [0.0] * (length - len(old)), new + [0.0] * (length - len(new)), strict=True)
    return [share * was + (1 - share) * now for was, now in pairs]
