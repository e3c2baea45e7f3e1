"""Settings at the ends of what is allowed: whatever passes also serves."""

from __future__ import annotations

import pytest

from bloombee.errors import Infeasible
from bloombee.sim.cluster import SimCluster, sim_card
from bloombee.sim.device import oracle

PROMPTS = (1, 15, 16, 17, 200)
NEW = 5


@pytest.mark.parametrize(
    ("num_pages", "page_size", "max_rows", "num_microbatches"),
    [
        (1, 16, 512, 1),  # one page, smaller than a chunk
        (1, 1024, 512, 128),  # one page that is larger than any prompt
        (2, 16, 65536, 256),
        (300, 1, 1, 1),
        (300, 1, 7, 256),
        (13, 16, 3, 2),
    ],
)
@pytest.mark.parametrize("windows", [(0, 0), (0, 4), (4, 4)], ids=["full", "mixed", "windows"])
def test_every_request_is_served_or_refused_with_the_numbers(
    num_pages: int, page_size: int, max_rows: int, num_microbatches: int, windows: tuple[int, ...]
) -> None:
    cluster = SimCluster(
        seed=0,
        num_stages=2,
        card=sim_card(windows),
        num_pages=num_pages,
        page_size=page_size,
        max_rows=max_rows,
        num_microbatches=num_microbatches,
    )
    for number, length in enumerate(PROMPTS):
        cluster.submit([7] * length, max_new_tokens=NEW, seed=number)
    assert cluster.run()
    for request in cluster.requests.values():
        if request.error is None:
            want = oracle(request.prompt, request.seed, 2, NEW, None if windows == (0, 0) else [[window] for window in windows])
            assert request.tokens == want
        else:
            assert isinstance(request.error, Infeasible)
            assert len(request.prompt) + NEW - 1 > num_pages * page_size
    for stage in cluster.stages.values():
        assert all(pool.num_free == pool.num_pages for pool in stage.store.kv.pools)
