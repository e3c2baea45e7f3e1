"""What a worker tells others to dial."""

from __future__ import annotations

import logging

import pytest

from bloombee.address import read_dialled, read_listen
from bloombee.errors import ConfigError
from bloombee.roles import worker

HEADS = {"v4": "tcp://203.0.113.5:7700", "v6": "tcp://[2001:db8::5]:7700", "here": "tcp://127.0.0.1:7700"}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two addresses of each family; the second are those towards the head."""
    towards = {4: "10.0.0.2", 6: "fd00::2"}
    monkeypatch.setattr(worker, "own_address_towards", lambda peer: towards[peer.family])
    monkeypatch.setattr(worker, "own_addresses", lambda: ["192.0.2.1", "2001:db8::1", "10.0.0.2", "fd00::2"])


@pytest.mark.parametrize(
    ("bound", "head", "told"),
    [
        ("tcp://[::]:9", "v4", "tcp://10.0.0.2:9"),
        ("tcp://[::]:9", "v6", "tcp://[fd00::2]:9"),
        ("tcp://0.0.0.0:9", "v4", "tcp://10.0.0.2:9"),
        ("tcp://0.0.0.0:9", "here", "tcp://192.0.2.1:9"),
        ("tcp://[::]:9", "here", "tcp://192.0.2.1:9"),
        ("tcp://127.0.0.1:9", "here", "tcp://127.0.0.1:9"),
        ("tcp://[fd00::7]:9", "v4", "tcp://[fd00::7]:9"),
    ],
)
def test_a_worker_tells_an_address_that_it_listens_on(bound: str, head: str, told: str) -> None:
    assert worker._own_endpoint(read_listen(bound), read_dialled(HEADS[head])) == told


def test_a_worker_on_ipv4_alone_does_not_tell_an_ipv6_address() -> None:
    with pytest.raises(ConfigError, match="no IPv6") as caught:
        worker._own_endpoint(read_listen("tcp://0.0.0.0:9"), read_dialled(HEADS["v6"]))
    assert "--advertise" in caught.value.message


def test_loopback_told_to_a_head_elsewhere_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="bloombee"):
        assert worker._own_endpoint(read_listen("tcp://127.0.0.1:9"), read_dialled(HEADS["v4"])) == "tcp://127.0.0.1:9"
    assert "--listen" in caplog.text
