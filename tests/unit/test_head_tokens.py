"""What a head's join tokens tell of where it is."""

from __future__ import annotations

import pytest

from bloombee.address import read_listen
from bloombee.config import RuntimeConfig
from bloombee.errors import ConfigError
from bloombee.roles import front_door

OWN = ["192.0.2.1", "2001:db8::1", *(f"10.0.0.{number}" for number in range(20))]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_door, "own_addresses", lambda: OWN)


def told(bound: str, **fields: object) -> tuple[str, ...]:
    return front_door.told(RuntimeConfig(**{"remote_workers": 1, **fields}), read_listen(bound))  # type: ignore[arg-type]


def test_a_wildcard_is_told_as_the_machines_own_addresses_as_many_as_a_token_holds() -> None:
    assert told("tcp://[::]:7700")[:3] == ("tcp://192.0.2.1:7700", "tcp://[2001:db8::1]:7700", "tcp://10.0.0.0:7700")
    assert len(told("tcp://[::]:7700")) == 8
    assert told("tcp://0.0.0.0:7700")[:2] == ("tcp://192.0.2.1:7700", "tcp://10.0.0.0:7700")


def test_what_is_advertised_is_told_and_nothing_else() -> None:
    assert told("tcp://[::]:7700", advertise="tcp://head.example:7800") == ("tcp://head.example:7800",)


def test_workers_of_the_same_process_come_over_loopback() -> None:
    assert told("tcp://[::]:7700", remote_workers=0) == ("tcp://127.0.0.1:7700",)


def test_a_link_local_address_is_not_told() -> None:
    with pytest.raises(ConfigError, match=r"of one link.*--advertise"):
        told("tcp://[fe80::1%eth0]:7700")
