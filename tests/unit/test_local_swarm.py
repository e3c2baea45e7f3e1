"""What each worker that is started here is told of itself."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from bloombee.address import read_dialled
from bloombee.config import LocalWorker, RuntimeConfig, WorkerConfig
from bloombee.errors import BloomBeeError
from bloombee.models.standin import standin_card
from bloombee.plan.topology import RowTime
from bloombee.roles import local_swarm
from bloombee.roles.bulletin import Bulletin
from bloombee.roles.local_swarm import LocalSwarm
from bloombee.roles.restarts import FACTOR, SECOND_S, WINDOW_S, Restarts
from bloombee.roles.spawner_client import SpawnerClient
from bloombee.transport.keys import KeyPair
from bloombee.transport.sockets import dialled_from
from bloombee.types import SwarmEvent

CARD = standin_card("standin:64x6")


class Spawner:
    """Notes what it is to start."""

    def __init__(self, **_: Any) -> None:
        self.configs: list[WorkerConfig] = []
        self.keys: list[KeyPair] = []
        self.news = asyncio.Event()

    async def ask(self, what: str) -> None:
        assert what == "warm"

    async def spawn(self, config: WorkerConfig, keys: KeyPair) -> int:
        self.configs.append(config)
        self.keys.append(keys)
        self.news.set()
        return len(self.configs)

    async def until(self, count: int) -> None:
        """It has been told to start so many."""
        while len(self.configs) < count:
            self.news.clear()
            await self.news.wait()


def told(monkeypatch: pytest.MonkeyPatch, config: RuntimeConfig, places: list[LocalWorker]) -> list[WorkerConfig]:
    spawner = Spawner()
    monkeypatch.setattr(local_swarm, "SpawnerClient", lambda **_: spawner)

    async def main() -> None:
        swarm = LocalSwarm(config, places, Bulletin(), on_end=lambda *_: True, on_failed=lambda _: None)
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
    swarm = LocalSwarm(config, places, Bulletin(), on_end=lambda *_: True, on_failed=lambda _: None)
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
    swarm = LocalSwarm(
        RuntimeConfig(workers=2), [place, LocalWorker()], Bulletin(), on_end=lambda *_: True, on_failed=lambda _: None
    )
    assert swarm.machine(CARD) is None
    remote = LocalSwarm(RuntimeConfig(remote_workers=3), [], Bulletin(), on_end=lambda *_: True, on_failed=lambda _: None)
    assert remote.machine(CARD) is None


def test_a_stand_in_is_as_quick_here_as_its_data_sheet_says() -> None:
    swarm = LocalSwarm(RuntimeConfig(workers=2), [], Bulletin(), on_end=lambda *_: True, on_failed=lambda _: None)
    machine = swarm.machine(CARD)
    assert machine is not None
    assert machine.device.is_known


# -- workers that die --------------------------------------------------------------------------

KILLED = 9
"""As waitpid has it."""


class Dying:
    """Two workers and a spare; the head takes note of who is lost, and goes on as long as ``goes_on``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, restarts: int) -> None:
        self.spawner = Spawner()
        monkeypatch.setattr(local_swarm, "SpawnerClient", lambda **_: self.spawner)
        self.ended: list[str] = []
        self.failed: list[BloomBeeError] = []
        self.told: list[SwarmEvent] = []
        self.goes_on = True
        bulletin = Bulletin()
        bulletin.listen(lambda event: self.told.append(event) if event is not None else None)
        config = RuntimeConfig(model="standin:64x6", workers=2, spares=1, restarts=restarts)
        self.swarm = LocalSwarm(config, [], bulletin, on_end=self._on_end, on_failed=self.failed.append)

    def _on_end(self, name: str, reason: str) -> bool:
        self.ended.append(f"{name}: {reason}")
        return self.goes_on

    async def start(self) -> None:
        await self.swarm.spawn(["a", "b", "c"])
        for name in self.swarm.names:
            self.swarm.joined(name)


def test_a_worker_that_dies_is_started_again_as_it_was_and_under_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        the = Dying(monkeypatch, restarts=2)
        the.swarm._restarts = Restarts(2, second_s=0.001)
        await the.start()
        the.swarm._exited(2, KILLED)
        await the.spawner.until(4)
        assert the.ended == ["local-1: its process was killed by SIGKILL"]
        assert (the.spawner.configs[3], the.spawner.keys[3]) == (the.spawner.configs[1], the.spawner.keys[1])
        assert len({keys.public for keys in the.spawner.keys}) == 3
        assert [(event.kind, event.name, event.reason) for event in the.told] == [
            ("restarted", "local-1", "its process was killed by SIGKILL")
        ]
        assert the.swarm.processes == {1: "local-0", 3: "local-2", 4: "local-1"}
        the.swarm._exited(4, 1 << 8)  # before it has joined: nobody has to be told
        await the.spawner.until(5)
        assert (len(the.ended), the.failed) == (1, [])
        the.swarm.joined("local-1")
        the.swarm._exited(5, KILLED)  # a third time within ten minutes
        assert len(the.ended) == 2
        assert [(event.kind, event.reason) for event in the.told[1:]] == [
            ("restarted", "its process ended with status 1; in 0.001 s"), ("abandoned", "its process was killed by SIGKILL"),
        ]  # fmt: skip
        assert all(task.done() for task in the.swarm._starting)

    asyncio.run(main())


@pytest.mark.parametrize(("status", "goes_on", "restarts"), [(0, True, 3), (KILLED, False, 3), (KILLED, True, 0)])
def test_one_that_ends_in_order_or_is_of_no_use_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch, status: int, goes_on: bool, restarts: int
) -> None:
    async def main() -> None:
        the = Dying(monkeypatch, restarts)
        await the.start()
        the.goes_on = goes_on
        the.swarm._exited(1, status)
        assert len(the.ended) == 1
        assert the.swarm._starting == set()
        assert [event.kind for event in the.told] == ["abandoned"] * (restarts == 0)

    asyncio.run(main())


def test_a_worker_that_cannot_even_start_ends_the_swarm_if_it_is_to_have_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        the = Dying(monkeypatch, restarts=3)
        await the.swarm.spawn(["a", "b", "c"])
        the.swarm._exited(2, 1 << 8)
        assert [error.message for error in the.failed] == ["worker 'local-1' could not start: its process ended with status 1"]
        assert not the.swarm._starting
        the.swarm._exited(3, 1 << 8)
        await the.spawner.until(4)
        assert the.spawner.configs[3].name == "local-2"

    asyncio.run(main())


def test_deaths_that_are_long_past_count_no_more() -> None:
    restarts = Restarts(3)
    assert [restarts.begin("a", at) for at in (0.0, 1.0, 2.0, 3.0)] == [0.0, SECOND_S, SECOND_S * FACTOR, None]
    assert restarts.begin("b", 3.0) == 0.0
    assert [restarts.begin("a", WINDOW_S + at) for at in (0.5, 0.6)] == [SECOND_S * FACTOR, None]


def test_a_process_that_ends_at_once_was_there_before() -> None:
    """Its number and its end may come in one go."""

    async def main() -> None:
        happened: list[str] = []
        client = SpawnerClient(on_exit=lambda pid, status: happened.append(f"{pid} ended"), on_lost=lambda: None)
        client._loop = asyncio.get_running_loop()
        answer = client._answers[1] = client._loop.create_future()

        async def start() -> None:
            happened.append(f"{await answer} started")

        starting = asyncio.ensure_future(start())
        await asyncio.sleep(0)
        client._heard({"id": 1, "ok": 4711})
        client._heard({"exited": 4711, "status": 256})
        await starting
        await asyncio.sleep(0)
        assert happened == ["4711 started", "4711 ended"]

    asyncio.run(main())
