"""Links for programs that choose their own connections: a relay before each machine, whoever dials it."""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType
from typing import Self

from bench.profiles import LinkProfile, Profile
from tools.wan import Link, Wan


class Star:
    """Machines 0 ... N - 1, machine k listening on ``ports[k]`` and reached by the others as ``relays[k]``.

    What goes to machine k is shaped as the ring's link to it, what comes from it as the ring's link from it, so any two machines
    are as far apart as neighbours of the ring are, and no byte between two machines passes more than one relay. Connections on
    one machine use ``ports`` and are not shaped. A schedule is that of the ring's link to the machine.
    """

    def __init__(self, machines: int, profile: Profile) -> None:
        self.profile = profile
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(machines)]
            self.ports = [one.getsockname()[1] for one in sockets]
        self.relays = [f"127.0.0.1:{port}" for port in self.ports]
        self._wan: Wan | None = None

    def __enter__(self) -> Self:
        """Raises WanError."""
        if len(self.ports) > 1:
            links = [Link.of(f"machine{k}", f"127.0.0.1:{port}", self._link(k)) for k, port in enumerate(self.ports)]
            self._wan = Wan(links).__enter__()
            self.relays = [self._wan.address(link.name) for link in links]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._wan is not None:
            self._wan.close()

    def shape(self, profile: Profile) -> None:
        """From now on; a schedule begins anew."""
        self.profile = profile
        if self._wan is None:
            return
        if any(link.schedule is not None for link in profile.links):
            self._wan.start()
            return
        for machine in range(len(self.ports)):
            link = self._link(machine)
            self._wan.set(f"machine{machine}", forward=link.forward, backward=link.backward)

    def link_bytes(self) -> list[int]:
        """So far, of each relay, both ways together."""
        if self._wan is None:
            return []
        stats = self._wan.stats()
        return [stats[f"machine{k}"].forward.bytes_in + stats[f"machine{k}"].backward.bytes_in for k in range(len(self.ports))]

    @property
    def relay_pid(self) -> int | None:
        return None if self._wan is None else self._wan.pid

    def _link(self, machine: int) -> LinkProfile:
        into = self.profile.link((machine - 1) % len(self.ports))
        return LinkProfile(into.forward, self.profile.link(machine).forward, into.schedule)
