"""What a Commit does to a stage: sequences are cut where they are held, logged, queued, and told of to the next stage. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bloombee.pipeline.commands import Command, Send
from bloombee.pipeline.device_queue import Jobs
from bloombee.pipeline.events import Port
from bloombee.pipeline.held import Held
from bloombee.pipeline.log import BoundaryLog
from bloombee.pipeline.seat import Seat
from bloombee.pipeline.sequences import SequenceStore
from bloombee.types import Lane, Phase
from bloombee.wire.messages import Commit, Committed, Cut, Done, Holding


def commit(
    store: SequenceStore, log: BoundaryLog, seats: Sequence[Seat], jobs: Jobs, message: Commit, now: float
) -> list[Command]:
    """Lost, doubled and late ones are harmless: what is known already is answered again. What is more than can be remembered is
    not answered: it is told again."""
    lost: list[Holding] = []
    done: list[Done] = []
    for cut in message.cuts:
        if not store.can_cut(cut):
            continue
        done.append(Done(cut.sequence, cut.generation))
        for gone in store.cut(cut):
            held = store.get(cut.sequence)
            assert held is not None
            drop(log, jobs, held, gone)
            for seat in seats:
                seat.cut(gone)
                if gone.generation == held.generation:
                    seat.telling.recheck(cut.sequence)
            if held.is_lost:
                lost.append(Holding(cut.sequence, held.generation, 0))
    answer = Committed(message.pipeline, message.epoch, tuple(done), store.kv.pages_free)
    told = [Send(Port.SCHEDULER, Lane.CONTROL, answer)] if done else []
    return [*told, *(seats[-1].report_lost(lost, now) if lost else ())]


def drop(log: BoundaryLog, jobs: Jobs, held: Held, cut: Cut) -> None:
    """Rows of generations before the cut's are dead from its length on, unless they are on its path: not computed, not logged,
    not sent."""
    log.cut(cut)
    waiting, running = jobs
    for job in waiting:
        num_gone = job.cut_waiting(cut)
        held.num_prefill -= num_gone if job.queue is Phase.PREFILL else 0
    for job in running:
        job.cut_running(cut)
