"""The link emulator from outside: bytes, counters, back-pressure, ends and errors, through real sockets.

How exact its times are is measured by ``tools/wan.py --self-test``; that it computes them rightly is
tested in ``csrc/wan/tests`` under a clock of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.schedules import ScheduleError, parse_schedule
from bench.shapes import Shape
from tools.wan import DirectionStats, Link, PortInUse, Wan, WanError, split_address
from tools.wan_native import ROOT, SOURCES, build

FAST = Shape(bandwidth_bits_per_s=800e6, delay_s=0.002)
SLOW = Shape(bandwidth_bits_per_s=1e6, delay_s=0.001)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the emulator is built on epoll")


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(30)
        yield listening


def target(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def dial(wan: Wan, name: str) -> socket.socket:
    host, _, port = wan.address(name).rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def pair(wan: Wan, name: str, server: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = dial(wan, name)
    served, _ = server.accept()
    served.settimeout(30)
    return client, served


def read_all(end: socket.socket) -> bytes:
    parts = []
    while part := end.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def read_exactly(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = end.recv(count - len(data))
        assert part, f"ended after {len(data)} of {count} bytes"
        data += part
    return data


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.001)


def test_the_model_is_exact_under_its_own_clock() -> None:
    binary = build(
        "direction-test", (SOURCES / "tests" / "direction_test.cpp",), without=("main.cpp", "relay.cpp", "control.cpp")
    )
    result = subprocess.run([binary], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "ok\n")


@pytest.mark.parametrize("shape", [Shape(), FAST, Shape(200e6, 0.005, jitter_s=0.004, loss=0.01, stall_s=0.01)], ids=str)
def test_bytes_arrive_whole_in_order_and_are_counted(server: socket.socket, shape: Shape) -> None:
    sent = random.Random(1).randbytes(3_000_000), random.Random(2).randbytes(1_000_000)
    with Wan([Link("link", target(server), forward=shape)]) as wan:
        client, served = pair(wan, "link", server)
        senders = [threading.Thread(target=end.sendall, args=(data,)) for end, data in zip((client, served), sent, strict=True)]
        for sender in senders:
            sender.start()
        ends = threading.Thread(target=lambda: (senders[0].join(), client.shutdown(socket.SHUT_WR)))
        ends.start()
        received = []
        back = threading.Thread(target=lambda: received.append(read_all(client)))
        back.start()
        forward = read_all(served)
        senders[1].join()
        served.shutdown(socket.SHUT_WR)
        back.join()
        ends.join()
        assert [hashlib.sha256(data).digest() for data in (forward, received[0])] == [
            hashlib.sha256(data).digest() for data in sent
        ]
        until(lambda: wan.stats()["link"].open == 0)
        client.close()
        served.close()
    stats = wan.stats()["link"]
    assert (stats.connections, stats.open, stats.failed) == (1, 0, 0)
    for direction, data in ((stats.forward, sent[0]), (stats.backward, sent[1])):
        assert direction.bytes_in == direction.bytes_out == len(data)
        assert direction.queued_bytes == direction.waiting_bytes == 0
        assert 0 < direction.max_queued_bytes <= direction.limit_bytes
        if shape.bandwidth_bits_per_s is None:
            assert direction.busy_s == 0
        else:
            assert direction.busy_s == pytest.approx(len(data) * 8 / shape.bandwidth_bits_per_s, rel=1e-5)
        assert (direction.losses > 0) == (shape.loss > 0)


def test_directions_are_shaped_apart(server: socket.socket) -> None:
    with Wan([Link("link", target(server), forward=FAST, backward=SLOW)]) as wan:
        client, served = pair(wan, "link", server)
        client.sendall(bytes(100_000))
        served.sendall(bytes(20_000))
        assert len(read_exactly(served, 100_000)) == 100_000
        assert len(read_exactly(client, 20_000)) == 20_000
        stats = wan.stats()["link"]
        assert stats.forward.busy_s == pytest.approx(100_000 * 8 / 800e6, rel=1e-5)
        assert stats.backward.busy_s == pytest.approx(20_000 * 8 / 1e6, rel=1e-5)
        assert (stats.forward.bandwidth_bits_per_s, stats.backward.bandwidth_bits_per_s) == (800e6, 1e6)
        assert (stats.forward.delay_s, stats.backward.delay_s) == (0.002, 0.001)
        client.close()
        served.close()


@pytest.mark.parametrize("receiver_reads", [False, True], ids=["stuck receiver", "outage"])
def test_a_full_link_stops_reading_at_its_limit(server: socket.socket, receiver_reads: bool) -> None:
    """What a sender gets rid of is bounded: the limit, and kernel buffers that the relay keeps small."""
    shape = Shape(bandwidth_bits_per_s=20e6, delay_s=0.050)
    with Wan([Link("link", target(server), forward=shape)]) as wan:
        client, served = pair(wan, "link", server)
        if receiver_reads:
            wan.set("link", is_up=False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        client.setblocking(False)
        accepted = 0

        def stands_full() -> bool:
            nonlocal accepted
            try:
                accepted += client.send(bytes(4096))
            except BlockingIOError:
                return is_full(wan.stats()["link"].forward)
            return False

        def is_full(forward: DirectionStats) -> bool:
            return forward.stopped_s > 0.3 and forward.bytes_in - forward.bytes_out == forward.queued_bytes

        until(stands_full)
        forward = wan.stats()["link"].forward
        assert forward.limit_bytes == 250_000  # 20 Mbit/s for 100 ms
        assert forward.max_queued_bytes <= forward.limit_bytes
        assert forward.queued_bytes > forward.limit_bytes - 4096
        assert forward.kernel_bytes <= 200 * 1024
        if receiver_reads:
            assert accepted <= forward.limit_bytes + 200 * 1024
            assert (forward.bytes_out, forward.is_up) == (0, False)
            wan.set("link")
        client.setblocking(True)
        client.settimeout(30)
        client.shutdown(socket.SHUT_WR)
        assert len(read_all(served)) == accepted  # it goes on as soon as there is room
        client.close()
        served.close()


def test_connections_share_one_wire(server: socket.socket) -> None:
    with Wan([Link("link", target(server), forward=Shape(10e6, 0.001))]) as wan:
        pairs = [pair(wan, "link", server) for _ in range(3)]
        senders = [threading.Thread(target=client.sendall, args=(bytes([i]) * 50_000,)) for i, (client, _) in enumerate(pairs)]
        for sender in senders:
            sender.start()
        for i, (_, served) in enumerate(pairs):
            assert read_exactly(served, 50_000) == bytes([i]) * 50_000
        stats = wan.stats()["link"]
        assert stats.open == 3
        assert stats.forward.busy_s == pytest.approx(3 * 50_000 * 8 / 10e6, rel=1e-5)
        for sender in senders:
            sender.join()
        for client, served in pairs:
            client.close()
            served.close()


def test_a_half_closed_connection_still_answers(server: socket.socket) -> None:
    with Wan([Link("link", target(server), forward=FAST)]) as wan:
        client, served = pair(wan, "link", server)
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert read_all(served) == b"question"
        served.sendall(b"answer")
        served.close()
        assert read_all(client) == b"answer"
        until(lambda: wan.stats()["link"].open == 0)
        client.close()


def test_a_reset_arrives_after_what_was_sent_before_it(server: socket.socket) -> None:
    with Wan([Link("link", target(server), forward=Shape(1e6, 0.020))]) as wan:
        client, served = pair(wan, "link", server)
        client.sendall(b"last words")
        until(lambda: wan.stats()["link"].forward.bytes_in == 10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        client.close()
        assert served.recv(100) == b"last words"
        with pytest.raises(ConnectionResetError):
            served.recv(100)
        until(lambda: wan.stats()["link"].open == 0)
        served.close()


def test_a_target_that_does_not_listen_resets_the_caller_and_may_come_later() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = server.getsockname()
    with Wan([Link("link", f"127.0.0.1:{place[1]}")]) as wan:
        with pytest.raises(ConnectionResetError):  # while it dials, or when it reads
            dial(wan, "link").recv(1)
        until(lambda: wan.stats()["link"].failed == 1)
        with socket.create_server(place) as server:
            server.settimeout(30)
            client, served = pair(wan, "link", server)
            client.sendall(b"hello")
            assert read_exactly(served, 5) == b"hello"
            client.close()
            served.close()
        assert wan.stats()["link"].connections == 2


def test_a_relay_out_of_descriptors_turns_callers_away_and_goes_on(server: socket.socket) -> None:
    with Wan([Link("link", target(server))]) as wan:
        taken = len(os.listdir(f"/proc/{wan.pid}/fd"))
        resource.prlimit(wan.pid, resource.RLIMIT_NOFILE, (taken + 2, taken + 2))
        client, served = pair(wan, "link", server)
        with dial(wan, "link") as refused:
            assert refused.recv(1) == b""
        assert wan.stats()["link"].failed == 1
        client.sendall(b"x")
        assert served.recv(1) == b"x"
        client.close()
        served.close()


def test_links_are_apart_and_change_while_they_run(server: socket.socket) -> None:
    with Wan([Link("a", target(server), forward=FAST), Link("b", target(server), forward=FAST)]) as wan:
        assert wan.address("a") != wan.address("b")
        wan.set("b", forward=SLOW)
        stats = wan.stats()
        assert stats["a"].forward.bandwidth_bits_per_s == stats["b"].backward.bandwidth_bits_per_s == 800e6
        assert stats["b"].forward.bandwidth_bits_per_s == 1e6
        client, served = pair(wan, "a", server)
        client.sendall(b"x")
        assert served.recv(1) == b"x"
        assert [wan.stats()[name].forward.bytes_out for name in "ab"] == [1, 0]
        client.close()
        served.close()


def test_a_schedule_runs_ends_and_begins_again(server: socket.socket) -> None:
    schedule = parse_schedule("20ms bandwidth=x0.1\n40ms down\n60ms forward up\n60ms backward delay=x2")
    with Wan([Link("link", target(server), forward=FAST, schedule=schedule)]) as wan:
        for _ in range(2):
            until(lambda: wan.stats()["link"].backward.delay_s == 0.004)
            stats = wan.stats()["link"]
            assert (stats.forward.is_up, stats.backward.is_up) == (True, False)
            assert stats.forward.bandwidth_bits_per_s == 80e6
            wan.start()


def test_a_repeating_schedule_goes_round(server: socket.socket) -> None:
    schedule = parse_schedule("5ms bandwidth=x0.5\n10ms repeat")
    with Wan([Link("link", target(server), forward=FAST, schedule=schedule)]) as wan:
        for bandwidth in (400e6, 800e6) * 3:
            until(lambda bandwidth=bandwidth: wan.stats()["link"].forward.bandwidth_bits_per_s == bandwidth)


def test_a_reset_link_resets_both_ends_and_takes_new_connections(server: socket.socket) -> None:
    with Wan([Link("link", target(server), forward=SLOW), Link("other", target(server))]) as wan:
        pairs = [pair(wan, "link", server) for _ in range(2)]
        aside, aside_served = pair(wan, "other", server)
        for client, _ in pairs:
            client.sendall(bytes(50_000))
        until(lambda: wan.stats()["link"].forward.bytes_in > 0)
        wan.reset("link")
        for end in (end for both in pairs for end in both):
            with pytest.raises(ConnectionResetError):
                read_all(end)
            end.close()
        stats = wan.stats()["link"]
        assert (stats.resets, stats.open, stats.forward.queued_bytes, stats.forward.waiting_bytes) == (2, 0, 0, 0)
        client, served = pair(wan, "link", server)
        for one, other in ((client, served), (aside, aside_served)):
            one.sendall(b"on")
            assert read_exactly(other, 2) == b"on"
            one.close()
            other.close()
        assert wan.stats()["other"].resets == 0


def test_a_schedule_resets_connections_each_time_round(server: socket.socket) -> None:
    with Wan([Link("link", target(server), schedule=parse_schedule("200ms reset\n210ms repeat"))]) as wan:
        for resets in (1, 2, 3):
            with dial(wan, "link") as client:
                until(lambda resets=resets: wan.stats()["link"].resets == resets)
                with pytest.raises(ConnectionResetError):
                    client.recv(1)


def test_a_new_connection_waits_for_its_round_trip(server: socket.socket) -> None:
    """On a dark link a caller is accepted by the relay and nothing goes on: neither its SYN nor, after it, its first byte."""
    server.setblocking(False)
    with Wan([Link("link", target(server), forward=FAST)]) as wan:
        wan.set("link", is_up=False)
        client = dial(wan, "link")
        client.sendall(b"hello")
        until(lambda: wan.stats()["link"].open == 1)
        with pytest.raises(BlockingIOError):
            server.accept()
        assert wan.stats()["link"].forward.bytes_in == 0
        wan.set("link")
        server.setblocking(True)
        served, _ = server.accept()
        assert read_exactly(served, 5) == b"hello"
        client.close()
        served.close()


def test_a_target_speaks_first_and_is_heard(server: socket.socket) -> None:
    with Wan([Link("link", target(server), forward=FAST)]) as wan:
        client, served = pair(wan, "link", server)
        served.sendall(b"220 ready")
        assert read_exactly(client, 9) == b"220 ready"
        client.close()
        served.close()


def test_a_busy_port_is_an_error_at_once(server: socket.socket) -> None:
    port = server.getsockname()[1]
    with pytest.raises(PortInUse, match=f"link 'second'.*{port}.*in use"):
        Wan([Link("first", "127.0.0.1:1"), Link("second", "127.0.0.1:1", listen_port=port)]).__enter__()


@pytest.mark.parametrize(
    ("links", "words"),
    [
        ([], "at least one"),
        ([Link("a", "127.0.0.1:1"), Link("a", "127.0.0.1:2")], "distinct names"),
        ([Link("a", "127.0.0.1")], "HOST:PORT"),
        ([Link("a", "127.0.0.1:65536")], "65535"),
        ([Link("a", "no-such-host.invalid:1")], "no-such-host"),
    ],
)
def test_links_that_cannot_be_are_refused(links: list[Link], words: str) -> None:
    with pytest.raises(WanError, match=words):
        Wan(links)


def test_a_schedule_that_cannot_be_followed_is_refused_before_anything_starts() -> None:
    with pytest.raises(ScheduleError, match="without a bandwidth limit"):
        Wan([Link("a", "127.0.0.1:1", schedule=parse_schedule("1s bandwidth=x0.1"))])


def test_calls_at_the_wrong_time_say_so(server: socket.socket) -> None:
    wan = Wan([Link("link", target(server))])
    with pytest.raises(WanError, match="not up"):
        wan.set("link")
    with wan:
        with pytest.raises(WanError, match="no link 'other'"):
            wan.set("other")
        pid = wan.pid
    wan.close()
    assert wan.stats()["link"].connections == 0
    assert not Path(f"/proc/{pid}").exists()


def test_split_address() -> None:
    assert split_address("10.0.0.1:80") == ("10.0.0.1", 80)
    assert split_address(":80") == split_address("80") == ("127.0.0.1", 80)
    assert split_address("[::1]:80") == ("::1", 80)


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "wan.py"), *arguments], capture_output=True, text=True, check=False
    )


def test_the_command_relays_and_reports(server: socket.socket, tmp_path: Path) -> None:
    counters = tmp_path / "counters.json"
    command = [
        sys.executable,
        str(ROOT / "tools" / "wan.py"),
        "--link",
        f"0={target(server)}",
        "--profile",
        "500M-10ms",
        "--json",
        str(counters),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "500 Mbit/s, 5 ms" in line
        host, port = split_address(line.split(" ")[0])
        with socket.create_connection((host, port), timeout=30) as client:
            served, _ = server.accept()
            client.sendall(b"hello")
            assert read_exactly(served, 5) == b"hello"
            served.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert json.loads(counters.read_text())["0"]["forward"]["bytes_out"] == 5


def test_the_command_refuses_bad_input_with_one_line(server: socket.socket) -> None:
    port = server.getsockname()[1]
    for arguments, words in (
        (["--link", "0=:7000", "--profile", "nope"], "unknown profile 'nope'"),
        (["--link", f"{port}=:7000"], "in use"),
        (["--link", "7000"], "must be [HOST:]PORT=[HOST:]PORT"),
        (["--link", "0=:7000", "--schedule", "/no/such/file"], "/no/such/file"),
    ):
        result = run_cli(*arguments)
        assert result.returncode == 2
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert "--self-test" in run_cli("--help").stdout
