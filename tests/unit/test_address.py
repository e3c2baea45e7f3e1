"""Endpoints as people write them: what each may be used for, and what is said of one that may not."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloombee.address import (
    Address,
    alternate,
    default_listen,
    loopback_of,
    reachable_at,
    read_dialled,
    read_listen,
    read_told,
)

GOOD = [
    # text, in its shortest form, family, may be dialled, may be told
    ("tcp://127.0.0.1:7700", None, 4, True, True),
    ("tcp://203.0.113.5:65535", None, 4, True, True),
    ("tcp://[::1]:7700", None, 6, True, True),
    ("tcp://[2001:DB8:0::5]:7700", "tcp://[2001:db8::5]:7700", 6, True, True),
    ("tcp://[::ffff:10.0.0.1]:7700", "tcp://10.0.0.1:7700", 4, True, True),
    ("tcp://169.254.3.4:7700", None, 4, True, True),
    ("tcp://[fe80::1%eth0]:7700", None, 6, True, False),
    ("tcp://[fe80::1]:7700", None, 6, True, False),
    ("tcp://[fd00::1%eth0]:7700", None, 6, True, False),
    ("tcp://localhost:7700", None, None, True, True),
    ("tcp://GPU-1.Lan:7700", "tcp://gpu-1.lan:7700", None, True, True),
    ("tcp://head.example.:7700", None, None, True, True),
    ("tcp://eth0.100:7700", None, None, True, True),
    ("tcp://127.0.0.1:0", None, 4, False, False),
    ("tcp://eth0:0", None, None, False, False),
    ("tcp://*:7700", None, None, False, False),
    ("tcp://0.0.0.0:7700", None, 4, False, False),
    ("tcp://[::]:7700", None, 6, False, False),
    ("tcp://[::ffff:0.0.0.0]:7700", "tcp://0.0.0.0:7700", 4, False, False),
]


@pytest.mark.parametrize(("text", "short", "family", "dialled", "told"), GOOD)
def test_what_an_endpoint_may_be_used_for(text: str, short: str | None, family: int | None, dialled: bool, told: bool) -> None:
    address = read_listen(text)
    assert str(address) == (short or text)
    assert read_listen(str(address)) == address
    assert address.family == family
    for read, allowed in ((read_dialled, dialled), (read_told, told)):
        if allowed:
            assert read(text) == address
        else:
            with pytest.raises(ValueError, match=r"dialled|link"):
                read(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must start with tcp://"),
        ("203.0.113.5:7700", "as tcp://203.0.113.5:7700"),
        ("203.0.113.5", "as tcp://203.0.113.5:7700"),
        ("fd00::2", r"as tcp://\[fd00::2\]:7700"),
        ("http://head:80", "as tcp://head:80"),
        ("inproc://x", "must start with tcp://"),
        ("ipc:///tmp/x", "must start with tcp://"),
        ("udp://h:1", "must start with tcp://"),
        ("tcp://", "port is missing"),
        ("tcp://x", "port is missing, as in tcp://x:7700"),
        ("tcp://[::1]", "port is missing"),
        ("tcp://h:", "port '' is no number"),
        ("tcp://h:http", "port 'http' is no number"),
        ("tcp://h:-1", "port '-1' is no number"),
        ("tcp://h:99999", "port '99999' is no number from 0 to 65535"),
        ("tcp://h:٣", "is no number"),
        ("tcp://h:0x50", "is no number"),
        ("tcp://h:7700/", "is no number"),
        ("tcp://h:7700\n", "is no number"),
        ("tcp://:5", "is no host"),
        ("tcp://a b:1", "is no host"),
        ("tcp://user@h:1", "is no host"),
        ("tcp://h\0:1", "is no host"),
        ("tcp://münchen.example:1", "is no host"),
        ("tcp://-h:1", "is no host"),
        ("tcp://a..b:1", "is no host"),
        (f"tcp://{'a' * 64}:1", "is no host"),
        (f"tcp://{'a.' * 130}a:1", "is no host"),
        ("tcp://" + "a" * 65536 + ":1", "65544 characters"),
        ("tcp://1.2.3.4.5:1", "neither an IPv4 address nor a name"),
        ("tcp://256.0.0.1:1", "neither an IPv4 address nor a name"),
        ("tcp://10.1:1", "neither an IPv4 address nor a name"),
        ("tcp://[1.2.3.4]:1", "no IPv6 address in brackets"),
        ("tcp://[::1:1", "no IPv6 address in brackets"),
        ("tcp://[]:1", "no IPv6 address in brackets"),
        ("tcp://[fe80::1%]:1", "no IPv6 address in brackets"),
        ("tcp://[fe80::1%a/b]:1", "no IPv6 address in brackets"),
        ("tcp://fd00::2:7700", r"in brackets, as tcp://\[fd00::2\]:7700"),
        ("tcp://fd00::2", r"in brackets, as tcp://\[fd00::2\]:7700"),
        ("tcp://a:b:1", "in brackets"),
        ("tcp://224.0.0.1:1", "no address of one machine"),
        ("tcp://[ff02::1]:1", "no address of one machine"),
        ("tcp://255.255.255.255:1", "no address of one machine"),
    ],
)
def test_what_is_no_endpoint_is_told_apart(text: str, says: str) -> None:
    for read in (read_listen, read_dialled, read_told):
        with pytest.raises(ValueError, match=says):
            read(text)


@given(st.one_of(st.text(max_size=40), st.text(alphabet="tcp:/[]*%.0123456789afx-_", max_size=30).map("tcp://".__add__)))
def test_any_text_is_an_endpoint_whose_shortest_form_means_the_same_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        address = read_listen(text)
        assert read_listen(str(address)) == address


OWN = ("192.0.2.2", "2001:db8::2", "10.0.0.2")


@pytest.mark.parametrize(
    ("bound", "own", "reachable"),
    [
        ("tcp://*:77", OWN, ["tcp://192.0.2.2:77", "tcp://[2001:db8::2]:77", "tcp://10.0.0.2:77"]),
        ("tcp://[::]:77", OWN, ["tcp://192.0.2.2:77", "tcp://[2001:db8::2]:77", "tcp://10.0.0.2:77"]),
        ("tcp://0.0.0.0:77", OWN, ["tcp://192.0.2.2:77", "tcp://10.0.0.2:77"]),
        ("tcp://0.0.0.0:77", ["2001:db8::2"], ["tcp://127.0.0.1:77"]),
        ("tcp://*:77", [], ["tcp://127.0.0.1:77"]),
        ("tcp://10.0.0.2:77", OWN, ["tcp://10.0.0.2:77"]),
        ("tcp://[::1]:77", OWN, ["tcp://[::1]:77"]),
    ],
)
def test_a_wildcard_is_reached_at_the_own_addresses_of_its_families(bound: str, own: list[str], reachable: list[str]) -> None:
    assert [str(address) for address in reachable_at(read_listen(bound), own)] == reachable


@pytest.mark.parametrize(
    ("bound", "dialled"),
    [("*", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("[::]", "127.0.0.1"), ("[::1]", "[::1]"), ("10.0.0.2", "10.0.0.2")],
)
def test_own_processes_dial_a_wildcard_over_loopback(bound: str, dialled: str) -> None:
    assert str(loopback_of(read_listen(f"tcp://{bound}:77"))) == f"tcp://{dialled}:77"


@pytest.mark.parametrize(
    ("head", "listen"),
    [("127.0.0.1", "127.0.0.1"), ("127.0.1.1", "127.0.1.1"), ("[::1]", "[::1]"), ("10.0.0.1", "*"), ("[fd00::1]", "*")],
)
def test_a_worker_listens_beside_a_head_on_loopback_and_everywhere_else(head: str, listen: str) -> None:
    assert str(default_listen(read_dialled(f"tcp://{head}:7700"))) == f"tcp://{listen}:0"


def test_families_are_tried_by_turns() -> None:
    six = [Address("*", 1).at(f"2001:db8::{n}") for n in range(3)]
    four = [Address("*", 1).at("192.0.2.1")]
    assert alternate([*six, *four]) == [six[0], four[0], six[1], six[2]]
    assert alternate([*four, *six]) == [four[0], *six]
    assert alternate([]) == []
