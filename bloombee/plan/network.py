"""A network: who is there, their access lines, and the links between them. Pure data; ``plan/document.py`` reads it from a file.

It makes an emulated network (tools/wan_network.py) and a simulated one (:mod:`bloombee.sim.network`). In short: a node's access
line is shared by all that it sends (up) and receives (down); a link says what a pair has besides. What a pair gets is as narrow
as the narrowest of the three, and as long as all of them together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bloombee.config import LocalWorker
from bloombee.errors import ConfigError

HEAD_NODE = "head"


@dataclass(frozen=True, slots=True)
class Node:
    """A place in the network.

    Args:
        up_bytes_per_s, down_bytes_per_s: of its access line; None: no limit.
        delay_s: that the line adds to every way, one way.
        schedule: lines of a schedule (bench/schedules.py) of the line; ``forward`` is up. Simulated lines do not change.
        beside: another node whose line it shares; nothing lies between the two.
        worker: what a worker there is like: its pace, memory and how fast it loads.
    """

    name: str
    up_bytes_per_s: float | None = None
    down_bytes_per_s: float | None = None
    delay_s: float = 0.0
    schedule: tuple[str, ...] = ()
    beside: str | None = None
    worker: LocalWorker = field(default_factory=LocalWorker)


@dataclass(frozen=True, slots=True)
class DirectedLink:
    """What the way from ``source`` to ``target`` has besides their access lines.

    Args:
        bandwidth_bytes_per_s: None: no limit.
        delay_s, jitter_s: one way; the jitter is at most the delay.
        loss: probability that a packet is lost; stall_s: how long that holds a connection up, None: a round trip.
        schedule: lines of a schedule of this direction (bench/schedules.py); its delays are of the whole way.
        reachable: whether ``source`` can open a connection to ``target``.
    """

    source: str
    target: str
    bandwidth_bytes_per_s: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    stall_s: float | None = None
    schedule: tuple[str, ...] = ()
    reachable: bool = True


@dataclass(frozen=True, slots=True)
class Network:
    """Nodes by name and links by (from, to).

    Args:
        only_listed: pairs that ``links`` does not have cannot open connections; else they have their access lines.
    """

    nodes: Mapping[str, Node]
    links: Mapping[tuple[str, str], DirectedLink] = field(default_factory=dict)
    about: str = ""
    only_listed: bool = False

    def site(self, name: str) -> str:
        """The node whose access line ``name`` uses.

        Raises:
            ConfigError: no such node.
        """
        return self.node(name).beside or name

    def node(self, name: str) -> Node:
        """Raises ConfigError if there is no such node."""
        try:
            return self.nodes[name]
        except KeyError:
            raise ConfigError(f"no node {name!r}; there are {', '.join(self.nodes)}", node=name) from None

    def lines(self, source: str, target: str) -> tuple[Node | None, Node | None]:
        """The access lines on the way: whose up, whose down. None, None within a site."""
        sites = self.site(source), self.site(target)
        return (None, None) if sites[0] == sites[1] else (self.nodes[sites[0]], self.nodes[sites[1]])

    def link(self, source: str, target: str) -> DirectedLink:
        """What the pair has besides its access lines; nothing unless the file says.

        Raises:
            ConfigError: no such node.
        """
        for name in (source, target):
            self.node(name)
        return self.links.get((source, target)) or DirectedLink(source, target)

    def reaches(self, source: str, target: str) -> bool:
        """Whether ``source`` can open a connection to ``target``."""
        link = self.links.get((source, target))
        return not self.only_listed if link is None else link.reachable

    def delay_s(self, source: str, target: str) -> float:
        """Of the whole way."""
        lines = self.lines(source, target)
        return self.link(source, target).delay_s + sum(line.delay_s for line in lines if line is not None)

    def bandwidth_bytes_per_s(self, source: str, target: str) -> float | None:
        """Of the whole way for a pair that has it for itself; None: no limit."""
        up, down = self.lines(source, target)
        rates = [
            self.link(source, target).bandwidth_bytes_per_s,
            up.up_bytes_per_s if up is not None else None,
            down.down_bytes_per_s if down is not None else None,
        ]
        return min((rate for rate in rates if rate is not None), default=None)
