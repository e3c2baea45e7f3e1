"""What each worker that is started here is told of itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bloombee.address import read_dialled
from bloombee.config import LocalWorker, RuntimeConfig, WorkerConfig
from bloombee.roles import local_swarm
from bloombee.roles.local_swarm import LocalSwarm
from bloombee.transport.sockets import dialled_from


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
