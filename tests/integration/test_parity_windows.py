"""Models whose layers see a window, on several stages with chunks of prompts: transformers' tokens, from a window's memory.

The cores are the real ones under a virtual clock, the devices are real models.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from engine_kit import PAGE, VOCABULARY, ModelDevice, make_checkpoint, reference_tokens

from bloombee.engine.describe import describe
from bloombee.kv.pool import WINDOW_SHARE, most_pages
from bloombee.pipeline.work import Outcome, Work
from bloombee.sim.cluster import SimCluster
from bloombee.sim.network import Faults
from bloombee.types import PageGroup
from bloombee.wire.messages import Load

WINDOW, ROWS, NEW_TOKENS = 6, 16, 100
LENGTHS = (240, 3, 130)
PAGES = 256


pytestmark = pytest.mark.usefixtures("one_thread")


class _Device(ModelDevice):
    """Takes note of the pages that the works name."""

    def __init__(self, directory: Path, load: Load) -> None:
        super().__init__(directory, load)
        self.most = [0] * len(load.groups)
        """Pages that one sequence held at most, by group."""
        self.groups = [PageGroup(group.window, group.num_pages) for group in load.groups]

    def run(self, work: Work) -> Outcome:
        for segment in work.segments:
            self.most = [max(most, len(pages.ids)) for most, pages in zip(self.most, segment.pages, strict=True)]
        return super().run(work)


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "mistral", "qwen2"])
def test_long_sequences_give_the_same_tokens_from_a_windows_memory(family: str, tmp_path: Path) -> None:
    reference = make_checkpoint(family, tmp_path, sizes={"max_position_embeddings": 512})
    rng = random.Random(4)
    prompts = [[rng.randrange(VOCABULARY) for _ in range(length)] for length in LENGTHS]
    expected = reference_tokens(reference, prompts, NEW_TOKENS)
    devices: list[_Device] = []

    def make_device(load: Load) -> _Device:
        devices.append(_Device(tmp_path, load))
        return devices[-1]

    cluster = SimCluster(
        seed=1, num_stages=3, card=describe(str(tmp_path)), make_device=make_device, num_pages=PAGES, page_size=PAGE,
        max_rows=ROWS, num_microbatches=3, faults=Faults(lose=0.05, duplicate=0.1, delay=0.2, max_extra_delay_s=0.2),
    )  # fmt: skip
    for prompt in prompts:
        cluster.submit(prompt, max_new_tokens=NEW_TOKENS)
    assert cluster.run()
    assert [request.tokens for request in cluster.requests.values()] == expected
    assert cluster.plan is not None
    groups = cluster.plan.groups
    most = most_pages(10**6, PAGE, window=WINDOW, rows=ROWS)
    assert most < max(LENGTHS) / PAGE / 2
    for device in devices:
        for group, held in zip(device.groups, device.most, strict=True):
            longest = -(-(max(LENGTHS) + NEW_TOKENS - 1) // PAGE)
            assert held == longest if group.window == 0 else held <= most
    for stage, device in zip(cluster.plan.stages, sorted(devices, key=lambda one: one.model.span.start), strict=True):
        assert device.model.kv_bytes == stage.kv_bytes
    if family != "mistral":  # the only group of which is the widest
        assert [group.num_pages for group in groups] == [PAGES, PAGES // WINDOW_SHARE]
    for core in cluster.stages.values():
        assert core.pages_free == sum(pool.num_pages for pool in core.store.kv.pools)
