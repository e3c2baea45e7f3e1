from __future__ import annotations

import dataclasses

import pytest

from bloombee.errors import ConfigError, DeadlineExceeded, DeviceError, Infeasible, LinkDown, QueueFull, RemoteProtocolError
from bloombee.pipeline.commands import (
    Command,
    Conclude,
    Deliver,
    Dismiss,
    PipelineDown,
    PipelineUp,
    PlanMade,
    ReportLeft,
    ReportProgress,
    Send,
    TellScheduler,
)
from bloombee.pipeline.events import (
    Cancel,
    CancelRequest,
    Emitted,
    Ended,
    Open,
    PipelineLost,
    PlanReady,
    SchedulerSaid,
    Submit,
    Tick,
    WorkerAway,
    WorkerGone,
    WorkerJoined,
    WorkerRestored,
    WorkerSaid,
)
from bloombee.pipeline.head import HeadCore, HeadLimits, PlanRequest
from bloombee.sim.cluster import sim_card
from bloombee.types import Dtype, FinishReason
from bloombee.wire.messages import Assign, Heartbeat, Pick, Progress, Ready, Sampling, StageFailed, Verdict

SAMPLING = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, -1)
LINKS = [bytes([n]) * 16 for n in range(3)]


def _core(
    *, memory: int = 10_000, endpoint: str = "tcp://127.0.0.1:1", join: int = 3, num_layers: int = 8, **request: object
) -> HeadCore:
    card = dataclasses.replace(
        sim_card((0,) * num_layers),
        layer_parameters=(25,) * num_layers,
        embed_parameters=12,
        tail_parameters=15,
        layer_kv_elements=(2,) * num_layers,
    )
    base = PlanRequest(
        card=card,
        dtype=Dtype.FLOAT32,
        num_workers=3,
        split=None,
        num_pages=10,
        page_size=16,
        max_rows=32,
        num_microbatches=2,
    )
    limits = HeadLimits(max_waiting=2, heartbeat_s=0.5, silence_s=3.0, load_deadline_s=60.0)
    core = HeadCore(dataclasses.replace(base, **request), limits, LINKS)  # type: ignore[arg-type]
    for worker in range(1, join + 1):
        core.handle(WorkerJoined(worker, f"w{worker}", endpoint, bytes([worker]) * 32, memory, 0.0))
    return core


def _joined(**arguments: object) -> tuple[HeadCore, list[Command]]:
    core = _core(join=2, **arguments)  # type: ignore[arg-type]
    last = WorkerJoined(
        3, "w3", str(arguments.get("endpoint", "tcp://127.0.0.1:1")), b"\3" * 32, int(arguments.get("memory", 10_000)), 0.0
    )  # type: ignore[call-overload]
    return core, core.handle(last)


def _up() -> HeadCore:
    core, _ = _joined()
    for worker in (1, 2, 3):
        core.handle(WorkerSaid(worker, Ready(1, 1, 0, 0), 0.0))
    assert core.is_up
    return core


def _submit(number: int) -> Submit:
    return Submit(number, bytes(8), SAMPLING, 4, frozenset(), 0.0)


def test_the_last_worker_to_join_gets_everybody_assigned() -> None:
    core, commands = _joined()
    made = commands[0]
    assert isinstance(made, PlanMade)
    assert [(s.span.start, s.span.stop, s.weight_bytes, s.kv_bytes) for s in made.plan.stages] == [
        (0, 3, 348, 3840),
        (3, 6, 300, 3840),
        (6, 8, 260, 2560),
    ]
    assigns = [c.message for c in commands if isinstance(c, Send) and isinstance(c.message, Assign)]
    assert [a.predecessor.link if a.predecessor else None for a in assigns] == [None, LINKS[0], LINKS[1]]
    assert [a.successor.link if a.successor else None for a in assigns] == [LINKS[0], LINKS[1], None]
    assert assigns[0].successor is not None
    assert assigns[0].successor.key == b"\2" * 32
    assert core.stage_of(2) == 1


def test_it_is_up_when_every_stage_is_ready() -> None:
    core, _ = _joined()
    assert core.handle(WorkerSaid(1, Progress(1, 1, 5, 10), 0.0)) == [ReportProgress(1, 0, 5, 10)]
    for worker in (1, 2):
        assert core.handle(WorkerSaid(worker, Ready(1, 1, 0, 0), 0.0)) == []
    up, tell = core.handle(WorkerSaid(3, Ready(1, 1, 0, 0), 0.0))
    assert isinstance(up, PipelineUp)
    assert isinstance(tell, TellScheduler)
    assert isinstance(tell.message, PlanReady)
    assert core.handle(WorkerSaid(3, Ready(1, 1, 0, 0), 0.0)) == []


def test_a_worker_that_gets_on_with_loading_has_no_deadline() -> None:
    core, _ = _joined()
    for worker in (1, 2):
        core.handle(WorkerSaid(worker, Ready(1, 1, 0, 0), 0.0))
    for second in range(1, 600):
        for worker in (1, 2):
            core.handle(WorkerSaid(worker, Heartbeat(second), float(second)))
        said = core.handle(WorkerSaid(3, Progress(1, 1, second, 600), float(second))) if second % 50 == 0 else []
        assert not any(isinstance(c, PipelineDown) for c in [*said, *core.handle(Tick(float(second)))])
    assert any(isinstance(c, PipelineUp) for c in core.handle(WorkerSaid(3, Ready(1, 1, 0, 0), 600.0)))


def test_a_worker_that_makes_no_progress_with_loading_is_named() -> None:
    core, _ = _joined()
    core.handle(WorkerSaid(1, Ready(1, 1, 0, 0), 0.0))
    downs: list[tuple[int, PipelineDown]] = []
    for second in range(1, 200):
        if second < 100:
            core.handle(WorkerSaid(2, Progress(1, 1, second, 600), float(second)))
        for worker in (1, 3):
            core.handle(WorkerSaid(worker, Heartbeat(second), float(second)))
        downs += [(second, c) for c in core.handle(Tick(float(second))) if isinstance(c, PipelineDown)]
    ((when, down),) = downs
    assert when == 61
    assert isinstance(down.error, DeadlineExceeded)
    assert down.error.fields["workers"] == "w3"
    assert "no progress with loading for load_deadline_s = 60 s on w3" in down.error.message


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"split": (3, 3, 3)}, ConfigError, "add up to the model's 8 layers"),
        ({"num_layers": 2}, ConfigError, "at most one worker a layer"),
        ({"memory": 500}, Infeasible, "short by"),
        ({"endpoint": ""}, ConfigError, "--advertise"),
    ],
)
def test_a_plan_that_cannot_be(arguments: dict[str, object], kind: type[Exception], says: str) -> None:
    core, commands = _joined(**arguments)
    (down, lost) = commands
    assert isinstance(down, PipelineDown)
    assert isinstance(down.error, kind)
    assert says in str(down.error)
    assert isinstance(lost, TellScheduler)
    assert isinstance(lost.message, PipelineLost)
    assert core.handle(_submit(1)) == [Conclude(1, down.error)]


def test_kv_shrinks_to_the_smallest_worker_unless_asked_for() -> None:
    _, commands = _joined(memory=1700, pages_fixed=False)
    made = commands[0]
    assert isinstance(made, PlanMade)
    assert made.plan.groups[0].num_pages == (1700 - 348) // (16 * 24)


def test_requests_go_to_the_scheduler_and_tokens_back() -> None:
    core = _up()
    (tell,) = core.handle(_submit(7))
    assert isinstance(tell, TellScheduler)
    assert isinstance(tell.message, Open)
    sequence = tell.message.sequence
    pick = Pick(sequence, 0, 2, 5, None, ())
    assert core.handle(SchedulerSaid(Emitted(pick, None), 0.0)) == [Deliver(7, pick, None)]
    assert core.handle(CancelRequest(7, 0.0)) == [TellScheduler(Cancel(sequence, 0.0))]
    assert core.handle(SchedulerSaid(Emitted(pick, FinishReason.LENGTH), 0.0)) == [Deliver(7, pick, FinishReason.LENGTH)]
    assert core.num_requests == 0
    assert core.handle(SchedulerSaid(Emitted(pick, None), 0.0)) == []
    assert core.handle(CancelRequest(7, 0.0)) == []


def test_an_ended_sequence_concludes_its_request() -> None:
    core = _up()
    core.handle(_submit(7))
    error = DeviceError("x")
    assert core.handle(SchedulerSaid(Ended(1, error), 0.0)) == [Conclude(7, error)]


def test_the_queue_is_bounded() -> None:
    core = _up()
    core.handle(_submit(1))
    core.handle(_submit(2))
    (refused,) = core.handle(_submit(3))
    assert isinstance(refused, Conclude)
    assert isinstance(refused.error, QueueFull)


def test_a_lost_worker_ends_the_pipeline_once() -> None:
    core = _up()
    down, lost = core.handle(WorkerGone(2, "killed", 0.0))
    assert isinstance(down, PipelineDown)
    assert isinstance(down.error, LinkDown)
    assert "killed" in str(down.error)
    assert isinstance(lost, TellScheduler)
    assert core.handle(WorkerGone(3, "killed", 0.0)) == []
    assert core.handle(WorkerGone(3, "killed", 0.0)) == []


def test_silence_dismisses_a_worker_but_not_after_our_own_standstill() -> None:
    core = _up()
    for tick in range(1, 29):
        core.handle(Tick(tick / 10))
        for worker in (1, 3):
            core.handle(WorkerSaid(worker, Heartbeat(1), tick / 10))
    assert core.error is None
    commands = [c for tick in (29, 30, 31) for c in core.handle(Tick(tick / 10))]
    assert [c.worker for c in commands if isinstance(c, Dismiss)] == [2]
    assert isinstance(core.error, LinkDown)

    stalled = _up()
    stalled.handle(Tick(0.1))
    commands = stalled.handle(Tick(60.0))
    assert not any(isinstance(c, Dismiss) for c in commands)
    assert stalled.error is None


def test_silence_while_loading_is_no_reason() -> None:
    core, _ = _joined()
    core.handle(WorkerSaid(1, Ready(1, 1, 0, 0), 0.0))
    dismissed = [c.worker for tick in range(1, 100) for c in core.handle(Tick(tick / 10)) if isinstance(c, Dismiss)]
    assert dismissed == [1]


def test_heartbeats_go_to_everybody_at_their_pace() -> None:
    core = _up()
    beats = [
        (tick, c.to)
        for tick in range(1, 12)
        for c in core.handle(Tick(tick / 10))
        if isinstance(c, Send) and isinstance(c.message, Heartbeat)
    ]
    assert beats == [(5, 1), (5, 2), (5, 3), (10, 1), (10, 2), (10, 3)]


def test_workers_stuck_while_loading_are_named_together() -> None:
    core, _ = _joined()
    core.handle(WorkerSaid(1, Ready(1, 1, 0, 0), 0.0))
    for tick in range(1, 70):
        for worker in (1, 2, 3):
            core.handle(WorkerSaid(worker, Heartbeat(1), float(tick)))
        core.handle(Tick(float(tick)))
    assert isinstance(core.error, DeadlineExceeded)
    assert "w2, w3" in str(core.error)


# -- workers that leave ------------------------------------------------------------------------


def test_a_worker_that_leaves_before_the_plan_is_told_and_may_be_replaced() -> None:
    core = _core(join=2)
    assert core.handle(WorkerGone(1, "killed", 0.0)) == [ReportLeft(1, "w1", 2)]
    assert core.handle(WorkerJoined(4, "w4", "tcp://127.0.0.1:1", b"4" * 32, 10_000, 0.0)) == []
    made = core.handle(WorkerJoined(5, "w5", "tcp://127.0.0.1:1", b"5" * 32, 10_000, 0.0))[0]
    assert isinstance(made, PlanMade)
    assert [stage.name for stage in made.plan.stages] == ["w2", "w4", "w5"]


def test_nobody_is_planned_with_who_may_not_come_back() -> None:
    core = _core(join=2)
    core.handle(WorkerAway(1, 0.0))
    assert core.handle(WorkerJoined(3, "w3", "tcp://127.0.0.1:1", b"3" * 32, 10_000, 0.0)) == []
    assert isinstance(core.handle(WorkerRestored(1, 0.5))[0], PlanMade)
    core = _core(join=2)
    core.handle(WorkerAway(1, 0.0))
    core.handle(WorkerJoined(3, "w3", "tcp://127.0.0.1:1", b"3" * 32, 10_000, 0.0))
    assert core.handle(WorkerGone(1, "its connection is broken", 1.0)) == [ReportLeft(1, "w1", 1)]


def test_a_local_worker_that_is_lost_before_the_plan_ends_the_start_and_is_named() -> None:
    core = _core(join=2, takes_others=False)
    (down, _) = core.handle(WorkerGone(1, "its process was killed by SIGKILL", 0.0))
    assert isinstance(down, PipelineDown)
    assert isinstance(down.error, DeviceError)
    assert "'w1'" in str(down.error)
    assert "SIGKILL" in str(down.error)
    assert core.handle(WorkerGone(2, "too", 0.0)) == []


def test_a_local_worker_that_never_joins_ends_the_start_and_is_named() -> None:
    core = _core(join=2, takes_others=False, order=("w1", "w2", "w3"))
    for tick in range(1, 70):
        for worker in (1, 2):
            core.handle(WorkerSaid(worker, Heartbeat(1), float(tick)))
        core.handle(Tick(float(tick)))
    assert isinstance(core.error, DeadlineExceeded)
    assert " on w3:" in str(core.error)


def test_workers_from_elsewhere_are_awaited_for_ever() -> None:
    core = _core(join=2)
    for tick in range(1, 10_000, 2):
        for worker in (1, 2):
            core.handle(WorkerSaid(worker, Heartbeat(1), float(tick)))
        core.handle(Tick(float(tick)))
    assert core.error is None


def test_a_worker_whose_connection_came_back_is_told_its_stage_again_until_it_is_ready() -> None:
    core, _ = _joined()
    (again,) = core.handle(WorkerRestored(2, 0.0))
    assert isinstance(again, Send)
    assert isinstance(again.message, Assign)
    assert (again.to, again.message.stage) == (2, 1)
    core.handle(WorkerSaid(2, Ready(1, 1, 0, 0), 0.0))
    assert core.handle(WorkerRestored(2, 0.0)) == []
    assert _core(join=2).handle(WorkerRestored(2, 0.0)) == []


def test_a_broken_hop_is_named_by_both_its_ends() -> None:
    core = _up()
    fields = {"message": "its link is broken", "peer": 3}
    (down, _) = core.handle(WorkerSaid(2, StageFailed(1, 1, "LinkDown", fields), 0.0))
    assert isinstance(down, PipelineDown)
    assert str(down.error) == "worker 'w2' cannot reach worker 'w3': its link is broken"


def test_a_failed_stage_is_named() -> None:
    core = _up()
    (down, _) = core.handle(WorkerSaid(2, StageFailed(1, 1, "DeviceError", {"message": "out of memory"}), 0.0))
    assert isinstance(down, PipelineDown)
    assert isinstance(down.error, DeviceError)
    assert str(down.error) == "worker 'w2': out of memory"


def test_strangers_and_surprises_are_refused() -> None:
    core = _up()
    with pytest.raises(RemoteProtocolError):
        core.handle(WorkerSaid(9, Heartbeat(1), 0.0))
    with pytest.raises(RemoteProtocolError):
        core.handle(WorkerSaid(1, Verdict(1, 1, 0, 0, ()), 0.0))
