"""Whole swarms that draft what may follow: no token changes, whatever is drafted and whatever befalls the ring."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from bloombee.pipeline.commands import Command
from bloombee.pipeline.scheduler import SchedulerCore
from bloombee.pipeline.scheduler.rounds import UNKNOWN_LOAD
from bloombee.pipeline.stage import Event, StageCore
from bloombee.sim.cluster import SimCluster, sim_card
from bloombee.sim.device import oracle
from bloombee.sim.network import Faults
from bloombee.spec.controller import Line, Load
from bloombee.spec.ngram import NgramDrafter
from bloombee.types import SchedulerPlace
from bloombee.wire import messages as wire
from tests.draft_kit import Crashing, Drawn, Eager
from tests.sim_kit import HARSH, assert_right

IN_PARTS = Load(Line(1.0, 0.01), (Line(0.001, 0.001),))
"""A long loop whose stages and wires idle: drafts go in parts, and grow while verdicts are under way."""
DRAFTERS = ("right", "mixed", "wrong", "ngram", "crashing")


class _Foresight:
    """What follows on the tokens of requests that were submitted."""

    def __init__(self) -> None:
        self.texts: list[list[int]] = []

    def __call__(self, tokens: Sequence[int]) -> Sequence[int]:
        known = list(tokens)
        return next((text[len(known) :] for text in self.texts if text[: len(known)] == known), [])


class _Counted(StageCore):
    """Holds the KV that its sequences' rows and trees under way need, and no page more, after each event."""

    def handle(self, event: Event) -> list[Command]:
        commands = super().handle(event)
        for _, held in self.store:
            moved = max([0, *(source + 1 for source, _ in held.moves)])
            for table in held.tables:
                needed = -(-max(held.have + len(held.nodes), moved) // 4) * 4
                assert table.stop <= needed
        held_pages = sum(len(table.pages) for _, held in self.store for table in held.tables)
        assert held_pages == sum(pool.num_pages - pool.num_free for pool in self.store.kv.pools)
        return commands


class _Drafting(SimCluster):
    """A swarm that drafts; ``future`` knows its requests."""

    def __init__(self, kind: str, seed: int, num_stages: int, *, load: Load = UNKNOWN_LOAD, **arguments: object) -> None:
        self.future = _Foresight()
        rng = random.Random(f"drafts {seed}")
        skill = {"right": 1.0, "mixed": 0.7, "crashing": 0.7}.get(kind, 0.0)
        drawn = Drawn(rng, self.future, skill)
        drafter = {"ngram": NgramDrafter(), "crashing": Crashing(drawn, 12)}.get(kind, drawn)
        self.make_speculator = lambda: Eager(drafter)  # type: ignore[method-assign]
        super().__init__(seed=seed, num_stages=num_stages, num_pages=1024, **arguments)  # type: ignore[arg-type]
        if isinstance(self.scheduler, SchedulerCore):
            self.scheduler._rounds.load = load

    def make_core(self, load: wire.Load) -> StageCore:
        return _Counted(load, resend_after_s=0.5)

    def ask(self, rng: random.Random, count: int, windows: Sequence[Sequence[int]] | None = None, *, num_stages: int) -> None:
        for number in range(count):
            prompt = [rng.randrange(50_000) for _ in range(rng.randint(1, 30))]
            seed, length = rng.randrange(2**64), rng.randint(1, 40)
            self.future.texts.append(prompt + oracle(prompt, seed, num_stages, length, windows))
            self.submit(prompt, max_new_tokens=length, seed=seed, at=rng.uniform(0, 1.0))
            if rng.random() < 0.1:
                self.cancel(number, at=rng.uniform(0, 3))


def _counts(cluster: SimCluster) -> Counter[str]:
    return Counter(word for line in cluster.trace for word in (" Commit(", "tree=Tree(", " Gap(") if word in line)


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
def test_no_token_depends_on_what_was_drafted(kind: str, num_stages: int, faults: Faults | None) -> None:
    for seed in range(3):
        rng = random.Random(seed)
        cluster = _Drafting(kind, seed, num_stages, num_microbatches=rng.choice([1, 2, 4]), faults=faults)
        cluster.ask(rng, 12, num_stages=num_stages)
        assert cluster.run()
        assert_right(cluster, num_stages)
        if kind in ("right", "mixed"):
            assert _counts(cluster)["tree=Tree("] > 10


@pytest.mark.parametrize("seed", range(4))
def test_layers_with_windows_keep_what_a_tree_sees(seed: int) -> None:
    windows = ((0, 6), (6,), (0,))
    cluster = _Drafting("mixed", seed, 3, card=sim_card((0, 6, 6, 6, 0, 0)), faults=HARSH if seed % 2 else None)
    cluster.ask(random.Random(seed), 12, windows, num_stages=3)
    assert cluster.run()
    assert_right(cluster, 3, windows)


@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(6))
def test_a_stage_may_be_lost_with_trees_under_way(num_stages: int, faults: Faults | None, seed: int) -> None:
    rng = random.Random(seed)
    cluster = _Drafting(
        "mixed", seed, num_stages, num_spares=1, num_microbatches=3, faults=faults, lossy_orders=faults is not None
    )
    cluster.ask(rng, 12, num_stages=num_stages)
    cluster.kill(rng.randint(1, num_stages), at=rng.uniform(0.1, 0.8))
    assert cluster.run()
    assert cluster.head.num_recoveries == 1
    assert_right(cluster, num_stages)


@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
def test_the_scheduler_beside_the_first_stage_drafts_as_well(faults: Faults | None) -> None:
    cluster = _Drafting("mixed", 1, 3, faults=faults, scheduler=SchedulerPlace.STAGE0)
    cluster.ask(random.Random(1), 12, num_stages=3)
    assert cluster.run()
    assert_right(cluster, 3)
    assert _counts(cluster)["tree=Tree("] > 10


def test_rounds_of_right_drafts_are_fewer_than_tokens() -> None:
    cluster = _Drafting("right", 5, 3)
    prompt = [1, 2, 3]
    cluster.future.texts.append(prompt + oracle(prompt, 0, 3, 60))
    cluster.submit(prompt, max_new_tokens=60)
    assert cluster.run()
    assert_right(cluster, 3)
    rounds = sum("scheduler->stage0 Forward(" in line for line in cluster.trace)
    assert rounds < 30
    assert isinstance(cluster.scheduler, SchedulerCore)


@pytest.mark.parametrize("kind", ["right", "mixed", "wrong"])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(3))
def test_drafts_that_go_in_parts_and_grow_change_no_token(kind: str, faults: Faults | None, seed: int) -> None:
    rng = random.Random(seed)
    windows = ((0, 6), (6,), (0,)) if seed == 2 else None
    cluster = _Drafting(
        kind, seed, 3, load=IN_PARTS, num_microbatches=rng.choice([2, 8]), faults=faults,
        **({"card": sim_card((0, 6, 6, 6, 0, 0))} if windows else {}),
    )  # fmt: skip
    cluster.ask(rng, 12, windows, num_stages=3)
    assert cluster.run()
    assert_right(cluster, 3, windows)
    assert sum("tree=Tree(first=" in line and "tree=Tree(first=1," not in line for line in cluster.trace) > 10


@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("seed", range(6))
def test_a_stage_may_be_lost_with_parts_under_way(num_stages: int, faults: Faults | None, seed: int) -> None:
    rng = random.Random(seed)
    cluster = _Drafting(
        "mixed", seed, num_stages, load=IN_PARTS, num_spares=1, num_microbatches=8, faults=faults,
        lossy_orders=faults is not None,
    )  # fmt: skip
    cluster.ask(rng, 12, num_stages=num_stages)
    cluster.kill(rng.randint(1, num_stages), at=rng.uniform(0.1, 0.8))
    assert cluster.run()
    assert cluster.head.num_recoveries == 1
    assert_right(cluster, num_stages)
