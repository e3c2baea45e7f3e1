"""The sampler: noise against golden vectors, native rows against the NumPy oracle, marginals against softmax."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bloombee import _native
from bloombee.engine import noise, sampler_reference
from bloombee.engine.sampler import LEAST_LOGPROB, SamplerRow, penalised, sample
from bloombee.wire.messages import Sampling

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "noise.json").read_text())
INF = float("inf")


@pytest.fixture(params=_native.available_isas(), autouse=True)
def isa(request):
    before = _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


def sampling(**fields):
    off = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": 0,
        "logprobs": -1,
    }
    return Sampling(**(off | fields))


def native(logits, **fields):
    """Tokens of [b, v] logits, every row with the same parameters but position i."""
    logits = np.atleast_2d(np.asarray(logits, np.float32))
    rows = [SamplerRow(sampling(**fields), position) for position in range(len(logits))]
    return [got.token for got in sample(logits, rows)]


# -- noise -------------------------------------------------------------------------------------

ONES = 0xFFFFFFFF
# Known answers of philox4x32-10, from the Random123 distribution (kat_vectors).
PHILOX = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), PHILOX)
def test_philox_known_answers(counter, key, expected):
    assert _native.philox4x32(counter, key) == expected
    assert tuple(int(word) for word in noise.philox4x32(counter, key)) == expected


def test_noise_is_the_golden_noise_bit_for_bit():
    for row in GOLDEN:
        token = np.array([row["token"]], np.uint32)
        out = np.empty(1)
        _native.gumbel_noise(token, out, seed=row["seed"], position=row["position"])
        assert out[0].item().hex() == row["gumbel"]
        assert noise.gumbel(row["seed"], row["position"], token)[0].item().hex() == row["gumbel"]
        assert noise.uniform(row["seed"], row["position"], token)[0].item().hex() == row["u"]


def test_log_is_a_logarithm():
    x = np.concatenate(
        [np.exp(np.random.default_rng(0).uniform(-40, 4, 10000)), [2.0**-53, 1 - 2.0**-53, 1.0, 0.5, math.sqrt(0.5)]]
    )
    np.testing.assert_allclose(noise.log(x), np.log(x), rtol=6e-16, atol=0)


def test_noise_has_the_gumbel_distribution_and_no_correlation_between_neighbours():
    values = noise.gumbel(3, 5, np.arange(100_000))
    assert stats.kstest(values, stats.gumbel_r.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(values[::2], values[1::2])[0, 1]) < 0.02
    assert abs(np.corrcoef(values, noise.gumbel(3, 6, np.arange(100_000)))[0, 1]) < 0.02


# -- native rows against the oracle ------------------------------------------------------------


def random_logits(rng, kind, rows, num_tokens):
    logits = (rng.standard_normal((rows, num_tokens)) * rng.choice([0.1, 1, 3, 30])).astype(np.float32)
    match kind:
        case "ties":
            return np.round(logits)
        case "equal":
            return np.full_like(logits, 2.5)
        case "masked":
            logits[rng.random(logits.shape) < 0.7] = -INF
        case "broken":
            logits[rng.random(logits.shape) < 0.1] = np.nan
            logits[rng.random(logits.shape) < 0.05] = INF
        case "huge":
            return logits * np.float32(1e36)
        case "rising":
            return np.sort(logits, axis=1)
    return logits


@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "masked", "broken", "huge", "rising"])
@pytest.mark.parametrize("num_tokens", [1, 2, 15, 16, 63, 64, 65, 200, 1000, 4097])
def test_equals_the_oracle(kind, num_tokens):
    rng = np.random.default_rng(num_tokens)
    rows = 24
    logits = random_logits(rng, kind, rows, num_tokens)
    columns = {
        "temperature": rng.choice([0, 1e-320, 1e-4, 0.3, 1, 1, 1, 2, 50, 1e18], rows),
        "top_k": rng.choice([0, 0, 1, 2, 5, 50, num_tokens // 2, num_tokens, num_tokens + 1], rows).astype(np.uint32),
        "top_p": rng.choice([1, 1, 0.9, 0.5, 0.1, 0.999, 1e-9], rows),
        "min_p": rng.choice([0, 0, 0.1, 0.5, 1, 1e-6], rows),
        "seed": rng.integers(0, 2**64, rows, dtype=np.uint64),
        "position": rng.integers(0, 2**40, rows, dtype=np.uint64),
    }
    got, expected = np.empty(rows, np.uint32), np.empty(rows, np.uint32)
    _native.sample_rows(logits, got, **columns)
    sampler_reference.sample_rows(logits, expected, **columns)
    assert got.tolist() == expected.tolist()


def test_equals_the_oracle_on_a_whole_vocabulary():
    logits = (np.random.default_rng(1).standard_normal((4, 128_000)) * 3).astype(np.float32)
    for fields in ({}, {"top_k": 50, "top_p": 0.9}, {"top_p": 0.9}, {"min_p": 0.05}, {"top_k": 30_000, "top_p": 0.5}):
        expected = [
            sampler_reference.sample_row(row, temperature=0.8, seed=9, position=i, **fields) for i, row in enumerate(logits)
        ]
        assert native(logits, temperature=0.8, seed=9, **fields) == expected


def test_does_not_depend_on_alignment_or_batch():
    rng = np.random.default_rng(2)
    memory = rng.standard_normal(5 * 333 + 1).astype(np.float32)
    logits = memory[1:].reshape(5, 333)  # 4-byte aligned only
    rows = [SamplerRow(sampling(seed=i, top_p=0.8), 100 + i) for i in range(5)]
    together = sample(logits, rows)
    alone = [sample(logits[i : i + 1].copy(), rows[i : i + 1])[0] for i in range(5)]
    backwards = sample(logits[::-1].copy(), rows[::-1])[::-1]
    assert together == alone == backwards


# -- what the definition says ------------------------------------------------------------------


def test_marginals_match_softmax():
    logits = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    draws = 20_000
    for temperature in (1.0, 0.5, 2.0):
        expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        counts = np.bincount(native(np.tile(logits, (draws, 1)), temperature=temperature, seed=11), minlength=6)
        assert stats.chisquare(counts, expected * draws).pvalue > 1e-3
    counts = np.bincount(native(np.tile(logits, (draws, 1)), top_k=4, top_p=0.9, seed=12), minlength=6)
    kept = np.exp(logits[:3]) / np.exp(logits[:3]).sum()  # of the four best, the first three reach 0.9
    assert counts[3:].sum() == 0
    assert stats.chisquare(counts[:3], kept * draws).pvalue > 1e-3


def kept_tokens(logits, **fields):
    """Which tokens come up at all in many draws."""
    return set(native(np.tile(np.asarray(logits, np.float32), (4000, 1)), seed=1, **fields))


def test_filters_keep_what_they_say():
    flat = [1.0] * 8
    assert kept_tokens(flat) == set(range(8))
    assert kept_tokens(flat, top_k=3) == {0, 1, 2}  # ties: the lower id
    assert kept_tokens(flat, top_p=0.5) == {0, 1, 2, 3}  # reached exactly at the fourth
    assert kept_tokens(flat, top_p=0.51) == {0, 1, 2, 3, 4}
    assert kept_tokens(flat, top_k=4, top_p=0.5) == {0, 1}  # top-p counts in what top-k left
    assert kept_tokens(flat, min_p=1.0) == set(range(8))  # all are as likely as the best
    logits = np.log([0.4, 0.3, 0.2, 0.06, 0.04])
    assert kept_tokens(logits, top_p=0.65) == {0, 1}
    assert kept_tokens(logits, top_p=0.75) == {0, 1, 2}
    assert kept_tokens(logits, min_p=0.45) == {0, 1, 2}
    assert kept_tokens(logits, min_p=0.55) == {0, 1}
    assert kept_tokens(logits, temperature=2.0, min_p=0.55) == {0, 1, 2}  # temperature comes first
    for fields in ({"top_k": 1}, {"top_p": 1e-12}, {"min_p": 1.0}):  # the best one always stays
        assert kept_tokens(logits, **fields) == {0}


def test_greedy_takes_the_lowest_of_the_best():
    assert native([[1, 3, 3, 2], [0, -INF, 0, 0], [-5, -4, np.nan, -4]], temperature=0.0) == [1, 0, 1]
    wide = np.zeros((1, 1000), np.float32)
    wide[0, [700, 900]] = 1
    assert native(wide, temperature=0.0, top_k=5, top_p=0.1) == [700]


def test_not_a_number_and_infinities():
    assert native([[np.nan] * 70, [-INF] * 70], temperature=1.0) == [0, 0]
    assert native([[np.nan, -INF, np.nan]], temperature=0.0) == [0]
    assert kept_tokens([np.nan, 1.0, -INF, 1.0]) == {1, 3}
    assert kept_tokens([0.0, INF, 5.0, INF]) == {1, 3}
    assert kept_tokens([np.nan, 1.0, -INF, 1.0], top_k=3, top_p=0.99, min_p=1e-9) == {1, 3}


def test_refuses_bad_arguments():
    logits = np.zeros((1, 4), np.float32)
    for fields in (
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": 1e19},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": 2.0},
    ):
        with pytest.raises(ValueError, match=next(iter(fields))):
            native(logits, **fields)
    with pytest.raises(ValueError, match="1 rows of logits for 2"):
        sample(logits, [SamplerRow(sampling(), 0)] * 2)
    with pytest.raises(ValueError, match="format"):
        sample(logits.astype(np.float64), [SamplerRow(sampling(), 0)])
    with pytest.raises(ValueError, match="tokens a row"):
        sample(np.zeros((1, 0), np.float32), [SamplerRow(sampling(), 0)])
    with pytest.raises(ValueError, match="must be < 4"):
        _native.log_softmax(logits[0], np.array([4], np.uint32), np.zeros(1))


# -- penalties and reports ---------------------------------------------------------------------


def test_penalties():
    row = np.array([2.0, -2.0, 4.0, 1.0, 0.5], np.float32)
    history = np.array([0, 1, 2, 2, 3, 999], "<u4")  # 999 lies beyond the vocabulary
    request = SamplerRow(
        sampling(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25), 6, history.tobytes(), num_prompt_tokens=2
    )
    got = penalised(row, request)
    assert got.tolist() == [1.0, -4.0, 2.0 - 0.5 - 2 * 0.25, 0.5 - 0.5 - 0.25, 0.5]
    assert row.tolist() == [2.0, -2.0, 4.0, 1.0, 0.5]


def test_penalties_of_one_row_leave_the_others_alone():
    logits = np.tile(np.array([1.0, 0.9, 0.0], np.float32), (3, 1))
    plain = SamplerRow(sampling(temperature=0.0), 1)
    history = np.array([0], "<u4").tobytes()
    for field in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        value = 1.5 if field == "repetition_penalty" else 0.5
        punished = SamplerRow(sampling(temperature=0.0, logprobs=1, **{field: value}), 1, history)
        got = sample(logits, [plain, punished, plain])
        assert [one.token for one in got] == [0, 1, 0]
        assert got[1].top[0][0] == 0  # what is reported is the model's own


def test_logprobs_are_the_models_own():
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((3, 777)) * 4).astype(np.float32)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    rows = [SamplerRow(sampling(temperature=0.3, top_k=5, seed=i, logprobs=count), i) for i, count in enumerate((-1, 0, 20))]
    nothing, own, many = sample(logits, rows)
    assert nothing.logprob is None
    assert nothing.top == own.top == ()
    assert own.logprob == pytest.approx(exact[1, own.token], abs=1e-12)
    assert many.logprob == pytest.approx(exact[2, many.token], abs=1e-12)
    assert [token for token, _ in many.top] == np.argsort(-logits[2], kind="stable")[:20].tolist()
    assert [value for _, value in many.top] == pytest.approx(np.sort(exact[2])[::-1][:20].tolist(), abs=1e-12)


def test_logprobs_of_odd_rows_are_finite_and_ordered():
    logits = np.array([[1.0, np.nan, 1.0, -INF], [np.nan] * 4], np.float32)
    first, second = sample(logits, [SamplerRow(sampling(temperature=0.0, logprobs=20), 0)] * 2)
    assert first.top == ((0, pytest.approx(-math.log(2))), (2, pytest.approx(-math.log(2))))
    assert (second.token, second.logprob, second.top) == (0, LEAST_LOGPROB, ())


def test_logprobs_are_the_same_at_every_level(isa):
    logits = np.random.default_rng(4).standard_normal(5003).astype(np.float32) * 5
    ids = np.arange(5003, dtype=np.uint32)
    here, plain = np.empty(5003), np.empty(5003)
    _native.log_softmax(logits, ids, here)
    _native.set_isa("scalar")
    _native.log_softmax(logits, ids, plain)
    assert (here == plain).all()
