"""Which layers stream, and what a plan counts for them."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from bloombee.errors import Infeasible
from bloombee.models.shape import LayerKind, ModelShape
from bloombee.models.standin import standin_card
from bloombee.pipeline.swarm import PlanRequest
from bloombee.pipeline.swarm.member import Member
from bloombee.pipeline.swarm.planning import FirstPlan
from bloombee.plan.choose import LEAST_TOKENS
from bloombee.plan.memory import chosen_to_stream, kv_slots, stage_memory, streamable
from bloombee.plan.placement import placement_of, spread, streamed_memory, streamed_of
from bloombee.plan.plan import Plan
from bloombee.types import Dtype, Span

CARD = standin_card("standin:1024x16")
REQUEST = PlanRequest(
    card=CARD, dtype=Dtype.BFLOAT16, num_workers=2, split=None, num_pages=512, page_size=16, max_rows=64, num_microbatches=4,
    pages_fixed=False, streams=True,
)  # fmt: skip
WHOLE = Span(0, 16)


def planned(memory: int, **fields: object) -> Plan:
    members = [Member(worker, f"w{worker}", "tcp://10.0.0.1:1", bytes(32), memory) for worker in (1, 2)]
    return FirstPlan(dataclasses.replace(REQUEST, **fields)).make(members)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", range(17))
def test_layers_that_stream_are_different_and_far_apart(count: int) -> None:
    layers = spread(Span(3, 19), count)
    assert len(set(layers)) == count
    gaps = {after - before for before, after in itertools.pairwise(layers)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert layers[:1] == ((3,) if count else ())
    assert layers[-1:] == ((18,) if count > 1 else layers)


def test_placements_read_as_they_were_written() -> None:
    span, streamed = Span(4, 10), (4, 7, 9)
    assert placement_of(span, streamed) == (2, 0, 0, 2, 0, 2)
    assert streamed_of(4, placement_of(span, streamed)) == streamed
    assert placement_of(span, ()) == ()


def test_only_layers_of_one_size_stream() -> None:
    kinds = (LayerKind(1000, 1), LayerKind(100, 1), LayerKind(1000, 1, window=8))
    model = ModelShape(8, 6, kinds=kinds, kind_of=(1, 0, 2, 0, 2, 1))
    assert streamable(model, Span(0, 6)) == (1, 2, 3, 4)
    assert chosen_to_stream(model, Span(0, 6), 3) == (1, 3, 4)
    assert stage_memory(model, 0, 6, (0, 0, 0), (1, 3, 4)).weights == 1200 + streamed_memory(1000, 3)


def test_where_all_fits_nothing_streams() -> None:
    assert [stage.streamed for stage in planned(1 << 32).stages] == [(), ()]


def test_as_few_layers_stream_as_leave_room_for_the_least_kv_memory() -> None:
    """One layer fewer would not fit, and KV memory then takes what is left."""
    roomy = planned(1 << 32).stages[1]
    model = FirstPlan(REQUEST).wish().shape(CARD, LEAST_TOKENS // 16)
    slots = kv_slots(model, LEAST_TOKENS, page_size=16, rows=64)
    for share in (0.6, 0.8, 0.9):
        memory = int(share * roomy.weight_bytes) + roomy.scratch_bytes + roomy.kv_bytes // 4
        stage = planned(memory).stages[1]
        count = len(stage.streamed)
        assert count > 2
        assert stage.weight_bytes + stage.kv_bytes + stage.scratch_bytes <= memory
        fewer = chosen_to_stream(model, stage.span, count - 1) if count > 3 else ()
        assert stage_memory(model, stage.span.start, stage.span.stop, slots, fewer).total > memory
        assert planned(memory).num_tokens >= LEAST_TOKENS


def test_below_the_slots_and_their_staging_it_says_how_much_is_missing() -> None:
    memory = 1 << 24
    for name in ("w1", "w2"):
        with pytest.raises(Infeasible) as caught:
            planned(memory, num_pages=4, pages_fixed=True)
        assert caught.value.fields["worker"] == name
        memory += int(str(caught.value.fields["short_bytes"]))
    assert len(planned(memory, num_pages=4, pages_fixed=True).stages[1].streamed) == 8


def test_without_streaming_it_is_infeasible_as_ever() -> None:
    with pytest.raises(Infeasible, match="short by"):
        planned(1 << 27, streams=False)
