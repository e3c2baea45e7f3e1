"""Machines in network namespaces: a star of them around a router, each with addresses of its own. Needs root and Linux."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from process_kit import ENVIRONMENT

ROOT = Path(__file__).parents[1]
RELAY = """
import asyncio, sys

async def pipe(source, target):
    while part := await source.read(1 << 16):
        target.write(part)
        await target.drain()
    target.close()

async def main():
    for spec in sys.argv[1:]:
        port, host, target = spec.split(",")
        async def meet(reader, writer, host=host, target=target):
            far_reader, far_writer = await asyncio.open_connection(host, int(target))
            await asyncio.gather(pipe(reader, far_writer), pipe(far_reader, writer), return_exceptions=True)
        await asyncio.start_server(meet, "0.0.0.0", int(port))
    print("up", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
"""Forwards port,host,port as the port forwarding of a router does."""


def _can_make_namespaces() -> bool:
    if not sys.platform.startswith("linux") or os.geteuid() or not shutil.which("ip"):
        return False
    name = f"bb{os.getpid()}probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    return made and subprocess.run(["ip", "netns", "del", name], capture_output=True).returncode == 0


needs_namespaces = pytest.mark.skipif(not _can_make_namespaces(), reason="network namespaces need Linux, root and iproute2")


class Network:
    """Machines ``names`` and a ``router``. Nothing is routed between them but what a test lets the router forward.

    Args:
        lan: one Ethernet for all, machine n with 10.77.0.n and fd77::n (from 1); ``families`` says which of the two.
            Else machine n has 10.n.0.2 and knows the router as 10.n.0.1, and no other machine.
    """

    def __init__(self, names: Sequence[str], *, lan: bool = True, families: Sequence[int] = (4, 6)) -> None:
        self._prefix = f"bb{os.getpid()}"
        self._names = [*names, "router"]
        self._processes: list[subprocess.Popen[str]] = []
        for name in self._names:
            _ip("netns", "add", self._space(name))
            self._ip(name, "link", "set", "lo", "up")
        if lan:
            self._ip("router", "link", "add", "lan", "type", "bridge")
            self._ip("router", "link", "set", "lan", "up")
        for number, name in enumerate(names, start=1):
            port = f"to{number}"
            self._ip("router", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", self._space(name))
            addresses = [("10.77.0.%d/24", 4), ("fd77::%d/64", 6)] if lan else [("10.%d.0.2/24", 4)]
            for address, family in addresses:
                if family in families:
                    self._ip(name, "addr", "add", address % number, "dev", "eth0", *(["nodad"] if family == 6 else []))
            if lan:
                self._ip("router", "link", "set", port, "master", "lan")
            else:
                self._ip("router", "addr", "add", f"10.{number}.0.1/24", "dev", port)
            self._ip("router", "link", "set", port, "up")
            self._ip(name, "link", "set", "eth0", "up")
            if not lan:
                self._ip(name, "route", "add", "default", "via", f"10.{number}.0.1")

    def start(self, machine: str, *command: str) -> subprocess.Popen[str]:
        """A process on ``machine``, its three standard streams in pipes; killed at the end, or after two minutes."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self._space(machine), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=ENVIRONMENT,
        )
        self._processes.append(process)
        watchdog = threading.Timer(120, process.kill)
        watchdog.daemon = True
        watchdog.start()
        return process

    def bloombee(self, machine: str, *arguments: str) -> subprocess.Popen[str]:
        return self.start(machine, sys.executable, "-m", "bloombee", *arguments)

    def forward(self, *rules: tuple[int, str, int], on: str = "router") -> None:
        """A port of the router, or of another machine, goes to (host, port), for each rule."""
        relay = self.start(on, sys.executable, "-c", RELAY, *(",".join(map(str, rule)) for rule in rules))
        assert relay.stdout is not None
        assert relay.stdout.readline() == "up\n"

    def unplug(self, machine: str) -> None:
        """Nothing goes to it or comes from it any more, and nobody is told."""
        self._ip(machine, "link", "set", "eth0", "down")

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        for name in self._names:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", self._space(name))

    def _space(self, name: str) -> str:
        return f"{self._prefix}{name}"

    def _ip(self, machine: str, *arguments: str) -> None:
        _ip("-n", self._space(machine), *arguments)


@contextlib.contextmanager
def network(*names: str, **options: Any) -> Iterator[Network]:
    """A :class:`Network` that is gone when the block ends."""
    net = Network(names, **options)
    try:
        yield net
    finally:
        net.close()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
