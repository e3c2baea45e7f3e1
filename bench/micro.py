"""Small parts, measured alone: each row has median, 10th and 90th percentile of many samples.

    python -m bench.micro                               everything, about half a minute
    python -m bench.micro --only hop --rounds 5000      one part, more samples
    python -m bench.micro --json micro.json             and keep the numbers

Parts: envelope (encode and decode headers), hop (half of a there-and-back between two processes over loopback; the plain TCP
row beneath is its ceiling), echo (the whole way there and back, CURVE on), device (event loop -> device thread -> event
loop, empty works), pages (page tables), cores (events a second that scheduler and stages handle), closes (the end of a sequence
beside a long one), text (a token's way to its text). Add one by putting a function into ``PROBES``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from bench.arguments import Parser, whole, writable
from bench.closes import measure_closes
from bench.detokenize import measure_text
from bench.probes import Row, call_ns, measure_cores, measure_device, measure_pages, row
from bench.program import headline, machine, program
from bench.spread import quantile
from bloombee.transport import Endpoint, KeyPair
from bloombee.transport.keys import generate
from bloombee.types import Dtype, Kind, Lane, Priority
from bloombee.wire.envelope import HIDDEN, Envelope, TensorHeader, decode_envelope, encode_envelope
from bloombee.wire.messages import Forward, Item, Pick, Verdict

SWARM = 1
SIZES = (4 << 10, 1 << 20)


# -- envelope ----------------------------------------------------------------------------------


def forward(num_sequences: int, payload_bytes: int) -> tuple[Forward, tuple[TensorHeader, ...]]:
    """A decode microbatch of one row a sequence whose activations take ``payload_bytes``."""
    items = tuple(Item(number, 0, int(Kind.DECODE), 100, bytes(4), 1, None, None) for number in range(num_sequences))
    d = payload_bytes // (2 * num_sequences)
    tensor = TensorHeader(HIDDEN, Dtype.BFLOAT16, (num_sequences, d), 0, payload_bytes, payload_bytes, 0)
    return Forward(0, 1, 1, 1, Lane.CONTROL, Priority.NOW, items), (tensor,)


def measure_envelope(rounds: int) -> list[Row]:
    rows = []
    for num_sequences in (1, 32):
        message, tensors = forward(num_sequences, 4096 * num_sequences)
        header, payload = encode_envelope(SWARM, message, tensors), bytes(4096 * num_sequences)
        note = f"header {len(header)} bytes"
        encode = call_ns(partial(encode_envelope, SWARM, message, tensors))
        decode = call_ns(partial(decode_envelope, (header, payload)))
        rows.append(row(f"encode Forward, {num_sequences} sequences", "ns", encode, note))
        rows.append(row(f"decode Forward, {num_sequences} sequences", "ns", decode, note))
    verdict = Verdict(0, 1, 1, 1, tuple(Pick(n, 0, 101, 5, None, ()) for n in range(32)), None)
    header = encode_envelope(SWARM, verdict)
    decode = call_ns(lambda: decode_envelope((header,)))
    return [*rows, row("decode Verdict, 32 picks", "ns", decode, f"header {len(header)} bytes")]


# -- one hop -----------------------------------------------------------------------------------


def measure_hop(rounds: int) -> list[Row]:
    rows = []
    for curve in (True, False):
        for size, times in uvloop.run(_echo_through_endpoints(curve, rounds)).items():
            rows.append(_hop_row(f"hop of {size >> 10} KB, {'CURVE' if curve else 'plain'}", times))
    rows += [_hop_row(f"hop of {size >> 10} KB, TCP socket alone", _echo_through_tcp(size, rounds)) for size in SIZES]
    return rows


def measure_echo(rounds: int) -> list[Row]:
    times = uvloop.run(_echo_through_endpoints(True, rounds))
    return [_hop_row(f"echo of {size >> 10} KB, CURVE, both ways", some, ways=1) for size, some in times.items()]


def _hop_row(what: str, times: list[float], ways: int = 2) -> Row:
    hops = [t / ways * 1e6 for t in times]
    return row(what, "us", hops, f"p99 {quantile(hops, 0.99):.0f} us")


async def _echo_through_endpoints(curve: bool, rounds: int) -> dict[int, list[float]]:
    keys = generate()
    link = os.urandom(16)
    arrived = asyncio.Event()
    endpoint = Endpoint(keys, swarm=SWARM, on_message=lambda *_: arrived.set(), on_event=lambda _: None, curve=curve)
    with child(_serve_endpoint, curve, link, keys) as pipe:
        address, server_key = await asyncio.to_thread(pipe.recv)
        endpoint.dial(link, address, server_key)
        times: dict[int, list[float]] = {}
        for size in SIZES:
            message, tensors = forward(1, size)
            payload = os.urandom(size)
            times[size] = []
            for number in range(rounds + 50):
                arrived.clear()
                start = time.perf_counter()
                endpoint.send(link, Lane.CONTROL, message, tensors, (payload,))
                await arrived.wait()
                if number >= 50:
                    times[size].append(time.perf_counter() - start)
        pipe.send("end")
    await endpoint.close(0)
    return times


def _serve_endpoint(pipe: Connection, curve: bool, link: bytes, peer: KeyPair) -> None:
    async def serve() -> None:
        keys = generate()

        def echo(link: bytes, lane: Lane, envelope: Envelope, payloads: list[memoryview]) -> None:
            endpoint.send(link, lane, envelope.message, envelope.tensors, payloads)

        endpoint = Endpoint(keys, swarm=SWARM, on_message=echo, on_event=lambda _: None, curve=curve)
        address = await endpoint.bind()
        endpoint.allow(link, peer.public, 1)
        pipe.send((address, keys.public))
        await asyncio.to_thread(pipe.recv)
        await endpoint.close(0)

    uvloop.run(serve())


def _echo_through_tcp(size: int, rounds: int) -> list[float]:
    with child(_serve_tcp, size) as pipe, socket.create_connection(("127.0.0.1", pipe.recv())) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        payload, room = os.urandom(size), bytearray(size)
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            connection.sendall(payload)
            _fill(connection, room)
            times.append(time.perf_counter() - start)
    return times


def _serve_tcp(pipe: Connection, size: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        pipe.send(server.getsockname()[1])
        connection, _ = server.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            room = bytearray(size)
            while _fill(connection, room):
                connection.sendall(room)


def _fill(connection: socket.socket, room: bytearray) -> bool:
    view = memoryview(room)
    while view:
        received = connection.recv_into(view)
        if not received:
            return False
        view = view[received:]
    return True


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Interpreters that start meanwhile find no code in the current folder, where ``multiprocessing`` would look first."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


@contextlib.contextmanager
def child(target: Callable[..., None], *args: Any) -> Iterator[Connection]:
    """``target(pipe, *args)`` in a process of its own, ended at the end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *args), daemon=True)
    with _safe_path():
        process.start()
    try:
        yield ours
        process.join(5)
    finally:
        if process.is_alive():
            process.kill()
            process.join()


# -- the table ---------------------------------------------------------------------------------

PROBES: dict[str, Callable[[int], list[Row]]] = {
    "envelope": measure_envelope,
    "hop": measure_hop,
    "echo": measure_echo,
    "device": measure_device,
    "pages": measure_pages,
    "cores": measure_cores,
    "closes": measure_closes,
    "text": measure_text,
}


@program("micro")
def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(PROBES), help="this part; may be repeated (default: all)")
    parser.add_argument(
        "--rounds", type=whole(10, 10**7), default=1000, help="there-and-backs of each row, at least 10 (default 1000)"
    )
    parser.add_argument("--json", metavar="FILE", type=writable, help="write the rows here too")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(headline())
    print(f"{'':<36} {'median':>10} {'p10':>10} {'p90':>10}")
    rows = []
    for name in options.only or PROBES:
        for found in PROBES[name](options.rounds):
            numbers = "".join(f" {value:>10,.1f}" for value in (found.median, found.p10, found.p90))
            print(f"{found.what:<36}{numbers} {found.unit:<8} {found.note}", flush=True)
            rows.append({"part": name, **asdict(found)})
    if options.json is not None:
        facts = {"bench": "micro", **machine(), "python": platform.python_version(), "rounds": options.rounds, "load": load}
        options.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
