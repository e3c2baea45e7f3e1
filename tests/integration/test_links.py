"""The ring's links, measured by the frames of real requests."""

from __future__ import annotations

import asyncio

from swarm_kit import Swarm

from bloombee.types import HEAD


def test_every_link_of_the_ring_is_measured_by_what_it_carries(demo: Swarm) -> None:
    async def generate_until_known() -> None:
        workers = [stage.worker for stage in demo.runtime.plan.stages]
        ring = set(zip([HEAD, *workers], [*workers, HEAD], strict=True))
        while {hop for hop, facts in demo.runtime.links.items() if facts.rtt_s is not None} != ring:
            await demo.runtime.generate("def add(a, b):\n", max_new_tokens=8, ignore_eos=True)
            await asyncio.sleep(0.01)

    demo.run(generate_until_known())
    for facts in demo.runtime.links.values():
        assert facts.num_bytes > 20 * facts.num_frames
        assert facts.num_frames > 0
        assert facts.rtt_s is not None
        assert facts.base_rtt_s is not None
        assert 0 < facts.base_rtt_s <= facts.rtt_s
        link = facts.as_link()
        assert link is not None
        assert link.latency_s == facts.base_rtt_s / 2
