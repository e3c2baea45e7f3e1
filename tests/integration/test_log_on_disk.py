"""Activations that have left a worker and find no room in its memory: on disk, said again from there, gone without a trace."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host_kit import Ring, ring

import bloombee
from bloombee.config import LocalWorker
from bloombee.roles import log_file
from bloombee.wire.messages import Lost

PROMPT = [5, 6, 7, 300, 20, 9, 11]
ROW_BYTES = 256 * 4
MEMORY = 8 * ROW_BYTES
COUNT = 40


async def _undisturbed() -> list[int]:
    async with ring(2) as undisturbed:
        await _started(undisturbed, COUNT, 1 << 30)
        return undisturbed.tokens[1]


async def _started(the: Ring, count: int, limit: int = MEMORY, then: Callable[[], None] = lambda: None) -> None:
    """A sequence has run for so long through workers 1 and 2, and the log of the first never took more memory than ``limit``."""
    for worker in the.stages:
        await the.load(worker, *((0, 4) if worker == 1 else (4, 8)))
    then()
    await the.wire(1, 1, 1, 2)
    the.open(1, PROMPT)
    for _ in range(count):
        await the.go(1, 1, 1, 1)
        (host,) = the.stages[1]
        assert host.core.log.num_bytes <= limit
        await _written(the)


async def _written(the: Ring) -> None:
    """The disk has done all that was asked of it: one that is slower than what comes would lose the oldest."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    the.stages[1]._disk.ask(lambda: None, done.set_result, done.set_exception)
    await done


def _lost(the: Ring) -> list[Any]:
    return [said for _, said in the.said if isinstance(said, Lost)]


def test_what_was_written_to_disk_is_said_again_to_who_takes_the_next_workers_place(tmp_path: Path) -> None:
    async def use() -> None:
        async with ring(3, log_memory_bytes=MEMORY, log_disk_bytes=1 << 20, log_dir=str(tmp_path)) as the:
            await _started(the, COUNT // 2)
            (host,) = the.stages[1]
            assert host.core.log.num_stored_bytes > 0
            assert not os.listdir(tmp_path), "the file has no name"
            await the.wire(2, 2, 1, 3)
            await the.go(1, 2, 1, COUNT - COUNT // 2)
            assert not _lost(the)
            assert host.core.log.bounds(1)[0] == 0
            assert the.tokens[1] == await _undisturbed()

    asyncio.run(use())


def _full(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def _damaged(real: Callable[..., int]) -> Callable[..., int]:
    def preadv(descriptor: int, buffers: list[bytearray], offset: int) -> int:
        count = real(descriptor, buffers, offset)
        buffers[0][3] ^= 1
        return count

    return preadv


@pytest.mark.parametrize("what", ["full", "damaged", "unreadable", "no such directory"])
def test_what_a_disk_does_not_keep_is_computed_again_and_said_once(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    patched = {"full": ("pwrite", _full), "damaged": ("preadv", _damaged(os.preadv)), "unreadable": ("preadv", _full)}

    def fail() -> None:
        if what in patched:
            monkeypatch.setattr(log_file.os, *patched[what])

    directory = tmp_path / "none" if what == "no such directory" else tmp_path

    async def use() -> None:
        undisturbed = await _undisturbed()
        async with ring(3, log_memory_bytes=MEMORY, log_disk_bytes=1 << 20, log_dir=str(directory)) as the:
            await _started(the, COUNT // 2, then=fail)
            await the.wire(2, 2, 1, 3)
            await the.until(lambda: bool(_lost(the)))
            assert [holding.sequence for holding in _lost(the)[0].holdings] == [1]
            await the.go(1, 2, 1, COUNT - COUNT // 2, since=0, generation=1)
            assert the.tokens[1] == undisturbed

    with caplog.at_level(logging.WARNING, logger="bloombee.roles"):
        asyncio.run(use())
    assert len([record for record in caplog.records if "the log of activations" in record.message]) == 1


def test_requests_go_on_with_the_same_tokens_when_all_but_some_rows_of_the_log_are_on_disk() -> None:
    """Real processes: the last worker is killed, a spare takes its place, and gets its rows out of the file of the one before."""

    async def ask(runtime: bloombee.Runtime, seed: int, came: asyncio.Event | None = None) -> tuple[int, ...]:
        tokens = []
        prompt = [seed, 40, 300, 7] * 10
        async for token in runtime.stream(prompt, max_new_tokens=64, ignore_eos=True, temperature=0.7, seed=seed):
            tokens.append(token.token_id)
            if came is not None and len(tokens) == 32:
                came.set()
        return tuple(tokens)

    async def use() -> None:
        small = LocalWorker(log_memory_bytes=32 * ROW_BYTES, log_disk_bytes=16 << 20)
        async with bloombee.Runtime(
            "demo", workers=3, spares=1, dtype="float32", threads=1, silence_s=5.0, local_workers=[small] * 4
        ) as runtime:
            undisturbed = [await ask(runtime, seed) for seed in range(3)]
            came = [asyncio.Event() for _ in range(3)]
            asked = [asyncio.ensure_future(ask(runtime, seed, came[seed])) for seed in range(3)]
            await asyncio.gather(*(one.wait() for one in came))
            before, last = (runtime.worker_pids[stage.worker] for stage in runtime.plan.stages[1:])
            assert _unnamed_bytes(before) > 32 * ROW_BYTES
            os.kill(last, signal.SIGKILL)
            assert await asyncio.gather(*asked) == undisturbed
            assert runtime.plan.epoch == 2

    asyncio.run(asyncio.wait_for(use(), 120))


def _unnamed_bytes(pid: int) -> int:
    """Of a process's open files that have no name."""
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if entry.is_symlink() and os.readlink(entry).endswith("(deleted)"):
            found += entry.stat().st_size
    return found
