"""Rounds of drafting on a virtual clock: what the speculator decides, and what comes of it, where rounds cost what a load says.

No process, no link: the real ``Speculator``, a drafter of a known acceptance, and the arithmetic of ``spec/controller.py``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from bench.synthetic_drafter import Synthetic, Truth
from bloombee.models.standin import standin_token
from bloombee.spec.controller import Load, Shape, best_size
from bloombee.spec.speculator import MOST_NODES, Speculator
from bloombee.spec.tree import EMPTY, Growing

WARM_ROUNDS = 40
"""Before anything counts."""


@dataclass(frozen=True, slots=True)
class Played:
    """What came of so many rounds."""

    rounds: int
    tokens: int
    nodes: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def play(
    load: Load, acceptance: tuple[float, ...], level_s: float, rounds: int, *, shape: Shape | None = None, seed: int = 1
) -> Played:
    """Decode with drafts of ``acceptance`` by rank, each level of which takes ``level_s``.

    Args:
        shape: of every tree; None: as the controller decides.
    """
    speculator = Speculator([])
    speculator.has_other(True)
    speculator.shape = shape
    synthetic = Synthetic(Truth("standin"), acceptance, level_s)
    tokens, now, nodes, mark = [standin_token(seed, 0)], 0.0, 0, (0, 0.0)
    for number in range(WARM_ROUNDS + rounds):
        if number == WARM_ROUNDS:
            mark, nodes = (len(tokens), now), 0
        ask = speculator.ask(1, tokens, now, load)
        if ask is not None:
            offer = synthetic.draft({**asdict(ask), "seed": seed})
            took = synthetic.seconds(offer)
            now += min(took, max(0.0, ask.until_s - now))
            speculator.offered(1, len(tokens), offer, now if ask.until_s > now else now + took)
        draft = speculator.draft(1, tokens, load) or EMPTY
        now += load.round_s(len(draft))
        nodes += len(draft)
        reached: int | None = 0
        while reached is not None:
            tokens.append(standin_token(seed, len(tokens)))
            reached = draft.child(reached, tokens[-1])
    return Played(rounds, len(tokens) - mark[0], nodes, now - mark[1])


def best_rate(load: Load, acceptance: tuple[float, ...], level_s: float) -> tuple[int, float]:
    """(nodes, tokens per second) of the best tree there is, for whoever knows the acceptance and rounds' costs."""
    growing = Growing(MOST_NODES)
    for share in acceptance:
        growing.offer(0, 0, share, 1)
    depths = {0: 0}
    scores, waits = [], []
    for node, parent, _, score in growing:
        depths[node] = depths[parent] + 1
        scores.append(score)
        waits.append(level_s * max(depths.values()))
        for share in acceptance:
            growing.offer(node, 0, score * share, 1)
    rates = [(best_size([], load)[1], 0)]
    tokens = load.tokens + 1.0
    for size, (score, wait_s) in enumerate(zip(scores, waits, strict=True), start=1):
        tokens += score
        rates.append((tokens / (load.round_s(size) + wait_s), size))
    rate, size = max(rates)
    return size, rate
