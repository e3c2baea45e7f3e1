"""What a worker says wrongly: it is refused or ignored, and costs no request a token."""

from __future__ import annotations

import contextlib
import random

import pytest

from bloombee.errors import ProtocolError, StalePlan
from bloombee.pipeline.events import FromStage, StageReceived, WorkerSaid
from bloombee.sim.cluster import SimCluster
from bloombee.sim.device import oracle
from bloombee.types import Kind, Lane, Priority
from bloombee.wire.messages import (
    Ack,
    AnyMessage,
    Closed,
    Forward,
    Gap,
    Holding,
    Item,
    Loaded,
    Lost,
    Pick,
    Resume,
    Resumed,
    StageFailed,
    Verdict,
    Wired,
)


def _lies(rng: random.Random) -> list[AnyMessage]:
    """About sequences, generations, frames and epochs that are not, or are another's."""
    sequence, generation = rng.choice([1, 3, 5, 1 << 40]), rng.choice([1, 7])
    epoch = rng.choice([1, 1, 1, 2])
    made_up = Item(sequence, 0, Kind.DECODE, 5, bytes(8), 1, None, None)
    return [
        Lost(1, epoch, (Holding(sequence, generation, 3),), rng.random() < 0.5),
        Lost(1, epoch, (Holding(1 << 41, 0, 0),), rng.random() < 0.5),
        Closed(1, epoch, tuple(range(50)), 1 << 50, 0),
        Resume(1, epoch, (Holding(sequence, 0, 10**6), Holding(1 << 41, 0, 1))),
        Resumed(1, epoch),
        Gap(1, epoch, sequence, generation, rng.randrange(100)),
        Ack(1, epoch, rng.choice([0, 1, 9]), 10**9, (), 0, 1, 0),
        Ack(1, epoch, Lane.BULK, 0, (10**9,), 0, 1, 0),
        Verdict(1, epoch, 1 << 30, 3, (Pick(sequence, 0, 9, 5, None, ()),), None),
        Forward(1, epoch, 10**9, 1, Lane.CONTROL, Priority.NOW, (made_up,)),
        Forward(1, epoch, rng.randrange(50), 1, 9, Priority.NOW, (made_up,)),
        StageFailed(1, 0 if epoch == 1 else 77, "Nonsense", {"peer": "2"}),
        Wired(1, 9),
        Loaded(1, 1, (0,), (0,)),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_lies_of_every_worker_to_everybody_cost_no_request_a_token(seed: int) -> None:
    """The scheduler and the stages hear all of them from each stage; the head what is no failure of the liar's own stage."""
    rng = random.Random(seed)
    cluster = SimCluster(seed=seed, num_stages=3, num_microbatches=3)
    for number in range(8):
        cluster.submit([number + 1] * rng.randint(1, 40), max_new_tokens=20, seed=number, at=rng.uniform(0, 0.5))
    heard = 0

    def lie() -> None:
        nonlocal heard
        now = cluster.clock.now
        for message in _lies(rng):
            for stage, core in list(cluster.stages.items()):
                with contextlib.suppress(ProtocolError, StalePlan):
                    cluster.head.schedule(cluster.scheduler.handle(FromStage(stage, message, now)))
                if not isinstance(message, Resume) or message.epoch == 1:  # a Resume of an epoch to come is kept for it
                    worker = cluster.workers[stage + 1]
                    with contextlib.suppress(ProtocolError, StalePlan):
                        worker.spans[-1]._do(core.handle(StageReceived(message, now)))
                if not isinstance(message, StageFailed):
                    with contextlib.suppress(ProtocolError):
                        cluster.head.do(cluster.head.swarm.handle(WorkerSaid(stage + 1, message, now)))
                heard += 1

    for _ in range(40):
        cluster.clock.call_at(rng.uniform(0.05, 0.9), lie)
    assert cluster.run()
    assert heard > 300
    assert cluster.head.down is None
    assert cluster.head.num_recoveries == 0
    for request in cluster.requests.values():
        assert request.error is None
        assert request.tokens == oracle(request.prompt, request.seed, 3, 20)
    assert all(stage.num_sequences == 0 for stage in cluster.stages.values())
