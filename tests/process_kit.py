"""``bloombee`` as processes of their own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from tools.ports import free_ports

BLOOMBEE = [sys.executable, "-m", "bloombee"]
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if not k.startswith("BLOOMBEE_")}, "HF_HUB_OFFLINE": "1"}


class Awaiting:
    """A server whose swarm lacks its one worker."""

    def __init__(self, process: subprocess.Popen[str], port: int, token: str) -> None:
        self.process = process
        self.port = port
        self._token = token

    def worker(self) -> subprocess.Popen[bytes]:
        """The one that it waits for; ends with the swarm."""
        return subprocess.Popen([*BLOOMBEE, "worker", "--join", self._token], env=ENVIRONMENT)


@contextlib.contextmanager
def awaiting() -> Iterator[Awaiting]:
    (port,) = free_ports(1)
    command = [*BLOOMBEE, "serve", "--workers", "1", "--listen", "tcp://127.0.0.1:0", "--http", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        assert process.stderr is not None
        yield Awaiting(process, port, next(line.split()[-1] for line in process.stderr if "--join" in line))
    finally:
        process.kill()
        process.communicate()
