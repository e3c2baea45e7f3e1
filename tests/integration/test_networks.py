"""Head and workers on machines of their own: the commands of docs/network.md, in network namespaces."""

from __future__ import annotations

import json
import subprocess

import pytest
from netns_kit import Network, needs_namespaces, network

from bloombee.wire.token import decode_token

pytestmark = needs_namespaces
HEAD = ("head", "--workers", "2", "--split", "4,4", "--dtype", "float32", "--json", "--max-new-tokens", "4")


def open_head(net: Network, *options: str) -> tuple[subprocess.Popen[str], list[str]]:
    """The head and its join tokens."""
    head = net.bloombee("head", *HEAD, *options)
    assert head.stderr is not None
    tokens: list[str] = []
    while len(tokens) < 2:
        line = head.stderr.readline()
        assert line, f"the head ended before it printed its tokens: {head.communicate()}"
        if "worker --join" in line:
            tokens.append(line.split()[-1])
    return head, tokens


def answer(head: subprocess.Popen[str]) -> str:
    """To one line; then the head ends."""
    out, err = head.communicate("import os\n", timeout=100)
    assert head.returncode == 0, err
    return str(json.loads(out)["text"])


@pytest.mark.parametrize(
    ("families", "listen", "endpoints"),
    [
        ((4, 6), "tcp://*:7700", ["tcp://10.77.0.1:7700", "tcp://[fd77::1]:7700"]),
        ((6,), "tcp://[fd77::1]:7700", ["tcp://[fd77::1]:7700"]),
        ((4,), "tcp://0.0.0.0:7700", ["tcp://10.77.0.1:7700"]),
    ],
    ids=["both families", "IPv6 only", "IPv4 only"],
)
def test_workers_of_one_lan_need_no_addresses(families: tuple[int, ...], listen: str, endpoints: list[str]) -> None:
    with network("head", "a", "b", families=families) as net:
        head, tokens = open_head(net, "--listen", listen)
        assert list(decode_token(tokens[0]).endpoints) == endpoints
        workers = [net.bloombee(name, "worker", "--join", token) for name, token in zip("ab", tokens, strict=True)]
        assert answer(head)
        assert [worker.wait(30) for worker in workers] == [0, 0]


def test_machines_behind_port_forwarding_reach_each_other_at_the_advertised_addresses() -> None:
    with network("head", "a", "b", lan=False) as net:
        net.forward((7800, "10.1.0.2", 7700), (7801, "10.2.0.2", 7701), (7802, "10.3.0.2", 7701))
        head, tokens = open_head(net, "--listen", "tcp://*:7700", "--advertise", "tcp://10.1.0.1:7800")
        assert decode_token(tokens[0]).endpoints == ("tcp://10.1.0.1:7800",)
        for number, (name, token) in enumerate(zip("ab", tokens, strict=True), start=2):
            told = f"tcp://10.{5 - number}.0.1:{7799 + number}"  # the router, as the other worker knows it
            net.bloombee(name, "worker", "--join", token, "--listen", "tcp://*:7701", "--advertise", told)
        assert answer(head)


def test_everybody_on_loopback_at_the_ends_of_tunnels() -> None:
    with network("head", "a", "b") as net:
        # What ssh -L and -R open on loopback, with a port of the LAN in place of the connection to the server.
        net.forward((17700, "127.0.0.1", 7700), on="head")
        net.forward((17701, "127.0.0.1", 7701), (7700, "10.77.0.1", 17700), (7702, "10.77.0.3", 17702), on="a")
        net.forward((17702, "127.0.0.1", 7702), (7700, "10.77.0.1", 17700), (7701, "10.77.0.2", 17701), on="b")
        head, tokens = open_head(net, "--listen", "tcp://127.0.0.1:7700")
        for number, (name, token) in enumerate(zip("ab", tokens, strict=True), start=7701):
            net.bloombee(name, "worker", "--join", token, "--listen", f"tcp://127.0.0.1:{number}")
        assert answer(head)


def test_a_worker_that_listens_on_the_other_family_says_so_and_exits_2() -> None:
    with network("head", "a") as net:
        _, tokens = open_head(net, "--listen", "tcp://[fd77::1]:7700")
        worker = net.bloombee("a", "worker", "--join", tokens[0], "--listen", "tcp://0.0.0.0:7701")
        _, err = worker.communicate(timeout=60)
        assert worker.returncode == 2
        assert "tcp://0.0.0.0:7701, which has no IPv6" in err
        assert "--advertise" in err
