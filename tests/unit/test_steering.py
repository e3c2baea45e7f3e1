"""What a pipeline begins with, before anything has run."""

from __future__ import annotations

import math

import pytest

from bloombee.control.chunks import Chunks
from bloombee.control.steering import Demand, Steering
from bloombee.models.shape import ModelShape
from bloombee.plan.cost import Candidate, prefill_s
from bloombee.plan.topology import LOCAL, Device, Link, RowTime, Topology

MODEL = ModelShape(hidden=1024, num_layers=6)
LAYERS = (2, 2, 2)
DEVICES = [Device(f"w{n}", stage=RowTime(0.001, 0.0001, 0.0), layer=RowTime(0.002, 0.0001, 0.0002)) for n in range(3)]
LINKS = [LOCAL, *[Link(2.5e6, 0.05)] * 3]
LARGEST = Chunks(0, 512, 512, 2 * 3 * 512)


def _steering() -> Steering:
    return Steering(["w0", "w1", "w2"], LAYERS, MODEL, most_microbatches=8, most_rows=512)


@pytest.mark.parametrize("devices", [[None] * 3, [DEVICES[0], None, DEVICES[2]], []])
def test_chunks_are_as_large_as_can_be_until_all_workers_have_measured_themselves(devices: list[Device | None]) -> None:
    assert _steering().begin(devices, LINKS) == LARGEST


@pytest.mark.parametrize("links", [LINKS, None])
def test_what_workers_know_of_themselves_makes_the_first_prompt_quick(links: list[Link] | None) -> None:
    steering = _steering()
    chunks = steering.begin(DEVICES, links)
    assert (chunks.under_way == LARGEST.under_way) == (links is None)
    ring = Topology.ring(DEVICES, (links or [Link(math.inf, 0.0)] * 4)[1:])
    took, whole = (
        prefill_s(Candidate((1, 2, 3), LAYERS), ring, MODEL, tokens=512, chunk=rows) for rows in (chunks.fast, LARGEST.fast)
    )
    assert took < 0.7 * whole
    assert not steering.is_known
    assert steering.choose(Demand(1, None, (0, 0.0)), links, 0.0) is None
