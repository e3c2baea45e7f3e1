"""What a head has served so far: its requests by how they ended, their tokens, and how long these took."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from bloombee.roles.status import UPTO_S, Served, Times
from bloombee.types import Token


@dataclass(slots=True)
class _Histogram:
    """See :class:`~bloombee.roles.status.Times`."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(UPTO_S) + 1))
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(UPTO_S, seconds)] += 1
        self.sum_s += seconds

    def told(self) -> Times:
        return Times(tuple(self.counts), self.sum_s)


@dataclass(slots=True)
class _Open:
    """A request that has not ended. ``made_at`` None: by a head before this one."""

    made_at: float | None
    token_at: float | None = None


@dataclass(slots=True)
class ServedCount:
    """Belongs to the head's loop; times are of any monotonic clock."""

    _open: dict[int, _Open] = field(default_factory=dict)
    _ended: Counter[str] = field(default_factory=Counter)
    _num_prompt_tokens: int = 0
    _num_cached_tokens: int = 0
    _num_tokens: int = 0
    _num_drafted: int = 0
    _num_accepted: int = 0
    _first_token: _Histogram = field(default_factory=_Histogram)
    _between_tokens: _Histogram = field(default_factory=_Histogram)
    _active_s: float = 0.0
    """Up to the last moment at which there was no request any more."""
    _active_since: float = 0.0
    """When there was one again."""

    def began(self, number: int, num_prompt_tokens: int, made_at: float | None, now: float) -> None:
        """A request of so many tokens was taken; ``made_at`` None: it goes on from a head before this one."""
        if not self._open:
            self._active_since = now
        self._open[number] = _Open(made_at)
        self._num_prompt_tokens += num_prompt_tokens

    def token(self, number: int, token: Token, now: float) -> None:
        """The next one of an open request."""
        one = self._open[number]
        self._num_tokens += 1
        self._num_cached_tokens += token.num_cached_tokens
        self._num_drafted += token.drafted
        self._num_accepted += token.was_drafted
        if one.token_at is not None:
            self._between_tokens.add(now - one.token_at)
        elif one.made_at is not None:
            self._first_token.add(now - one.made_at)
        one.token_at = now

    def ended(self, number: int, how: str, now: float) -> None:
        """An open request has, by this finish reason or error."""
        del self._open[number]
        self._ended[how] += 1
        if not self._open:
            self._active_s += now - self._active_since

    def active_s(self, now: float) -> float:
        """In which there was a request."""
        return self._active_s + (now - self._active_since if self._open else 0.0)

    def told(self, now: float) -> Served:
        return Served(
            ended=dict(self._ended),
            prompt_tokens=self._num_prompt_tokens,
            tokens=self._num_tokens,
            first_token=self._first_token.told(),
            between_tokens=self._between_tokens.told(),
            active_s=self.active_s(now),
            cached_tokens=self._num_cached_tokens,
            drafted=self._num_drafted,
            accepted=self._num_accepted,
        )
