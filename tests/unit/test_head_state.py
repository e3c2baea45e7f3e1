"""What a head takes over from the one before it: address, tokens, model and plan."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bloombee.config import RuntimeConfig
from bloombee.errors import BloomBeeError, ConfigError, DeviceError
from bloombee.models.card import ModelCard
from bloombee.pipeline.swarm.member import Member
from bloombee.pipeline.swarm.planning import FirstPlan, PlanRequest
from bloombee.roles.front_door import FrontDoor
from bloombee.roles.head_state import HeadState
from bloombee.sim.cluster import sim_card
from bloombee.types import Dtype
from bloombee.wire.join import Admitted, Door
from bloombee.wire.messages import PROTOCOL_VERSION, Join
from bloombee.wire.token import decode_token

CARD = dataclasses.replace(sim_card((0,) * 4), model="./m", config_digest="ab" * 16, weight_digests=("01" * 8,) * 6)
OTHERS = (
    dataclasses.replace(CARD, config_digest="cd" * 16),
    dataclasses.replace(CARD, weight_digests=(*CARD.weight_digests[:5], "02" * 8)),
)


def _request(card: ModelCard = CARD, **fields: Any) -> PlanRequest:
    base = PlanRequest(
        card=card,
        dtype=Dtype.FLOAT32,
        num_workers=2,
        split=(1, 3),
        num_pages=4,
        page_size=16,
        max_rows=32,
        num_microbatches=2,
    )
    return dataclasses.replace(base, **fields)


def _config(path: Path | None, **fields: Any) -> RuntimeConfig:
    return RuntimeConfig(**{"model": "./m", "remote_workers": 2, "state": None if path is None else str(path), **fields})


def _run(config: RuntimeConfig, use: Callable[[HeadState], Any]) -> Any:
    async def main() -> Any:
        state = HeadState(config)
        try:
            found = use(state)
            return await found if asyncio.iscoroutine(found) else found
        finally:
            await state.close()

    return asyncio.run(main())


def _issued(config: RuntimeConfig, count: int) -> tuple[list[str], Door]:
    """Tokens that a head of ``config`` issues, and its door."""
    door = Door(1, 0.1, 1.0)

    def use(state: HeadState) -> list[str]:
        front_door = FrontDoor(door, config, state, bound="tcp://127.0.0.1:7123")
        return [front_door.issue() for _ in range(count)]

    return _run(config, use), door


def _lets_in(door: Door, token: str, key: bytes) -> bool:
    join = Join(PROTOCOL_VERSION, decode_token(token).secret, "w", "1", "", "cpu", 1, ())
    return isinstance(door.knock(key, key[:16], join), Admitted)


def test_without_a_directory_nothing_is_kept_and_everything_works() -> None:
    def use(state: HeadState) -> None:
        state.listens("tcp://127.0.0.1:9", print)
        state.note("a", b"b")
        assert (state.returns, state.listen, state.notes) == (False, "tcp://127.0.0.1:0", {"a": b"b"})
        assert state.serves(_request()).before is None

    _run(_config(None), use)


def test_the_address_is_the_one_before_unless_another_is_asked_for(tmp_path: Path) -> None:
    said: list[str] = []
    _run(_config(tmp_path), lambda state: state.listens("tcp://127.0.0.1:7123", said.append))
    assert _run(_config(tmp_path), lambda state: state.listen) == "tcp://127.0.0.1:7123"
    assert _run(_config(tmp_path, listen="tcp://*:7700"), lambda state: state.listen) == "tcp://*:7700"
    assert said == []
    with (tmp_path / "journal").open("ab") as file:
        file.write(b"torn")
    _run(_config(tmp_path), lambda state: state.listens("tcp://127.0.0.1:7123", said.append))
    assert said == [
        f"{tmp_path}: the last 4 bytes of the journal were not written to their end, or are damaged: they are cut, and kept in"
        " journal.cut if there was room"
    ]


def test_tokens_of_heads_before_let_in_and_those_of_the_start_are_the_same_again(tmp_path: Path) -> None:
    first, _ = _issued(_config(tmp_path), 3)  # for two workers, and for one that is to come besides
    again, door = _issued(_config(tmp_path), 3)
    assert again[:2] == first[:2]
    assert again[2] not in first
    for number, token in enumerate((*first, again[2])):
        assert _lets_in(door, token, bytes([number]) * 32)
        assert not _lets_in(door, token, bytes([100 + number]) * 32)


def test_a_plan_is_made_again_for_the_same_wishes_only(tmp_path: Path) -> None:
    members = [Member(worker, f"w{worker}", "tcp://127.0.0.1:1", bytes([worker]) * 32, 1 << 30) for worker in (1, 2)]

    def use(state: HeadState) -> None:
        request = state.serves(_request())
        plan = FirstPlan(request).make(members)
        state.planned(plan, {member.id: member.key for member in members}, request)

    _run(_config(tmp_path), use)
    before = _run(_config(tmp_path), lambda state: state.serves(_request()).before)
    assert [(seat.key, seat.start, seat.stop) for seat in before.seats] == [(b"\1" * 32, 0, 1), (b"\2" * 32, 1, 4)]
    for other in (_request(split=(2, 2)), _request(num_workers=3, split=None), _request(takes_others=False)):
        assert _run(_config(tmp_path), lambda state, other=other: state.serves(other).before) is None


@pytest.mark.parametrize("other", OTHERS)
def test_another_model_is_refused(tmp_path: Path, other: ModelCard) -> None:
    _run(_config(tmp_path), lambda state: state.serves(_request()))
    with pytest.raises(ConfigError, match=r"is of a head of another model than \./m is now: it had \./m; give that one"):
        _run(_config(tmp_path), lambda state: state.serves(_request(other)))
    assert _run(_config(tmp_path), lambda state: state.serves(_request())).card == CARD


async def _described(state: HeadState, found: ModelCard | BloomBeeError) -> tuple[ModelCard, list[BloomBeeError]]:
    """The card, and what was told once the model had been looked at."""
    failed: list[BloomBeeError] = []
    looked = asyncio.Event()

    async def look() -> ModelCard:
        looked.set()
        if isinstance(found, BloomBeeError):
            raise found
        return found

    card = await state.describe(look, failed.append)
    await looked.wait()
    if state._looking is not None:
        await state._looking
    return card, failed


def test_the_model_is_known_at_once_and_looked_at_meanwhile(tmp_path: Path) -> None:
    assert _run(_config(tmp_path), lambda state: _described(state, CARD)) == (CARD, [])  # there is nothing to know it from
    _run(_config(tmp_path), lambda state: state.serves(_request()))
    assert _run(_config(tmp_path), lambda state: _described(state, CARD)) == (CARD, [])
    for other in OTHERS:
        card, (error,) = _run(_config(tmp_path), lambda state, other=other: _described(state, other))
        assert card == CARD
        assert isinstance(error, ConfigError)
    # One that cannot be looked at any more is still with the workers.
    assert _run(_config(tmp_path), lambda state: _described(state, DeviceError("x"))) == (CARD, [])
    # Asked for by another name, or with workers that are started here: nothing is gained by not looking.
    for settings in ({"model": "./n"}, {"remote_workers": 0}):
        found = _run(_config(tmp_path, **settings), lambda state: _described(state, OTHERS[0]))
        assert found == (OTHERS[0], [])
