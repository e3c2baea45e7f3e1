"""How many threads workers compute with where affinity or a quota leaves them fewer cores than the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from bloombee import machine
from bloombee.config import RuntimeConfig
from bloombee.engine import model
from bloombee.machine import Share
from bloombee.roles import local_swarm
from bloombee.roles.bulletin import Bulletin
from bloombee.roles.local_swarm import LocalSwarm


@pytest.fixture
def eight_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


def test_a_worker_takes_no_more_threads_than_it_has_cores(eight_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "cores", lambda: Share(3))
    model.set_threads(None)
    assert torch.get_num_threads() == 3
    model.set_threads(2)
    assert torch.get_num_threads() == 2, "as asked"


def test_local_workers_share_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(local_swarm, "cores", lambda: Share(6))

    def threads(**settings: int) -> int:
        swarm = LocalSwarm(RuntimeConfig(**settings), (), Bulletin(), on_end=lambda *_: True, on_failed=lambda _: None)  # type: ignore[arg-type]
        return swarm._threads()

    assert [threads(workers=workers) for workers in (1, 3, 4, 7)] == [6, 2, 1, 1]
    assert threads(workers=3, threads=5) == 5


def test_threads_that_wait_for_each_other_leave_the_cores_to_others() -> None:
    """Asked of the library that runs them."""

    def spins(**asked: str) -> str:
        others = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
        environment = {**others, **asked, "OMP_DISPLAY_ENV": "verbose"}
        command = [sys.executable, "-c", "import bloombee.engine, torch"]
        said = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=True).stderr
        if "GOMP_SPINCOUNT" not in said:
            pytest.skip("this torch's threads are not those of GNU OpenMP")
        return next(line.split("'")[1] for line in said.splitlines() if "GOMP_SPINCOUNT" in line)

    assert spins() == "3000"
    assert spins(OMP_WAIT_POLICY="passive") == "0", "as asked"
    assert spins(GOMP_SPINCOUNT="70") == "70", "as asked"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_benchmarks_count_the_same_cores() -> None:
    from bench.usage import num_cores

    assert num_cores() == machine.cores().amount <= len(os.sched_getaffinity(0))
