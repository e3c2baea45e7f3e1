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
FIRST_WAIT_S = 1.0
"""For a sequence's first draft, for which a whole prompt is read."""
LEAST = 0.01
"""Probability of the paths that are worth something, before anything is known."""
HALF = 0.5
"""A draft is asked for down to that share of the probability that just pays: what it says is not calibrated."""


@dataclass(frozen=True, slots=True)
class Worth:
    """Of asking.

    Args:
        wait_s: how long to wait for the draft; 0: it does not pay.
        least: the probability below which a path is worth nothing.
        rate: tokens per second that the sequence makes with it.
    """

    wait_s: float
    least: float
    rate: float


ALWAYS = Worth(FIRST_WAIT_S, 0.0, 0.0)
"""Wait for it, and for all of it."""


class Elsewhere:
    """Figures of one such drafter, over all sequences."""

    def __init__(self) -> None:
        self._seconds: float | None = None
        self._profiles: dict[int, list[float]] = {}
        """By strength: [n] the score of the n-th likeliest node of a merged draft, on the whole."""

    def took(self, seconds: float, is_new: bool) -> None:
        """From the question to the answer; a prompt that had to be read says nothing of what follows."""
        if not is_new:
            self._seconds = seconds if self._seconds is None else FADE * self._seconds + (1 - FADE) * seconds

    def saw(self, merged: Draft, *, without: Draft) -> None:
        """What came of asking: ``merged`` instead of ``without``, both calibrated."""
        scores = sorted(merged.scores, reverse=True)
        old = self._profiles.get(_strength(without))
        self._profiles[_strength(without)] = scores if old is None else _mean(old, scores)

    def worth(self, without: Draft, load: Load, *, is_new: bool) -> Worth:
        """What asking now comes to.

        Args:
            without: what there is to send, calibrated. is_new: of the sequence it knows nothing yet.
        """
        profile = self._profiles.get(_strength(without))
        if profile is None or self._seconds is None:
            return Worth(FIRST_WAIT_S, LEAST, 1.0 / load.round_s(0))
        size, rate = best_size(profile, load, wait_s=self._seconds)
        _, otherwise = best_size(sorted(without.scores, reverse=True), load)
        least = HALF * rate * (load.round_s(size + 1) - load.round_s(size))
        own_rate = (1 + sum(profile[:size])) / load.round_s(size)
        if rate <= otherwise or not size:
            return Worth(0.0, least, own_rate)
        return Worth(FIRST_WAIT_S if is_new else PATIENCE * self._seconds, least, own_rate)


def _strength(draft: Draft) -> int:
    return bisect_right(STRENGTHS, sum(draft.scores))


def _mean(old: list[float], new: list[float]) -> list[float]:
    length = max(len(old), len(new))
    pairs = zip(old + [0.0] * (length - len(old)), new + [0.0] * (length - len(new)), strict=True)
    return [FADE * was + (1 - FADE) * now for was, now in pairs]
