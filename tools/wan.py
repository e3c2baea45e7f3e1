"""Emulated long links between processes on one machine, usable by itself.

Each link is a TCP port that relays to a target with the delay, bandwidth, jitter, losses and outages asked for; the
two directions are shaped apart. All connections of a link share its wire, and at most one bandwidth-delay product
(or 64 KB) is queued before the relay stops reading, so a sender feels what it would feel on the real path. docs/wan.md
has the model, its limits and its accuracy.

From Python::

    link = Link("a->b", target="127.0.0.1:7000", forward=Shape(bandwidth_bits_per_s=100e6, delay_s=0.030))
    with Wan([link]) as wan:
        connect_to(wan.address("a->b"))
        wan.set("a->b", forward=Shape(bandwidth_bits_per_s=10e6, delay_s=0.030))
        wan.stats()["a->b"].forward.busy_s

From a shell: ``python tools/wan.py --help``.
"""

from __future__ import annotations

import argparse
import errno
import json
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

if __package__ in (None, ""):  # run as a program: the repository's root is where the imports below live
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.arguments import OptionError, Parser, check_file, out_file, parse_whole, reason, seconds, shown, whole
from bench.profiles import LinkProfile, Profile, load_profile, profile_names
from bench.schedules import Schedule, read_schedule
from bench.shapes import UNSHAPED, Shape
from bloombee.errors import ConfigError
from tools.wan_native import PortInUse, WanError
from tools.wan_network import Network, NetworkStats
from tools.wan_wires import Address, DirectionStats, LinkStats, Refused, Shapes, Steps, Wires, periods_of

__all__ = ["DirectionStats", "Link", "LinkStats", "Network", "PortInUse", "Schedule", "Shape", "Wan", "WanError"]

STDOUT = Path("-")

EXAMPLES = """
examples:
  # what listens on 7000 is reached through port 7001: 100 Mbit/s each way, 60 ms round trip
  python tools/wan.py --link 7001=127.0.0.1:7000 --profile 100M-60ms

  # a ring of three links, counters every 5 s
  python tools/wan.py --link 7001=:7000 --link 8001=:8000 --link 9001=:9000 --profile three-regions --stats 5

  # a trace file over a profile; bench/schedules.py has the grammar
  python tools/wan.py --link 7001=:7000 --profile 125M-60ms --schedule drop.txt --json counters.json

  # a network of nodes from a file (docs/wan.md); the head's own process listens on 7700
  python tools/wan.py --network network.json --node head=7700

  # is the emulator exact on this machine? about a minute and a half, best on an idle one
  python tools/wan.py --self-test
"""


@dataclass(frozen=True, slots=True)
class Link:
    """One link: connections to ``listen_host:listen_port`` go on to ``target``.

    Args:
        name: unique among the links of one :class:`Wan`.
        target: ``host:port``; it need not listen yet.
        listen_port: 0 takes any free port; see :meth:`Wan.address`.
        forward: the way from whoever dials to the target; ``backward``: the way back, None: the same.
        schedule: changes over time, counted from :meth:`Wan.start`.
    """

    name: str
    target: str
    listen_port: int = 0
    forward: Shape = UNSHAPED
    backward: Shape | None = None
    schedule: Schedule | None = None
    listen_host: str = "127.0.0.1"

    @classmethod
    def of(cls, name: str, target: str, profile: LinkProfile, *, listen_port: int = 0) -> Link:
        return cls(name, target, listen_port, profile.forward, profile.backward, profile.schedule)

    @property
    def shapes(self) -> Shapes:
        return self.forward, self.backward or self.forward

    @property
    def steps(self) -> Steps:
        """Of its two directions.

        Raises:
            ScheduleError: the schedule cannot be followed from the link's shapes.
        """
        if self.schedule is None:
            return (), ()
        forward, backward = self.shapes
        return self.schedule.steps(forward, "forward"), self.schedule.steps(backward, "backward")


class Wan:
    """Links that exist from ``with`` to the end of its block. Thread-safe.

    Raises:
        WanError: a name twice, a bad address, no compiler; on entry :class:`PortInUse` for a busy port.
        ScheduleError: a schedule that cannot be followed from its link's shapes.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = {link.name: link for link in links}
        if not links or len(self._links) != len(links):
            raise WanError(f"links need distinct names, at least one: {[link.name for link in links]}")
        self._numbers = {name: number for number, name in enumerate(self._links)}
        self._shapes = {link.name: link.shapes for link in links}
        self._steps = {link.name: link.steps for link in links}
        self._endpoints = {
            link.name: (_numeric(link.listen_host, link.listen_port), _numeric(*split_address(link.target))) for link in links
        }
        self._ports: list[int] = []
        self._wires: Wires | None = None
        self._last: dict[str, LinkStats] = {}
        self.scheduler = ""
        """How the relay is scheduled: ``SCHED_RR`` where it may, else ``SCHED_OTHER``."""

    def __enter__(self) -> Self:
        self._wires = Wires()
        try:
            for name, (listen, target) in self._endpoints.items():
                self._add(self._wires, self._links[name], listen, target)
            self._ports, self.scheduler = self._listen(self._wires)
        except BaseException:
            self._wires.abandon()
            self._wires = None
            raise
        self._wires.start()
        return self

    def _add(self, wires: Wires, link: Link, listen: Address, target: Address) -> None:
        number = wires.add_link(link.shapes, self._steps[link.name], periods_of((link.schedule,) * 2))
        wires.route(wires.add_listener(listen, target), number, side=0)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends all links; :meth:`stats` then answers with the last counters. May be called twice."""
        if self._wires is None:
            return
        wires, self._wires = self._wires, None
        self._last = self._parse(wires.close())

    @property
    def links(self) -> list[Link]:
        """In their order."""
        return list(self._links.values())

    @property
    def pid(self) -> int:
        """Of the relay process, to account for its CPU time."""
        return self._running.pid

    def address(self, name: str) -> str:
        """``host:port`` to dial instead of the target."""
        return f"{self._links[name].listen_host}:{self._ports[self._number(name)]}"

    def start(self) -> None:
        """All links take their first shapes again, and their schedules begin now."""
        for name, link in self._links.items():
            self._shapes[name] = link.shapes
            self._send_shapes(name)
        self._running.start()

    def set(self, name: str, *, forward: Shape | None = None, backward: Shape | None = None, is_up: bool = True) -> None:
        """Changes a link from now on, until its schedule's next step; None leaves a direction's shape as it was set.

        Args:
            is_up: False is an outage of both directions: nothing enters the wire until the next change.
        """
        self._number(name)
        before = self._shapes[name]
        self._shapes[name] = (forward or before[0], backward or before[1])
        self._send_shapes(name, is_up)

    def reset(self, name: str) -> None:
        """Reset the link's connections, from both ends at once; what is on its way is lost."""
        self._running.reset(self._number(name))

    def stats(self) -> dict[str, LinkStats]:
        """Counters by link name; after the end, the last ones."""
        return self._last if self._wires is None else self._parse(self._wires.stats())

    @property
    def _running(self) -> Wires:
        if self._wires is None:
            raise WanError("the links are not up: use `with Wan(...)`")
        return self._wires

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            raise WanError(f"no link {name!r}; there are {', '.join(self._numbers)}")
        return self._numbers[name]

    def _send_shapes(self, name: str, is_up: bool = True) -> None:
        self._running.shape_link(self._numbers[name], self._shapes[name], is_up=is_up)

    def _listen(self, wires: Wires) -> tuple[list[int], str]:
        try:
            return wires.listen()
        except Refused as error:
            link = self.links[error.number]
            kind = PortInUse if error.errno == errno.EADDRINUSE else WanError
            raise kind(f"link {link.name!r} cannot listen on {link.listen_host}:{link.listen_port}: {error.reason}") from error

    def _parse(self, answer: dict[str, Any]) -> dict[str, LinkStats]:
        return {name: LinkStats.of(name, facts) for name, facts in zip(self._links, answer["links"], strict=True)}


def split_address(text: str) -> tuple[str, int]:
    """``host:port``, ``:port`` or ``port`` (host 127.0.0.1).

    Raises:
        WanError: no port from 0 to 65535.
    """
    host, _, port = text.rpartition(":")
    number = parse_whole(port, 0, 65535)
    if number is None:
        raise WanError(f"address {shown(text)}: must be HOST:PORT with a port from 0 to 65535")
    return host.strip("[]") or "127.0.0.1", number


def _numeric(host: str, port: int) -> tuple[str, int]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # of the IDNA encoding: what it says helps nobody
        raise WanError(f"address {shown(host)}: not a host name (its parts have 1 to 63 characters)") from error
    except (OSError, OverflowError) as error:
        raise WanError(f"address {host}:{port}: {error}") from error
    return str(found[0][4][0]), port


def main(arguments: Sequence[str] | None = None) -> int:
    """0: served, or the self-test passed; 2: bad input; 1: the counters could not be written, or the self-test failed."""
    try:
        parser = _parser()
        options = parser.parse_args(arguments)
        if options.self_test:
            from tools.wan_selftest import self_test  # it imports this module

            return self_test()
        if bool(options.link) == bool(options.network):
            parser.error("give at least one --link, or --network, or --self-test")
        running: Wan | Network = _network(options) if options.network else Wan(_links(options))
        if options.json is not None and options.json != STDOUT:
            check_file(options.json)
        return _serve(options, running)
    except (OptionError, ConfigError, WanError) as error:
        print(f"wan: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="wan.py", description=__doc__.split("\n")[0], epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--link",
        action="append",
        default=[],
        metavar="[HOST:]PORT=[HOST:]PORT",
        help="listen on the first, relay to the second; once per link, in ring order",
    )
    parser.add_argument("--network", metavar="FILE", help="a network of nodes from a JSON file, instead of links (docs/wan.md)")
    parser.add_argument(
        "--node",
        action="append",
        default=[],
        metavar="NAME=PORT",
        help="where a node's own process listens; default: any free port",
    )
    parser.add_argument(
        "--profile",
        default="lan",
        help=f"BANDWIDTH-RTT (100M-60ms), scaled:NAME, or one of {', '.join(profile_names())}; default lan",
    )
    parser.add_argument("--hidden", type=whole(1, 10**6), help="hidden size of the model, for scaled: profiles")
    parser.add_argument("--schedule", metavar="FILE", help="changes over time for every link, instead of the profile's own")
    parser.add_argument(
        "--json", type=out_file, metavar="FILE", help="write the counters there at the end ('-': standard output)"
    )
    parser.add_argument("--stats", type=seconds(0.01, 86400), metavar="SECONDS", help="print the counters this often")
    parser.add_argument(
        "--self-test", action="store_true", help="measure the emulator itself: a table of asked and measured, about a minute"
    )
    return parser


def _links(options: argparse.Namespace) -> list[Link]:
    profile: Profile = load_profile(options.profile, hidden=options.hidden)
    schedule = None if options.schedule is None else read_schedule(options.schedule)
    links = []
    for number, text in enumerate(options.link):
        listen, equals, target = text.partition("=")
        if not equals:
            raise WanError(f"--link {shown(text)}: must be [HOST:]PORT=[HOST:]PORT")
        host, port = split_address(listen)
        link = Link.of(listen, target, profile.link(number), listen_port=port)
        links.append(replace(link, listen_host=host, schedule=schedule or link.schedule))
    return links


def _network(options: argparse.Namespace) -> Network:
    ports = {}
    for text in options.node:
        name, _, port = text.rpartition("=")
        number = parse_whole(port, 1, 65535)
        if not name or number is None:
            raise WanError(f"--node {shown(text)}: must be NAME=PORT with a port from 1 to 65535")
        ports[name] = number
    return Network.from_json(options.network, ports=ports)


def _said(running: Wan | Network) -> list[str]:
    """What somebody needs to know who starts processes on it."""
    if isinstance(running, Network):
        return [
            f"{name}: listens on {running.listen(name)}, dialled at {running.endpoint(name)}, dials from {running.source(name)}"
            for name in running.spec.nodes
        ]
    return [
        f"{running.address(link.name)} -> {link.target}   forward {link.shapes[0]}; backward {link.shapes[1]}"
        for link in running.links
    ]


def _serve(options: argparse.Namespace, running: Wan | Network) -> int:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with running:
        for line in _said(running):
            print(line, flush=True)
        while not stop.wait(options.stats):
            print(json.dumps(_as_json(running)), flush=True)
    try:
        if options.json == STDOUT:
            print(json.dumps(_as_json(running)), flush=True)
        elif options.json is not None:
            options.json.write_text(json.dumps(_as_json(running), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        print(f"wan: the counters could not be written to {options.json}: {reason(error)}", file=sys.stderr)
        return 1
    return 0


def _as_json(running: Wan | Network) -> dict[str, Any]:
    stats = running.stats()
    if isinstance(stats, NetworkStats):
        pairs = {link.name: asdict(link) for link in stats.links.values()}
        lines = {way: {name: asdict(line) for name, line in getattr(stats, way).items()} for way in ("up", "down")}
        return {"links": pairs, **lines, "strangers": stats.strangers}
    return {name: asdict(link) for name, link in stats.items()}


if __name__ == "__main__":
    sys.exit(main())
