from __future__ import annotations

import dataclasses
import itertools

import pytest
from msgspec.structs import replace

from bloombee.errors import ConfigError, DeadlineExceeded, DeviceError, Infeasible, LinkDown, RemoteProtocolError
from bloombee.objective import Goal, Objective
from bloombee.pipeline.commands import (
    Command,
    Dismiss,
    FindPlan,
    HandoverEnded,
    PipelineBroken,
    PipelineDown,
    PipelineUp,
    PlanMade,
    ReportLeft,
    ReportProgress,
    Send,
    StageLoaded,
    TellScheduler,
)
from bloombee.pipeline.events import (
    EpochBegan,
    EpochOver,
    HandOver,
    PipelineLost,
    PlanBroken,
    PlanDropped,
    PlanFound,
    PlanWired,
    Tick,
    WorkerAway,
    WorkerGone,
    WorkerJoined,
    WorkerRestored,
    WorkerSaid,
    WorkersEnded,
)
from bloombee.pipeline.journal import Planned, Seat
from bloombee.pipeline.swarm import (
    REPEAT_S,
    RETURN_S,
    Drains,
    Machine,
    PlanRequest,
    SwarmCore,
    SwarmLimits,
    is_loading,
    may_be_silent,
)
from bloombee.pipeline.swarm.replanning import NextPlan
from bloombee.plan.profile import Fit, Profile
from bloombee.plan.topology import Cores, Device, Link, RowTime, Topology
from bloombee.roles.status_of import state_of
from bloombee.sim.cluster import sim_card
from bloombee.types import HEAD, Dtype, SchedulerPlace, Span
from bloombee.wire.messages import Heartbeat, Load, Loaded, Loading, Retire, Retired, StageFailed, Verdict, Wire, Wired

LINKS = [bytes([n]) * 16 for n in range(8)]


def _core(
    *, memory: int = 10_000, endpoint: str = "tcp://127.0.0.1:1", join: int = 3, num_layers: int = 8, **request: object
) -> SwarmCore:
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
    limits = SwarmLimits(load_deadline_s=60.0)
    core = SwarmCore(dataclasses.replace(base, **request), limits, iter(LINKS))  # type: ignore[arg-type]
    for worker in range(1, join + 1):
        core.handle(WorkerJoined(worker, f"w{worker}", endpoint, bytes([worker]) * 32, memory, 0.0))
    return core


def _joined(**arguments: object) -> tuple[SwarmCore, list[Command]]:
    core = _core(join=2, **arguments)  # type: ignore[arg-type]
    last = WorkerJoined(
        3, "w3", str(arguments.get("endpoint", "tcp://127.0.0.1:1")), b"\3" * 32, int(arguments.get("memory", 10_000)), 0.0
    )  # type: ignore[call-overload]
    return core, core.handle(last)


def _up() -> SwarmCore:
    core, _ = _joined()
    _load_and_wire(core, 1, 2, 3)
    assert core.is_up
    return core


def _load_and_wire(core: SwarmCore, *workers: int, epoch: int = 1) -> list[Command]:
    """What everybody's having loaded and being wired leads to, from the first Wired on."""
    for worker in workers:
        core.handle(WorkerSaid(worker, _loaded(worker), 0.0))
    said = [WorkerSaid(worker, Wired(1, epoch), 0.0) for worker in (1, 2, 3, 4) if core.stage_of(worker) is not None]
    return [command for event in said for command in core.handle(event)]


def _loaded(worker: int) -> Loaded:
    """Of the first order: workers get theirs in turn, from 1 on."""
    return Loaded(worker, 1, (0,), (0,))


def _orders(commands: list[Command], kind: type) -> list[tuple[int, object]]:
    return [(c.to, c.message) for c in commands if isinstance(c, Send) and isinstance(c.message, kind)]  # type: ignore[misc]


def test_the_last_worker_to_join_gets_everybody_a_span() -> None:
    core, commands = _joined()
    made = commands[0]
    assert isinstance(made, PlanMade)
    assert [(s.span.start, s.span.stop, s.weight_bytes, s.kv_bytes) for s in made.plan.stages] == [
        (0, 3, 348, 3840),
        (3, 6, 300, 3840),
        (6, 8, 260, 2560),
    ]
    loads = _orders(commands, Load)
    assert [(worker, load.start, load.stop) for worker, load in loads] == [(1, 0, 3), (2, 3, 6), (3, 6, 8)]  # type: ignore[attr-defined]
    assert core.stage_of(2) == 1


def test_all_are_wired_when_all_have_loaded_and_it_is_up_when_all_are_wired() -> None:
    core, _ = _joined()
    assert core.handle(WorkerSaid(1, Loading(1, 5, 10), 0.0)) == [ReportProgress(1, 0, 5, 10)]
    for worker in (1, 2):
        assert core.handle(WorkerSaid(worker, _loaded(worker), 0.0)) == [StageLoaded(worker, worker - 1)]
        assert core.handle(WorkerSaid(worker, _loaded(worker), 0.0)) == []
    _, *wires, tell = core.handle(WorkerSaid(3, _loaded(3), 0.0))
    sent = [wire for _, wire in _orders(wires, Wire)]
    assert [w.predecessor.link if w.predecessor else None for w in sent] == [None, LINKS[0], LINKS[1]]  # type: ignore[attr-defined]
    assert [w.successor.link if w.successor else None for w in sent] == [LINKS[0], LINKS[1], None]  # type: ignore[attr-defined]
    assert sent[0].successor.key == b"\2" * 32  # type: ignore[attr-defined]
    assert isinstance(tell, TellScheduler)
    assert isinstance(tell.message, PlanWired)
    for worker in (1, 2):
        assert core.handle(WorkerSaid(worker, Wired(1, 1), 0.0)) == []
    (up,) = core.handle(WorkerSaid(3, Wired(1, 1), 0.0))
    assert isinstance(up, PipelineUp)
    assert core.handle(WorkerSaid(3, Wired(1, 1), 0.0)) == []


def test_a_worker_that_gets_on_with_loading_has_no_deadline() -> None:
    core, _ = _joined()
    for worker in (1, 2):
        core.handle(WorkerSaid(worker, _loaded(worker), 0.0))
    for second in range(1, 600):
        said = core.handle(WorkerSaid(3, Loading(1, second, 600), float(second))) if second % 50 == 0 else []
        assert not any(isinstance(c, PipelineDown) for c in [*said, *core.handle(Tick(float(second)))])
    assert _orders(core.handle(WorkerSaid(3, _loaded(3), 600.0)), Wire)


def test_a_worker_that_makes_no_progress_with_loading_is_named() -> None:
    core, _ = _joined()
    core.handle(WorkerSaid(1, _loaded(1), 0.0))
    downs: list[tuple[int, PipelineDown]] = []
    for second in range(1, 200):
        if second < 100:
            core.handle(WorkerSaid(2, Loading(1, second, 600), float(second)))
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
    assert core.error is down.error


def test_kv_shrinks_to_the_smallest_worker_unless_asked_for() -> None:
    _, commands = _joined(memory=1700, pages_fixed=False)
    made = commands[0]
    assert isinstance(made, PlanMade)
    assert made.plan.groups[0].num_pages == (1700 - 348) // (16 * 24)


def test_a_lost_worker_ends_the_pipeline_once() -> None:
    core = _up()
    down, lost = core.handle(WorkerGone(2, "killed", 0.0))
    assert isinstance(down, PipelineDown)
    assert isinstance(down.error, LinkDown)
    assert "killed" in str(down.error)
    assert isinstance(lost, TellScheduler)
    assert core.handle(WorkerGone(3, "killed", 0.0)) == []
    assert core.handle(WorkerGone(3, "killed", 0.0)) == []


def test_a_worker_counts_as_loading_from_its_order_until_it_has_loaded() -> None:
    core, _ = _joined()
    core.handle(WorkerSaid(1, _loaded(1), 0.0))
    assert [is_loading(core, worker) for worker in (1, 2, 3, 9)] == [False, True, True, False]


def test_workers_stuck_while_loading_are_named_together() -> None:
    core, _ = _joined()
    core.handle(WorkerSaid(1, _loaded(1), 0.0))
    for tick in range(1, 70):
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
    core = _core(join=2, takes_others=False, order=("w1", "w2", "w3"))
    (down, _) = core.handle(WorkerGone(1, "its process was killed by SIGKILL", 0.0))
    assert isinstance(down, PipelineDown)
    assert isinstance(down.error, DeviceError)
    assert "'w1'" in str(down.error)
    assert "SIGKILL" in str(down.error)
    assert core.handle(WorkerGone(2, "too", 0.0)) == []


def test_a_local_worker_that_never_joins_ends_the_start_and_is_named() -> None:
    core = _core(join=2, takes_others=False, order=("w1", "w2", "w3"))
    for tick in range(1, 70):
        core.handle(Tick(float(tick)))
    assert isinstance(core.error, DeadlineExceeded)
    assert " on w3:" in str(core.error)


def test_workers_from_elsewhere_are_awaited_for_ever() -> None:
    core = _core(join=2)
    for tick in range(1, 10_000, 2):
        core.handle(Tick(float(tick)))
    assert core.error is None


def test_a_worker_whose_connection_came_back_is_told_again_what_it_has_not_answered() -> None:
    core, _ = _joined()
    assert [to for to, _ in _orders(core.handle(WorkerRestored(2, 0.0)), Load)] == [2]
    for worker in (1, 2, 3):
        core.handle(WorkerSaid(worker, _loaded(worker), 0.0))
    assert [to for to, _ in _orders(core.handle(WorkerRestored(2, 0.0)), Wire)] == [2]
    core.handle(WorkerSaid(2, Wired(1, 1), 0.0))
    assert core.handle(WorkerRestored(2, 0.0)) == []
    assert _core(join=2).handle(WorkerRestored(2, 0.0)) == []


def test_a_broken_hop_is_named_by_both_its_ends() -> None:
    core = _up()
    fields = {"message": "its link is broken", "peer": 3}
    dismiss, down, _ = core.handle(WorkerSaid(2, StageFailed(1, 1, "LinkDown", fields), 0.0))
    assert isinstance(dismiss, Dismiss)
    assert isinstance(down, PipelineDown)
    assert "worker 'w2' cannot reach worker 'w3': its link is broken" in str(down.error)


CANNOT_LOAD = StageFailed(1, 0, "DeviceError", {"message": "out of memory"})


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("takes_others", [True, False])
def test_a_stage_that_cannot_begin_and_that_nobody_takes_is_named(takes_others: bool, epoch: int) -> None:
    core, _ = _joined(takes_others=takes_others)
    commands = core.handle(WorkerSaid(2, replace(CANNOT_LOAD, epoch=epoch), 0.0))
    (down,) = [one for one in commands if isinstance(one, PipelineDown)]
    assert isinstance(down.error, DeviceError)
    assert str(down.error) == "worker 'w2': out of memory"


def test_a_worker_that_cannot_load_before_the_first_plan_runs_is_left_out_where_a_spare_is_there() -> None:
    """Of workers from elsewhere; those that are started here are alike."""
    core, _ = _joined()
    core.handle(WorkerJoined(4, "w4", "tcp://127.0.0.1:4", b"\4" * 32, 10_000, 0.0))
    dismiss, _, broken, _, load, *_ = core.handle(WorkerSaid(2, CANNOT_LOAD, 0.0))
    assert isinstance(dismiss, Dismiss)
    assert (dismiss.worker, dismiss.stage, str(dismiss.error)) == (2, 1, "worker 'w2': out of memory")
    assert broken == PipelineBroken(2, "w2", "w4", "worker 'w2': out of memory")
    assert isinstance(load, Send)
    assert load.to == 4
    assert isinstance(_load_and_wire(core, 1, 3, 4, epoch=2)[-1], PipelineUp)
    assert [stage.worker for stage in core.plan.stages] == [1, 4, 3]  # type: ignore[union-attr]


@pytest.mark.parametrize("is_dead", [False, True])
def test_before_the_first_plan_runs_a_planner_makes_another_of_those_that_are_left(is_dead: bool) -> None:
    core = _core(objective=Objective(Goal.THROUGHPUT), topology=SLOW, num_workers=2, join=2, memory=20_000)
    assert core.plan is not None
    lost, left = (stage.worker for stage in core.plan.stages)
    commands = core.handle(WorkerGone(lost, "killed", 0.0) if is_dead else WorkerSaid(lost, CANNOT_LOAD, 0.0))
    assert not [one for one in commands if isinstance(one, PipelineDown)]
    found = _split_found(core, commands)
    assert [(to, load.start, load.stop) for to, load in _orders(found, Load)] == [(left, 0, 8)]  # type: ignore[attr-defined]
    assert core.plan.prediction is not None


def test_a_stage_that_fails_in_service_is_a_lost_worker() -> None:
    core = _up()
    dismiss, down, _ = core.handle(WorkerSaid(2, StageFailed(1, 1, "DeviceError", {"message": "out of memory"}), 0.0))
    assert isinstance(dismiss, Dismiss)
    assert dismiss.worker == 2
    assert isinstance(down, PipelineDown)
    assert "out of memory" in str(down.error)


def _with_spare(memory: int = 10_000) -> SwarmCore:
    core = _up()
    core.handle(WorkerJoined(4, "w4", "tcp://127.0.0.1:4", b"\4" * 32, memory, 0.0))
    assert core.spares == (4,)
    return core


def test_a_spare_takes_the_place_of_a_lost_worker() -> None:
    core = _with_spare()
    tell, broken, made, load, *others = core.handle(WorkerGone(2, "killed", 0.0))
    assert tell == TellScheduler(PlanBroken(0.0))
    assert broken == PipelineBroken(2, "w2", "w4", "killed")
    assert isinstance(made, PlanMade)
    assert made.plan.epoch == 2
    assert [stage.worker for stage in made.plan.stages] == [1, 4, 3]
    assert isinstance(load, Send)
    assert isinstance(load.message, Load)
    assert (load.to, load.message.start, load.message.stop) == (4, 3, 6)
    assert [(to, wire.epoch, wire.oldest) for to, wire in _orders(others, Wire)] == [(1, 2, 2), (4, 2, 2), (3, 2, 2)]  # type: ignore[attr-defined]
    assert not core.is_up
    (up,) = _load_and_wire(core, 4, epoch=2)
    assert isinstance(up, PipelineUp)
    assert core.spares == ()


def test_who_had_the_layers_before_takes_them_again() -> None:
    """Under its key, as another worker."""
    core = _with_spare()
    core.handle(WorkerGone(2, "its connection is broken", 0.0))
    _load_and_wire(core, 4, epoch=2)
    core.handle(WorkerJoined(5, "w5", "tcp://127.0.0.1:5", b"\5" * 32, 10_000, 1.0))
    core.handle(WorkerJoined(6, "w2", "tcp://127.0.0.1:1", b"\2" * 32, 10_000, 1.0))
    assert core.spares == (5, 6)
    assert core.members[6].had == Span(3, 6)
    made = next(one for one in core.handle(WorkerGone(4, "killed", 2.0)) if isinstance(one, PlanMade))
    assert [stage.worker for stage in made.plan.stages] == [1, 6, 3]


def test_a_spare_whose_connection_is_broken_takes_a_stage_only_if_no_other_can() -> None:
    core = _with_spare()
    core.handle(WorkerJoined(5, "w5", "tcp://127.0.0.1:5", b"\5" * 32, 10_000, 0.0))
    core.handle(WorkerAway(4, 0.0))
    for lost, heirs in ((2, [1, 5, 3]), (1, [4, 5, 3])):
        made = next(one for one in core.handle(WorkerGone(lost, "killed", 0.0)) if isinstance(one, PlanMade))
        assert [stage.worker for stage in made.plan.stages] == heirs


def test_links_are_made_while_a_spare_loads_and_it_is_up_when_both_are_done() -> None:
    core = _with_spare()
    core.handle(WorkerGone(2, "killed", 0.0))
    for worker in (1, 3, 4):
        assert core.handle(WorkerSaid(worker, Wired(1, 2), 0.0)) == []
    assert not core.is_up
    loaded, up = core.handle(WorkerSaid(4, _loaded(4), 0.0))
    assert loaded == StageLoaded(4, 1)
    assert isinstance(up, PipelineUp)


def test_both_orders_of_a_spare_are_said_again_until_they_are_answered() -> None:
    core = _with_spare()
    core.handle(WorkerGone(2, "killed", 0.0))
    core.handle(WorkerSaid(1, Wired(1, 2), 0.0))
    core.handle(WorkerSaid(3, Wired(1, 2), 0.0))
    again = core.handle(WorkerRestored(4, 0.5))
    assert [type(one.message) for one in again if isinstance(one, Send)] == [Load, Wire]
    core.handle(WorkerSaid(4, _loaded(4), 0.5))
    assert [to for to, _ in _orders(core.handle(WorkerRestored(4, 0.6)), Wire)] == [4]


def test_a_spare_that_is_lost_while_it_loads_is_replaced_by_another() -> None:
    core = _with_spare()
    core.handle(WorkerJoined(5, "w5", "tcp://127.0.0.1:5", b"\5" * 32, 10_000, 0.0))
    core.handle(WorkerGone(2, "killed", 0.0))
    commands = core.handle(WorkerGone(4, "killed", 0.0))
    assert [(to, load.start) for to, load in _orders(commands, Load)] == [(5, 3)]  # type: ignore[attr-defined]
    assert core.plan is not None
    assert core.plan.epoch == 3


def test_a_spare_that_is_too_small_is_none() -> None:
    core = _with_spare(memory=100)
    down, _ = core.handle(WorkerGone(2, "killed", 0.0))
    assert isinstance(down, PipelineDown)
    assert isinstance(down.error, LinkDown)


def test_while_another_worker_is_awaited_a_second_that_is_lost_is_awaited_as_well() -> None:
    """Though a spare is there that could take its place: nothing can be wired before all places are taken."""
    core, _ = _joined(waits_s=30.0)
    _load_and_wire(core, 1, 2, 3)
    core.handle(WorkerGone(2, "gone", 1.0))
    core.handle(WorkerJoined(4, "w4", "tcp://127.0.0.1:1", b"\4" * 32, 10_000, 1.0))
    assert not _orders(core.handle(WorkerGone(3, "gone", 1.0)), Load)
    assert not _orders(core.handle(Tick(1.1)), Load)
    core.handle(WorkerJoined(5, "w5", "tcp://127.0.0.1:1", b"\5" * 32, 10_000, 1.1))
    loads = _orders(core.handle(Tick(1.2)), Load)
    assert [(worker, load.start, load.stop) for worker, load in loads] == [(4, 3, 6), (5, 6, 8)]  # type: ignore[attr-defined]
    assert core.error is None


def _shares_out(**request: object) -> SwarmCore:
    core, _ = _joined(shares_out=True, **request)
    _load_and_wire(core, 1, 2, 3)
    assert core.is_up
    return core


def _asked(commands: list[Command]) -> FindPlan:
    (asked,) = (one for one in commands if isinstance(one, FindPlan))
    return asked


def _split_found(core: SwarmCore, commands: list[Command]) -> list[Command]:
    """What follows on what ``commands`` have looked for."""
    asked = _asked(commands)
    return core.handle(PlanFound(asked.number, asked.find(), 1.0))


def test_a_split_over_those_that_are_left_is_looked_for_elsewhere_and_nothing_is_done_until_it_is_found() -> None:
    core = _shares_out()
    broken, asked = core.handle(WorkerGone(2, "killed", 1.0))
    assert broken == TellScheduler(PlanBroken(1.0))
    assert isinstance(asked, FindPlan)
    assert not core.is_up
    assert core.handle(WorkerSaid(1, StageFailed(1, 1, "LinkDown", {"message": "m", "peer": 2}), 1.0)) == []
    assert core.handle(WorkerRestored(3, 1.0)) == []
    assert core.handle(Tick(1.0 + REPEAT_S)) == []
    found = core.handle(PlanFound(asked.number, asked.find(), 4.0))
    assert PipelineBroken(2, "w2", "a split over those that are left", "killed") in found
    assert [(to, load.start, load.stop) for to, load in _orders(found, Load)] == [(1, 0, 4), (3, 4, 8)]  # type: ignore[attr-defined]
    assert core.handle(PlanFound(asked.number, asked.find(), 4.0)) == []


def test_an_answer_from_before_another_loss_is_past() -> None:
    core = _shares_out(memory=20_000)
    first = _asked(core.handle(WorkerGone(2, "killed", 1.0)))
    second = core.handle(WorkerGone(3, "killed", 1.0))
    assert core.handle(PlanFound(first.number, first.find(), 1.0)) == []
    found = _split_found(core, second)
    assert [(to, load.start, load.stop) for to, load in _orders(found, Load)] == [(1, 0, 8)]  # type: ignore[attr-defined]


def test_a_split_in_which_a_spare_has_a_part_that_is_gone_is_looked_for_again() -> None:
    core = _shares_out()
    core.handle(WorkerJoined(4, "w4", "tcp://127.0.0.1:4", b"\4" * 32, 3500, 0.0))
    asked = _asked(core.handle(WorkerGone(2, "killed", 1.0)))
    plan = asked.find()
    assert plan is not None
    assert plan.stage_of(4) is not None
    assert core.handle(WorkerGone(4, "killed", 1.0)) == []
    again = _asked(core.handle(PlanFound(asked.number, plan, 1.0)))
    plan = again.find()
    assert plan is not None
    assert [stage.worker for stage in plan.stages] == [1, 3]


@pytest.mark.parametrize("waits_s", [0.0, 30.0])
def test_where_there_is_no_split_another_worker_is_awaited_or_it_is_over(waits_s: float) -> None:
    core = _shares_out(memory=4700, waits_s=waits_s)
    asked = _asked(core.handle(WorkerGone(2, "killed", 1.0)))
    core.handle(WorkerJoined(4, "w4", "tcp://127.0.0.1:4", b"\4" * 32, 4700, 1.0))
    assert core.handle(Tick(1.5)) == []
    assert asked.find() is None
    commands = core.handle(PlanFound(asked.number, None, 2.0))
    if not waits_s:
        assert isinstance(commands[0], PipelineDown)
        return
    assert PipelineBroken(2, "w2", "whoever joins next", "killed") in commands
    assert [to for to, _ in _orders(core.handle(Tick(2.5)), Load)] == [4]


def test_a_lost_spare_changes_nothing() -> None:
    core = _with_spare()
    assert core.handle(WorkerGone(4, "killed", 0.0)) == []
    assert core.is_up


def test_whoever_cannot_reach_a_neighbour_does_not_go_itself() -> None:
    core = _with_spare()
    failed = StageFailed(1, 1, "LinkDown", {"message": "the link is down", "peer": 3})
    dismiss, *_ = core.handle(WorkerSaid(2, failed, 0.0))
    assert isinstance(dismiss, Dismiss)
    assert dismiss.worker == 3
    assert core.stage_of(4) == 2
    assert core.handle(WorkerSaid(1, failed, 0.0)) == []  # of the epoch before


@pytest.mark.parametrize("peer", [3, 4, 1, 0, -1, 99, "3", "", 2.0, b"x"])
def test_a_stage_that_blames_whom_it_cannot_know_is_lost_itself(peer: int | str | float | bytes) -> None:
    """Only a neighbour can be seen from a stage: worker 3 is two stages further, worker 4 a spare."""
    core = _with_spare()
    dismiss, *_ = core.handle(WorkerSaid(1, StageFailed(1, 1, "LinkDown", {"message": "m", "peer": peer}), 0.0))  # type: ignore[dict-item]
    assert isinstance(dismiss, Dismiss)
    assert dismiss.worker == 1
    assert [core.stage_of(worker) for worker in (2, 3, 4)] == [1, 2, 0]


def test_a_neighbour_that_broke_the_rules_is_lost_and_not_who_says_so() -> None:
    core = _with_spare()
    failed = StageFailed(1, 1, "RemoteProtocolError", {"message": "frame 9 sent without credit", "peer": 1})
    dismiss, _, broken, *_ = core.handle(WorkerSaid(2, failed, 0.0))
    assert isinstance(dismiss, Dismiss)
    assert dismiss.worker == 1
    assert "worker 'w2' was told nonsense by worker 'w1': frame 9 sent without credit" in str(dismiss.error)
    assert isinstance(broken, PipelineBroken)


def test_what_a_spare_says_of_a_stage_changes_nothing() -> None:
    core = _with_spare()
    assert core.handle(WorkerSaid(4, StageFailed(1, 1, "DeviceError", {"message": "m"}), 0.0)) == []
    assert core.handle(WorkerSaid(4, StageFailed(1, 1, "LinkDown", {"message": "m", "peer": 2}), 0.0)) == []
    assert core.is_up


def test_an_error_may_have_a_field_of_any_name() -> None:
    core = _with_spare()
    fields = {"message": "m", "self": 1, "cls": 2, "code": "x", "args": 3}
    dismiss, *_ = core.handle(WorkerSaid(2, StageFailed(1, 1, "DeviceError", fields), 0.0))
    assert isinstance(dismiss, Dismiss)
    assert isinstance(dismiss.error, DeviceError)
    assert dismiss.error.fields == {**{name: value for name, value in fields.items() if name != "message"}, "worker": "w2"}


def test_orders_are_said_again_until_they_are_answered() -> None:
    core, _ = _joined()
    core.handle(WorkerSaid(1, _loaded(1), 0.0))
    again = core.handle(Tick(REPEAT_S))
    assert [to for to, _ in _orders(again, Load)] == [2, 3]
    for worker in (2, 3):
        core.handle(WorkerSaid(worker, _loaded(worker), REPEAT_S))
    core.handle(WorkerSaid(2, Wired(1, 1), REPEAT_S))
    again = core.handle(Tick(2 * REPEAT_S))
    assert [to for to, _ in _orders(again, Wire)] == [1, 3]
    assert [to for to, _ in _orders(again, Load)] == [1, 3], "they may have let go of it"


def test_a_second_loss_before_the_first_is_mended_also_frees_what_is_still_served() -> None:
    """The plan that it breaks was never wired; the seats are those of the plan before."""
    core = _core(num_workers=4, join=4, memory=100_000, shares_out=True)
    _load_and_wire(core, 1, 2, 3, 4)
    assert core.is_up
    first = _orders(_split_found(core, core.handle(WorkerGone(1, "killed", 1.0))), Retire)
    assert 4 not in {worker for worker, _ in first}, "it has the same layers as before"
    second = _orders(_split_found(core, core.handle(WorkerGone(2, "killed", 1.1))), Retire)
    assert [retire.epoch for worker, retire in second if worker == 4] == [1, 2]  # type: ignore[attr-defined]


def test_strangers_and_surprises_are_refused() -> None:
    core = _up()
    with pytest.raises(RemoteProtocolError):
        core.handle(WorkerSaid(9, Heartbeat(1), 0.0))
    with pytest.raises(RemoteProtocolError):
        core.handle(WorkerSaid(1, Verdict(1, 1, 0, 0, (), None), 0.0))


NEAR = Topology(
    {worker: Device(f"w{worker}", layer=RowTime(0.001)) for worker in (1, 2, 3)},
    {pair: Link(1e8, 0.1 if 1 in pair else 0.001) for pair in itertools.permutations((HEAD, 1, 2, 3), 2)},
)
"""One far from the others, all alike."""
SLOW = Topology(
    {worker: Device(f"w{worker}", layer=RowTime(0.1)) for worker in (1, 2, 3)}, dict.fromkeys(NEAR.links, Link(1e8, 0.001))
)


def test_with_an_objective_the_planner_decides_and_the_others_are_spares() -> None:
    core = _core(join=0, objective=Objective(Goal.LATENCY), topology=NEAR, tuned=True, num_microbatches=8)
    commands = []
    for worker in (1, 2, 3):
        commands = core.handle(WorkerJoined(worker, f"w{worker}", "tcp://127.0.0.1:1", bytes([worker]) * 32, 6000, 0.0))
    made = commands[0]
    assert isinstance(made, PlanMade)
    assert [stage.worker for stage in made.plan.stages] in ([2, 3], [3, 2])
    assert [worker for worker, _ in _orders(commands, Load)] == [stage.worker for stage in made.plan.stages]
    assert core.spares == (1,)
    prediction = made.plan.prediction
    assert prediction is not None
    assert dict(prediction.spares).keys() == {"w1"}
    assert prediction.num_microbatches <= 8


def test_a_plan_that_a_spare_has_changed_predicts_nothing() -> None:
    core = _core(join=0, objective=Objective(Goal.LATENCY), topology=NEAR, num_pages=1, num_layers=2)
    for worker in (1, 2, 3):
        core.handle(WorkerJoined(worker, f"w{worker}", "tcp://127.0.0.1:1", bytes([worker]) * 32, 10_000, 0.0))
    assert core.plan is not None
    (stage,) = core.plan.stages
    core.handle(WorkerGone(stage.worker, "killed", 1.0))
    assert (core.plan.epoch, core.plan.prediction) == (2, None)


def test_with_an_objective_and_nothing_known_workers_are_looked_at_before_there_is_a_plan() -> None:
    core = _core(objective=Objective())
    assert core.plan is None
    assert core.survey is not None
    assert core.survey.workers == (1, 2, 3)


def test_on_one_machine_everything_is_known() -> None:
    machine = Machine(Cores(2, 0.0005, 0.0005), Device("here"))
    core = _core(memory=20_000, objective=Objective(Goal.LATENCY), machine=machine)
    assert core.plan is not None
    assert len(core.plan.stages) == 1
    assert core.plan.prediction is not None
    assert len(core.plan.prediction.spares) == 2


def test_workers_without_room_for_any_plan_take_the_swarm_down() -> None:
    core = _core(join=0, objective=Objective(), topology=NEAR)
    for worker in (1, 2, 3):
        commands = core.handle(WorkerJoined(worker, f"w{worker}", "tcp://127.0.0.1:1", bytes([worker]) * 32, 400, 0.0))
    down = commands[0]
    assert isinstance(down, PipelineDown)
    assert isinstance(down.error, Infeasible)
    assert down.error.fields["constraint"] == "memory"


def test_a_machine_is_profiled_only_where_a_planner_needs_it() -> None:
    unknown, paced = (Machine(Cores(2), device) for device in (Device("here"), Device("here", layer=RowTime(0.001))))
    fit = Fit(RowTime(), RowTime(0.002), 0.0, 0.0)
    profile = Profile("00" * 16, "cpu", "float32", 1, fit, RowTime(0.003), 0, 0)
    base = _core(join=0).request
    wanting = dataclasses.replace(base, machine=unknown, objective=Objective())
    assert wanting.wants_profile
    for other in (base, dataclasses.replace(wanting, objective=None), dataclasses.replace(wanting, machine=paced)):
        assert not other.wants_profile
    measured = wanting.measured(profile)
    assert measured.machine is not None
    assert (measured.machine.device.layer, measured.wants_profile) == (RowTime(0.002), False)
    assert base.measured(profile) is base
    assert dataclasses.replace(wanting, machine=paced).measured(profile).machine is paced


def _returning(seats: tuple[tuple[int, int, int], ...], *, join: int, **request: object) -> tuple[SwarmCore, list[Command]]:
    """A core of a head after one in whose plan workers had these layers, and what came of ``join`` workers."""
    before = Planned(
        "", tuple(Seat(bytes([worker]) * 32, start, stop) for worker, start, stop in seats), SchedulerPlace.HEAD, None
    )
    core = _core(join=0, before=before, **request)
    commands: list[Command] = core.handle(Tick(1.0))
    for worker in range(1, join + 1):
        event = WorkerJoined(worker, f"w{worker}", "tcp://127.0.0.1:1", bytes([worker]) * 32, 10_000, 1.0)
        commands += core.handle(event)
    return core, commands


def _cut(commands: list[Command]) -> list[tuple[int, int, int]]:
    made = [command for command in commands if isinstance(command, PlanMade)]
    return [(stage.worker, stage.span.start, stage.span.stop) for command in made for stage in command.plan.stages]


def test_where_the_same_workers_come_back_each_has_the_layers_that_it_had() -> None:
    seats = ((3, 0, 2), (1, 2, 7), (2, 7, 8))
    core, commands = _returning(seats, join=3)
    assert _cut(commands) == list(seats)
    assert _orders(commands, Load) != []
    assert core.spares == ()


def test_those_who_had_a_stage_are_awaited_and_for_so_long_only() -> None:
    core, commands = _returning(((1, 0, 4), (2, 4, 6), (5, 6, 8)), join=4)
    assert _cut(commands) == []
    assert _cut(core.handle(Tick(1.0 + RETURN_S - 0.1))) == []
    assert _cut(core.handle(Tick(1.0 + RETURN_S))) == [(1, 0, 3), (2, 3, 6), (3, 6, 8)]


def test_one_that_comes_in_that_time_gets_its_stage_and_others_are_spares() -> None:
    core, commands = _returning(((1, 0, 4), (5, 4, 8)), join=4)
    assert _cut(commands) == []
    late = core.handle(WorkerJoined(5, "w5", "tcp://127.0.0.1:1", b"\5" * 32, 10_000, 2.0))
    assert _cut(late) == [(1, 0, 4), (5, 4, 8)]
    assert core.spares == (2, 3, 4)


def test_a_plan_that_cannot_be_any_more_is_made_anew() -> None:
    core, commands = _returning(((1, 0, 7), (2, 7, 8)), join=3, num_pages=12)  # seven layers are too many then
    assert _cut(commands) == []
    assert core.error is None
    assert _cut(core.handle(Tick(9.0))) == [(1, 0, 3), (2, 3, 6), (3, 6, 8)]


def test_a_plan_that_is_asked_for_later_is_the_best_and_not_that_of_the_head_before() -> None:
    seats = ((1, 0, 1), (2, 1, 7), (3, 7, 8))
    core, commands = _returning(seats, join=3, objective=Objective(Goal.LATENCY), topology=NEAR, tuned=True)
    assert _cut(commands) == list(seats)
    assert core.plan is not None
    plan = NextPlan.of(core.request, core.plan, core.members, None).best()
    assert {stage.worker for stage in plan.stages} <= {2, 3}  # the first one is far


def test_a_worker_that_is_to_leave_is_draining_though_there_is_no_plan_yet() -> None:
    """Who has asked for that looks whether it still is."""
    core = _core(join=1)
    assert state_of(None, core.members[1], None) == "joined"
    Drains(core).ask(1, "as was asked for")
    assert state_of(None, core.members[1], None) == "draining"


def test_another_plan_has_no_stage_for_a_worker_that_is_to_leave() -> None:
    core = _with_spare()
    core.members[2].is_draining = True
    assert core.plan is not None
    plan = NextPlan.of(core.request, core.plan, core.members, None).best()
    assert [stage.worker for stage in plan.stages] == [1, 4, 3]


def _handing_over() -> SwarmCore:
    """The spare is to have the first stage, in epoch 2."""
    core = _with_spare()
    assert core.plan is not None
    first, *others = core.plan.stages
    plan = dataclasses.replace(core.plan, stages=(dataclasses.replace(first, worker=4, name="w4"), *others))
    core.handle(HandOver(plan, "asked", 0.0))
    return core


def _handed_over() -> SwarmCore:
    """Rows go over epoch 2, and epoch 1 is not over."""
    core = _handing_over()
    core.handle(WorkerSaid(4, _loaded(4), 0.0))
    for worker in (4, 2, 3):
        core.handle(WorkerSaid(worker, Wired(1, 2), 0.0))
    core.handle(EpochBegan(2, 0.0))
    assert core.plan is not None
    assert core.plan.epoch == 2
    return core


def _ended(commands: list[Command]) -> list[HandoverEnded]:
    return [command for command in commands if isinstance(command, HandoverEnded)]


def test_the_old_epoch_is_retired_by_all_though_a_worker_that_had_it_alone_is_lost_before() -> None:
    core = _handed_over()
    assert core.handle(WorkerGone(1, "killed", 1.0)) == [TellScheduler(PlanDropped(1, 1.0))]
    retires = core.handle(EpochOver(1, 1.0))
    assert _orders(retires, Retire) == [(2, Retire(1, 1)), (3, Retire(1, 1))]
    assert core.handle(WorkerSaid(2, Retired(1, 1), 1.0)) == []
    (over,) = _ended(core.handle(WorkerSaid(3, Retired(1, 1), 1.0)))
    assert over.error is None


def test_an_answer_to_an_older_order_to_retire_ends_nothing() -> None:
    core = _handed_over()
    assert core.handle(WorkerSaid(2, Retired(1, 0), 1.0)) == []
    assert [to for to, _ in _orders(core.handle(EpochOver(1, 1.0)), Retire)] == [1, 2, 3]


def test_what_a_spare_says_of_orders_that_were_taken_back_costs_it_nothing() -> None:
    core = _handing_over()
    core.handle(WorkerSaid(4, StageFailed(1, 0, "DeviceError", {"message": "out of memory"}), 0.0))
    assert core.handle(WorkerSaid(4, Loading(1, 5, 10), 0.0)) == []
    core.handle(WorkerSaid(4, Retired(1, 2), 0.0))
    for late in (Loading(1, 5, 10), Loaded(4, 1, (0,), (0,)), Wired(1, 2)):
        assert core.handle(WorkerSaid(4, late, 0.0)) == []
    assert core.is_up


def test_a_word_of_who_was_missing_in_an_epoch_that_was_given_up_costs_nobody_a_stage() -> None:
    core = _handing_over()
    core.handle(WorkerSaid(4, _loaded(4), 0.0))
    core.handle(WorkerGone(4, "killed", 0.0))
    for worker in (2, 3):
        core.handle(WorkerSaid(worker, Retired(1, 2), 0.0))
    assert core.handovers.plans == ()
    missing = StageFailed(1, 2, "LinkDown", {"message": "the link is down", "peer": 4})
    assert core.handle(WorkerSaid(2, missing, 1.0)) == []
    dismiss, *_ = core.handle(WorkerSaid(2, StageFailed(1, 2, "DeviceError", {"message": "it has fallen off the bus"}), 1.0))
    assert isinstance(dismiss, Dismiss)
    assert dismiss.worker == 2


def test_a_worker_may_be_silent_while_it_loads_for_a_plan_that_is_to_come() -> None:
    core = _handing_over()
    assert [may_be_silent(core, worker) for worker in (1, 2, 3, 4)] == [False, False, False, True]
    core.handle(WorkerSaid(4, _loaded(4), 0.0))
    assert not may_be_silent(core, 4)


def test_a_worker_that_serves_is_serving_while_the_next_epoch_is_wired_and_when_that_was_given_up() -> None:
    core = _handing_over()
    core.handle(WorkerSaid(4, _loaded(4), 0.0))
    core.handle(WorkerSaid(2, Wired(1, 2), 0.0))
    assert core.plan is not None
    states = [state_of(core.plan, core.members[stage.worker], stage) for stage in core.plan.stages]
    assert states == ["serving"] * 3
    core.handle(WorkerGone(4, "killed", 0.0))
    assert state_of(core.plan, core.members[2], core.plan.stages[1]) == "serving"


def test_another_plan_has_spares_for_the_layers_that_they_had_before() -> None:
    """As a lost stage has."""
    core = _with_spare()
    core.handle(WorkerGone(2, "its connection is broken", 0.0))
    _load_and_wire(core, 4, epoch=2)
    core.handle(WorkerJoined(5, "w5", "tcp://127.0.0.1:5", b"\5" * 32, 10_000, 1.0))
    core.handle(WorkerJoined(6, "w2", "tcp://127.0.0.1:1", b"\2" * 32, 10_000, 1.0))
    assert core.plan is not None
    plan = NextPlan.of(core.request, core.plan, core.members, (1, 3, 5, 6)).nearest()
    assert [stage.worker for stage in plan.stages] == [1, 6, 3]


def test_whoever_waits_for_another_plan_is_told_that_nothing_runs_any_more() -> None:
    core = _handing_over()
    error = DeviceError("all workers have ended")
    over, down, _ = core.handle(WorkersEnded(error, 1.0))
    assert isinstance(over, HandoverEnded)
    assert over.error is error
    assert down == PipelineDown(error)
    assert core.handovers.plans == ()
