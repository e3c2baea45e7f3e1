"""Before the first plan: what every worker and every link is like. Pure.

Theory of operation. Workers are asked for their profiles, and each pair of them is introduced. If the one that is told to
dial does not get through, the other end tries; where neither can be dialled the two are never neighbours. Then all links are
measured for how long they are, all at once, since a few bytes are in nobody's way. When that is known of all, how wide they
are: each is kept full for a moment, and no two at once that share a line (lines.py). Whatever link can begin does as soon as its
lines are free, so slow links hold nobody up: with N workers this takes about as long as N links, one after the other.

What is known from before (figures.py) is believed if the link is still as long as it was.

Every question has an end. A worker that does not answer leaves something unknown; a bandwidth is estimated where that is
possible. Of more workers than MOST_OF_ALL only pairs that a plan could use are measured (pairing.py), all else follows from those
(estimates.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from bloombee.links.gauge import LIMIT_S
from bloombee.pipeline.commands import Command, ReportMeasured
from bloombee.pipeline.profiles import from_message, shared_cores
from bloombee.pipeline.swarm.estimates import Estimates
from bloombee.pipeline.swarm.figures import Figure, Figures, party
from bloombee.pipeline.swarm.lines import Lines
from bloombee.pipeline.swarm.meetings import MEET_S, SOON_TURNS, Meeting
from bloombee.pipeline.swarm.member import Member
from bloombee.pipeline.swarm.pairing import MOST_OF_ALL, first_pairs, promising
from bloombee.pipeline.swarm.pairs import Pair, Pairs
from bloombee.pipeline.swarm.planning import PlanRequest
from bloombee.pipeline.swarm.questions import Link, Questions, Topic
from bloombee.plan.profile import Profile
from bloombee.plan.topology import Device, Topology
from bloombee.types import HEAD, WorkerId
from bloombee.wire import messages as m
from bloombee.wire.messages import AnyMessage, Introduce, Introduced, LinkReport, MeasureLink, Profiled, Refused

PROFILE_S = 60.0
"""To import what a device needs, to read a model's configuration and to measure a layer."""
MEASURE_S = LIMIT_S + 2.5


@dataclass(slots=True)
class Survey:
    """Of those who are there when it begins, and of whoever comes later.

    Args:
        members: everybody, kept by the owner, who says with :meth:`left` who is gone.
        pairs: gets the links that are made.
        figures: of links, from before; gets those that are measured.
        numbers: of orders to measure, each once.
    """

    members: Mapping[WorkerId, Member]
    request: PlanRequest
    pairs: Pairs
    figures: Figures
    numbers: Iterator[int]
    workers: tuple[WorkerId, ...] = ()
    profiles: dict[WorkerId, Profile] = field(default_factory=dict)
    found: dict[Link, Figure] = field(default_factory=dict)
    _questions: Questions = field(default_factory=Questions)
    _meetings: dict[bytes, Meeting] = field(default_factory=dict)
    """By link id."""
    _orders: dict[int, tuple[Topic, Link]] = field(default_factory=dict)
    """To measure, by number."""
    _tried: set[frozenset[WorkerId]] = field(default_factory=set)
    _closed: set[WorkerId] = field(default_factory=set)
    """Workers that somebody did not get through to; those that anybody did are ``_reached``, and who did ``_dialled``."""
    _reached: set[WorkerId] = field(default_factory=set)
    _dialled: set[WorkerId] = field(default_factory=set)
    _chosen: set[frozenset[WorkerId]] | None = None
    """Pairs whose links are to be measured; None: it is not known yet which are worth it."""
    _to_fill: list[Link] | None = None
    """Whose width is to be found, in order; None: not all lengths are known yet."""
    _lines: Lines = field(default_factory=lambda: Lines({}))
    _reported: dict[WorkerId, ReportMeasured] = field(default_factory=dict)
    _late: set[WorkerId] = field(default_factory=set)
    """Who came later, and is yet to be known."""

    @property
    def is_over(self) -> bool:
        return self._to_fill is not None and not self._to_fill and not self._questions

    def is_measuring(self, worker: WorkerId) -> bool:
        """Whether it has been asked for its profile and has yet to answer."""
        return (worker, worker) in self._questions.of(Topic.PROFILE)

    def begin(self, now: float) -> list[Command]:
        """Ask everybody everything that can be asked at once."""
        self.workers = tuple(self.members)
        commands = [command for worker in self.workers for command in self._look_at(worker, now)]
        for one, other in first_pairs(self.workers):
            commands += self._introduce(one, other, now)
        return commands

    def joined(self, worker: WorkerId, now: float) -> list[Command]:
        """It came later: it is looked at as the others were, and so are its links to them, which are chosen anew. Until all of
        that is known nobody plans with it. Links of workers that serve are not kept full for it."""
        self.workers = (*self.workers, worker)
        self._late.add(worker)
        self._chosen = self._to_fill = None
        return self._look_at(worker, now)

    def _look_at(self, worker: WorkerId, now: float) -> list[Command]:
        """How fast it is, and how long the way there and back."""
        card = self.request.card
        ask = m.Profile(model=card.model, config_digest=bytes.fromhex(card.config_digest), dtype=str(self.request.dtype))
        profile = self._questions.ask(Topic.PROFILE, (worker, worker), ask, now, patience_s=PROFILE_S)
        return [profile, *self._measure_both_ways((HEAD, worker), now)]

    # -- what comes back -------------------------------------------------------------------

    def said(self, worker: WorkerId, message: AnyMessage, now: float) -> list[Command]:
        """By a worker, or of the head's own links by the head. What was not asked for changes nothing."""
        commands: list[Command] = []
        match message:
            case Profiled():
                self._profiled(worker, message)
            case Introduced():
                commands = self._introduced(worker, message, now)
            case LinkReport():
                self._measured(worker, message)
            case Refused(fields={"refused": m.Profile.__name__}):
                self._questions.answered(Topic.PROFILE, (worker, worker))
        return [*commands, *self._go_on(now)]

    def left(self, worker: WorkerId, now: float) -> list[Command]:
        """A worker is gone, and nothing more is to be found of it."""
        self.workers = tuple(one for one in self.workers if one != worker)
        self._late.discard(worker)
        self.profiles.pop(worker, None)
        self.found = {link: figure for link, figure in self.found.items() if worker not in link}
        self._to_fill = None if self._to_fill is None else [link for link in self._to_fill if worker not in link]
        self._questions.forget(worker)
        self._meetings = {link: one for link, one in self._meetings.items() if worker not in one.pair.ends}
        return self._go_on(now)

    def tick(self, now: float) -> list[Command]:
        """Time has passed: say again, or give up."""
        commands = self._questions.again(now)
        missed = dict.fromkeys(tuple(sorted(link)) for topic, link in self._questions.given_up(now) if topic is Topic.MEETING)
        missed |= dict.fromkeys(tuple(sorted(one.pair.ends)) for one in self._meetings.values() if one.is_vain(now, self.found))
        for one, other in missed:
            commands += self._missed((one, other), now)
        return [*commands, *self._go_on(now)]

    def _profiled(self, worker: WorkerId, said: Profiled) -> None:
        profile, member = from_message(said), self.members.get(worker)
        wanted = self.request.card.config_digest, str(self.request.dtype)
        if member is not None and (profile.model_digest, profile.dtype) == wanted:
            self._questions.answered(Topic.PROFILE, (worker, worker))
            self.profiles[worker] = profile

    # -- meetings --------------------------------------------------------------------------

    def _introduce(self, one: WorkerId, other: WorkerId, now: float) -> list[Command]:
        """Whoever joined later dials, if the other has an address at all and is not one that nobody got through to before."""
        self._tried.add(frozenset((one, other)))
        ways = [(a, b) for a, b in ((other, one), (one, other)) if self.members[b].endpoint]
        ways.sort(key=lambda way: self.figures.is_closed(party(self.members[way[1]])))
        return self._meet(self.pairs.of(*ways[0]), now, is_only=len(ways) == 1) if ways else []

    def _meet(self, pair: Pair, now: float, *, turn: int = 0, is_only: bool = False) -> list[Command]:
        self._meetings[pair.link] = Meeting(pair, now, turn, is_only)
        return [
            self._questions.ask(Topic.MEETING, (end, peer), Introduce(pair.peer(self.members[peer])), now, patience_s=MEET_S)
            for end, peer in (pair.ends, pair.ends[::-1])
        ]

    def _introduced(self, worker: WorkerId, said: Introduced, now: float) -> list[Command]:
        meeting = self._meetings.get(said.link)
        peer = None if meeting is None else meeting.pair.other(worker)
        if meeting is None or peer is None or not self._questions.answered(Topic.MEETING, (worker, peer)):
            return []
        if said.code:
            return self._missed((worker, peer), now)
        meeting.greeted.add(worker)
        self._reached.add(meeting.pair.listener)
        self._dialled.add(meeting.pair.dialler)
        return self._measure_both_ways(meeting.pair.ends, now) if len(meeting.greeted) == 2 else []

    def _missed(self, link: Link, now: float) -> list[Command]:
        """The two have not met: perhaps the other end gets through."""
        for one in (link, link[::-1]):
            self._questions.answered(Topic.MEETING, one)
        pair = self.pairs.of(*link)
        meeting = self._meetings.pop(pair.link, None)
        if meeting is None:
            return []
        self._closed.add(pair.listener)
        only_dial = self._dialled & self._closed - self._reached
        for turn, dialler, listener in meeting.next():
            if turn < SOON_TURNS or listener not in only_dial:
                return self._meet(self.pairs.anew(dialler, listener), now, turn=turn)
        self.pairs.part(pair)
        return []

    # -- measurements ----------------------------------------------------------------------

    def _measure_both_ways(self, link: Link, now: float) -> list[Command]:
        """How long it is."""
        return [self._measure(Topic.LENGTH, one, now) for one in (link, link[::-1])]

    def _measure(self, topic: Topic, link: Link, now: float) -> Command:
        number = next(self.numbers)
        self._orders[number] = topic, link
        order = MeasureLink(number=number, target=link[1], fills=topic is Topic.WIDTH)
        return self._questions.ask(topic, link, order, now, patience_s=MEASURE_S)

    def _measured(self, worker: WorkerId, report: LinkReport) -> None:
        topic, link = self._orders.get(report.number, (Topic.LENGTH, None))
        if link != (worker, report.target) or not self._questions.answered(topic, link):
            return
        del self._orders[report.number]
        figure = Figure.of(report)
        if figure is not None:
            self._learn(link, figure)

    def _learn(self, link: Link, figure: Figure) -> None:
        source, target = (party(self.members.get(end)) for end in link)
        known = self.figures.get(source, target)
        if figure.bandwidth_bytes_per_s is None and known is not None and known.is_like(figure):
            figure = replace(known, rtt_s=figure.rtt_s, rtt_std_s=figure.rtt_std_s)
        self.found[link] = figure
        if figure.bandwidth_bytes_per_s is not None:
            self.figures.put(source, target, figure)

    def _go_on(self, now: float) -> list[Command]:
        """Begin with widths when all lengths are known, and with each as soon as its lines are free."""
        if self._to_fill is None:
            if any(self._questions.of(Topic.MEETING, Topic.LENGTH)):
                return []
            self.pairs.closed = self._dial_out
            for worker in self._closed | self._reached:
                if worker in self.members:
                    self.figures.dialled(party(self.members[worker]), in_vain=worker in self._dial_out)
            if self._chosen is None and (commands := self._choose(now)):
                return commands
            filling = set(self._questions.of(Topic.WIDTH))
            self._lines, self._to_fill = Lines(self.found), [link for link in self._unknown() if link not in filling]
        busy = {line for link in self._questions.of(Topic.WIDTH) for line in self._lines.of(link)}
        waiting, commands = [], []
        for link in self._to_fill:
            lines = self._lines.of(link)
            if busy.isdisjoint(lines):
                busy |= lines
                commands.append(self._measure(Topic.WIDTH, link, now))
            else:
                waiting.append(link)
        self._to_fill = waiting
        if self.is_over:
            self._late.clear()
        return commands

    def _choose(self, now: float) -> list[Command]:
        """All pairs, or those that are worth it; who of them have not met are introduced."""
        parties = (HEAD, *self.workers)
        if len(self.workers) <= MOST_OF_ALL:
            self._chosen = {frozenset(pair) for pair in itertools.combinations(parties, 2)}
        else:
            self._chosen = promising(parties, self.estimates)
        commands: list[Command] = []
        for one, other in itertools.combinations(self.workers, 2):
            if frozenset((one, other)) in self._chosen - self._tried:
                commands += self._introduce(one, other, now)
        return commands

    def _unknown(self) -> Iterator[Link]:
        """Links of unknown width, in an order in which neighbours share no line."""
        parties = (HEAD, *self.workers)
        for step in range(1, len(parties)):
            for index, source in enumerate(parties):
                link = source, parties[(index + step) % len(parties)]
                is_unknown = link in self.found and self.found[link].bandwidth_bytes_per_s is None
                if is_unknown and self._chosen is not None and frozenset(link) in self._chosen:
                    yield link

    # -- what is known ---------------------------------------------------------------------

    def reports(self) -> list[ReportMeasured]:
        """What has become known of workers since this was asked last."""
        waiting = None if self._to_fill is None else {*self._to_fill, *self._questions.of(Topic.WIDTH)}

        def is_known(link: Link) -> bool:
            if waiting is not None:
                return link not in waiting  # of two that cannot meet there is nothing to know
            figure = self.found.get(link)
            return figure is not None and figure.bandwidth_bytes_per_s is not None

        links: dict[WorkerId, list[Link]] = {worker: [(worker, HEAD), (HEAD, worker)] for worker in self.workers}
        for one, other in map(tuple, self._tried):
            if one in links and other in links:
                links[one].append((one, other))
                links[other].append((other, one))
        found = [
            ReportMeasured(worker, not self.is_measuring(worker), sum(map(is_known, own)), len(own))
            for worker, own in links.items()
        ]
        news = [report for report in found if report != self._reported.get(report.worker)]
        self._reported |= {report.worker: report for report in news}
        return news

    @property
    def estimates(self) -> Estimates:
        """What is known so far, and what follows from it."""
        return Estimates(self.found, self._tried, self._dial_out)

    @property
    def _dial_out(self) -> frozenset[WorkerId]:
        """Workers that nobody has got through to, now or before."""
        before = {worker for worker in self.members if self.figures.is_closed(party(self.members[worker]))}
        return frozenset((self._closed | before) - self._reached)

    def topology(self) -> Topology:
        """All of it, as a plan may count on it: bandwidths by their lower bound."""
        workers = [
            worker for worker in self.workers if worker in self.members and worker not in self._late
        ]  # others are gone since
        parties = (HEAD, *workers)
        estimates = self.estimates
        figures = {link: estimates.figure(*link) for link in itertools.permutations(parties, 2)}
        known = {link: figure for link, figure in figures.items() if figure is not None}
        return Topology(
            {worker: self._device(worker) for worker in workers},
            {link: figure.as_link() for link, figure in known.items()},
            shared_cores([self.profiles.get(worker) for worker in workers]),
            self._lines.sites(parties, known),
        )

    def _device(self, worker: WorkerId) -> Device:
        member, profile = self.members[worker], self.profiles.get(worker)
        if profile is None:
            return Device(member.name, member.memory_bytes)
        return profile.as_device(member.name, member.memory_bytes, shape=self.request.card.shape(self.request.dtype))
