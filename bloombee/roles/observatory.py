"""What is known of a swarm that runs: its links, its workers' profiles, its codecs; for people and for the control core."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Iterator

from bloombee.control.events import CodecSeen, DeviceSeen, LinkSeen
from bloombee.control.seen import link_seen
from bloombee.links.estimator import LinkFacts
from bloombee.links.frames import LinkMeter
from bloombee.pipeline.profiles import from_message
from bloombee.pipeline.swarm import Figures, FirstPlan, PlanRequest, SwarmCore
from bloombee.plan.plan import Plan
from bloombee.plan.profile import Profile
from bloombee.plan.topology import LOCAL, Device, Link, Topology
from bloombee.quote import printable
from bloombee.roles.link_memory import figures_path, keep_figures, read_figures
from bloombee.roles.members import Members
from bloombee.types import HEAD, WorkerId
from bloombee.wire.messages import AnyMessage, LinkReport, Profiled

LINK_FACTS = tuple(fact.name for fact in dataclasses.fields(LinkFacts))


class Observatory:
    """Of one head; nothing is known before a plan runs."""

    def __init__(self) -> None:
        self.meter = LinkMeter()
        """Of the link from the head to the first stage."""
        self.profiles: dict[WorkerId, Profile] = {}
        """What workers with a stage have said of themselves."""
        self.codec_choices: dict[tuple[WorkerId, WorkerId], str] = {}
        """(from, to) -> whether activations are coded there, and why, as their senders reported last."""
        self._plan: Plan | None = None
        self._facts: dict[tuple[WorkerId, WorkerId], LinkFacts] = {}
        self._figures: Figures | None = None
        """Of links, that are to be kept for another time when there is a plan."""

    def remember(self, request: PlanRequest) -> Figures:
        """What is known of links from before, if a planner is to use it; what comes to it is kept when there is a plan."""
        if not request.wants_survey:
            return Figures()
        self._figures = read_figures(figures_path())
        return self._figures

    def planned(self, plan: Plan) -> None:
        """It is about the links and workers of ``plan`` from now on."""
        self._plan = plan
        if self._figures is not None:
            figures, self._figures = self._figures, None  # nothing comes to them any more
            asyncio.get_running_loop().run_in_executor(None, keep_figures, figures_path(), figures)

    def lost(self, worker: WorkerId) -> None:
        """What was measured of the ring that had it is of no use."""
        self._facts = {ends: facts for ends, facts in self._facts.items() if worker not in ends}
        self.codec_choices = {ends: choice for ends, choice in self.codec_choices.items() if worker not in ends}
        self.profiles.pop(worker, None)
        self.meter.restart()

    # -- what workers say ------------------------------------------------------------------

    def heard(self, worker: WorkerId, message: AnyMessage, config_digest: str) -> CodecSeen | DeviceSeen | None:
        """What a worker says of itself or of a link; None: it is no news to a ring that runs."""
        match message:
            case LinkReport():
                return self.reported(worker, message)
            case Profiled():
                return self.profiled(worker, message, config_digest)
        return None

    def reported(self, worker: WorkerId, said: LinkReport) -> CodecSeen | None:
        """What a worker knows of its link; None: it is of no ring that is, or is gone."""
        if self._plan is None or (worker, said.target) not in self._plan.hops:
            return None
        choice = printable(said.codec)
        self.codec_choices[worker, said.target] = choice
        self._facts[worker, said.target] = LinkFacts(**{name: getattr(said, name) for name in LINK_FACTS})
        return CodecSeen(worker, said.target, choice, time.monotonic())

    def profiled(self, worker: WorkerId, said: Profiled, config_digest: str) -> DeviceSeen | None:
        """How fast a worker is; None: with another model than is served."""
        profile = from_message(said)
        if profile.model_digest != config_digest or (self._plan is not None and profile.dtype != str(self._plan.dtype)):
            return None
        self.profiles[worker] = profile
        return DeviceSeen(worker, profile.fit.stage, profile.fit.layer, profile.output, time.monotonic())

    # -- what is known ---------------------------------------------------------------------

    @property
    def links(self) -> dict[tuple[WorkerId, WorkerId], LinkFacts]:
        """(from, to) -> what their own frames have told of the ring's links so far; a worker reports twice a second."""
        if self._plan is None:
            return {}
        first = (HEAD, self._plan.stages[0].worker)
        return {first: self.meter.facts(), **self._facts} if first in self._plan.hops else dict(self._facts)

    def links_seen(self, now: float) -> Iterator[LinkSeen]:
        """Of each link that has shown its round trip, as it is expected to be."""
        for (source, target), facts in self.links.items():
            link = facts.as_expected()
            if link is not None:
                yield link_seen(source, target, link, now)

    @property
    def topology(self) -> Topology:
        """The ring as its workers' profiles and its links' frames describe it; what has said nothing takes no time."""
        plan = self._plan
        if plan is None:
            return Topology({})
        devices = {stage.worker: self._device(stage.worker, stage.name) for stage in plan.stages}
        known = {ends: facts.as_link() for ends, facts in self.links.items()}
        return Topology(devices, {ends: known.get(ends) or LOCAL for ends in plan.hops})

    def known(self, core: SwarmCore, members: Members) -> tuple[Topology, frozenset[tuple[WorkerId, WorkerId]]]:
        """All workers that are there, spares too, and their links, as they were looked at before the plan and with what they have
        shown since; and the links whose bandwidth nobody has measured. Of the head's own the round trip is known at least."""
        survey, ring = core.survey, self.topology
        surveyed, found = (None, {}) if survey is None else (survey.topology(), survey.found)
        base = FirstPlan(core.request).known(core.members.values(), surveyed)
        trips = {
            ends: Link(math.inf, rtt_s / 2)
            for worker in base.devices
            if (rtt_s := members.rtt_s(worker)) is not None
            for ends in ((HEAD, worker), (worker, HEAD))
        }
        shown = {
            ends: dataclasses.replace(link, bandwidth_bytes_per_s=base.links.get(ends, link).bandwidth_bytes_per_s)
            if facts.bandwidth_low_bytes_per_s is None
            else link
            for ends, facts in self.links.items()
            if (link := facts.as_link()) is not None
        }
        devices = {
            worker: dataclasses.replace(self._device(worker, device.name), memory_bytes=device.memory_bytes)
            if worker in self.profiles
            else device
            for worker, device in base.devices.items()
        }
        links = {**ring.links, **trips, **base.links, **shown}
        measured = {ends for ends, figure in found.items() if figure.bandwidth_bytes_per_s is not None}
        estimated = frozenset(() if survey is None else links.keys() - shown.keys() - measured)
        return dataclasses.replace(base, devices=devices, links=links), estimated

    def _device(self, worker: WorkerId, name: str) -> Device:
        profile = self.profiles.get(worker)
        return Device(name) if profile is None else profile.as_device(name)
