"""A drafter for benchmarks that is right as often as it is told, by rank: ``bench.synthetic_drafter TRUTH ACCEPTANCE SECONDS``.

    TRUTH        standin, whose tokens follow from seed and position; nothing, of which it says the same and is never right; or a
                 file: {"vocabulary": digest, "tokens": how many, "texts": [[ids], ...]}, where a text is a prompt and what the
                 model makes of it
    ACCEPTANCE   such as 0.8,0.08,0.04: how often the model's token is its first, second, third choice, at any depth
    SECONDS      that it takes for each level of a tree

At every node its choices are as many tokens as there are ranks; behind those that are right one of them is the model's, or none,
by chance, which follows from the seed and the position alone. It knows what a rank is worth, and says so.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from bloombee.models.standin import VOCAB, standin_token
from bloombee.roles.drafter import waiting_lines
from bloombee.spec.drafter import MODEL
from bloombee.spec.tree import Draft, Growing

_OF_STANDINS: dict[str, Any] = {"vocabulary": None, "tokens": VOCAB, "texts": []}


class Truth:
    """What the model says."""

    def __init__(self, name: str) -> None:
        is_standin = name == "standin"
        known = _OF_STANDINS if name in ("standin", "nothing") else json.loads(Path(name).read_text("utf-8"))
        self.vocabulary: str | None = known["vocabulary"]
        self.num_tokens: int = known["tokens"]
        self._texts: list[list[int]] = known["texts"]
        self._is_standin = is_standin

    def after(self, tokens: list[int], seed: int, depth: int) -> int | None:
        """The token that comes ``depth`` places behind the next one of ``tokens``; None: nobody knows."""
        position = len(tokens) + depth
        if self._is_standin:
            return standin_token(seed, position)
        text = next((text for text in self._texts if text[: len(tokens)] == tokens), None)
        return text[position] if text is not None and position < len(text) else None


class Synthetic:
    """Drafts of a known acceptance."""

    def __init__(self, truth: Truth, acceptance: tuple[float, ...], seconds: float) -> None:
        self._truth, self._acceptance, self._seconds = truth, acceptance, seconds
        self._known: dict[int, list[int]] = {}

    def closed(self, sequence: int) -> None:
        self._known.pop(sequence, None)

    def draft(self, ask: dict[str, Any]) -> Draft:
        tokens = self._known.setdefault(ask["sequence"], [])
        tokens += ask["tokens"]
        growing = Growing(ask["budget"])
        right = {0: 0}
        depths = {0: 0}
        self._offer(growing, ask, tokens, 0, 1.0, 0, 0)
        for node, parent, token, score in growing:
            depths[node] = depths[parent] + 1
            if parent in right and token == self._truth.after(tokens, ask["seed"], right[parent]):
                right[node] = right[parent] + 1
            self._offer(growing, ask, tokens, node, score, right.get(node), depths[node])
        return growing.draft()

    def seconds(self, draft: Draft) -> float:
        """That it takes for it."""
        return self._seconds * max(draft.depths())

    def _offer(
        self, growing: Growing, ask: dict[str, Any], tokens: list[int], node: int, score: float, right: int | None, depth: int
    ) -> None:
        """The children of ``node``; ``right``: how far it is along the truth, if it is."""
        true = None if right is None else self._truth.after(tokens, ask["seed"], right)
        chance = random.Random(f"{ask['seed']} {len(tokens) + depth} {node if right is None else 0}")
        hit = chance.choices(range(len(self._acceptance) + 1), (*self._acceptance, max(0.0, 1 - sum(self._acceptance))))[0]
        others = chance.sample(range(self._truth.num_tokens), len(self._acceptance) + 1)
        wrong = [token for token in others if token != true]
        for rank, share in enumerate(self._acceptance):
            if score * share >= ask["least"]:
                growing.offer(node, true if rank == hit and true is not None else wrong[rank], score * share, MODEL)


def main() -> None:
    truth = Truth(sys.argv[1])
    synthetic = Synthetic(truth, tuple(map(float, sys.argv[2].split(","))), float(sys.argv[3]))
    orders = os.fdopen(os.dup(0), "rb", buffering=0)
    _say({"ready": {"vocabulary": truth.vocabulary, "tokens": truth.num_tokens}})
    for lines in waiting_lines(orders):
        for said in lines:
            if "closed" in said:
                synthetic.closed(said["closed"])
                continue
            ask = said["ask"]
            draft = synthetic.draft(ask)
            time.sleep(synthetic.seconds(draft))
            fields = {"tokens": draft.tokens, "parents": draft.parents, "scores": draft.scores, "sources": draft.sources}
            _say({"sequence": ask["sequence"], "length": ask["first"] + len(ask["tokens"]), **fields})


def _say(said: dict[str, Any]) -> None:
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
