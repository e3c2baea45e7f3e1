"""What a worker holds outlives a plan: weights by layer, KV, the log; seats of several epochs beside each other on the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from host_kit import Ring, ring

from bench.reload import resident_bytes
from bloombee.engine import weights
from bloombee.errors import StalePlan
from bloombee.types import Span
from bloombee.wire.messages import Wire

PROMPTS = {1: [5, 6, 7, 300, 20, 9, 11], 2: [40, 3, 3, 8, 100]}


async def _undisturbed(counts: dict[int, int]) -> dict[int, list[int]]:
    async with ring(2) as undisturbed:
        await undisturbed.load(1, 0, 4)
        await undisturbed.load(2, 4, 8)
        await undisturbed.wire(1, 1, 1, 2)
        for sequence, count in counts.items():
            undisturbed.open(sequence, PROMPTS[sequence])
            await undisturbed.go(1, 1, sequence, count)
        return undisturbed.tokens


def _models(the: Ring, worker: int) -> list[Any]:
    return [host._device._model for host in the.stages[worker]]


def test_seats_of_two_epochs_with_other_neighbours_serve_side_by_side_on_the_same_weights_and_kv() -> None:
    """Worker 1 has layers 0-3 in both; in the first epoch worker 2 follows it, in the second worker 3."""

    async def use() -> None:
        async with ring(3) as the:
            await the.load(1, 0, 4)
            await the.load(2, 4, 8)
            await the.load(3, 4, 8)
            await the.wire(1, 1, 1, 2)
            for sequence, prompt in PROMPTS.items():
                the.open(sequence, prompt)
                await the.go(1, 1, sequence, 6)
            await the.wire(2, 1, 1, 3)
            (host,) = the.stages[1]
            assert sorted(host.core.seats) == [1, 2]
            pages = host.core.pages_free
            for _ in range(8):
                await the.go(1, 2, 1, 1)  # one sequence has gone over to the new epoch, the other not yet
                await the.go(1, 1, 2, 1)
            assert host.core.pages_free == pages - 2, "no sequence is held twice"
            await the.wire(3, 2, 1, 3)
            assert sorted(host.core.seats) == [2, 3]
            await the.go(1, 3, 2, 4)
            assert the.tokens == await _undisturbed({1: 14, 2: 18})
            with pytest.raises(StalePlan):
                the.stages[1].wire(Wire(1, 1, 1, 0, 2, 8, 64, None, None, None, (), None, False, the.orders[1], False))

    asyncio.run(use())


def test_a_worker_loads_further_layers_beside_those_it_serves_with_and_reads_none_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    filled: list[int] = []
    real = weights.fill

    def fill(checkpoint: Any, loading: Any, memory: Any, *others: Any) -> Any:
        filled.append(len({name.split(".layers.")[1].split(".")[0] for name in loading.stored if ".layers." in name}))
        return real(checkpoint, loading, memory, *others)

    monkeypatch.setattr("bloombee.engine.model.fill", fill)

    async def use() -> None:
        async with ring(3) as the:
            await the.load(1, 0, 4)
            await the.load(2, 4, 8)
            await the.wire(1, 1, 1, 2)
            the.open(1, PROMPTS[1])
            await the.go(1, 1, 1, 5)
            await the.load(1, 0, 6)
            await the.load(3, 6, 8)
            assert filled == [4, 4, 2, 2]
            await the.go(1, 1, 1, 3)  # the span before goes on serving
            the.stages[1].load(the.order(0, 7))  # a third is asked for, and then the second after all
            the.stages[1].load(the.order(0, 6))
            await the.load(1, 0, 6)
            old, new = _models(the, 1)
            shared = old._store.num_bytes
            assert shared < old.weight_bytes + new.weight_bytes + old.kv_bytes + new.kv_bytes
            await the.wire(2, 2, 1, 3)
            await the.go(1, 2, 1, 5, since=0, generation=1)
            (host,) = the.stages[1]
            assert (host.load.start, host.load.stop) == (0, 6)
            assert new._store.num_bytes == new.weight_bytes + new.kv_bytes
            assert the.tokens == await _undisturbed({1: 13})

    asyncio.run(use())


def test_layers_of_another_span_are_served_by_the_same_weights_wherever_they_stand_in_it() -> None:
    """The first layer of a span in the middle is handed what arrived; in a longer span it is handed what the one before gave."""

    async def use() -> None:
        async with ring(2) as the:
            await the.load(1, 0, 4)
            await the.load(2, 4, 8)
            await the.load(1, 0, 8)
            await the.wire(1, 1, 1)
            the.open(1, PROMPTS[1])
            await the.go(1, 1, 1, 4)
            await the.load(1, 0, 4)
            await the.wire(2, 2, 1, 2)
            await the.go(1, 2, 1, 4, since=0, generation=1)
            await the.load(2, 2, 8)
            await the.load(1, 0, 2)
            await the.wire(3, 3, 1, 2)
            await the.go(1, 3, 1, 4, since=0, generation=2)
            assert the.tokens == await _undisturbed({1: 12})

    asyncio.run(use())


def test_a_span_that_nobody_waits_for_any_more_is_not_loaded_to_its_end() -> None:
    async def use() -> None:
        async with ring(1, load_bytes_per_s=1000) as the:
            the.stages[1].load(the.order(0, 4))
            (first,) = the.stages[1]
            the.stages[1].load(the.order(0, 2))
            (second,) = the.stages[1]
            assert second is not first
            the.stages[1].unload(1)
            assert not list(the.stages[1])
            with pytest.raises(StalePlan):
                the.stages[1].wire(Wire(1, 1, 1, 0, 2, 8, 64, None, None, None, (), None, False, the.order(0, 4).number, False))

    asyncio.run(use())


@pytest.mark.slow
def test_of_layers_that_were_let_go_no_memory_stays() -> None:
    """Sixteen layers, then two of them: as much is resident as in a process that has loaded the two alone."""
    fresh, after = (resident_bytes("llama:1024x16", spans) for spans in ([Span(4, 6)], [Span(0, 16), Span(4, 6)]))
    assert after <= 1.05 * fresh


def test_a_span_is_run_with_as_many_threads_as_it_was_loaded_with() -> None:
    """OpenMP has a number of threads for each thread that computes."""

    async def use() -> None:
        async with ring(1) as the:
            await the.load(1, 0, 8)
            counted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            the.stages[1]._device.ask(torch.get_num_threads, counted.set_result, counted.set_exception)
            assert await counted == 1

    asyncio.run(use())
