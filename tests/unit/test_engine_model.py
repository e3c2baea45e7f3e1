"""One stage by itself: what it refuses, and what it does with rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_kit import GREEDY, PAGE, VOCABULARY, generate, load_chain, make_checkpoint, pages_of, ragged_prompts, run_chain
from msgspec.structs import replace

from bloombee.engine import skeleton
from bloombee.engine.checkpoint import resolve
from bloombee.engine.model import SpanModel
from bloombee.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from bloombee.kv.pool import PagePool, PageTable
from bloombee.pipeline.work import Pages, Segment, Work
from bloombee.types import Dtype, PageGroup, Phase, Span
from bloombee.wire.messages import NO_TOKEN, Pick

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    make_checkpoint("llama", directory)
    return directory


def work(*segments: Segment) -> Work:
    return Work(pipeline=0, epoch=0, number=0, microbatch=0, phase=Phase.PREFILL, segments=segments)


def rows(tokens: list[int], position: int = 0, picks: int = 1, sequence: int = 0) -> Segment:
    data = np.array(tokens, dtype="<u4").tobytes()
    return Segment(sequence, 5, position, data, picks, (pages_of(sequence, position + len(tokens)),), GREEDY, len(tokens))


def test_token_ids_outside_the_vocabulary_are_the_peers_fault(tiny: Path) -> None:
    (stage,) = load_chain(tiny, ())
    with pytest.raises(RemoteProtocolError, match=str(VOCABULARY)):
        stage.run(work(rows([1, VOCABULARY])), None)
    with pytest.raises(RemoteProtocolError, match="4294967295"):
        stage.run(work(rows([2**32 - 1])), None)


@pytest.mark.parametrize("hidden", [None, torch.zeros(2, 32), torch.zeros(3, 31), torch.zeros(3, 32, dtype=torch.bfloat16)])
def test_activations_of_another_shape_or_dtype_are_the_peers_fault(tiny: Path, hidden: torch.Tensor | None) -> None:
    stage = load_chain(tiny, (2,))[1]
    with pytest.raises(RemoteProtocolError, match=r"\[3, 32\] float32"):
        stage.run(work(rows([1, 2, 3])), hidden)


def test_picks_need_sampling_parameters(tiny: Path) -> None:
    (stage,) = load_chain(tiny, ())
    with pytest.raises(LocalProtocolError, match="sampling"):
        stage.run(work(replace(rows([1, 2]), sampling=None)), None)


def test_every_asked_row_gets_its_pick(tiny: Path) -> None:
    """Several picks a segment, none for others: what a verify round and a chunk of a prompt ask for."""
    stages = load_chain(tiny, (2,))
    prompt = ragged_prompts()[5]
    picks = run_chain(stages, work(rows(prompt, picks=3), rows([7, 8], picks=0, sequence=1), rows([9], picks=1, sequence=2)))
    n = len(prompt)
    assert [(p.sequence, p.generation, p.position) for p in picks] == [(0, 5, n - 2), (0, 5, n - 1), (0, 5, n), (2, 5, 1)]
    for length, pick in ((n - 2, picks[0]), (n - 1, picks[1]), (n, picks[2])):
        (alone,) = run_chain(load_chain(tiny, ()), work(rows(prompt[:length])))
        assert alone.token == pick.token
    assert run_chain(stages, work(rows([3], position=n, picks=0))) == []


def test_a_repeated_work_changes_nothing(tiny: Path) -> None:
    stages = load_chain(tiny, (1,))
    prompt = ragged_prompts()[4]
    first = run_chain(stages, work(rows(prompt)))
    assert run_chain(stages, work(rows(prompt))) == first
    assert run_chain(stages, work(rows(prompt[3:], position=3))) == first


def test_rows_after_a_roll_back_replace_what_was_there(tiny: Path) -> None:
    stages = load_chain(tiny, (2,))
    prompt = ragged_prompts()[4]
    run_chain(stages, work(rows([*prompt, 1, 2, 3])))
    got = run_chain(stages, work(rows([9, 8], position=len(prompt))))
    assert got == run_chain(load_chain(tiny, (2,)), work(rows([*prompt, 9, 8])))


@pytest.mark.parametrize("at", [8, 10])
def test_two_forks_go_on_as_two_sequences_would(at: int, tmp_path: Path) -> None:
    """They share the pages of what they have in common; whoever first writes to the last of them gets a copy of it."""
    make_checkpoint("gemma3_text", tmp_path)
    windows = (0, 6)

    def load() -> SpanModel:
        groups = [PageGroup(window, 30) for window in windows]
        return SpanModel.load(resolve(str(tmp_path)), Span(0, 4), groups=groups, page_size=PAGE)

    def feed(model: SpanModel, tables: list[PageTable], tokens: list[int], position: int) -> int:
        stop = position + len(tokens)
        sources = [table.place(position, stop) for table in tables]
        pages = tuple(Pages(table.pages, table.start, source) for table, source in zip(tables, sources, strict=True))
        (pick,) = model.run(work(replace(rows(tokens, position), pages=pages)), None)
        for table in tables:
            table.slide(stop)
        assert isinstance(pick, Pick)
        return pick.token

    def go_on(model: SpanModel, sequences: list[list[PageTable]], firsts: list[int]) -> list[list[int]]:
        got = [[first] for first in firsts]
        for step in range(8):
            for tokens, tables in zip(got, sequences, strict=True):
                tokens.append(feed(model, tables, tokens[-1:], at + step))
        return got

    prompt = ragged_prompts()[5][:at]
    pools = [PagePool(30, PAGE) for _ in windows]
    model = load()
    original = [PageTable(pool, window) for pool, window in zip(pools, windows, strict=True)]
    feed(model, original, prompt, 0)
    twin = [table.fork(at) for table in original]
    assert [pool.num_free for pool in pools] == [30 - -(-at // PAGE)] * 2
    forked = go_on(model, [original, twin], [5, 77])

    pools = [PagePool(30, PAGE) for _ in windows]
    apart = load()
    separate = [[PageTable(pool, window) for pool, window in zip(pools, windows, strict=True)] for _ in range(2)]
    for tables in separate:
        feed(apart, tables, prompt, 0)
    expected = go_on(apart, separate, [5, 77])
    assert forked == expected
    assert expected[0][1:] != expected[1][1:]


def test_spans_and_plans_that_do_not_fit_the_model(tiny: Path) -> None:
    checkpoint = resolve(str(tiny))
    for span, layers in ((Span(0, 5), None), (Span(0, 2), 6)):
        with pytest.raises(ConfigError, match="has 4 layers"):
            SpanModel.load(checkpoint, span, num_layers=layers, groups=[PageGroup(0, 1)], page_size=4)


def test_progress_grows_to_the_total_and_counts_the_span(tiny: Path) -> None:
    calls: list[tuple[int, int]] = []
    stage = SpanModel.load(
        resolve(str(tiny)), Span(1, 3), groups=[PageGroup(0, 2)], page_size=4, progress=lambda *call: calls.append(call)
    )
    assert [loaded for loaded, _ in calls] == sorted(loaded for loaded, _ in calls)
    assert calls[-1] == (stage.disk_bytes, stage.disk_bytes)
    assert stage.disk_bytes == stage.weight_bytes
    assert stage.kv_bytes == 2 * 4 * 2 * (2 * 8 + 2 * 8) * 4


def test_a_run_in_another_dtype(tiny: Path) -> None:
    stages = load_chain(tiny, (2,), dtype=Dtype.BFLOAT16)
    hidden = stages[0].run(work(rows([1, 2, 3])), None)
    assert isinstance(hidden, torch.Tensor)
    assert hidden.dtype == torch.bfloat16
    assert stages[0].weight_bytes * 2 == stages[0].disk_bytes
    assert len(generate(stages, ragged_prompts(3), 4)[0]) == 4


def test_random_weights_do_not_depend_on_the_split() -> None:
    prompts = ragged_prompts(3)
    whole = generate(load_chain("llama:64x3", (), num_layers=3), prompts, 4)
    assert generate(load_chain("llama:64x3", (1, 2), num_layers=3), prompts, 4) == whole


def test_a_row_without_finite_logits_is_no_token(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    (model,) = load_chain(tmp_path, ())
    picks = model.run(work(rows([1, 2]), rows([3], sequence=1)), None)
    assert all(pick.token < VOCABULARY for pick in picks)  # type: ignore[union-attr]
    for parameter in model._skeleton.model.parameters():
        parameter.fill_(torch.nan)
    picks = model.run(work(rows([1, 2]), rows([3], sequence=1)), None)
    assert [(pick.token, pick.logprob, pick.top) for pick in picks] == [(NO_TOKEN, None, ())] * 2  # type: ignore[union-attr]


def test_models_are_built_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint("llama", tmp_path)
    checkpoint = resolve(str(tmp_path))
    both_inside, overlaps = threading.Barrier(2), []

    @contextmanager
    def patch() -> Iterator[None]:
        with suppress(threading.BrokenBarrierError):
            overlaps.append(both_inside.wait(0.3))
        yield

    monkeypatch.setattr(skeleton, "no_init_weights", patch)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: skeleton.build(checkpoint, Dtype.FLOAT32), range(2)))
    assert not overlaps
