"""How many threads workers compute with where affinity or a quota leaves them fewer cores than the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from bloombee import machine
from bloombee.config import RuntimeConfig
from bloombee.engine import model
from bloombee.machine import Share
from bloombee.roles import local_swarm
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
        swarm = LocalSwarm(RuntimeConfig(**settings), (), on_end=lambda *_: None, on_lost=lambda: None)  # type: ignore[arg-type]
        return swarm._threads()

    assert [threads(workers=workers) for workers in (1, 3, 4, 7)] == [6, 2, 1, 1]
    assert threads(workers=3, threads=5) == 5


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_benchmarks_count_the_same_cores() -> None:
    from bench.usage import num_cores

    assert num_cores() == machine.cores().amount <= len(os.sched_getaffinity(0))
