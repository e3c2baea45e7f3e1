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
from bloombee.types import Lane, Phase, SequenceId
from bloombee.wire.messages import Commit, Committed, Done, Holding
from bloombee.wire.spoken import check_commit


def commit(
    store: SequenceStore, log: BoundaryLog, seats: Sequence[Seat], jobs: Jobs, message: Commit, now: float
) -> list[Command]:
    """Lost, doubled and late ones are harmless: what is known already is answered again.

    Raises:
        NotSpoken: a path of a tree. RemoteProtocolError: more than can be remembered. Nothing has changed then.
    """
    check_commit(message)
    for cut in message.cuts:
        store.check_cut(cut)
    lost: list[Holding] = []
    for cut in message.cuts:
        length = store.cut(cut)
        held = store.get(cut.sequence)
        if length is None or held is None:
            continue
        drop(log, jobs, cut.sequence, held, length)
        for seat in seats:
            seat.cut(cut.sequence, held.generation, length)
        if held.is_lost:
            lost.append(Holding(cut.sequence, held.generation, 0))
    done = tuple([Done(cut.sequence, cut.generation) for cut in message.cuts])
    answer = Committed(message.pipeline, message.epoch, done, store.kv.pages_free)
    return [Send(Port.SCHEDULER, Lane.CONTROL, answer), *(seats[-1].report_lost(lost, now) if lost else ())]


def drop(log: BoundaryLog, jobs: Jobs, sequence: SequenceId, held: Held, length: int) -> None:
    """Rows of generations before ``held``'s are dead from ``length`` on: not computed, not logged, not sent."""
    log.truncate(sequence, length)
    waiting, running = jobs
    for job in waiting:
        num_gone = job.cut_waiting(sequence, held.generation, length)
        held.num_prefill -= num_gone if job.queue is Phase.PREFILL else 0
    for job in running:
        job.cut_running(sequence, held.generation, length)
