"""What each worker that is started here is told of itself."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from bloombee.address import read_dialled
from bloombee.config import LocalWorker, RuntimeConfig, WorkerConfig
from bloombee.models.standin import standin_card
from bloombee.plan.topology import RowTime
from bloombee.roles import local_swarm
from bloombee.roles.local_swarm import LocalSwarm
from bloombee.transport.sockets import dialled_from

CARD = standin_card("standin:64x6")


class Spawner:
    """Notes what it is to start."""

    def __init__(self, **_: Any) -> None:
        self.configs: list[WorkerConfig] = []

    async def ask(self, what: str) -> None:
        assert what == "warm"

    async def spawn(self, config: WorkerConfig) -> int:
        self.configs.append(config)
        return len(self.configs)


def told(monkeypatch: pytest.MonkeyPatch, config: RuntimeConfig, places: list[LocalWorker]) -> list[WorkerConfig]:
    spawner = Spawner()
    monkeypatch.setattr(local_swarm, "SpawnerClient", lambda **_: spawner)

    async def main() -> None:
        swarm = LocalSwarm(config, places, on_end=lambda *_: None, on_failed=lambda _: None)
        await swarm.spawn(["token"] * config.workers)

    asyncio.run(main())
    return spawner.configs


def test_each_worker_is_as_its_place_says_and_else_as_the_runtime_says(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = LocalWorker(pace="1,0,0", memory_bytes=2**30, load_bytes_per_s=1e9, source="127.77.0.2")
    config = RuntimeConfig(model="standin:64x6", workers=2, pace="13,0.05,0.5/20")
    own, common = told(monkeypatch, config, [fast, LocalWorker()])
    assert (own.pace, own.memory_bytes, own.load_bytes_per_s, own.source) == ("1,0,0", 2**30, 1e9, "127.77.0.2")
    assert (common.pace, common.load_bytes_per_s, common.source) == ("13,0.05,0.5/20", None, None)
    assert common.memory_bytes == 80 * 10**9  # of the accelerator that a stand-in runs on unless told otherwise


@pytest.mark.parametrize(
    ("source", "endpoint", "dialled"),
    [
        (None, "tcp://127.0.0.1:5", "tcp://127.0.0.1:5"),
        ("127.77.0.2", "tcp://127.0.0.1:5", "tcp://127.77.0.2:0;127.0.0.1:5"),
        ("::1", "tcp://[::2]:5", "tcp://[::1]:0;[::2]:5"),
        ("127.77.0.2", "tcp://[::2]:5", "tcp://[::2]:5"),
        ("::1", "tcp://127.0.0.1:5", "tcp://127.0.0.1:5"),
    ],
)
def test_an_own_address_is_dialled_from_where_the_family_is_the_same(source: str | None, endpoint: str, dialled: str) -> None:
    assert dialled_from(source, read_dialled(endpoint)) == dialled


@pytest.mark.parametrize(
    ("config", "places", "device", "computes"),
    [
        (RuntimeConfig(workers=2), [], RowTime(), True),
        (RuntimeConfig(workers=2), [LocalWorker(memory_bytes=2**30)] * 2, RowTime(), True),
        (RuntimeConfig(workers=2, pace="10,0.1,0.2/20"), [], RowTime(0.0005, 0.000005, 0.00001), False),
    ],
)
def test_workers_that_are_plainly_here_need_no_survey(
    config: RuntimeConfig, places: list[LocalWorker], device: RowTime, computes: bool
) -> None:
    swarm = LocalSwarm(config, places, on_end=lambda *_: None, on_failed=lambda _: None)
    machine = swarm.machine(standin_card("standin:64x6") if not computes else dataclasses.replace(CARD, model="x"))
    assert machine is not None
    assert machine.device.layer.fixed_s == pytest.approx(device.fixed_s)
    assert machine.device.is_known == (not computes)
    assert machine.cores.is_computing == computes
    topology = machine.topology((3, 5))
    assert topology.cores == machine.cores
    assert {(0, 3), (3, 5), (5, 0)} <= topology.links.keys()


@pytest.mark.parametrize(
    "place", [LocalWorker(source="127.77.0.2"), LocalWorker(pace="1,0,0"), LocalWorker(listen="tcp://127.0.0.1:0")]
)
def test_workers_behind_links_of_their_own_do(place: LocalWorker) -> None:
    swarm = LocalSwarm(RuntimeConfig(workers=2), [place, LocalWorker()], on_end=lambda *_: None, on_failed=lambda _: None)
    assert swarm.machine(CARD) is None
    remote = LocalSwarm(RuntimeConfig(remote_workers=3), [], on_end=lambda *_: None, on_failed=lambda _: None)
    assert remote.machine(CARD) is None


def test_a_stand_in_is_as_quick_here_as_its_data_sheet_says() -> None:
    swarm = LocalSwarm(RuntimeConfig(workers=2), [], on_end=lambda *_: None, on_failed=lambda _: None)
    machine = swarm.machine(CARD)
    assert machine is not None
    assert machine.device.is_known
