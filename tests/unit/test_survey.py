"""What is asked of whom before the first plan, in which order, and what becomes of answers that do not come or make no sense."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from bloombee.errors import ConfigError
from bloombee.objective import Objective
from bloombee.pace import Pace
from bloombee.pipeline.commands import Command, MeasureHere, PlanMade, ReportLeft, ReportMeasured, Send
from bloombee.pipeline.events import MeasuredHere, Tick, WorkerGone, WorkerJoined, WorkerSaid
from bloombee.pipeline.profiles import paced, shared_cores, to_message
from bloombee.pipeline.swarm import Figure, Figures, PlanRequest, SwarmCore, SwarmLimits, is_loading, may_be_silent
from bloombee.pipeline.swarm.figures import party
from bloombee.pipeline.swarm.lines import NEAR_S, Lines
from bloombee.pipeline.swarm.meetings import MEET_S, SOON_S, SOON_TRIPS
from bloombee.pipeline.swarm.pairing import MOST_OF_ALL
from bloombee.pipeline.swarm.survey import MEASURE_S, PROFILE_S, Survey
from bloombee.plan.profile import Hardware
from bloombee.plan.profile import Profile as WorkerProfile
from bloombee.plan.topology import Cores
from bloombee.sim.cluster import sim_card
from bloombee.types import HEAD, Dtype, WorkerId
from bloombee.wire.messages import Introduce, Introduced, LinkReport, MeasureLink, Profile, Refused

PACE, HARDWARE = Pace(0.001, 0.0001, 0.0001), Hardware(1 << 30)
OBJECTIVE = Objective()
Link = tuple[WorkerId, WorkerId]


def _report(order: MeasureLink, rtt_s: float | None, bandwidth: float | None) -> LinkReport:
    low = None if bandwidth is None else 0.9 * bandwidth
    return LinkReport(order.target, "", rtt_s, 0.001, rtt_s, bandwidth, low, 0.0, None, 0, 0, 0.0, 0, order.number)


class _World:
    """A head's core and workers that answer at once, or as they are told; what is asked is kept until :meth:`answer`.

    Args:
        endpoints: of workers 1, 2, ...; empty: it has none. deaf: whom nobody gets through to, whatever it says.
        rtts: of links; 50 ms else. mute: workers that answer nothing at all.
    """

    def __init__(
        self,
        num_workers: int = 3,
        *,
        without_endpoint: tuple[WorkerId, ...] = (),
        deaf: tuple[WorkerId, ...] = (),
        mute: tuple[WorkerId, ...] = (),
        rtts: dict[Link, float] | None = None,
        figures: Figures | None = None,
        objective: Objective | None = OBJECTIVE,
    ) -> None:
        self.now = 0.0
        self.deaf, self.mute, self.rtts = deaf, mute, rtts or {}
        self.asked: list[tuple[WorkerId, Any]] = []
        self.filling: dict[Link, int] = {}
        self.filled: list[Link] = []
        self.commands: list[Command] = []
        request = PlanRequest(
            card=sim_card((0,) * num_workers),
            dtype=Dtype.FLOAT32,
            num_workers=num_workers,
            split=None,
            num_pages=4,
            page_size=4,
            max_rows=8,
            num_microbatches=2,
            objective=objective,
        )
        links = (number.to_bytes(16, "big") for number in itertools.count(1))
        self.core = SwarmCore(request, SwarmLimits(60.0), links, figures=figures or Figures())
        self.links_met: dict[bytes, set[WorkerId]] = {}
        for worker in range(1, num_workers + 1):
            self.join(worker, "" if worker in without_endpoint else f"tcp://h:{worker}")

    def join(self, worker: WorkerId, endpoint: str) -> None:
        self.tell(WorkerJoined(worker, f"w{worker}", endpoint, bytes([worker]) * 32, 1 << 30, self.now))

    def tell(self, event: Any) -> None:
        for command in self.core.handle(event):
            self.commands.append(command)
            match command:
                case Send(to=int(worker), message=Profile() | Introduce() | MeasureLink() as message):
                    self.ask(worker, message)
                case MeasureHere(order=order):
                    self.ask(HEAD, order)

    def ask(self, worker: WorkerId, message: Any) -> None:
        self.asked.append((worker, message))
        if isinstance(message, MeasureLink) and message.fills:
            link = worker, message.target
            if self.filling.get(link) != message.number:
                self.filling[link] = message.number
                self.filled.append(link)

    def answer(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Everything that is asked, and what that leads to."""
        while self.asked and not until():
            worker, message = self.asked.pop(0)
            if worker not in self.mute:
                self.answer_one(worker, message)

    def answer_one(self, worker: WorkerId, message: Any) -> None:
        match message:
            case Profile():
                self.say(worker, to_message(paced(PACE, message.config_digest.hex(), message.dtype, HARDWARE)))
            case Introduce(peer=peer):
                met = self.links_met.setdefault(peer.link, set())
                met.add(worker)
                dialled = peer.worker if peer.dials else worker
                if len(met) == 2 and dialled not in self.deaf:
                    self.say(worker, Introduced(peer.link, "", {}))
                    self.say(peer.worker, Introduced(peer.link, "", {}))
            case MeasureLink():
                self.measured(worker, message)

    def measured(self, worker: WorkerId, order: MeasureLink) -> None:
        link = worker, order.target
        if order.fills:
            self.filling.pop(link, None)
        rtt_s = self.rtts.get(link, self.rtts.get(link[::-1], 0.05))
        bandwidth = 1e6 * (1 + worker) if order.fills else None
        report = _report(order, rtt_s, bandwidth)
        if worker == HEAD:
            self.tell(MeasuredHere(report, self.now))
        else:
            self.say(worker, report)

    def say(self, worker: WorkerId, message: Any) -> None:
        self.tell(WorkerSaid(worker, message, self.now))

    def pass_s(self, seconds: float) -> None:
        """With everything answered that can be."""
        stop = self.now + seconds
        while self.now < stop:
            self.now += 0.25
            self.tell(Tick(self.now))
            self.answer()

    @property
    def survey(self) -> Survey:
        assert self.core.survey is not None
        return self.core.survey

    def of(self, kind: type) -> list[Any]:
        return [command for command in self.commands if isinstance(command, kind)]


def test_without_an_objective_nobody_is_asked_anything() -> None:
    world = _World(objective=None)
    assert not world.asked
    assert world.core.plan is not None


def test_all_is_asked_once_all_are_there_and_the_plan_is_made_when_all_is_known() -> None:
    world = _World(4)
    assert world.core.plan is None
    assert sum(isinstance(message, Profile) for _, message in world.asked) == 4
    assert sum(isinstance(message, Introduce) for _, message in world.asked) == 2 * 6
    world.answer()
    assert world.core.plan is not None
    assert len(world.of(PlanMade)) == 1
    topology = world.survey.topology()
    assert set(topology.links) == set(itertools.permutations(range(5), 2))
    assert set(topology.devices) == {1, 2, 3, 4}
    assert topology.link(2, 1).latency_s == pytest.approx(0.025)
    assert topology.link(2, 1).bandwidth_bytes_per_s == pytest.approx(0.9 * 3e6)
    assert not topology.sites


def test_no_two_links_that_share_a_line_are_kept_full_at_once_and_each_is_once() -> None:
    world = _World(8)
    seen = 0

    def look() -> bool:
        nonlocal seen
        sources, targets = [link[0] for link in world.filling], [link[1] for link in world.filling]
        assert len(set(sources)) == len(sources)
        assert len(set(targets)) == len(targets)
        seen = max(seen, len(sources))
        return False

    world.answer(until=look)
    assert world.core.plan is not None
    assert seen == 9
    assert sorted(world.filled) == sorted(itertools.permutations(range(9), 2))


@pytest.mark.parametrize("without_endpoint", [(), (1, 2)], ids=["all meet", "two cannot meet"])
def test_how_much_is_known_of_whom_is_told_until_all_is(without_endpoint: tuple[WorkerId, ...]) -> None:
    world = _World(3, without_endpoint=without_endpoint)
    assert world.of(ReportMeasured) == [ReportMeasured(worker, False, 0, 4) for worker in (1, 2, 3)]
    world.answer(until=lambda: len(world.filled) - len(world.filling) >= 6)
    world.pass_s(0.25)
    world.answer()
    assert world.core.plan is not None
    told = world.of(ReportMeasured)
    assert len(set(told)) == len(told)
    for worker in (1, 2, 3):
        known = [report.num_known for report in told if report.worker == worker]
        assert known == sorted(known)
    assert len(told) > 6  # not only when it begins and ends
    assert all({report.worker: report for report in told}[worker].is_all for worker in (1, 2, 3))
    assert isinstance(world.commands[world.commands.index(told[-1]) + 1], PlanMade)


def test_widths_wait_until_every_length_is_known() -> None:
    world = _World(mute=(2,))
    world.answer()
    assert not world.filled
    world.mute = ()
    world.pass_s(2.0)
    assert world.core.plan is not None


def test_if_one_end_does_not_get_through_the_other_tries() -> None:
    world = _World(deaf=(1,))
    world.answer()
    assert world.core.plan is None
    world.pass_s(MEET_S + 1.0)
    assert world.core.plan is not None
    topology = world.survey.topology()
    assert set(topology.links) == set(itertools.permutations(range(4), 2))
    wires = [command.message for command in world.of(Send) if isinstance(command.message, Introduce)]
    last = {frozenset((command.peer.worker, 1)): command.peer for command in wires if command.peer.link[-1] > 3}
    assert len(last) >= 1


def test_who_can_only_dial_out_is_found_out_within_some_round_trips() -> None:
    world = _World(deaf=(1,))
    world.answer()
    world.pass_s(SOON_S + SOON_TRIPS * 2 * 0.05 + 0.2)
    assert set(world.survey.topology().links) == set(itertools.permutations(range(4), 2))


def test_two_that_can_only_dial_out_cost_no_more_than_a_turn_of_each() -> None:
    world = _World(4, deaf=(1, 2))
    world.answer()
    world.pass_s(2 * (SOON_S + SOON_TRIPS * 2 * 0.05 + 0.2))
    missing = set(itertools.permutations(range(5), 2)) - set(world.survey.topology().links)
    assert missing == {(1, 2), (2, 1)}
    assert world.core.plan is not None


def test_a_link_that_takes_long_to_make_is_made_with_patience() -> None:
    world = _World(2, deaf=(1, 2))
    world.answer()
    world.pass_s(2 * (SOON_S + SOON_TRIPS * 2 * 0.05 + 0.2))
    assert world.core.plan is None
    world.deaf = ()
    world.pass_s(2.0)
    assert set(world.survey.topology().links) == set(itertools.permutations(range(3), 2))


def test_an_end_that_says_that_it_cannot_saves_the_wait() -> None:
    world = _World(2)
    order = next(message for worker, message in world.asked if worker == 2 and isinstance(message, Introduce))
    assert order.peer.dials
    world.say(2, Introduced(order.peer.link, "LinkDown", {"message": "x", "peer": 1}))
    world.asked = [(worker, one) for worker, one in world.asked if one != order]
    turned = [message.peer for worker, message in world.asked if worker == 1 and isinstance(message, Introduce)][-1]
    assert (turned.worker, turned.dials, turned.link != order.peer.link) == (2, True, True)


def test_two_that_can_only_dial_out_are_never_neighbours() -> None:
    world = _World(4, without_endpoint=(1,), deaf=(2,))
    world.answer()
    world.pass_s(2 * MEET_S + 2.0)
    assert world.core.plan is not None
    missing = set(itertools.permutations(range(5), 2)) - set(world.survey.topology().links)
    assert missing == {(1, 2), (2, 1)}


def test_a_link_that_was_made_is_the_one_that_a_plan_uses() -> None:
    world = _World(2, without_endpoint=(2,))
    world.answer()
    pair = world.core._pairs.of(1, 2)
    assert (pair.dialler, pair.listener) == (2, 1)
    made = {message.peer.link for message in (c.message for c in world.of(Send)) if isinstance(message, Introduce)}
    assert made == {pair.link}


def test_what_a_worker_does_not_say_is_given_up_and_what_follows_is_marked() -> None:
    world = _World(3)
    world.answer(until=lambda: bool(world.filled))
    world.mute = (2,)
    world.answer()
    assert world.core.plan is None
    world.pass_s(4 * MEASURE_S)
    if world.core.plan is None:  # its profile too
        world.pass_s(PROFILE_S)
    assert world.core.plan is not None
    figure = world.survey.estimates.figure(2, 3)
    assert figure is not None
    assert figure.is_estimated
    assert figure.rtt_s == 0.05
    known = world.survey.estimates.figure(1, 3)
    assert known is not None
    assert not known.is_estimated


def test_a_worker_that_answers_nothing_costs_no_more_than_its_own_figures() -> None:
    world = _World(3, mute=(3,))
    world.answer()
    world.pass_s(PROFILE_S + 1.0)
    assert world.core.plan is not None
    topology = world.survey.topology()
    assert topology.devices[3].layer.fixed_s == 0.0
    assert {(1, 2), (2, 1), (0, 1), (2, 0), (0, 3)} <= set(topology.links)
    assert (1, 3) not in topology.links


def test_a_worker_that_cannot_measure_itself_is_not_waited_for() -> None:
    world = _World(3, mute=(2,))
    world.answer()
    assert world.core.plan is None
    world.say(2, Refused("ProtocolError", {"message": "x", "refused": "Introduce"}))
    assert world.survey.is_measuring(2)
    world.say(2, Refused("DeviceError", {"message": "no such device", "refused": "Profile"}))
    world.mute = ()
    world.pass_s(2.0)
    assert world.core.plan is not None
    assert set(world.survey.profiles) == {1, 3}


def test_a_worker_may_be_silent_until_it_has_measured_itself() -> None:
    world = _World(3)
    assert all(may_be_silent(world.core, worker) for worker in (1, 2, 3))
    assert not any(is_loading(world.core, worker) for worker in (1, 2, 3))
    world.mute = (2,)
    world.answer()
    assert [may_be_silent(world.core, worker) for worker in (1, 2, 3)] == [False, True, False]


@pytest.mark.parametrize("when", ["lengths", "widths"])
@pytest.mark.parametrize("is_there", [True, False], ids=["another is there", "another comes"])
def test_who_leaves_is_forgotten_and_another_is_looked_at_in_its_place(when: str, is_there: bool) -> None:
    world = _World(3)
    if is_there:
        world.join(4, "tcp://h:4")
    world.answer(until=lambda: len(world.filled) >= 6 if when == "widths" else len(world.asked) < 10)
    old = world.survey
    world.tell(WorkerGone(1, "x", world.now))
    world.asked = [(w, m) for w, m in world.asked if w != 1 and getattr(m, "target", w) != 1]
    assert len(world.of(ReportLeft)) == 1
    if not is_there:
        world.answer()
        world.pass_s(1.0)
        assert world.core.plan is None
        world.join(4, "tcp://h:4")
    world.answer()
    assert world.core.plan is not None
    assert world.survey is not old
    topology = world.survey.topology()
    assert set(topology.devices) == {2, 3, 4}
    assert set(topology.links) == set(itertools.permutations((0, 2, 3, 4), 2))


@pytest.mark.parametrize("kind", ["report", "greeting", "profile"])
def test_answers_to_nothing_change_nothing(kind: str) -> None:
    world = _World(3)
    order = next(m for w, m in world.asked if isinstance(m, MeasureLink) and w == 1)
    link = next(m.peer.link for w, m in world.asked if isinstance(m, Introduce) and {w, m.peer.worker} == {1, 2})
    before = dict(world.survey.found), dict(world.survey.profiles)
    match kind:
        case "report":
            world.say(2, _report(order, 1e-9, 1e18))  # of another's link
            world.say(1, _report(MeasureLink(999, 0, True), 1e-9, 1e18))
            world.say(1, _report(MeasureLink(order.number, 3, True), 1e-9, 1e18))
            world.say(1, _report(MeasureLink(0, 0, True), 1e-9, 1e18))
        case "greeting":
            world.say(3, Introduced(link, "", {}))
            world.say(3, Introduced(link, "LinkDown", {}))
            world.say(3, Introduced(bytes(16), "", {}))
        case "profile":
            world.say(3, to_message(paced(PACE, "11" * 16, "float32", HARDWARE)))
            world.say(3, to_message(paced(PACE, "00" * 16, "bfloat16", HARDWARE)))
    assert (world.survey.found, world.survey.profiles) == before
    world.answer()
    assert world.core.plan is not None
    assert world.survey.topology().link(1, 2).bandwidth_bytes_per_s == pytest.approx(0.9 * 2e6)


def test_workers_next_to_each_other_share_the_line_that_leaves_their_site() -> None:
    world = _World(4, rtts={(1, 2): NEAR_S / 2, (HEAD, 3): NEAR_S / 2})

    def look() -> bool:
        site = {1: 1, 2: 1, 3: 0, 0: 0, 4: 4}
        leaving = [link for link in world.filling if site[link[0]] != site[link[1]]]
        assert len({site[source] for source, _ in leaving}) == len(leaving)
        assert len({site[target] for _, target in leaving}) == len(leaving)
        return False

    world.answer(until=look)
    assert world.core.plan is not None
    sites = world.survey.topology().sites
    assert sorted(sites) == [0, 1, 2, 3]
    assert sites[1] == sites[2] != sites[0] == sites[3]
    assert sites[1].up_bytes_per_s == pytest.approx(0.9 * 3e6)  # the widest that leaves it: of worker 2
    assert sites[1].down_bytes_per_s == pytest.approx(0.9 * 5e6)


def test_nearness_is_passed_on() -> None:
    near, far = Figure(NEAR_S / 2), Figure(0.1)
    lines = Lines({(3, 4): near, (1, 2): near, (4, 1): near, (5, 1): far})
    assert [lines.site(worker) for worker in range(1, 6)] == [1, 1, 1, 1, 5]
    assert lines.of((1, 4)) == {("out", 1), ("in", 4)}
    assert lines.of((2, 5)) == {("up", 1), ("down", 5)}


def test_what_is_known_from_before_is_believed_if_the_link_is_as_long_as_it_was() -> None:
    first = _World(3)
    first.answer()
    figures = Figures.from_json(first.core.figures.to_json())
    assert len(figures) == 12
    again = _World(3, figures=figures)
    again.answer()
    assert again.core.plan is not None
    assert not again.filled
    assert again.survey.topology() == first.survey.topology()
    moved = _World(3, figures=figures, rtts={(1, 2): 0.2})
    moved.answer()
    assert moved.core.plan is not None
    assert sorted(moved.filled) == [(1, 2), (2, 1)]
    assert moved.survey.topology().link(1, 2).latency_s == pytest.approx(0.1)


def _told(device: str = "cpu", machine: str = "a", cores: int = 4, frames_per_s: float | None = 5e3) -> WorkerProfile:
    hardware = Hardware(1 << 30, cores=cores, machine=machine, frames_per_s=frames_per_s)
    return dataclasses.replace(paced(PACE, "00", "float32", hardware), device=device)


@pytest.mark.parametrize(
    ("profiles", "cores"),
    [
        ([_told(), _told(cores=2, frames_per_s=2e3)], Cores(4, hop_cpu_s=5e-4)),
        ([_told("cuda:0 H100"), _told("cuda:1 H100")], Cores(4, hop_cpu_s=2e-4, is_computing=False)),
        ([_told(frames_per_s=None), _told(frames_per_s=None)], Cores(4)),
        ([_told(), _told(machine="b")], None),
        ([_told(), _told(machine="")], None),
        ([_told(), _told(), None], None),
        ([_told()], None),
        ([], None),
    ],
)
def test_workers_of_one_machine_take_turns_on_its_cores(profiles: list[WorkerProfile | None], cores: Cores | None) -> None:
    assert shared_cores(profiles) == cores


def test_a_plan_for_workers_of_one_machine_counts_its_cores() -> None:
    world = _World(2)
    asked = [one for one in world.asked if isinstance(one[1], Profile)]
    world.asked = [one for one in world.asked if one not in asked]
    for worker, message in asked:
        world.say(worker, to_message(dataclasses.replace(_told(), model_digest=message.config_digest.hex())))
    world.answer()
    assert world.core.plan is not None
    assert world.survey.topology().cores == Cores(4, hop_cpu_s=2e-4)


def test_who_can_only_dial_out_is_remembered_and_is_not_dialled_first_again() -> None:
    first = _World(3, deaf=(1,))
    first.answer()
    first.pass_s(MEET_S + 1.0)
    assert first.core.plan is not None
    again = _World(3, deaf=(1,), figures=Figures.from_json(first.core.figures.to_json()))
    again.answer()
    assert again.core.plan is not None  # nobody had to be waited for
    open_now = _World(3, figures=again.core.figures)
    open_now.answer()
    assert open_now.core.plan is not None


def test_a_party_that_was_reached_is_closed_no_more() -> None:
    figures = Figures()
    for in_vain in (True, False, True):
        figures.dialled("a", in_vain=in_vain)
        assert figures.is_closed("a") == in_vain
        assert Figures.from_json(figures.to_json()).is_closed("a") == in_vain
    assert not figures.is_closed("b")


def test_of_many_workers_only_links_that_a_plan_could_use_are_measured_and_the_rest_is_marked() -> None:
    """Along a line, 10 ms from each to the next; worker 7 can only be dialled by nobody."""
    num_workers = MOST_OF_ALL + 8
    place = {worker: worker * 7 % (num_workers + 1) for worker in range(num_workers + 1)}
    parties = list(place)
    rtts = {(a, b): 0.01 * abs(place[a] - place[b]) for a, b in itertools.combinations(parties, 2)}
    world = _World(num_workers, rtts=rtts, deaf=(7,))
    world.answer()
    world.pass_s(3 * MEET_S)
    assert world.core.plan is not None
    links = list(itertools.permutations(parties, 2))
    figures = {link: world.survey.estimates.figure(*link) for link in links}
    measured = {link for link, figure in figures.items() if figure is not None and not figure.is_estimated}
    assert sorted(world.filled) == sorted(measured)
    assert len(measured) < 0.5 * len(links)
    for one, other in links:
        figure = figures[one, other]
        assert figure is not None
        assert figure.rtt_s >= 0.01 * abs(place[one] - place[other]) - 1e-9
        assert figure.bandwidth_bytes_per_s == pytest.approx(1e6 * (1 + one), rel=1e-9) or figure.is_estimated
        if abs(place[one] - place[other]) == 1:
            assert (one, other) in measured
    assert world.core._pairs.of(1, 7).dialler == 7


def test_figures_that_are_none_are_refused() -> None:
    good = Figures()
    good.put("a", "b", Figure(0.1, 0.01, 1e6, 9e5))
    text = good.to_json()
    assert Figures.from_json(text) == good
    for bad in (
        "",
        "[]",
        "{}",
        "[" * 10_000,
        text.replace("0.1,", "NaN,"),
        text.replace("0.1,", "-1,"),
        text.replace("rtt_s", "x"),
    ):
        with pytest.raises(ConfigError):
            Figures.from_json(bad)
    assert party(None) == "head"
