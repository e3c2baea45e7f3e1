"""An emulated network from outside: who is known by which address, what crosses which link, and a swarm on it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.shapes import Shape
from bloombee.errors import Infeasible
from bloombee.plan.document import parse_network
from tests.swarm_kit import Swarm
from tools.wan_native import ROOT, PortInUse, WanError
from tools.wan_network import Network

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the emulator is built on epoll")

HOME = {"up_bytes_per_s": 1e6, "down_bytes_per_s": 50e6, "delay_s": 0.002}
NODES: dict[str, Any] = {"head": HOME, "w0": {"beside": "head"}, "w1": HOME, "w2": HOME}


def network(nodes: dict[str, Any] = NODES, links: tuple[dict[str, Any], ...] = ()) -> Network:
    return Network(parse_network({"version": 1, "nodes": nodes, "links": list(links)}))


class Servers:
    """A listening socket for each node of a network that is up."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.sockets = {name: socket.create_server(("127.0.0.1", _port(net.listen(name)))) for name in net.spec.nodes}
        for one in self.sockets.values():
            one.settimeout(30)

    def pair(self, source: str, target: str) -> tuple[socket.socket, socket.socket]:
        client = self.net.dial(source, target)
        served, _ = self.sockets[target].accept()
        served.settimeout(30)
        return client, served


@contextlib.contextmanager
def served(net: Network) -> Iterator[Servers]:
    with net:
        servers = Servers(net)
        try:
            yield servers
        finally:
            for one in servers.sockets.values():
                one.close()


def _port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


def move(client: socket.socket, server: socket.socket, count: int) -> None:
    sender = threading.Thread(target=client.sendall, args=(bytes(count),))
    sender.start()
    while count:
        count -= len(server.recv(count))
    sender.join()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.001)


def close(*pairs: tuple[socket.socket, socket.socket]) -> None:
    for both in pairs:
        for end in both:
            end.close()


def test_a_nodes_one_endpoint_leads_each_caller_over_its_own_link() -> None:
    with served(network()) as servers:
        net = servers.net
        pairs = [servers.pair("w1", "w2"), servers.pair("w0", "w2"), servers.pair("w2", "w1")]
        for both, count in zip(pairs, (3000, 500, 70), strict=True):
            move(*both, count)
        links = net.stats().links
        assert links["w1", "w2"].forward.bytes_out == 3000
        assert links["w0", "w2"].forward.bytes_out == 500
        assert links["w1", "w2"].backward.bytes_out == links["w2", "w1"].forward.bytes_out == 70  # whoever dialled
        assert links["w1", "w2"].connections == links["w2", "w1"].connections == 2
        assert links["w1", "w0"].connections == 0
        close(*pairs)


def test_all_flows_of_a_node_share_its_access_line_and_neighbours_share_none() -> None:
    with served(network()) as servers:
        net = servers.net
        pairs = [servers.pair("head", "w1"), servers.pair("w0", "w2"), servers.pair("w0", "head")]
        for both, count in zip(pairs, (20_000, 30_000, 1_000_000), strict=True):
            move(*both, count)
        stats = net.stats()
        assert stats.up["head"].num_bytes == 50_000  # the neighbour's are among them, what went between the two is not
        assert stats.up["head"].busy_s == pytest.approx(0.05, rel=1e-4)
        assert (stats.down["w1"].num_bytes, stats.down["w2"].num_bytes) == (20_000, 30_000)
        assert stats.links["w0", "w2"].forward.bandwidth_bits_per_s == 8e6
        assert stats.links["w0", "w2"].forward.delay_s == pytest.approx(0.004)
        assert stats.links["w0", "head"].forward.bandwidth_bits_per_s is None
        assert "w0" not in stats.up
        close(*pairs)


def test_a_stranger_is_reset_and_counted() -> None:
    with served(network()) as servers:
        net = servers.net
        with socket.create_connection(("127.0.0.1", _port(net.endpoint("w1")))) as caller:
            caller.settimeout(30)
            with pytest.raises(ConnectionResetError):
                caller.recv(1)
        assert net.stats().strangers == 1
        with pytest.raises(WanError, match="no link to itself"):
            net.reset("w1", "w1")


def test_who_cannot_open_a_connection_is_reset_and_what_the_other_opened_carries_both_ways() -> None:
    with served(network(links=({"from": "w1", "to": "w2", "reachable": False, "delay_s": 0.01},))) as servers:
        net = servers.net
        with pytest.raises(ConnectionResetError), net.dial("w1", "w2") as caller:
            caller.recv(1)
        back = servers.pair("w2", "w1")
        move(*back, 10)
        move(*back[::-1], 10)
        assert net.stats().strangers == 1
        close(back)


def test_a_reset_is_of_one_pair_whoever_dialled() -> None:
    with served(network()) as servers:
        net = servers.net
        hit, back, other = servers.pair("w1", "w2"), servers.pair("w2", "w1"), servers.pair("w1", "w0")
        net.reset("w2", "w1")
        for end in (*hit, *back):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        move(*other, 10)
        assert net.stats().links["w1", "w2"].resets == net.stats().links["w2", "w1"].resets == 2
        close(hit, back, other)


def test_a_schedule_of_a_link_or_an_access_line_resets_and_darkens() -> None:
    nodes = {**NODES, "w2": {**HOME, "schedule": ["300ms reset down", "600ms up", "900ms repeat"]}}
    link = {"from": "w1", "to": "w0", "schedule": ["500ms reset", "510ms repeat"]}
    with served(network(nodes, (link,))) as servers:
        net = servers.net
        clients = [net.dial("w0", "w1"), net.dial("w2", "head"), net.dial("w1", "head")]
        for hit in (("w0", "w1"), ("w2", "head")):
            until(lambda hit=hit: net.stats().links[hit].resets == 1)
        for client in clients[:2]:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert net.stats().links["w1", "head"].resets == 0
        until(lambda: not net.stats().up["w2"].is_up)
        until(lambda: net.stats().down["w2"].is_up)
        until(lambda: not net.stats().links["w2", "head"].backward.is_up)
        assert net.stats().up["w1"].is_up
        for client in clients:
            client.close()


def test_a_dark_direction_keeps_its_bytes_and_its_connections() -> None:
    with served(network()) as servers:
        net = servers.net
        both = servers.pair("w1", "w2")
        move(*both, 10)
        net.set("w1", "w2", is_up=False)
        both[0].sendall(bytes(1000))
        both[1].sendall(b"back")
        assert both[0].recv(10) == b"back"
        until(lambda: net.stats().links["w1", "w2"].forward.waiting_bytes == 1000)
        net.set("w1", "w2", Shape(bandwidth_bits_per_s=4e6, delay_s=0.001))
        assert len(both[1].recv(1000)) > 0
        assert net.stats().links["w1", "w2"].forward.bandwidth_bits_per_s == 4e6
        net.set_line("w1", up_bytes_per_s=1e5)
        assert net.stats().links["w1", "w2"].forward.bandwidth_bits_per_s == 8e5
        net.start()
        assert net.stats().links["w1", "w2"].forward.bandwidth_bits_per_s == 8e6
        close(both)


def test_a_port_that_is_given_is_listened_at_by_the_node_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with Network(network().spec, ports={"w1": port}) as net:
            assert net.listen("w1") == f"tcp://127.0.0.1:{port}"
            with net.dial("head", "w1") as client:
                client.sendall(b"x")
                served_end, _ = server.accept()
                assert served_end.recv(1) == b"x"
                served_end.close()
    assert issubclass(PortInUse, WanError)


def test_calls_after_the_end_answer_with_the_last_counters() -> None:
    net = network()
    for call in (net.start, net.stats, lambda: net.local_worker("w1"), lambda: net.dial("w1", "w2")):
        with pytest.raises(WanError, match="not up"):
            call()
    with served(net) as servers:
        both = servers.pair("w1", "w2")
        move(*both, 10)
        close(both)
    net.close()
    assert net.stats().links["w1", "w2"].forward.bytes_out == 10


def test_the_command_says_where_each_node_is_and_counts(tmp_path: Path) -> None:
    file, counters = tmp_path / "network.json", tmp_path / "counters.json"
    file.write_text(json.dumps({"version": 1, "nodes": NODES}))
    with socket.create_server(("127.0.0.1", 0)) as server:
        node = f"w1={server.getsockname()[1]}"
        command = [
            sys.executable,
            str(ROOT / "tools" / "wan.py"),
            "--network",
            str(file),
            "--node",
            node,
            "--json",
            str(counters),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = dict(process.stdout.readline().rstrip().split(": ", 1) for _ in NODES)
            where = re.fullmatch(r"listens on tcp://(\S+), dialled at tcp://(\S+):(\d+), dials from (\S+)", said["w1"])
            assert where is not None
            assert where[1] == f"127.0.0.1:{node.removeprefix('w1=')}"
            source = said["w2"].rpartition(" ")[2]
            with socket.create_connection((where[2], int(where[3])), timeout=30, source_address=(source, 0)) as client:
                served_end, _ = server.accept()
                move(client, served_end, 10)
                served_end.close()
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0
    told = json.loads(counters.read_text())
    assert told["links"]["w2 -> w1"]["forward"]["bytes_out"] == 10
    assert told["up"]["w2"]["num_bytes"] == 10


def swarm_on(net: Network, order: list[str], **arguments: Any) -> Swarm:
    return Swarm(
        model="standin:64x6",
        workers=len(order),
        pace="0,0,0",
        codec="off",
        kv_tokens=2048,
        listen=net.listen("head"),
        local_workers=[net.local_worker(name) for name in order],
        **arguments,
    )


def test_a_swarm_in_any_order_crosses_the_links_of_its_order(tmp_path: Path) -> None:
    order = ["w2", "w0", "w1"]
    file = tmp_path / "network.json"
    file.write_text(json.dumps({"version": 1, "nodes": NODES, "links": [{"from": "w1", "to": "w2", "delay_s": 0.001}]}))
    with Network.from_json(file) as net:
        swarm = swarm_on(net, order)
        try:
            answer = swarm.generate(list(range(40)), max_new_tokens=8, ignore_eos=True)
        finally:
            swarm.close()
        assert len(answer.token_ids) == 8
        stats = net.stats()
        ring = [(order[0], order[1]), (order[1], order[2]), (order[2], "head")]
        activations = 47 * 64 * 2
        for source, target in ring[:2]:
            assert stats.links[source, target].forward.bytes_out > activations
        dialled = {frozenset(pair) for pair, link in stats.links.items() if link.connections}
        assert dialled == {frozenset(pair) for pair in ring} | {frozenset((name, "head")) for name in order}
        assert stats.strangers == 0


def test_a_span_that_one_workers_memory_cannot_hold_is_infeasible() -> None:
    """What each worker offers is its own: the file's, not an equal share."""
    nodes = {**NODES, "w1": {**HOME, "worker": {"memory_bytes": 2**20}}}
    with network(nodes) as net, pytest.raises(Infeasible, match=r"worker 'local-1'.*offers 1 MB") as caught:
        Swarm(
            model="standin:1024x6",
            workers=3,
            kv_tokens=2048,
            listen=net.listen("head"),
            local_workers=[net.local_worker(name) for name in ("w0", "w1", "w2")],
        )
    assert caught.value.fields["constraint"] == "memory"
