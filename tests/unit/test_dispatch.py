"""What stages tell the scheduler by way of the head's process."""

from __future__ import annotations

import pytest

from bloombee.config import RuntimeConfig
from bloombee.errors import RemoteProtocolError, StalePlan
from bloombee.links.frames import LinkMeter
from bloombee.models.standin import standin_card
from bloombee.pipeline.swarm import SwarmCore, SwarmLimits
from bloombee.roles.bulletin import Bulletin
from bloombee.roles.desk import Desk
from bloombee.roles.dispatch import Dispatch
from bloombee.roles.plan_wishes import plan_request
from bloombee.roles.replanner import Replanner
from bloombee.wire.messages import NO_GRAMMAR, NO_TOKEN, Given, Pick, Told, Verdict

CARD = standin_card("standin:64x4")
MOST = CARD.vocab_size


def _dispatch() -> Dispatch:
    request = plan_request(RuntimeConfig(model=CARD.model), CARD, ())
    core = SwarmCore(request, SwarmLimits(60.0), iter((bytes(16),)))
    return Dispatch(
        request,
        meter=LinkMeter(),
        trace=None,
        send=lambda worker, lane, message: 0,
        desk=Desk(1, lambda commands: None),
        replanner=Replanner(Bulletin(), lambda _: None, lambda: core, lambda commands: None),
    )


def _pick(token: int, *top: int) -> Pick:
    return Pick(1, 0, 3, token, None, tuple((one, -1.0) for one in top))


@pytest.mark.parametrize("pick", [_pick(MOST), _pick(2**32 - 3), _pick(5, MOST - 1, MOST)], ids=["next", "huge", "likely"])
@pytest.mark.parametrize("by", ["the last stage", "a scheduler elsewhere"])
def test_a_token_that_the_model_does_not_have_is_refused(pick: Pick, by: str) -> None:
    message = (
        Verdict(1, 1, 0, 0, (pick,), None) if by == "the last stage" else Told(1, 1, 0, (Given(pick, None, 0, False, 0),), ())
    )
    with pytest.raises(RemoteProtocolError, match=f"of a model that has {MOST}") as caught:
        _dispatch().heard(1, message, 0, 0.0)
    assert caught.value.fields["path"] in ("Verdict.picks", "Told.given")


@pytest.mark.parametrize("pick", [_pick(MOST - 1, MOST - 2, 0), _pick(NO_TOKEN), _pick(NO_GRAMMAR)])
def test_tokens_that_it_has_are_the_schedulers_to_judge(pick: Pick) -> None:
    with pytest.raises(StalePlan):  # nothing runs
        _dispatch().heard(1, Verdict(1, 1, 0, 0, (pick,), None), 0, 0.0)


@pytest.mark.parametrize("token", [NO_TOKEN, NO_GRAMMAR])
def test_a_scheduler_elsewhere_ends_a_sequence_without_a_token_by_another_word(token: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"of a model that has {MOST}"):
        _dispatch().heard(0, Told(1, 1, 0, (Given(_pick(token), None, 0, False, 0),), ()), 0, 0.0)
