"""Stand-in models: sizes, ids, paces, the bank, and that a row in the wrong place is seen."""

from __future__ import annotations

import pytest
import torch

from bloombee.engine.describe import describe
from bloombee.engine.spans import SpanStore
from bloombee.engine.standin import BANK, LOAD_PIECES, Bank, StandIn
from bloombee.errors import ConfigError, Infeasible, RemoteProtocolError
from bloombee.models.standin import (
    ACCELERATORS,
    VOCAB,
    default_pace,
    is_standin,
    standin_card,
    standin_memory_bytes,
    standin_token,
)
from bloombee.pipeline.work import Segment, Work
from bloombee.types import Dtype, PageGroup, Phase, Span
from bloombee.wire.messages import Pick, Sampling

SAMPLING = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 77, -1)


def segment(sequence: int, position: int, rows: int, picks: int = 0) -> Segment:
    return Segment(sequence, 0, position, bytes(4 * rows), picks, (), SAMPLING if picks else None)


def work(*segments: Segment) -> Work:
    return Work(0, 1, 0, 0, Phase.DECODE, segments)


@pytest.mark.parametrize(("model", "billions"), [("standin:llama-30b", 32.5), ("standin:llama-70b", 69.0)])
def test_named_ones_have_the_published_parameters(model: str, billions: float) -> None:
    assert standin_card(model).num_parameters / 1e9 == pytest.approx(billions, rel=0.005)


def test_any_shape_is_a_model() -> None:
    card = describe("standin:6656x60")
    assert (card.hidden_size, card.num_layers, card.dtype) == (6656, 60, Dtype.BFLOAT16)
    assert card.tokenizer_json is None
    assert card.eos_token_ids == ()
    assert card.config_digest != standin_card("standin:6656x61").config_digest
    assert is_standin(card.model)
    assert standin_memory_bytes(card.model) == 80 * 10**9
    assert standin_memory_bytes("demo") is None


@pytest.mark.parametrize("model", ["standin:", "standin:llama-31b", "standin:0x4", "standin:64x0", "standin:64", "standin:x"])
def test_an_unknown_one_says_what_there_is(model: str) -> None:
    with pytest.raises(ConfigError, match="standin:llama-30b, standin:llama-70b and standin:HIDDENxLAYERS"):
        standin_card(model)


def test_the_default_pace_is_the_rooflines() -> None:
    card = standin_card("standin:llama-30b")
    pace = default_pace(card, Span(20, 40), ACCELERATORS["a100"])
    weights = card.weight_bytes(Span(20, 40))
    assert pace.fixed_s == pytest.approx(weights / 2.039e12)
    assert pace.prefill_row_s == pytest.approx(weights / 312e12)
    assert pace.decode_row_s == pytest.approx(pace.prefill_row_s + 1024 * 20 * 2 * 6656 * 2 / 2.039e12)
    first = default_pace(card, Span(0, 20), ACCELERATORS["a100"])
    assert first.fixed_s == pytest.approx(pace.fixed_s)  # an embedding is looked up, not read


def test_ids_depend_on_seed_and_position_and_repeat() -> None:
    ids = [standin_token(seed, position) for seed in range(4) for position in range(500)]
    assert ids == [standin_token(seed, position) for seed in range(4) for position in range(500)]
    assert all(0 <= token < VOCAB for token in ids)
    assert len(set(ids)) > 1900
    assert standin_token(2**64 - 1, 7) != standin_token(0, 7)


def test_the_bank_is_small_and_holds_real_activations() -> None:
    assert BANK.stat().st_size <= 300_000
    for boundary in (1, 30, 59):
        rows = Bank(6656, Dtype.BFLOAT16).rows(boundary, 60, (segment(3, 100, 64),)).float()
        assert rows.shape == (64, 6656)
        assert torch.isfinite(rows).all()
        assert 0.01 < rows.std() < 1000
        assert len({tuple(row[:16].tolist()) for row in rows}) > 32


@pytest.mark.parametrize("d", [1, 255, 256, 6656, 100_000])
@pytest.mark.parametrize("dtype", list(Dtype))
def test_a_row_depends_on_its_sequence_and_position_only(d: int, dtype: Dtype) -> None:
    bank = Bank(d, dtype)
    whole = bank.rows(1, 8, (segment(5, 10, 6), segment(9, 0, 2)))
    assert torch.equal(whole[2:6], bank.rows(1, 8, (segment(5, 12, 4),)))
    assert torch.equal(whole[6:], bank.rows(1, 8, (segment(9, 0, 2),)))


def stages() -> list[StandIn]:
    return [StandIn.load("standin:64x3", Span(layer, layer + 1), dtype=Dtype.BFLOAT16) for layer in range(3)]


def test_stages_pass_what_the_next_expects_and_the_last_picks() -> None:
    first, middle, last = stages()
    asked = work(segment(1, 4, 3, picks=2), segment(2, 0, 1, picks=1))
    hidden = first.run(asked, None)
    assert isinstance(hidden, torch.Tensor)
    assert not torch.equal(middle.run(asked, hidden), hidden)  # type: ignore[arg-type]
    picks = last.run(asked, middle.run(asked, hidden))  # type: ignore[arg-type]
    assert picks == [
        Pick(1, 0, 6, standin_token(77, 6), None, ()),
        Pick(1, 0, 7, standin_token(77, 7), None, ()),
        Pick(2, 0, 1, standin_token(77, 1), None, ()),
    ]


def test_a_row_in_the_wrong_place_is_named() -> None:
    first, middle, _ = stages()
    hidden = first.run(work(segment(1, 0, 40)), None)
    assert isinstance(hidden, torch.Tensor)
    hidden = hidden.clone()
    hidden[[7, 8]] = hidden[[8, 7]]
    with pytest.raises(RemoteProtocolError, match="sequence 1, position 7 is not the one"):
        middle.run(work(segment(1, 0, 40)), hidden)
    for wrong in (None, hidden[:-1], hidden.float()):
        with pytest.raises(RemoteProtocolError, match="this stage takes"):
            middle.run(work(segment(1, 0, 40)), wrong)


GROUPS = [PageGroup(window=0, num_pages=100)]


def test_kv_is_what_the_model_would_hold() -> None:
    card = standin_card("standin:64x8")
    stage = StandIn.load("standin:64x8", Span(2, 5), dtype=Dtype.BFLOAT16, groups=GROUPS, page_size=16)
    assert stage.kv_bytes == 1600 * 3 * 2 * 64 * 2 == 1600 * card.kv_bytes_per_token(Span(2, 5))
    assert stage.weight_bytes == card.weight_bytes(Span(2, 5))


def test_weights_and_kv_that_do_not_fit_are_infeasible() -> None:
    def load(memory_bytes: int) -> StandIn:
        return StandIn.load(
            "standin:64x8", Span(2, 5), dtype=Dtype.BFLOAT16, groups=GROUPS, page_size=16, store=SpanStore(memory_bytes)
        )

    need = load(1 << 40).weight_bytes + load(1 << 40).kv_bytes
    assert load(need).kv_bytes > 0
    with pytest.raises(Infeasible, match=r"layers \[2, 5\) need .* short by") as caught:
        load(need - 1)
    assert (caught.value.fields["constraint"], caught.value.fields["short_bytes"]) == ("memory", 1)


def test_weights_come_in_pieces_and_a_load_can_be_given_up() -> None:
    told: list[tuple[int, int]] = []
    stage = StandIn.load(
        "standin:64x3", Span(0, 3), dtype=Dtype.BFLOAT16, progress=lambda loaded, total: told.append((loaded, total))
    )
    loaded = [one for one, _ in told]
    assert len(told) == LOAD_PIECES
    assert loaded == sorted(set(loaded))
    assert told[-1] == (stage.weight_bytes, stage.weight_bytes)

    def give_up(loaded: int, total: int) -> None:
        if loaded > total // 2:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        StandIn.load("standin:64x3", Span(0, 3), dtype=Dtype.BFLOAT16, progress=give_up)


def test_a_span_beyond_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="has 3 layers"):
        StandIn.load("standin:64x3", Span(2, 4), dtype=Dtype.BFLOAT16)
