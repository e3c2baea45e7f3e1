"""Sequences that make way come back from the host's memory: no token changes, and no page is written while a copy reads it."""

from __future__ import annotations

import random

import pytest

from bloombee.kv import tiers
from bloombee.kv.pool import PagePool
from bloombee.kv.tiers import Way
from bloombee.sim.cluster import sim_card
from bloombee.sim.network import Faults
from bloombee.types import SchedulerPlace
from tests.paging_kit import Files, PagedCluster, assert_no_page_is_left
from tests.sim_kit import HARSH, ask_long_answers, assert_right, draw_prompt, see_short_answers


def _serve(cluster: PagedCluster, seed: int, num_stages: int, *, cancels: bool = False) -> None:
    """More than there are pages for."""
    see_short_answers(cluster, num_stages)
    ask_long_answers(cluster, seed, cancels=cancels)
    assert cluster.run()


@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_all_end_with_their_own_tokens(seed: int, num_stages: int, faults: Faults | None) -> None:
    cluster = PagedCluster(seed=seed, num_stages=num_stages, faults=faults)
    _serve(cluster, seed, num_stages, cancels=bool(seed % 2))
    assert_right(cluster, num_stages)
    assert cluster.num_copies(Way.OUT)
    assert cluster.num_copies(Way.IN) or faults is HARSH
    assert_no_page_is_left(cluster)


def test_who_comes_back_computes_less_again() -> None:
    """Than where nothing is kept beyond the device: the rest of a page that was not full, and what was under way."""
    again = {0: 0, 256: 0}
    for host_pages in again:
        for seed in range(3):
            cluster = PagedCluster(seed=seed, num_stages=1, host_pages=host_pages)
            _serve(cluster, seed, 1)
            assert_right(cluster, 1)
            least = sum(len(one.prompt) + one.max_new_tokens - 1 for one in cluster.requests.values())
            again[host_pages] += cluster.paged[0].num_rows - least
    assert again[256] < 0.6 * again[0]


@pytest.mark.parametrize("seed", range(4))
def test_a_small_host_and_copies_that_fail(seed: int) -> None:
    cluster = PagedCluster(seed=seed, num_stages=2, host_pages=30, fails=0.3, late_s=0.5, faults=HARSH)
    _serve(cluster, seed, 2, cancels=True)
    assert_right(cluster, 2)
    assert_no_page_is_left(cluster)


@pytest.mark.parametrize("seed", range(3))
def test_with_windows(seed: int) -> None:
    windows = [(0,), (24,)]
    cluster = PagedCluster(seed=seed, num_stages=2, faults=HARSH, card=sim_card((0, 24)))
    see_short_answers(cluster, 2, windows)
    ask_long_answers(cluster, seed)
    assert cluster.run()
    assert_right(cluster, 2, windows)
    assert cluster.num_copies(Way.IN)
    assert_no_page_is_left(cluster)


@pytest.mark.parametrize("seed", range(6))
def test_a_lost_stage_meanwhile(seed: int) -> None:
    cluster = PagedCluster(seed=seed, num_stages=3, num_spares=1, faults=HARSH, lossy_orders=True)
    see_short_answers(cluster, 3)
    ask_long_answers(cluster, seed)
    cluster.kill(1 + seed % 3, at=cluster.clock.now + 0.2 + 0.1 * seed)
    assert cluster.run()
    assert_right(cluster, 3)
    assert_no_page_is_left(cluster)


@pytest.mark.parametrize("seed", range(2))
def test_with_the_scheduler_beside_the_first_stage(seed: int) -> None:
    cluster = PagedCluster(seed=seed, num_stages=2, faults=HARSH, scheduler=SchedulerPlace.STAGE0)
    _serve(cluster, seed, 2)
    assert_right(cluster, 2)
    assert_no_page_is_left(cluster)


@pytest.mark.parametrize("windows", [(0,), (0, 24)])
@pytest.mark.parametrize("faults", [None, HARSH], ids=["calm", "harsh"])
def test_what_was_kept_is_found_again_by_another_process(faults: Faults | None, windows: tuple[int, ...]) -> None:
    """Conversations go on, and where no layer has a window prompts that only begin alike, on what is on disk."""
    files: dict[int, Files] = {}
    rng = random.Random(1)
    shared, num_stages = draw_prompt(rng, 100), len(windows)
    before = PagedCluster(seed=1, num_stages=num_stages, num_pages=120, faults=faults, files=files, card=sim_card(windows))
    numbers = [before.submit(shared + draw_prompt(rng, 10 * n), max_new_tokens=9, seed=n) for n in range(1, 5)]
    assert before.run()
    turns = [before.requests[number].prompt + before.requests[number].tokens + [7] for number in numbers]
    assert files[0]

    after = PagedCluster(seed=2, num_stages=num_stages, num_pages=120, faults=faults, files=files, card=sim_card(windows))
    prompts = turns if len(windows) > 1 else [*turns, shared + draw_prompt(rng, 30)]
    for n, prompt in enumerate(prompts):
        after.submit(prompt, max_new_tokens=9, seed=n, at=1.0)
    assert after.run()
    assert_right(after, num_stages, [(window,) for window in windows])
    assert after.num_copies(Way.FETCH)
    computed = sum(len(prompt) + 8 for prompt in prompts) - after.paged[0].num_rows
    assert computed > (0.6 if faults is None else 0.2) * sum(map(len, prompts))
    assert_no_page_is_left(after)


@pytest.mark.parametrize("seed", range(3))
def test_a_disk_that_fails_now_and_then(seed: int) -> None:
    cluster = PagedCluster(seed=seed, num_stages=2, host_pages=30, fails=0.2, files={}, faults=HARSH)
    _serve(cluster, seed, 2, cancels=True)
    assert_right(cluster, 2)
    assert_no_page_is_left(cluster)


def _unpinned(pool: PagePool, page: int) -> None:
    """No copy holds what it reads."""


def _serve_unpinned() -> None:
    for seed in range(4):
        _serve(PagedCluster(seed=seed, num_stages=1, late_s=0.5, host_pages=40), seed, 1)


def test_a_page_that_a_copy_reads_would_be_written_were_it_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "_pin", _unpinned)
    monkeypatch.setattr(tiers, "_unpin", _unpinned)
    with pytest.raises(AssertionError, match="a page is written that a copy reads"):
        _serve_unpinned()
