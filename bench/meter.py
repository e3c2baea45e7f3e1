"""What a link is and what its meter reads: python -m bench.meter [--profiles A,B] [--seconds S]

Two processes, CURVE, the link emulator between them; the sender's meter is the one that serves. Each row is another traffic:

    bulk      frames of 1 MB without a pause, in pieces
    both      the same, decode frames every 20 ms beside it (5 ms of wire each)
    queue     decode frames a fifth faster than the wire takes them
    large     one frame of 100 ms of wire every half second
    probe     nothing: the link is idle and probed
    light     decode frames that leave the wire idle most of the time: unknown is right

Asked for and read, in Mbit/s and ms; "-": the meter says that it does not know.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from multiprocessing.connection import Connection

import uvloop

from bench.arguments import Parser, names, seconds
from bench.micro import SWARM, child, forward
from bench.profiles import Profile, load_profile
from bench.program import headline, program
from bloombee.links.estimator import LinkFacts
from bloombee.links.frames import LinkMeter
from bloombee.pipeline.frames import FrameReceiver
from bloombee.transport import Endpoint, KeyPair
from bloombee.transport.keys import generate
from bloombee.types import Lane
from bloombee.wire.envelope import Envelope
from bloombee.wire.messages import Ack, Forward, Heartbeat
from tools.wan import Link, Wan

BULK_BYTES = 1 << 20
SMALL_BYTES = 64
TRAFFICS = ("bulk", "both", "queue", "large", "light", "probe")


class Sender:
    """One end of a link with a meter, as a stage has it."""

    def __init__(self, keys: KeyPair, link: bytes) -> None:
        self.link = link
        self.endpoint = Endpoint(keys, swarm=SWARM, on_message=self._heard, on_event=lambda _: None)
        self._frames = dict.fromkeys(Lane, 0)

    def dial(self, address: str, server_key: bytes) -> None:
        self.endpoint.dial(self.link, f"tcp://{address}", server_key)
        self.meter = LinkMeter(self.endpoint.estimator(self.link))

    def send(self, lane: Lane, num_bytes: int) -> None:
        num_bytes += num_bytes % 2  # whole elements
        message, tensors = forward(1, num_bytes)
        frame = self._frames[lane]
        numbered = Forward(0, 1, frame, frame, message.lane, message.priority, message.items)
        now = time.monotonic()
        sent = self.endpoint.send(self.link, lane, numbered, tensors, (bytes(num_bytes),))
        self.meter.sent(lane, frame, sent, 2, now)
        self._frames[lane] += 1

    def _heard(self, _: bytes, __: Lane, envelope: Envelope, ___: list[memoryview]) -> None:
        if isinstance(envelope.message, Ack):
            self.meter.acked(envelope.message, time.monotonic())


async def measure(profile: Profile, traffic: str, lasts_s: float) -> LinkFacts:
    """What the sender's meter knows after so long of ``traffic``."""
    keys, link = generate(), os.urandom(16)
    shape = profile.link(0)
    rate = (shape.forward.bandwidth_bits_per_s or 1e9) / 8
    with child(_acknowledge, link, keys) as pipe:
        address, server_key = pipe.recv()
        wire = Link.of("link", target=address.removeprefix("tcp://"), profile=shape)
        with Wan([wire]) as wan:
            sender = Sender(keys, link)
            sender.dial(wan.address("link"), server_key)
            sender.endpoint.send(link, Lane.CONTROL, Heartbeat(0))
            await asyncio.to_thread(pipe.recv)
            for _ in range(8):
                sender.send(Lane.CONTROL, SMALL_BYTES)
                await asyncio.sleep(0.1 + 2 * shape.forward.delay_s)
            await _load(sender, traffic, rate, lasts_s)
            facts = sender.meter.facts()
            pipe.send("end")
            await sender.endpoint.close(0)
    return facts


async def _load(sender: Sender, traffic: str, rate: float, lasts_s: float) -> None:
    frame_bytes, period_s = {
        "bulk": (0, 0.02),
        "both": (max(300, int(rate * 0.005)), 0.02),
        "queue": (int(rate * 0.03), 0.025),
        "large": (int(rate * 0.1), 0.5),
        "light": (max(300, int(rate * 0.003)), 0.05),
        "probe": (0, 0.1),
    }[traffic]
    start = time.monotonic()
    for number in range(int(lasts_s / period_s)):
        await asyncio.sleep(max(0.0, start + number * period_s - time.monotonic()))
        if frame_bytes:
            sender.send(Lane.CONTROL, frame_bytes)
        if traffic == "probe":
            sender.endpoint.probe(sender.link, 1.0)
        if traffic in ("bulk", "both"):
            while sender.endpoint.pending_bytes(sender.link, Lane.BULK) < 4 * BULK_BYTES:
                sender.send(Lane.BULK, BULK_BYTES)


def _acknowledge(pipe: Connection, link: bytes, peer: KeyPair) -> None:
    async def serve() -> None:
        keys = generate()
        receivers = {lane: FrameReceiver(window=1 << 40) for lane in Lane}

        def take(link: bytes, lane: Lane, envelope: Envelope, payloads: list[memoryview]) -> None:
            if not isinstance(envelope.message, Forward):
                pipe.send("up")
                return
            now = time.monotonic()
            receivers[lane].hold(envelope.message.frame, now)
            endpoint.send(link, Lane.CONTROL, receivers[lane].acknowledgement(0, 1, now, lane))

        endpoint = Endpoint(keys, swarm=SWARM, on_message=take, on_event=lambda _: None)
        address = await endpoint.bind()
        endpoint.allow(link, peer.public, 1)
        pipe.send((address, keys.public))
        await asyncio.to_thread(pipe.recv)
        await endpoint.close(0)

    uvloop.run(serve())


@program("meter")
def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", type=names(), default="1M-100ms,20M-100ms,100M-20ms,125M-60ms,home,500M-10ms")
    parser.add_argument("--traffics", type=names(*TRAFFICS), default=",".join(TRAFFICS))
    parser.add_argument("--seconds", type=seconds(0.1, 3600), default=2.0)
    options = parser.parse_args()
    profiles = [load_profile(name) for name in options.profiles]
    print(headline())
    print(f"{'profile':<12} {'traffic':<8}{'asked':>9}{'read':>9}{'ratio':>7}{'low':>9}{'asked ms':>10}{'read ms':>9}{'+-':>7}")
    for profile in profiles:
        shape = profile.link(0)
        mbit = (shape.forward.bandwidth_bits_per_s or float("inf")) / 1e6
        for traffic in options.traffics:
            facts = uvloop.run(measure(profile, traffic, options.seconds))
            read, low = facts.bandwidth_bytes_per_s, facts.bandwidth_low_bytes_per_s
            known = (
                f"{8e-6 * read:>9.1f}{8e-6 * read / mbit:>7.2f}{8e-6 * low:>9.1f}"
                if read and low
                else f"{'-':>9}{'-':>7}{'-':>9}"
            )
            rtt_ms = 1e3 * (shape.forward.delay_s + shape.backward.delay_s)
            print(
                f"{profile.name:<12} {traffic:<8}{mbit:>9g}{known}{rtt_ms:>10.1f}{1e3 * (facts.base_rtt_s or 0):>9.2f}"
                f"{1e3 * facts.rtt_std_s:>7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
