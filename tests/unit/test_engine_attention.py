"""Packed attention over slots against the plain formula, one sequence at a time."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch

from bloombee.engine.attention import attend, dispatch, few_keys
from bloombee.engine.cache import LayerCache, SlotCache, Step
from bloombee.errors import LocalProtocolError, ModelUnsupported
from bloombee.pipeline.work import Pages, Segment
from bloombee.types import PageGroup

HEADS, KV_HEADS, DIM, VALUE_DIM, PAGE, PAGES = 6, 2, 8, 5, 4, 64
LAYER = 7


def make_cache() -> SlotCache:
    cache = SlotCache(
        [LayerCache(LAYER, (KV_HEADS, DIM), (KV_HEADS, VALUE_DIM))],
        [PageGroup(0, PAGES)],
        PAGE,
        torch.float32,
        torch.device("cpu"),
    )
    for tensor in cache.rows(LAYER):
        tensor.fill_(float("nan"))  # whatever reads a slot that was never written shows
    return cache


def segment(number: int, position: int, rows: int, pages: tuple[int, ...]) -> Segment:
    return Segment(number, 0, position, bytes(4 * rows), 0, (Pages(pages),))


def plain(q, k, v, position, *, scaling, sliding_window, softcap, s_aux):  # type: ignore[no-untyped-def]
    """[n, h, e], [l, k, e], [l, k, e'] -> [n, h, e'], by loops."""
    out = torch.empty(q.shape[0], HEADS, v.shape[-1])
    for row in range(q.shape[0]):
        for head in range(HEADS):
            kv = head // (HEADS // KV_HEADS)
            at = position + row
            first = 0 if sliding_window is None else max(0, at - sliding_window + 1)
            scores = (k[first : at + 1, kv] @ q[row, head]) * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if s_aux is not None:
                scores = torch.cat([scores, s_aux[head : head + 1]])
            weights = scores.softmax(0)[: at + 1 - first]
            out[row, head] = weights @ v[first : at + 1, kv]
    return out


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("extra", ["none", "softcap", "sinks", "both"])
def test_packed_rows_equal_the_formula(batched: bool, window: int | None, extra: str) -> None:
    torch.manual_seed(5)
    options = {
        "scaling": 0.37,
        "sliding_window": window,
        "softcap": 2.0 if extra in ("softcap", "both") else None,
        "s_aux": torch.randn(HEADS) if extra in ("sinks", "both") else None,
    }
    shuffled = list(range(32, PAGES))
    random.Random(2).shuffle(shuffled)
    pages = [tuple(range(0, 6)), tuple(shuffled[:6]), tuple(shuffled[6:12]), (20, 21, 22), (25,)]
    cache = make_cache()
    held = [(torch.empty(0, KV_HEADS, DIM), torch.empty(0, KV_HEADS, VALUE_DIM)) for _ in pages]
    for counts in ((7, 3, 11, 1, 0), (1, 9, 1, 1, 1), (4, 1, 1, 1, 1), (1, 1, 1, 1, 1)):
        present = [i for i, count in enumerate(counts) if count]
        before = [held[i][0].shape[0] for i in range(len(pages))]
        segments = [segment(i, before[i], counts[i], pages[i]) for i in present]
        total = sum(counts)
        q, k = torch.randn(total, HEADS, DIM), torch.randn(total, KV_HEADS, DIM)
        v = torch.randn(total, KV_HEADS, VALUE_DIM)
        step = Step(cache, segments, batched=batched)
        packed = [x.transpose(0, 1)[None] for x in (q, k, v)]
        keys, values = step.update(packed[1], packed[2], LAYER)
        got = attend(step, packed[0], keys, values, **options)[0][0]
        start = 0
        for i in present:
            rows = slice(start, start + counts[i])
            held[i] = (torch.cat([held[i][0], k[rows]]), torch.cat([held[i][1], v[rows]]))
            torch.testing.assert_close(got[rows], plain(q[rows], *held[i], before[i], **options), atol=2e-6, rtol=2e-5)
            start = rows.stop


@pytest.mark.parametrize("extra", ["none", "softcap", "sinks"])
@pytest.mark.parametrize("lengths", [(40, 40, 40), (40, 33, 39, 9, 8, 2)])
def test_rows_of_few_keys_share_calls_and_give_what_each_gives_alone(lengths: tuple[int, ...], extra: str) -> None:
    """bfloat16 on the CPU: sequences of about one length are attended together; the oracle is each in a step of its own."""
    torch.manual_seed(6)
    options = {"softcap": 2.0 if extra == "softcap" else None, "s_aux": torch.randn(HEADS) if extra == "sinks" else None}
    cache = SlotCache(
        [LayerCache(LAYER, (KV_HEADS, DIM), (KV_HEADS, VALUE_DIM))],
        [PageGroup(0, PAGES)],
        PAGE,
        torch.bfloat16,
        torch.device("cpu"),
    )
    for tensor in cache.rows(LAYER):
        tensor.copy_(torch.randn(tensor.shape))
    pages = [tuple(range(10 * i, 10 * i + 10)) for i in range(len(lengths))]
    segments = [segment(i, length - 1, 1, pages[i]) for i, length in enumerate(lengths)]
    q, k, v = (torch.randn(1, n, len(lengths), d).bfloat16() for n, d in ((HEADS, DIM), (KV_HEADS, DIM), (KV_HEADS, VALUE_DIM)))
    step = Step(cache, segments, batched=False)
    got = attend(step, q, *step.update(k, v, LAYER), **options)[0][0]
    groups, alone = step.grouped(None, few_keys(k))
    assert [len(group.rows) for group in groups] == ([3] if len(lengths) == 3 else [3, 2])
    assert list(alone) == ([] if len(lengths) == 3 else [5])
    for i, one in enumerate(segments):
        single = Step(cache, [one], batched=False)
        rows = [x[:, :, i : i + 1] for x in (q, k, v)]
        expected = attend(single, rows[0], *single.update(rows[1], rows[2], LAYER), **options)[0][0, 0]
        torch.testing.assert_close(got[i], expected, atol=0.02, rtol=0.02)


def test_sequences_that_grow_together_are_attended_in_few_shapes() -> None:
    cache = make_cache()
    pages = [tuple(range(25 * i, 25 * i + 25)) for i in range(2)]
    shapes, counts = set(), set()
    for length in range(1, 99):
        step = Step(cache, [segment(i, length - 1, 1, pages[i]) for i in range(2)], batched=False)
        (group,), alone = step.grouped(None, 1000)
        assert not alone
        shapes.add(tuple(group.slots.shape))
        counts.add(length if group.valid is None else int(group.valid.sum()) // 2)
        assert set(group.slots[1].tolist()) == set(range(25 * PAGE, 25 * PAGE + length))
    assert shapes == {(2, count) for count in range(16, 113, 16)}
    assert counts == set(range(1, 99))


@pytest.mark.parametrize("rows", [1, 3, 12])
@pytest.mark.parametrize("window", [None, 200])
def test_few_rows_over_many_keys_equal_the_formula(rows: int, window: int | None) -> None:
    torch.manual_seed(7)
    count, d = 1100, 64
    cache = SlotCache(
        [LayerCache(LAYER, (KV_HEADS, d), (KV_HEADS, d))], [PageGroup(0, 300)], PAGE, torch.float32, torch.device("cpu")
    )
    keys, values = torch.randn(2, 1, KV_HEADS, count, d).unbind()
    pages = tuple(range(275))
    Step(cache, [segment(0, 0, count, pages)], batched=False).update(keys, values, LAYER)
    step = Step(cache, [segment(0, count - rows, rows, pages)], batched=False)
    q = torch.randn(1, HEADS, rows, d)
    got = attend(step, q, *step.update(keys[:, :, -rows:], values[:, :, -rows:], LAYER), sliding_window=window)[0][0]
    options = {"scaling": d**-0.5, "sliding_window": window, "softcap": None, "s_aux": None}
    expected = plain(q[0].transpose(0, 1), keys[0].transpose(0, 1), values[0].transpose(0, 1), count - rows, **options)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=2e-5)


def test_writing_rows_again_replaces_them() -> None:
    """Positions are overwritten in place: a roll back needs nothing but a lower position."""
    cache = make_cache()
    rows = [torch.randn(1, KV_HEADS, 3, d) for d in (DIM, VALUE_DIM)]
    Step(cache, [segment(0, 0, 3, (2,))], batched=False).update(*rows, LAYER)
    new = [torch.randn(1, KV_HEADS, 2, d) for d in (DIM, VALUE_DIM)]
    Step(cache, [segment(0, 1, 2, (2,))], batched=False).update(*new, LAYER)
    keys = cache.rows(LAYER)[0][:, 2 * PAGE : 2 * PAGE + 3]
    assert torch.equal(keys[:, 0], rows[0][0, :, 0])
    assert torch.equal(keys[:, 1:], new[0][0])


def test_attention_refuses_keys_that_were_not_stored() -> None:
    step = Step(make_cache(), [segment(0, 0, 1, (0,))], batched=False)
    q, k, v = torch.randn(1, HEADS, 1, DIM), torch.randn(1, KV_HEADS, 1, DIM), torch.randn(1, KV_HEADS, 1, VALUE_DIM)
    with pytest.raises(ModelUnsupported, match="another layer's keys"):
        attend(step, q, k, v)
    step.update(k, v, LAYER)
    with pytest.raises(ModelUnsupported, match="other keys than it caches"):
        attend(step, q, k.clone(), v)


@pytest.mark.parametrize("options", [{"is_causal": False}, {"position_bias": torch.zeros(1)}])
def test_unknown_options_are_refused_not_ignored(options: dict[str, object]) -> None:
    q = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ModelUnsupported, match=next(iter(options))):
        partial(dispatch, torch.nn.Identity(), q, q, q, None)(**options)
    with pytest.raises(ModelUnsupported, match="mask"):
        dispatch(torch.nn.Identity(), q, q, q, torch.zeros(1))


@pytest.mark.parametrize("window", [1, 5, 11])
def test_a_window_reads_only_what_its_group_holds(window: int) -> None:
    """Pages below the window are somebody else's by then."""
    torch.manual_seed(8)
    layers = [LayerCache(LAYER, (KV_HEADS, DIM), (KV_HEADS, VALUE_DIM), window=window)]
    cache = SlotCache(layers, [PageGroup(0, 10), PageGroup(12, 20)], PAGE, torch.float32, torch.device("cpu"))
    assert cache.rows(LAYER)[0].shape[1] == 20 * PAGE
    options = {"scaling": 0.37, "sliding_window": window, "softcap": None, "s_aux": None}
    q, k, v = torch.randn(40, HEADS, DIM), torch.randn(40, KV_HEADS, DIM), torch.randn(40, KV_HEADS, VALUE_DIM)
    narrow = list(range(19, 9, -1))
    for first, stop in ((0, 16), (16, 30), (30, 31), (31, 40)):
        start = max(0, first - 11) // PAGE * PAGE
        for page in narrow[: start // PAGE]:
            for held in cache.rows(LAYER):
                held[:, page * PAGE : (page + 1) * PAGE] = float("nan")
        pages = (Pages(tuple(range(10))), Pages(tuple(narrow[start // PAGE : -(-stop // PAGE)]), start))
        step = Step(cache, [Segment(0, 0, first, bytes(4 * (stop - first)), 0, pages)], batched=False)
        rows = [x[first:stop].transpose(0, 1)[None] for x in (q, k, v)]
        got = attend(step, rows[0], *step.update(rows[1], rows[2], LAYER), **options)[0][0]
        expected = plain(q[first:stop], k[:stop], v[:stop], first, **options)
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=2e-5)


def test_pages_that_begin_above_what_is_seen_are_our_own_bug() -> None:
    layers = [LayerCache(LAYER, (KV_HEADS, DIM), (KV_HEADS, VALUE_DIM), window=5)]
    cache = SlotCache(layers, [PageGroup(5, PAGES)], PAGE, torch.float32, torch.device("cpu"))
    Step(cache, [Segment(3, 0, 8, bytes(4), 0, (Pages((0, 1), 4),))], batched=False)
    with pytest.raises(LocalProtocolError, match="back to 3"):
        Step(cache, [Segment(3, 0, 7, bytes(4), 0, (Pages((0,), 4),))], batched=False)
    with pytest.raises(LocalProtocolError, match="2 groups, not 1"):
        Step(cache, [Segment(3, 0, 0, bytes(4), 0, (Pages((0,)), Pages((0,))))], batched=False)


@pytest.mark.parametrize("pages", [(), (0,), (0, PAGES), (0, -1)])
def test_pages_that_cannot_hold_the_rows_are_our_own_bug(pages: tuple[int, ...]) -> None:
    with pytest.raises(LocalProtocolError, match="sequence 3"):
        Step(make_cache(), [segment(3, 0, 5, pages)], batched=False)
