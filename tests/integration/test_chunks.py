"""Prompts through real workers in the chunks that they are meant to go in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from engine_kit import make_checkpoint, reference_tokens
from swarm_kit import Swarm

from bloombee.control.chunks import Chunks
from bloombee.pipeline.events import Tune


def test_chunks_that_shrink_with_position_change_no_token(tmp_path: Path, make_swarm: Callable[..., Swarm]) -> None:
    prompt = [1 + 7 * index % 120 for index in range(100)]
    (known,) = reference_tokens(make_checkpoint("llama", tmp_path), [prompt], 6)
    swarm = make_swarm(model=str(tmp_path), workers=2, dtype="float32", microbatches=2)
    home, head = swarm.runtime._home, swarm.runtime._head
    assert home is not None
    assert head is not None
    chunks = (Chunks(0, 32, 32, 64), Chunks(64, 8, 8, 16))
    home.soon(head.dispatch.handle, Tune(2, chunks, None, time.monotonic()))
    assert list(swarm.generate(prompt, max_new_tokens=6, ignore_eos=True).token_ids) == known
    for stage in swarm.run(swarm.runtime.stage_use()):
        assert (stage.prefill.num_works, stage.prefill.num_rows) == (2 + 5, 100)
        assert stage.prefill.num_attended == 100 * 100 // 2
        assert stage.decode.num_attended == sum(range(100, 105))


def test_the_first_prompt_goes_in_chunks_that_fit_what_workers_know_of_themselves(make_swarm: Callable[..., Swarm]) -> None:
    swarm = make_swarm(model="standin:256x4", workers=2, pace="1,0.05,0.05")
    head = swarm.runtime._head
    assert head is not None

    async def chunk_rows() -> int:
        async with asyncio.timeout(30):
            most = swarm.runtime.config.max_microbatch_rows
            while (run := head.helm.core.running) is None or run.chunks[0].fast == most:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return run.chunks[0].fast

    rows = swarm.run(chunk_rows())
    swarm.generate([1] * 256, max_new_tokens=1)
    for stage in swarm.run(swarm.runtime.stage_use()):
        assert stage.prefill.num_works == -(-256 // rows) > 1


def test_a_microbatch_that_is_too_large_for_a_frame_goes_in_as_many_as_it_takes(make_swarm: Callable[..., Swarm]) -> None:
    """Rows of 32 KB: 2,048 of them fit a frame, whatever ``max_microbatch_rows`` says."""
    swarm = make_swarm(model="standin:16384x2", workers=2, pace="1,0,0", max_microbatch_rows=8192, microbatches=4, kv_tokens=8192)
    assert len(swarm.generate([5] * 3000, max_new_tokens=2, ignore_eos=True).token_ids) == 2
    for stage in swarm.run(swarm.runtime.stage_use()):
        assert (stage.prefill.num_works, stage.prefill.num_rows) == (2, 3000)
    assert swarm.run(swarm.runtime.pages_free()) == (512, 512)
