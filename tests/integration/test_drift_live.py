"""A link of a real ring, planned and behind emulated lines, becomes slow while requests run: another plan is taken over."""

from __future__ import annotations

import asyncio
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import bloombee
from bench.shapes import Shape
from bloombee.plan.document import parse_network
from tests.ask_kit import ask
from tools.wan_network import Network

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the emulator is built on epoll")

NAMES = ("local-0", "local-1", "local-2", "local-3")
NODES = {name: {"up_bytes_per_s": 4e6, "down_bytes_per_s": 4e6, "delay_s": 0.002} for name in ("head", *NAMES)}
NARROW = Shape(bandwidth_bits_per_s=2e5, delay_s=0.004)


async def _drift(net: Network) -> None:
    workers = [replace(net.local_worker(name), pace="3,0.3,0.05/1") for name in NAMES]
    async with bloombee.Runtime(
        "demo", workers=len(NAMES), local_workers=workers, listen=net.listen("head"), objective="throughput", scheduler="head",
        dtype="float32", threads=1,
    ) as runtime:  # fmt: skip
        undisturbed = await asyncio.gather(*(ask(runtime, number) for number in range(4)))
        first, second = runtime.plan.stages[:2]
        net.set(first.name, second.name, NARROW)
        told = []
        while runtime.plan.epoch == 1:
            asked = await asyncio.gather(*(ask(runtime, number) for number in itertools.chain(range(4), range(4))))
            told += asked
        assert told == undisturbed * (len(told) // 4)
        assert (first.worker, second.worker) not in runtime.plan.hops


def test_a_link_that_becomes_slow_is_left_while_requests_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with Network(parse_network({"version": 1, "nodes": NODES})) as net:
        asyncio.run(asyncio.wait_for(_drift(net), 120))
