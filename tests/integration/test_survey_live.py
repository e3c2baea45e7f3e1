"""Real workers behind emulated access lines are looked at before the first plan, which then runs over the links that exist."""

from __future__ import annotations

import asyncio
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import bloombee
from bloombee.config import WorkerConfig, socket_folders
from bloombee.plan.document import parse_network
from bloombee.roles.link_memory import figures_path
from bloombee.roles.running_heads import running_heads
from bloombee.roles.status_of import status_of
from bloombee.roles.worker import WorkerRole
from bloombee.types import LoadProgress
from tests.swarm_kit import Swarm
from tools.wan_network import Network

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the emulator is built on epoll")

LINE = {"up_bytes_per_s": 2.5e6, "down_bytes_per_s": 2.5e6, "delay_s": 0.01}
NODES = {"head": LINE, "w0": LINE, "w1": {**LINE, "up_bytes_per_s": 1.25e5}, "w2": {**LINE, "delay_s": 0.05}}


def test_links_are_known_before_the_first_plan_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Network(parse_network({"version": 1, "nodes": NODES})) as net:
        workers = [replace(net.local_worker(name), pace="1,0,0") for name in ("w0", "w1", "w2")]
        swarm = Swarm(model="standin:256x6", workers=3, local_workers=workers, listen=net.listen("head"), objective="balance")
        try:
            survey = swarm.runtime._head._core.survey  # type: ignore[union-attr]
            assert survey is not None
            topology = survey.topology()
            assert set(topology.links) == set(itertools.permutations(range(4), 2))
            of = {device.name: worker for worker, device in topology.devices.items()}
            w0, w1, w2 = (worker for _, worker in sorted(of.items()))
            assert all(figure.bandwidth_bytes_per_s for figure in survey.found.values())
            for target in (0, w0, w2):
                assert topology.link(w1, target).bandwidth_bytes_per_s < topology.link(target, w1).bandwidth_bytes_per_s / 3
                if target != w2:
                    assert topology.link(w1, target).latency_s < topology.link(w1, w2).latency_s
            assert len(swarm.generate([1, 2, 3], max_new_tokens=4).token_ids) == 4
            (head,) = running_heads(socket_folders())
            document = head.topology()
            assert {(link.source, link.target) for link in document.links} == set(itertools.permutations(document.nodes, 2))
            assert not any(link.estimated for link in document.links)
        finally:
            swarm.close()
    assert figures_path().is_file()


def test_workers_from_elsewhere_are_measured_and_those_that_do_not_pay_are_spares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a word of an objective: one of two is a thousand times slower."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told: list[LoadProgress] = []

    async def use() -> None:
        runtime = bloombee.Runtime("standin:256x6", remote_workers=2, on_progress=told.append)
        await runtime.prepare()
        paces = zip(runtime.join_tokens, (("quick", "1,0,0/6"), ("slow", "1000,0,0/6")), strict=True)
        configs = [WorkerConfig(join=token, name=name, pace=pace) for token, (name, pace) in paces]
        serving = [asyncio.ensure_future(WorkerRole(config).serve()) for config in configs]
        try:
            await asyncio.wait_for(runtime.ready(), 60)
            assert [stage.name for stage in runtime.plan.stages] == ["quick"]
            prediction = runtime.plan.prediction
            assert prediction is not None
            plan_status = status_of(runtime._head).plan
            assert plan_status is not None
            assert prediction.objective == plan_status.objective == "balance"
            assert [name for name, _ in prediction.spares] == ["slow"]
            assert len((await runtime.generate([1, 2, 3], max_new_tokens=4)).token_ids) == 4
        finally:
            await runtime.close()
            await asyncio.gather(*serving, return_exceptions=True)

    asyncio.run(asyncio.wait_for(use(), 120))
    assert {progress.name for progress in told if progress.phase == "measured"} == {"quick", "slow"}
    assert {progress.num_links for progress in told if progress.phase == "measured"} == {3}
