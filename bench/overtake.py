"""What a decode frame waits while a prefill fills the same link: python -m bench.overtake [--profiles A,B] [--seconds S]

Two processes, CURVE, the link emulator between them. Control frames leave every 20 ms (--period-ms); their one-way delay is
measured alone, then while bulk frames follow each other without a pause, in pieces and whole. What a control frame takes on
an empty link is the row "none"; what is beyond it is the queue that bulk has built.

Exits 1 if more was ever on its way than docs/wire.md section 9 allows: the window, and one piece ("over window", in bytes).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import uvloop

from bench.arguments import Parser, names, seconds, whole
from bench.micro import SWARM, child, forward
from bench.profiles import Profile, load_profile
from bench.program import headline, program
from bench.spread import quantile
from bloombee.transport import Endpoint, KeyPair
from bloombee.transport.bulk import WHOLE_BYTES
from bloombee.transport.keys import generate
from bloombee.types import Lane
from bloombee.wire.envelope import MAX_TENSOR_BYTES, Envelope
from bloombee.wire.messages import Forward, Heartbeat
from tools.wan import Link, Wan

PERIOD_S = 0.02
BULK_BYTES = 1 << 20
"""512 rows of d = 1024 in bfloat16: a chunk of a prompt."""
ROWS = (("none", WHOLE_BYTES, False), ("in pieces", WHOLE_BYTES, True), ("whole", MAX_TENSOR_BYTES, True))
"""Name, what goes whole, whether there is bulk at all."""


@dataclass(frozen=True, slots=True)
class Result:
    delays_ms: list[float]
    bulk_bytes: int
    seconds: float
    over_window: int
    """Most bytes that were unacknowledged beyond the window, and the piece just sent."""


async def measure(
    profile: Profile, control_bytes: int, whole_bytes: int, lasts_s: float, *, bulk: bool, period_s: float = PERIOD_S
) -> Result:
    """Control frames of ``control_bytes`` every ``period_s`` for ``lasts_s``, with bulk beside them or not."""
    keys, link = generate(), os.urandom(16)
    with child(_listen, link, keys) as pipe, contextlib.ExitStack() as stack:
        address, server_key = pipe.recv()
        wan = stack.enter_context(Wan([Link.of("link", target=address.removeprefix("tcp://"), profile=profile.link(0))]))
        endpoint = Endpoint(keys, swarm=SWARM, on_message=lambda *_: None, on_event=lambda _: None, whole_bytes=whole_bytes)
        endpoint.dial(link, f"tcp://{wan.address('link')}", server_key)
        over = _watch(endpoint, link)
        endpoint.send(link, Lane.CONTROL, Heartbeat(0))
        await asyncio.to_thread(pipe.recv)
        start = time.monotonic()
        filler = asyncio.create_task(_fill(endpoint, link)) if bulk else None
        for number in range(int(lasts_s / period_s)):
            await asyncio.sleep(max(0.0, start + number * period_s - time.monotonic()))
            message, tensors = forward(8, control_bytes)
            payloads = (bytes(control_bytes),)
            stamped = Forward(0, 1, time.monotonic_ns(), number, message.lane, message.priority, message.items)
            endpoint.send(link, Lane.CONTROL, stamped, tensors, payloads)
        if filler is not None:
            filler.cancel()
        pipe.send("end")
        delays_ms, bulk_bytes = await asyncio.to_thread(pipe.recv)
        await endpoint.close(0)
    return Result(delays_ms, bulk_bytes, lasts_s, max([0, *over]))


def _watch(endpoint: Endpoint, link: bytes) -> list[int]:
    """Notes with each piece by how much the window was exceeded without it."""
    window = endpoint.bulk_window(link)
    over: list[int] = []
    sent = window.sent

    def noted(num_bytes: int, now: float) -> int:
        number = sent(num_bytes, now)
        over.append(window.unacked_bytes - num_bytes - window.window_bytes)
        return number

    window.sent = noted  # type: ignore[method-assign]
    return over


async def _fill(endpoint: Endpoint, link: bytes) -> None:
    """Bulk without a pause, two frames at most waiting here."""
    payload = os.urandom(BULK_BYTES)
    message, tensors = forward(1, BULK_BYTES)
    while True:
        if endpoint.pending_bytes(link, Lane.BULK) < BULK_BYTES:
            endpoint.send(link, Lane.BULK, message, tensors, (payload,))
        await asyncio.sleep(0.002)


def _listen(pipe: Connection, link: bytes, peer: KeyPair) -> None:
    async def serve() -> None:
        keys = generate()
        delays_ms: list[float] = []
        bulk_bytes = 0

        def take(link: bytes, lane: Lane, envelope: Envelope, payloads: list[memoryview]) -> None:
            nonlocal bulk_bytes
            if lane is Lane.BULK:
                bulk_bytes += len(payloads[0])
            elif isinstance(envelope.message, Forward):
                delays_ms.append((time.monotonic_ns() - envelope.message.frame) / 1e6)
            else:
                pipe.send("up")

        endpoint = Endpoint(keys, swarm=SWARM, on_message=take, on_event=lambda _: None)
        address = await endpoint.bind()
        endpoint.allow(link, peer.public, 1)
        pipe.send((address, keys.public))
        await asyncio.to_thread(pipe.recv)
        pipe.send((delays_ms, bulk_bytes))
        await endpoint.close(0)

    uvloop.run(serve())


@program("overtake")
def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", type=names(), default="20M-100ms,125M-60ms")
    parser.add_argument("--seconds", type=seconds(0.1, 3600), default=8.0)
    parser.add_argument(
        "--control-bytes", type=whole(16, 1 << 24), default=16 << 10, help="payload of a control frame (default 8 rows, d = 1024)"
    )
    parser.add_argument(
        "--period-ms",
        type=seconds(0.1, 60000, "milliseconds"),
        default=1e3 * PERIOD_S,
        help="between control frames (default 20)",
    )
    options = parser.parse_args()
    period_s = options.period_ms / 1e3
    profiles = [load_profile(name) for name in options.profiles]
    print(headline())
    print(f"control frames of {options.control_bytes} bytes every {options.period_ms:g} ms, bulk frames of {BULK_BYTES} bytes")
    titles = ("p50 ms", "p90 ms", "p99 ms", "max ms")
    print(
        f"{'profile':<12} {'bulk':<10}" + "".join(f"{title:>9}" for title in titles) + f"{'bulk Mbit/s':>13} {'over window':>12}"
    )
    most = 0
    for profile in profiles:
        for what, whole_bytes, bulk in ROWS:
            result = uvloop.run(
                measure(profile, options.control_bytes, whole_bytes, options.seconds, bulk=bulk, period_s=period_s)
            )
            quantiles = "".join(f"{quantile(result.delays_ms, share):>9.1f}" for share in (0.5, 0.9, 0.99, 1.0))
            rate = 8e-6 * result.bulk_bytes / result.seconds
            print(f"{profile.name:<12} {what:<10}{quantiles}{rate:>13.1f} {result.over_window:>12}", flush=True)
            most = max(most, result.over_window)
    print(f"over window: at most {most}; goal 0")
    return int(most > 0)


if __name__ == "__main__":
    sys.exit(main())
