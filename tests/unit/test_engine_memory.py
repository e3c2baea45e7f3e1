"""A worker offers the memory of the device that it computes on: a GPU's own, or of the host what this process may use."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch

from bloombee import machine
from bloombee.engine.memory import CUDA_PROCESS_BYTES, offered_bytes
from bloombee.errors import ConfigError, DeviceError
from bloombee.machine import MEMORY_SHARE, Share
from bloombee.pipeline.log import LOG_BYTES, LOG_SHARE
from bloombee.roles import worker
from bloombee.roles.spawner import Spawner

GIB = 2**30


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs with 20 and 60 GiB free of 80, in a host with 8."""
    free = {"cuda": 20 * GIB, "cuda:1": 60 * GIB}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 80 * GIB))
    monkeypatch.setattr(machine, "free_memory", lambda: Share(8 * GIB))


@pytest.mark.parametrize(("device", "free"), [("auto", 20 * GIB), ("cuda", 20 * GIB), ("cuda:1", 60 * GIB)])
def test_a_worker_on_a_gpu_offers_the_gpus_memory(gpus: None, device: str, free: int) -> None:
    assert worker._offered_bytes(device) == int(MEMORY_SHARE * (free - CUDA_PROCESS_BYTES))


def test_a_worker_on_the_cpu_offers_what_its_control_group_and_its_log_leave(gpus: None) -> None:
    assert worker._offered_bytes("cpu") == int(MEMORY_SHARE * 8 * GIB) - LOG_BYTES
    assert worker._offered_bytes("cpu", GIB) == int(MEMORY_SHARE * 8 * GIB) - GIB
    assert worker._offered_bytes("cpu", 8 * GIB) == 0


def test_the_log_of_a_small_worker_takes_a_small_part_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: Share(GIB))
    share = int(MEMORY_SHARE * GIB) // 4
    assert offered_bytes("cpu", 4) == share - share // LOG_SHARE


def test_workers_of_one_device_share_it(gpus: None) -> None:
    assert offered_bytes("cuda", 4) == int(MEMORY_SHARE * (20 * GIB - 4 * CUDA_PROCESS_BYTES)) // 4
    assert offered_bytes("cpu", 4) == int(MEMORY_SHARE * 8 * GIB) // 4 - int(MEMORY_SHARE * 8 * GIB) // 4 // LOG_SHARE
    assert offered_bytes("cuda", 100) == 0


def test_workers_started_here_are_told_their_part_of_the_gpu(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked in a fork: a process that has asked a GPU cannot be forked into workers that use it."""
    asked: list[str] = []
    ask = torch.cuda.mem_get_info
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or ask(device))
    spawner = Spawner(io.BytesIO(), io.BytesIO())
    assert spawner._do_memory("cuda:1", 3) == offered_bytes("cuda:1", 3)
    assert asked == ["cuda:1"], "by this test alone"


def _fails(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_a_gpu_that_is_not_there_is_named_before_any_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device = 'cuda:7'"):
        Spawner(io.BytesIO(), io.BytesIO())._do_memory("cuda:7", 1)


def test_a_gpu_that_does_not_answer_is_named(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", _fails(RuntimeError("CUDA error: invalid device ordinal")))
    with pytest.raises(DeviceError, match="cuda:1: CUDA error: invalid device ordinal"):
        Spawner(io.BytesIO(), io.BytesIO())._do_memory("cuda:1", 1)
