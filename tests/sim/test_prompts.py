"""A long prompt through slow links, alone and beside decode, by the real cores under a virtual clock."""

from __future__ import annotations

import itertools

import pytest

from bloombee.control import operate as tune
from bloombee.control.chunks import chunks_by_position
from bloombee.pace import Pace
from bloombee.pipeline.work import Outcome, Work
from bloombee.sim.cluster import SimCluster
from bloombee.sim.network import LinkShape
from bloombee.wire.messages import Load, Pick
from tests.sim_kit import Forgetful

NAMES = ("stage0", "stage1", "stage2", "stage3", "scheduler")
ROW_BYTES = 13312


class _Blank:
    """A device that computes nothing: what it would read of a long prompt takes digests too long."""

    def __init__(self, load: Load) -> None:
        self._is_last = load.stop == load.num_layers

    def run(self, work: Work) -> Outcome:
        if not self._is_last:
            return Outcome(work.number, hidden=())
        ends = [(s.sequence, s.generation, s.position + s.num_rows) for s in work.segments if s.num_picks]
        return Outcome(work.number, picks=tuple([Pick(*end, 1, None, ()) for end in ends]))


def _cluster(
    link: LinkShape, pace: Pace, *, row_bytes: int = ROW_BYTES, context_s: float = 0.0, scatter: float = 0.0
) -> SimCluster:
    """Four stages that have served two short requests."""
    cluster = Forgetful(
        seed=0,
        num_stages=4,
        num_microbatches=64,
        num_pages=2000,
        page_size=16,
        max_rows=512,
        pace=pace,
        shape=LinkShape(0.0),
        shapes={ends: link for a, b in itertools.pairwise(NAMES) for ends in ((a, b), (b, a))},
        row_bytes=row_bytes,
        resend_after_s=60.0,
        tuned=True,
        context_s=context_s,
        scatter=scatter,
        make_device=_Blank if context_s else None,
    )
    for _ in range(2):
        cluster.submit([1] * 32, max_new_tokens=8)
        assert cluster.run()
    return cluster


def _first_token_s(cluster: SimCluster, tokens: int) -> float:
    start = cluster.clock.now
    request = cluster.requests[cluster.submit([1] * tokens, max_new_tokens=1, at=start)]
    assert cluster.run()
    return request.token_times[0] - start


def test_a_prompt_takes_little_longer_than_the_busiest_link() -> None:
    """The first long prompt, too: what short requests have shown is enough to choose its chunks."""
    for bandwidth, latency_s in ((12.5e6, 0.03), (2.5e6, 0.05)):
        cluster = _cluster(LinkShape(latency_s, bandwidth), Pace(0.013, 0.00005, 0.0005))
        took = _first_token_s(cluster, 2048)
        assert took <= 1.15 * 2048 * ROW_BYTES / bandwidth


def test_decode_slows_down_by_less_than_a_tenth_beside_a_prompt() -> None:
    cluster = _cluster(LinkShape(0.05, 2.5e6), Pace(0.004, 0.0002, 0.0002), row_bytes=2048)
    decoders = [cluster.submit([1] * 4, max_new_tokens=400, seed=n, at=cluster.clock.now) for n in range(8)]
    assert cluster.run_for(8.0)
    start = cluster.clock.now
    prompt = cluster.requests[cluster.submit([1] * 4096, max_new_tokens=1, at=start)]
    assert cluster.run_for(12.0)
    assert prompt.ended
    times = [cluster.requests[number].token_times for number in decoders]
    alone = _gaps_s(times, start - 4.0, start)
    beside = _gaps_s(times, start, prompt.token_times[0])
    assert beside[int(0.99 * len(beside))] <= 1.1 * alone[int(0.99 * len(alone))]


SLOW_ATTENTION = 2e-7
"""Seconds for each token that a row attends to: after 2,000 of them a row takes twice as long."""


def _beside_a_long_prompt() -> tuple[float, list[float]]:
    """Seconds that 16,000 tokens take, and by how much the 99th percentile of decode grows while each half of them runs."""
    link, pace = LinkShape(0.1, 12.5e6), Pace(0.0005, 0.0001, 0.0004)
    cluster = _cluster(link, pace, row_bytes=2048, context_s=SLOW_ATTENTION, scatter=0.02)
    decoders = [cluster.submit([1] * 4, max_new_tokens=400, seed=n, at=cluster.clock.now) for n in range(8)]
    assert cluster.run_for(8.0)
    start = cluster.clock.now
    prompt = cluster.requests[cluster.submit([1] * 16_000, max_new_tokens=1, at=start)]
    while not prompt.ended:
        assert cluster.run_for(1.0)
    times = [cluster.requests[number].token_times for number in decoders]
    end = prompt.token_times[0]
    middle = (start + end) / 2
    alone, *beside = (_gaps_s(times, *span) for span in ((start - 4.0, start), (start, middle), (middle, end)))
    return end - start, [gaps[int(0.99 * len(gaps))] / alone[int(0.99 * len(alone))] - 1 for gaps in beside]


def test_the_end_of_a_long_prompt_holds_up_decode_no_more_than_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows take nine times as long there; chunks, which shrink, do not. It costs the prompt up to a third of its time."""
    took_s, more = _beside_a_long_prompt()
    assert max(more) <= 0.14
    monkeypatch.setattr(tune, "chunks_by_position", lambda *args, **options: chunks_by_position(*args, **options)[:1])
    took_without_s, more_without = _beside_a_long_prompt()
    assert max(more_without) >= 0.2
    assert took_s <= 1.35 * took_without_s


def _gaps_s(times: list[list[float]], since: float, until: float) -> list[float]:
    """Between tokens of one sequence that both came in [since, until], sorted."""
    return sorted(b - a for one in times for a, b in itertools.pairwise(one) if since <= a and b <= until)
