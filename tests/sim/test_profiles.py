"""A simulated worker says how fast it is as a real one does, and by its own device's figures."""

from __future__ import annotations

from typing import Any

import pytest

from bloombee.pace import Pace
from bloombee.pipeline.profiles import from_message
from bloombee.plan.topology import Device
from bloombee.sim.cluster import SimCluster
from bloombee.types import WorkerId
from bloombee.wire.messages import Profile, Profiled

PACES = (Pace(0.01, 0.001, 0.0005), Pace(0.02, 0.002, 0.001, layers=1))


@pytest.mark.parametrize(("worker", "pace"), [(1, PACES[0]), (2, PACES[1]), (3, PACES[1])], ids=["first", "second", "spare"])
def test_a_worker_that_is_asked_tells_its_devices_own_figures(worker: WorkerId, pace: Pace) -> None:
    cluster = SimCluster(seed=1, num_stages=2, num_spares=1, pace=PACES, memory_bytes=[10, 20, 30], context_s=1e-6)
    said: list[Any] = []
    cluster.head.hear = lambda who, message: said.append((who, message))  # type: ignore[method-assign]
    cluster.workers[worker].order(Profile("sim", bytes(16), "float32"))
    assert cluster.clock.run(lambda: any(isinstance(message, Profiled) for _, message in said), deadline_s=1.0)
    ((who, answer),) = [(who, message) for who, message in said if isinstance(message, Profiled)]
    device = from_message(answer).as_device(f"w{who}")
    claimed = Device.paced(f"w{worker}", pace, 10 * worker)
    assert device.stage.decode_s(3, 100) == pytest.approx(claimed.stage.decode_s(3) + 3e-4)
    assert (device.layer, device.memory_bytes) == (claimed.layer, claimed.memory_bytes)
