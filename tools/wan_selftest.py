"""Is the link emulator exact on this machine? Asked and measured side by side, from outside, through plain sockets."""

from __future__ import annotations

import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.shapes import Shape, format_bandwidth
from tools.wan import Link, Wan
from tools.wan_selftest_network import network_checks

BANDWIDTHS = (1e6, 10e6, 100e6, 1e9)
DELAYS_S = (0.001, 0.010, 0.050, 0.300)
BANDWIDTH_TOLERANCE = 0.05
DELAY_TOLERANCE = 0.05
DELAY_TOLERANCE_S = 0.25e-3
LOAD_S = 1.2
PING_BYTES = 32
BLOCK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; times in seconds, bandwidths in bits per second."""

    shape: Shape
    delay_s: float
    asked_delay_s: float
    bandwidth: float
    loaded_delay_s: float
    """One-way delay (90th percentile) of a small message on a second connection while the first keeps the link full."""
    loaded_bound_s: float
    cpu: float
    """Share of one core that the relay used under load."""

    @property
    def failures(self) -> list[str]:
        asked = self.shape.bandwidth_bits_per_s or 0.0
        found = []
        if abs(self.delay_s - self.asked_delay_s) > max(DELAY_TOLERANCE * self.asked_delay_s, DELAY_TOLERANCE_S):
            found.append("delay")
        if abs(self.bandwidth - asked) > BANDWIDTH_TOLERANCE * asked:
            found.append("bandwidth")
        if self.loaded_delay_s > self.loaded_bound_s:
            found.append("delay under load")
        return found


def self_test() -> int:
    """Prints both tables; 0 if every row is within the tolerances."""
    sys.setswitchinterval(5e-4)  # the sender's thread must not hold up the clock of the pings for its default of 5 ms
    delay_tolerance = f"max({DELAY_TOLERANCE:.0%}, {DELAY_TOLERANCE_S * 1e3:g} ms)"
    print(f"Tolerances: one-way delay {delay_tolerance}, bandwidth {BANDWIDTH_TOLERANCE:.0%}.")
    print(f"Load average before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores. Bandwidth in Mbit/s.")
    print(
        f"{'bandwidth':>12} {'measured':>9} {'error':>7} | {'delay':>9} {'measured':>10} {'error':>10} | "
        f"{'under load':>11} {'bound':>9} | {'CPU':>5}"
    )
    started = time.monotonic()
    num_failed = _table()
    num_failed += _network_table()
    print(f"{num_failed or 'none'} of all rows beyond the tolerances, {time.monotonic() - started:.0f} s")
    return 1 if num_failed else 0


def _table() -> int:
    """Single links; how many rows failed."""
    num_failed = 0
    for bandwidth in BANDWIDTHS:
        for delay_s in DELAYS_S:
            row = measure(Shape(bandwidth_bits_per_s=bandwidth, delay_s=delay_s))
            num_failed += bool(row.failures)
            print(_line(row), flush=True)
    num_rows = len(BANDWIDTHS) * len(DELAYS_S)
    print(f"{num_rows - num_failed} of {num_rows} rows within the tolerances")
    return num_failed


def _network_table() -> int:
    """Networks; how many rows failed."""
    print(f"\n{'a network':<66} {'asked':>9} {'measured':>9} {'':<6} {'error':>7}")
    num_rows = num_failed = 0
    for check in network_checks():
        num_rows += 1
        num_failed += not check.is_met
        print(check, flush=True)
    print(f"{num_rows - num_failed} of {num_rows} rows within the tolerances")
    return num_failed


def _line(row: Row) -> str:
    asked = row.shape.bandwidth_bits_per_s or 0.0
    return (
        f"{format_bandwidth(asked):>12} {row.bandwidth / 1e6:>9.3f} {row.bandwidth / asked - 1:>+7.2%} | "
        f"{row.asked_delay_s * 1e3:>6.2f} ms {row.delay_s * 1e3:>7.2f} ms {(row.delay_s - row.asked_delay_s) * 1e3:>+7.3f} ms | "
        f"{row.loaded_delay_s * 1e3:>8.1f} ms {row.loaded_bound_s * 1e3:>6.0f} ms | {row.cpu:>5.1%}"
        + (f"  FAILED: {', '.join(row.failures)}" if row.failures else "")
    )


def measure(shape: Shape) -> Row:
    """One link of ``shape`` in both directions: delay while idle, then bandwidth and delay under load."""
    bandwidth = shape.bandwidth_bits_per_s or 0.0
    with _link(shape) as (wan, first, second):
        delay_s = statistics.median(_one_way_s(*first) for _ in range(max(7, min(25, round(0.8 / shape.delay_s)))))
        asked_delay_s = shape.delay_s + PING_BYTES * 8 / bandwidth
        cpu_before, began = _cpu_s(wan.pid), time.monotonic()
        pings: list[float] = []
        measured = _load(first, second, LOAD_S + 3 * shape.delay_s, pings)
        cpu = (_cpu_s(wan.pid) - cpu_before) / (time.monotonic() - began)
        stats = wan.stats()["link"].forward
    # What is in flight when the wire is full waits for nothing; the rest of the limit is the queue in front.
    queue_bytes = stats.limit_bytes - bandwidth / 8 * shape.delay_s
    bound_s = (asked_delay_s + (queue_bytes + BLOCK_BYTES * 0.02) * 8 / bandwidth) * (1 + DELAY_TOLERANCE) + 4 * DELAY_TOLERANCE_S
    return Row(shape, delay_s, asked_delay_s, measured, statistics.quantiles(pings, n=10, method="inclusive")[-1], bound_s, cpu)


Pair = tuple[socket.socket, socket.socket]
"""A connection through the link: (who dialled, what the target accepted)."""


@contextmanager
def _link(shape: Shape) -> Iterator[tuple[Wan, Pair, Pair]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with Wan([Link("link", target=f"127.0.0.1:{port}", forward=shape)]) as wan:
            pairs: list[Pair] = []
            for _ in range(2):
                host, _, dial = wan.address("link").rpartition(":")
                client = socket.create_connection((host, int(dial)))
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pairs.append((client, server.accept()[0]))
            try:
                yield wan, pairs[0], pairs[1]
            finally:
                for pair in pairs:
                    for end in pair:
                        end.close()


def _one_way_s(client: socket.socket, served: socket.socket) -> float:
    """From before send to after receive, in one thread: no hand-over of the interpreter in between."""
    began = time.monotonic()
    client.sendall(bytes(PING_BYTES))
    left = PING_BYTES
    while left:
        left -= len(served.recv(left))
    return time.monotonic() - began


def _load(pair: Pair, ping: Pair, seconds: float, pings: list[float]) -> float:
    """Bits per second received while the link is kept full for ``seconds``; meanwhile delays of small messages."""
    client, served = pair
    stop = threading.Event()
    full = threading.Event()

    def send() -> None:
        block = bytes(BLOCK_BYTES)
        while not stop.is_set():
            client.sendall(block)
        client.shutdown(socket.SHUT_WR)

    def watch() -> None:
        full.wait()
        while not stop.is_set():
            pings.append(_one_way_s(*ping))

    threads = [threading.Thread(target=send), threading.Thread(target=watch)]
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
    for thread in threads:
        thread.start()
    buffer = bytearray(BLOCK_BYTES)
    served.recv_into(buffer)
    full.set()
    began = last = time.monotonic()
    received = 0
    while (count := served.recv_into(buffer)) > 0:
        now = time.monotonic()
        if now - began < seconds:
            received, last = received + count, now
        else:
            stop.set()
    for thread in threads:
        thread.join()
    return received * 8 / (last - began)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
