"""What the protocol has room for and nobody speaks yet is refused by name, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from stage_kit import a_frame, a_stage, an_item, an_opening

from bloombee.errors import LinkDown, NotSpoken, RemoteProtocolError, from_wire
from bloombee.pipeline.events import StageReceived
from bloombee.types import Kind
from bloombee.wire import messages as m
from bloombee.wire.schema import decode_message
from bloombee.wire.spoken import UNSPOKEN, check_spoken

VECTORS = json.loads((Path(__file__).resolve().parents[1] / "golden" / "wire.json").read_text())
PEER = m.Peer(2, "tcp://h:1", bytes(32), bytes(16), True, None)
BACK = replace(PEER, dials=False)
LOAD = m.Load(1, 1, 0, 1, 2, "m", bytes(16), (), "float32", (m.Group(0, 8),), 4, 0, None, (), ())
WIRE = m.Wire(1, 1, 1, 1, 3, 2, 64, BACK, PEER, None, (), None, False, 1, False)
SCHEDULE = m.Schedule(1, (m.Group(0, 8),), 4, 600.0, False, (PEER, PEER), True)
FIRST = replace(WIRE, stage=0, predecessor=None)
OPENING = an_opening(4)
PROFILE = m.Profile("m", bytes(16), "float32")
REQUEST = m.Request(1, 4, 0, bytes(16), OPENING, "", 0, None)


def test_messages_that_are_not_spoken_yet_are_refused_by_their_name() -> None:
    refused = set()
    for vector in VECTORS:
        message = decode_message(bytes.fromhex(vector["message"]))
        if isinstance(message, UNSPOKEN):
            with pytest.raises(NotSpoken, match=f"^{type(message).__name__} is not spoken yet"):
                check_spoken(message)
            with pytest.raises(NotSpoken):
                a_stage().handle(StageReceived(message, 0.0))
            refused.add(type(message))
    assert refused == set(UNSPOKEN)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("Load.placement", replace(LOAD, placement=(0, 1))),
        ("Load.budgets", replace(LOAD, budgets=(5,))),
        ("Wire.scheduler", replace(WIRE, stage=0, predecessor=None, scheduler=BACK)),
        ("Wire.schedule.stages[0].through", replace(FIRST, schedule=replace(SCHEDULE, stages=(replace(PEER, through=5), PEER)))),
        ("Wire.listeners", replace(WIRE, stage=2, successor=None, listeners=(PEER,))),
        ("Wire.successor.through", replace(WIRE, successor=replace(PEER, through=5))),
        ("Introduce.peer.through", m.Introduce(replace(PEER, through=5))),
    ],
)
def test_fields_that_are_not_spoken_yet_are_refused_by_their_name(path: str, message: Any) -> None:
    with pytest.raises(NotSpoken) as caught:
        check_spoken(message)
    assert caught.value.fields["path"] == path


def test_what_is_spoken_passes() -> None:
    ring = (replace(WIRE, scheduler=BACK), replace(FIRST, schedule=SCHEDULE), m.Ask(1, 1, 0, (REQUEST,), (), (), None))
    turned = replace(WIRE, predecessor=PEER, successor=BACK)
    for message in (
        LOAD,
        WIRE,
        PROFILE,
        *ring,
        turned,
        m.Introduce(PEER),
        m.Measure(1, 1, 1),
        m.Commit(1, 1, (m.Cut(1, 1, 5, ()), m.Cut(1, 2, 5, (1, 3)))),
        m.Leave("x"),
        m.Drain(1, "x"),
        m.Drained(1),
        m.Unload(1, 1),
    ):
        check_spoken(message)


def test_shadows_are_not_spoken_yet_and_change_nothing() -> None:
    core = a_stage()
    with pytest.raises(NotSpoken):
        core.handle(a_frame(0, an_item(8, 0, 2), replace(an_item(7, 0, 4), kind=Kind.SHADOW)))
    assert core.num_sequences == 0
    assert core.pages_free == 8
    assert not core.seats[1].upstream[0].holds(0)


def test_what_a_text_must_be_is_spoken() -> None:
    begins = replace(OPENING, biases=((5, 1.0),), grammar=m.Grammar("regex", "a"))
    core = a_stage()
    core.handle(a_frame(0, an_item(7, 0, 4, begins=begins)))
    held = core.store.get(7)
    assert held is not None
    assert held.opening == begins


def test_it_is_no_breach_of_the_protocol() -> None:
    """Who breaks a rule loses the link."""
    assert not issubclass(NotSpoken, RemoteProtocolError)


def test_a_draft_that_is_a_chain_is_spoken() -> None:
    core = a_stage()
    core.handle(a_frame(0, replace(an_item(7, 0, 4, picks=4), kind=Kind.DRAFT)))
    assert core.num_sequences == 1


def test_an_error_whose_fields_have_any_names_is_read() -> None:
    error = from_wire("LinkDown", {"self": 1, "code": "x", "message": "m", "cls": None})
    assert isinstance(error, LinkDown)
    assert error.fields["self"] == 1


def test_what_another_machine_says_moves_no_cursor() -> None:
    error = from_wire("DeviceError", {"message": "no \x1b[2Jmemory\r\nis \u202eleft", "worker": "a\x07"})
    assert error.message == r"no \x1b[2Jmemory\r\nis \u202eleft"
    assert error.fields["worker"] == r"a\x07"
    assert from_wire("\x1b[31m", {}).message == r"\x1b[31m"
