"""A traced run of real processes: its parts against the time that the application measured in the same run."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from perfetto_kit import check_arrows, check_format, check_nesting, total_ms

import bloombee
from bloombee import timeline
from bloombee.errors import ConfigError
from bloombee.types import HEAD

NUM_TOKENS = 64


def _run(directory: Path, **fields: object) -> list[bloombee.Generation]:
    async def generate() -> list[bloombee.Generation]:
        async with bloombee.Runtime("demo", workers=3, threads=1, trace=str(directory), **fields) as runtime:
            return [await runtime.generate("def add(a, b):\n", max_new_tokens=NUM_TOKENS, ignore_eos=True) for _ in range(2)]

    return asyncio.run(generate())


def test_the_parts_add_up_to_the_time_a_token_took(tmp_path: Path) -> None:
    generations = _run(tmp_path)
    outside_ms = sum(1e3 / generation.tokens_per_s for generation in generations) / len(generations)
    merged = timeline.load([tmp_path])
    got = merged.breakdown()
    assert [hop.name for hop in got.hops] == ["head", *(f"stage {n} (local-{n})" for n in range(3))]
    assert got.num_tokens == got.num_seen == 2 * (NUM_TOKENS - 1)
    assert got.total_ms == pytest.approx(outside_ms, rel=0.05)
    assert got.total_ms == pytest.approx(got.measured_ms, rel=0.05)
    # All on one machine: clocks are known exactly, so no part can be negative.
    assert all(length >= 0 for hop in got.hops for length in hop.parts_ms.values())
    assert all(hop.parts_ms["compute"] > 0 for hop in got.hops[1:])
    # The handshakes' estimates, not needed here, are right: it is one clock.
    assert all(abs(offset) <= error for process in merged.stages for offset, error in process.clocks.values())
    assert all(HEAD in process.clocks for process in merged.stages)


def test_sequences_in_company_add_up_too(tmp_path: Path) -> None:
    async def generate() -> None:
        async with bloombee.Runtime("demo", workers=2, threads=1, trace=str(tmp_path), microbatches=2) as runtime:
            await asyncio.gather(
                *(runtime.generate("x" * 4 * n, max_new_tokens=20 + n, ignore_eos=True, seed=n) for n in range(1, 7))
            )

    asyncio.run(generate())
    got = timeline.load([tmp_path]).breakdown()
    assert got.num_tokens == got.num_seen == sum(19 + n for n in range(1, 7))
    assert got.total_ms == pytest.approx(got.measured_ms, rel=0.05)


def test_the_command_prints_the_table_and_writes_what_perfetto_opens(tmp_path: Path) -> None:
    _run(tmp_path / "traces", curve=False)
    out = tmp_path / "trace.json"
    command = [sys.executable, "-m", "bloombee", "trace", str(tmp_path / "traces"), "--perfetto", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "stage 2" in done.stdout
    assert f"{2 * (NUM_TOKENS - 1)} of {2 * (NUM_TOKENS - 1)} tokens" in done.stdout
    trace = json.loads(out.read_text())
    check_format(trace)
    events = trace["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1, 2, 3}
    table = timeline.load([tmp_path / "traces"]).breakdown()
    assert check_nesting(events) >= 2
    assert check_arrows(events) > 0
    assert total_ms(events, "sequence") == pytest.approx(table.num_tokens * table.total_ms)


def test_a_directory_that_cannot_be_written_ends_the_start_at_once(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="trace: cannot write"):
        _run(tmp_path / "taken")
