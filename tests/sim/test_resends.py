"""What is sent again over links that lose and reorder: enough that nothing waits, and no storm."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from bloombee.sim.cluster import SimCluster
from bloombee.sim.device import oracle
from bloombee.sim.network import Faults, LinkShape
from bloombee.types import Lane
from bloombee.wire.messages import AnyMessage, Forward

ROW_BYTES = 8192


def _prompts(faults: Faults, seed: int) -> tuple[SimCluster, list[float]]:
    """Three prompts in chunks over links with ``faults``; and how often, in the mean, each hop carried a row."""
    cluster = SimCluster(
        seed=seed, num_stages=3, num_microbatches=16, num_pages=1024, max_rows=16, faults=faults, row_bytes=ROW_BYTES,
        shape=LinkShape(0.02),
    )  # fmt: skip
    for number in range(3):
        cluster.submit([number + 1] * 500, max_new_tokens=8, seed=number)
    assert cluster.run()
    rows = 0
    for request in cluster.requests.values():
        assert request.tokens == oracle(request.prompt, request.seed, 3, request.max_new_tokens)
        rows += len(request.prompt) + request.max_new_tokens - 1
    return cluster, [cluster.carrier.link(f"stage{i}", f"stage{i + 1}").num_bytes / (rows * ROW_BYTES) for i in (0, 1)]


@pytest.mark.parametrize("seed", range(3))
def test_lanes_that_reorder_cost_no_storm_of_frames(seed: int) -> None:
    """Each frame that comes too early is refused and asked for: all that is kept, each time, was 20 to 35 times the rows."""
    cluster, times = _prompts(Faults(delay=0.5, max_extra_delay_s=0.3), seed)
    assert max(times) < 8
    assert sum(" Gap(" in line for line in cluster.trace) > 100


@pytest.mark.parametrize(("num_microbatches", "most_wait_s"), [(3, 1.0), (1, 10.0)])
def test_a_frame_that_is_lost_six_times_in_a_row_costs_no_request(num_microbatches: int, most_wait_s: float) -> None:
    """Where others come home meanwhile it is missed at once; one that is alone waits for silence, within a step's patience."""
    cluster = SimCluster(seed=1, num_stages=3, num_microbatches=num_microbatches)
    carry, lost = cluster.carrier.carry, []

    def lossy(source: str, target: str, message: AnyMessage, deliver: Callable[[], None], **way: Any) -> None:
        is_victim = isinstance(message, Forward) and source == "stage1" and (message.frame, message.lane) == (20, Lane.CONTROL)
        if is_victim and len(lost) < 6:
            lost.append(cluster.clock.now)
        else:
            carry(source, target, message, deliver, **way)

    cluster.carrier.carry = lossy  # type: ignore[method-assign]
    for number in range(3):
        cluster.submit([number + 1] * 5, max_new_tokens=40, seed=number)
    assert cluster.run()
    assert len(lost) == 6
    for request in cluster.requests.values():
        assert request.error is None
        assert request.tokens == oracle(request.prompt, request.seed, 3, 40)
        assert max(b - a for a, b in itertools.pairwise(request.token_times)) < most_wait_s
