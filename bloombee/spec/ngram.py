"""Drafts from what was said before: in the request itself, and in what others were given lately. No model."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from bloombee.spec.drafter import NGRAM
from bloombee.spec.history import CONTEXT, History
from bloombee.spec.tree import EMPTY, Draft, Growing

OWN_TOKENS = 8192
"""Of a sequence, that can be found again; of a longer one the latest, at least."""
SHARED_TOKENS = 65536
RUN = 64
"""Tokens of output that go together to what all share: a shorter run would tear contexts apart."""
WIDTH = 4
"""Most children of a node."""
LEAST = 0.005
"""Paths that are less likely are not followed."""
TRUST = {2: 0.6, 4: 0.8, 8: 0.92, 16: 0.96}
"""By tokens in common: how likely the next is one of those that were found, before calibration."""


@dataclass(slots=True)
class _Known:
    """Of a sequence."""

    num_tokens: int
    shared: int
    """Tokens before are in what all share, or are the prompt's."""
    history: History = field(default_factory=lambda: History(OWN_TOKENS))


class NgramDrafter:
    """Memory: some 0.4 MB a sequence at most and 3 MB for what is shared."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._shared = History(SHARED_TOKENS)

    def propose(self, sequence: int, tokens: Sequence[int], budget: int) -> Draft:
        known = self._catch_up(sequence, tokens)
        if budget < 1:
            return EMPTY
        growing = Growing(budget)
        contexts = {0: array("I", tokens[-CONTEXT:])}
        self._offer(growing, known, contexts[0], 0, 1.0)
        for node, parent, token, score in growing:
            contexts[node] = contexts[parent][-CONTEXT + 1 :] + array("I", (token,))
            if score > LEAST:
                self._offer(growing, known, contexts[node], node, score)
        return growing.draft()

    def closed(self, sequence: int) -> None:
        self._known.pop(sequence, None)

    def _offer(self, growing: Growing, known: _Known, context: array[int], node: int, score: float) -> None:
        """The likeliest children of ``node``: what came next where its context was found, in the request before elsewhere."""
        found, elsewhere = known.history.found(context), self._shared.found(context)
        for token, weight in elsewhere.weights.items():
            found.add(token, weight, elsewhere.common)
        if not found.weights:
            return
        weights = found.weights
        share = score * TRUST[found.common] / sum(weights.values())
        for token in sorted(weights, key=weights.__getitem__, reverse=True)[:WIDTH]:
            growing.offer(node, token, share * weights[token], NGRAM)

    def _catch_up(self, sequence: int, tokens: Sequence[int]) -> _Known:
        """Take up what is new; the first time that is the prompt, of which nothing is shared."""
        known = self._known.get(sequence)
        if known is None:
            first = max(0, len(tokens) - OWN_TOKENS)
            known = self._known[sequence] = _Known(first, len(tokens))
        for token in tokens[known.num_tokens :]:
            known.history.append(token)
        known.num_tokens = len(tokens)
        if known.num_tokens - known.shared >= RUN:
            for token in tokens[known.shared :]:
                self._shared.append(token)
            known.shared = known.num_tokens
        return known
