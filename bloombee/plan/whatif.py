"""Changes to a problem, as people write them: a worker more or less, a link slower. Pure. docs/topology.md has the grammar.

-office                      without a worker
+second=office               one more, beside it and like it
flat->office bandwidth=0.1x  a link's bandwidth; rtt likewise; <-> both ways, * any end
office speed=2x              a worker's speed, memory, or access line (up, down)
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bloombee.config import parse_size
from bloombee.errors import ConfigError
from bloombee.plan.account import is_full
from bloombee.plan.cost import Cost, LinkCost
from bloombee.plan.problem import Problem
from bloombee.plan.topology import LOCAL, Device, Link, Site, Topology
from bloombee.quote import printable, quoted
from bloombee.types import HEAD, WorkerId
from bloombee.utf8 import surrogate_at

Change = Callable[[Problem], Problem]
RULE = (
    "-NAME, +NEW=LIKE, A->B bandwidth=0.1x, A<->B rtt=80ms, NAME speed=2x, NAME memory=24GB, NAME up=0.5x or NAME down=5MB/s,"
    " several with commas between them"
)
_NUMBER = r"(\d{1,20}(?:\.\d{1,20})?)"
_RATE = re.compile(_NUMBER + r"\s*([kMG]?)(bit|B)(?:/s)?")
_TIME = re.compile(_NUMBER + r"\s*(ms|s)")
_FACTOR = re.compile(_NUMBER + "x")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One or several changes at once, as they were written."""

    text: str
    changes: tuple[Change, ...]

    def apply(self, problem: Problem) -> Problem:
        """Raises ConfigError: a worker or link that is not there."""
        for change in self.changes:
            problem = change(problem)
        return problem


def parse_scenario(text: str) -> Scenario:
    """Raises ConfigError: it is none; says what is allowed."""
    if surrogate_at(text) is not None:
        raise _not_understood(text)
    return Scenario(printable(text.strip()), tuple(_change(part.strip(), text) for part in text.split(",")))


def _change(part: str, text: str) -> Change:
    if re.fullmatch(r"-[^=]+", part) and "->" not in part:
        return lambda problem: _without(problem, part[1:].strip())
    if part.startswith("+"):
        new, _, like = part[1:].partition("=")
        if new.strip() and like.strip():
            return lambda problem: _another(problem, new.strip(), like.strip())
    subject, _, setting = part.rpartition(" ")
    name, _, value = setting.partition("=")
    source, way, target = re.split(r"(<->|->)", subject, maxsplit=1) if "->" in subject else (subject.strip(), "", "")
    if way and name in ("bandwidth", "rtt"):
        return _link_change(source.strip(), target.strip(), name, _figure(name, value, text), both=way == "<->" or name == "rtt")
    if not way and source and name in ("speed", "memory", "up", "down"):
        return _worker_change(source, name, _figure(name, value, text))
    raise _not_understood(text)


def _not_understood(text: str) -> ConfigError:
    return ConfigError(f"what-if {quoted(text)}: must be {RULE}", field="what-if", value=quoted(text), allowed=RULE)


Figure = Callable[[float], float]
"""What becomes of a figure."""


def _figure(name: str, value: str, text: str) -> Figure:
    """``0.1x``, or an amount of what the field is."""
    if (factor := _FACTOR.fullmatch(value)) is not None and float(factor[1]) > 0:
        return lambda before: before * float(factor[1])
    amount = None
    if name == "rtt" and (match := _TIME.fullmatch(value)) is not None:
        amount = float(match[1]) * (1e-3 if match[2] == "ms" else 1.0)
    elif name in ("bandwidth", "up", "down") and (match := _RATE.fullmatch(value)) is not None:
        amount = float(match[1]) * 1000 ** " kMG".index(match[2] or " ") / (8 if match[3] == "bit" else 1)
    elif name == "memory":
        amount = float(parse_size(value, "what-if memory"))
    if amount is None or (amount == 0 and name != "rtt"):
        raise _not_understood(text)
    return lambda _: amount


# -- what becomes of a problem -----------------------------------------------------------------


def _worker(problem: Problem, name: str) -> WorkerId:
    for worker, device in problem.topology.devices.items():
        if printable(device.name) == printable(name):
            return worker
    names = ", ".join(printable(device.name) for device in list(problem.topology.devices.values())[:20])
    raise ConfigError(f"what-if: no worker {quoted(name)}; there are {names}", field="what-if", worker=name)


def _ends(problem: Problem, name: str) -> set[WorkerId]:
    if name == "*":
        return {HEAD, *problem.topology.devices}
    return {HEAD} if name == problem.topology.name(HEAD) else {_worker(problem, name)}


def _without(problem: Problem, name: str) -> Problem:
    gone, topology = _worker(problem, name), problem.topology
    if len(topology.devices) == 1:
        raise ConfigError(f"what-if: {name!r} is the only worker", field="what-if", worker=name)
    devices = {worker: device for worker, device in topology.devices.items() if worker != gone}
    links = {ends: link for ends, link in topology.links.items() if gone not in ends}
    sites = {worker: site for worker, site in topology.sites.items() if worker != gone}
    left = tuple(worker for worker in problem.space.order or () if worker != gone)
    if problem.space.order is not None and not left:
        raise ConfigError(f"what-if: {name!r} is the only worker of the order", field="what-if", worker=name)
    space = dataclasses.replace(problem.space, order=left or None)
    return dataclasses.replace(
        problem, topology=dataclasses.replace(topology, devices=devices, links=links, sites=sites), space=space
    )


def _another(problem: Problem, name: str, like: str) -> Problem:
    """Beside ``like``: it has the same links, shares its line if that is known, and nothing lies between the two."""
    topology, other = problem.topology, _worker(problem, like)
    if any(device.name == name for device in topology.devices.values()) or name == topology.name(HEAD):
        raise ConfigError(f"what-if: there is a {name!r} already", field="what-if", worker=name)
    new = max(topology.devices) + 1
    links = dict(topology.links) | {(new, other): LOCAL, (other, new): LOCAL}
    links |= {(new, b): link for (a, b), link in topology.links.items() if a == other}
    links |= {(a, new): link for (a, b), link in topology.links.items() if b == other}
    sites = dict(topology.sites) | ({new: topology.sites[other]} if other in topology.sites else {})
    devices = dict(topology.devices) | {new: dataclasses.replace(topology.devices[other], name=name)}
    order = problem.space.order
    if order is not None:
        order = tuple(one for worker in order for one in ((worker, new) if worker == other else (worker,)))
    return dataclasses.replace(
        problem,
        topology=dataclasses.replace(topology, devices=devices, links=links, sites=sites),
        space=dataclasses.replace(problem.space, order=order),
    )


def _link_change(source: str, target: str, name: str, figure: Figure, *, both: bool) -> Change:
    def change(problem: Problem) -> Problem:
        froms, tos = _ends(problem, source), _ends(problem, target)
        links = dict(problem.topology.links)
        hit = [(a, b) for a, b in links if (a in froms and b in tos) or (both and a in tos and b in froms)]
        if not hit:
            raise ConfigError(f"what-if: there is no link {source} -> {target}", field="what-if")
        for ends in hit:
            links[ends] = _changed_link(problem.topology, ends, name, figure)
        return dataclasses.replace(problem, topology=dataclasses.replace(problem.topology, links=links))

    return change


def _changed_link(topology: Topology, ends: tuple[WorkerId, WorkerId], name: str, figure: Figure) -> Link:
    """Of its bandwidth a part is one of what the pair gets, lines included; lines stay as they are."""
    link = topology.links[ends]
    if name == "rtt":
        return Link(link.bandwidth_bytes_per_s, figure(2 * link.latency_s) / 2)
    gets = min([link.bandwidth_bytes_per_s, *(rate for _, rate in topology.lines(*ends))])
    after = figure(gets)
    if math.isinf(after):
        what = f"{topology.name(ends[0])} -> {topology.name(ends[1])}"
        raise ConfigError(f"what-if: {what} has no limit of which that could be a part: say how wide it is", field="what-if")
    return Link(after, link.latency_s)


def _worker_change(name: str, what: str, figure: Figure) -> Change:
    def change(problem: Problem) -> Problem:
        if what in ("up", "down"):
            (worker,) = _ends(problem, name)
            return _with_line(problem, worker, name, what, figure)
        worker, topology = _worker(problem, name), problem.topology
        device = _changed_device(topology.devices[worker], what, figure)
        return dataclasses.replace(problem, topology=dataclasses.replace(topology, devices={**topology.devices, worker: device}))

    return change


def _changed_device(device: Device, what: str, figure: Figure) -> Device:
    if what == "memory":
        if device.memory_bytes is None:
            raise ConfigError(f"what-if: of {device.name!r} no limit of memory is known", field="what-if", worker=device.name)
        return dataclasses.replace(device, memory_bytes=int(figure(device.memory_bytes)))
    return device.scaled(1 / figure(1.0))


def _with_line(problem: Problem, worker: WorkerId, name: str, what: str, figure: Figure) -> Problem:
    """Of all that share it."""
    topology = problem.topology
    own = topology.sites.get(worker)
    if own is None or math.isinf(getattr(own, f"{what}_bytes_per_s")):
        raise ConfigError(f"what-if: of {name!r} no access line {what} is known", field="what-if", worker=name)

    def line(site: Site) -> Site:
        if site.name != own.name:
            return site
        if what == "up":
            return dataclasses.replace(site, up_bytes_per_s=figure(site.up_bytes_per_s))
        return dataclasses.replace(site, down_bytes_per_s=figure(site.down_bytes_per_s))

    sites = {worker: line(site) for worker, site in topology.sites.items()}
    return dataclasses.replace(problem, topology=dataclasses.replace(topology, sites=sites))


# -- what would help ---------------------------------------------------------------------------


def improvements(problem: Problem, costs: Iterable[Cost]) -> list[Scenario]:
    """Whatever the pipelines use, each twice as good by itself: devices, memory that is full, and what is narrow or long."""
    found: dict[str, Scenario] = {}
    for cost in costs:
        for index, stage in enumerate(cost.stages):
            found |= _twice(stage.name, "speed")
            if is_full(cost, index, problem.model):
                found |= _twice(stage.name, "memory")
        for link in cost.links:
            found |= _better_link(problem.topology, link)
    return list(found.values())


def _twice(name: str, what: str) -> dict[str, Scenario]:
    text = f"{name} {what}=2x"
    return {text: Scenario(text, (_worker_change(name, what, _double),))}


def _better_link(topology: Topology, link: LinkCost) -> dict[str, Scenario]:
    source, target = (topology.name(end) for end in (link.source, link.target))
    found = {}
    if link.latency_s > 0:
        text = f"{source}<->{target} rtt=0.5x"
        found[text] = Scenario(text, (_link_change(source, target, "rtt", _half, both=True),))
    rates = {name: rate for name, rate in topology.lines(link.source, link.target) if math.isfinite(rate)}
    own = topology.link(link.source, link.target).bandwidth_bytes_per_s
    if math.isfinite(own) and own <= min(rates.values(), default=math.inf):
        text = f"{source}->{target} bandwidth=2x"
        found[text] = Scenario(text, (_link_change(source, target, "bandwidth", _double, both=False),))
    elif rates:
        way = min(rates, key=lambda name: rates[name]).rpartition(" ")[2]
        found |= _twice(source if way == "up" else target, way)
    return found


def _double(before: float) -> float:
    return 2 * before


def _half(before: float) -> float:
    return before / 2
