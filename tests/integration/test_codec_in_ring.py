"""Compressed activations in a real ring: fewer bytes, the same tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from swarm_kit import Swarm

import bloombee
from bloombee.types import Lane
from bloombee.wire.envelope import Envelope

PROMPTS = [[(7 * i + j) % 4000 + 1 for j in range(30)] for i in range(8)]


async def _tokens(runtime: bloombee.Runtime) -> list[tuple[int, ...]]:
    """One after the other: what shares a forward decides in bfloat16 how its sums are rounded, and that is a matter of timing."""
    return [(await runtime.generate(prompt, max_new_tokens=40, ignore_eos=True)).token_ids for prompt in PROMPTS]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_same_tokens_in_fewer_bytes(dtype: str, make_swarm: Callable[..., Swarm]) -> None:
    off = make_swarm(model="demo", workers=3, dtype=dtype, codec="off", microbatches=1)
    on = make_swarm(model="demo", workers=3, dtype=dtype, codec="on", microbatches=1)
    want = off.run(_tokens(off.runtime))
    for _ in range(3):
        assert on.run(_tokens(on.runtime)) == want
    plain, coded = off.run(off.runtime.stage_use()), on.run(on.runtime.stage_use())
    for stage in (0, 1):
        assert plain[stage].encoded_frames == 0
        assert plain[stage].sent_bytes == plain[stage].raw_bytes
        assert coded[stage].encoded_frames > 0
        assert coded[stage].raw_bytes > (1.4 if dtype == "bfloat16" else 1.15) * coded[stage].sent_bytes


def test_a_lost_table_costs_a_resend_and_no_token(make_swarm: Callable[..., Swarm], monkeypatch: pytest.MonkeyPatch) -> None:
    """Receivers that forget every table they are given: each frame coded with one comes again with the default."""
    on = make_swarm(model="demo", workers=3, dtype="float32", codec="on", microbatches=1)
    want = on.run(_tokens(on.runtime))

    async def forgetful() -> tuple[list[tuple[int, ...]], int]:
        from bloombee.config import WorkerConfig
        from bloombee.roles import coding
        from bloombee.roles.worker import WorkerRole
        from bloombee.wire.messages import TableUnknown

        real = coding.Receiver.take
        said = 0

        def take(receiver: coding.Receiver, body: bytes) -> bytes:
            key = real(receiver, body)
            receiver._tables.clear()
            return key

        monkeypatch.setattr(coding.Receiver, "take", take)
        original = WorkerRole._received

        def received(role: WorkerRole, link: bytes, lane: Lane, envelope: Envelope, payloads: list[memoryview]) -> None:
            nonlocal said
            said += isinstance(envelope.message, TableUnknown)
            original(role, link, lane, envelope, payloads)

        monkeypatch.setattr(WorkerRole, "_received", received)
        runtime = bloombee.Runtime("demo", remote_workers=2, split=(4, 4), dtype="float32", codec="on", microbatches=1)
        await runtime.prepare()
        serving = [
            asyncio.ensure_future(WorkerRole(WorkerConfig(join=token, threads=1)).serve()) for token in runtime.join_tokens
        ]
        try:
            await runtime.ready()
            rounds = [await _tokens(runtime) for _ in range(3)]
        finally:
            await runtime.close()
            await asyncio.gather(*serving)
        assert rounds[0] == rounds[1] == rounds[2]
        return rounds[0], said

    got, said = asyncio.run(forgetful())
    assert got == want
    assert said > 0
