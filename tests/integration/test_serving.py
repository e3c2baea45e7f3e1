"""More than fits: bursts, over-long requests, a full pool, a client that fills it; nothing is lost, and errors are typed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_kit import make_checkpoint, reference_tokens
from safetensors.torch import load_file, save_file
from swarm_kit import Swarm

import bloombee
from bench.serving import main
from bloombee.errors import DeviceError, Infeasible, QueueFull

PAGE = 4


def _ask(swarm: Swarm, requests: list[tuple[list[int], int, str]]) -> list[Any]:
    """Everything at once; a result or an error of each."""

    async def ask() -> list[Any]:
        return await asyncio.gather(
            *(swarm.runtime.generate(p, max_new_tokens=n, ignore_eos=True, client=client) for p, n, client in requests),
            return_exceptions=True,
        )

    return swarm.run(ask())


async def _until_free(runtime: bloombee.Runtime) -> None:
    all_free = tuple(stage.num_pages for stage in runtime.plan.stages)
    async with asyncio.timeout(20):
        while await runtime.pages_free() != all_free:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert runtime.num_requests == 0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[list[int], list[int]]]]:
    """A checkpoint, and (prompt, the 12 tokens that follow) of some requests."""
    directory = tmp_path_factory.mktemp("tiny")
    model = make_checkpoint("llama", directory)
    prompts = [[1 + (7 * number + 3 * index) % 120 for index in range(1 + 5 * number % 23)] for number in range(20)]
    return directory, list(zip(prompts, reference_tokens(model, prompts, 12), strict=True))


def test_a_burst_of_500_through_a_small_pool_comes_out_right(tiny: Any, make_swarm: Callable[..., Swarm]) -> None:
    directory, known = tiny
    swarm = make_swarm(model=str(directory), workers=2, dtype="float32", kv_tokens=40 * PAGE, page_size=PAGE)
    burst = [(known[n % len(known)][0], 1 + n % 12, f"client {n % 3}") for n in range(500)]
    results = _ask(swarm, burst)
    for number, (got, (_, length, _)) in enumerate(zip(results, burst, strict=True)):
        assert list(got.token_ids) == known[number % len(known)][1][:length]
    swarm.run(_until_free(swarm.runtime))


def test_beyond_the_bound_of_the_queue_requests_are_refused_and_no_other_is_lost(
    tiny: Any, make_swarm: Callable[..., Swarm]
) -> None:
    directory, known = tiny
    swarm = make_swarm(model=str(directory), workers=2, dtype="float32", kv_tokens=40 * PAGE, page_size=PAGE, max_waiting=30)
    results = _ask(swarm, [(known[n % len(known)][0], 12, "") for n in range(60)])
    refused = [result for result in results if isinstance(result, QueueFull)]
    assert refused
    assert all(error.retryable and error.fields["waiting"] == 30 for error in refused)
    right = [n for n, got in enumerate(results) if not isinstance(got, Exception)]
    assert len(right) + len(refused) == 60
    assert len(right) >= 30
    assert all(list(results[n].token_ids) == known[n % len(known)][1] for n in right)
    swarm.run(_until_free(swarm.runtime))
    assert list(swarm.generate(known[0][0], max_new_tokens=12, ignore_eos=True).token_ids) == known[0][1]


def test_an_over_long_request_is_refused_at_once_while_another_runs(tiny: Any, make_swarm: Callable[..., Swarm]) -> None:
    directory, known = tiny
    swarm = make_swarm(model=str(directory), workers=2, dtype="float32", kv_tokens=40 * PAGE, page_size=PAGE)

    async def use() -> None:
        prompt, tokens = known[3]
        stream = swarm.runtime.stream(prompt, max_new_tokens=100, ignore_eos=True)
        seen = [(await anext(stream)).token_id]
        with pytest.raises(Infeasible, match="raise kv_tokens") as caught:
            await swarm.runtime.generate([5] * 100, max_new_tokens=62)
        assert caught.value.fields["allowed"] == 40 * PAGE
        seen += [token.token_id async for token in stream]
        assert seen[:12] == tokens
        assert len(seen) == 100
        await _until_free(swarm.runtime)

    swarm.run(use())


def test_a_full_pool_makes_others_wait_and_then_takes_them(tiny: Any, make_swarm: Callable[..., Swarm]) -> None:
    directory, known = tiny
    swarm = make_swarm(model=str(directory), workers=2, dtype="float32", kv_tokens=40 * PAGE, page_size=PAGE)
    whole = [(known[n][0], 40 * PAGE - len(known[n][0]) + 1, "") for n in range(4)]  # each takes every page there is
    results = _ask(swarm, whole)
    for (_, tokens), got, (_, length, _) in zip(known, results, whole, strict=False):
        assert list(got.token_ids[:12]) == tokens
        assert len(got.token_ids) == length
    swarm.run(_until_free(swarm.runtime))


def test_a_newcomer_is_let_in_beside_a_client_with_more_than_fits(tiny: Any, make_swarm: Callable[..., Swarm]) -> None:
    directory, known = tiny
    swarm = make_swarm(model=str(directory), workers=2, dtype="float32", kv_tokens=40 * PAGE, page_size=PAGE)

    async def use() -> None:
        fill = [
            asyncio.ensure_future(swarm.runtime.generate([9] * 8, max_new_tokens=24, ignore_eos=True, client="many"))
            for _ in range(60)
        ]
        await asyncio.wait(fill, return_when=asyncio.FIRST_COMPLETED)
        got = await swarm.runtime.generate(known[5][0], max_new_tokens=12, ignore_eos=True, client="one")
        assert list(got.token_ids) == known[5][1]
        assert sum(not task.done() for task in fill) > 20  # it has not waited for them
        assert len({result.token_ids for result in await asyncio.gather(*fill)}) == 1
        await _until_free(swarm.runtime)

    swarm.run(use())


def test_weights_that_are_not_finite_are_an_error_and_no_text(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    weights = tmp_path / "model.safetensors"
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(weights).items()}, weights)

    async def use() -> None:
        async with bloombee.Runtime(str(tmp_path), workers=2, dtype="float32") as runtime:
            for _ in range(2):  # the pipeline stays up
                with pytest.raises(DeviceError, match="logits at position 2 are not finite"):
                    await runtime.generate([1, 2], max_new_tokens=4)
            await _until_free(runtime)

    asyncio.run(use())


def test_the_benchmark_of_serving_finds_nothing_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "standin:256x4", "--pace", "1,0,0", "--profile", "400M-2ms", "--workers", "2", "--burst", "60"]
    assert main([*words, "--modes", "burst,overlong,full-pool", "--json", str(tmp_path / "serving.json")]) == 0
    out = capsys.readouterr().out
    assert "MISSED" not in out
    assert "60 right, 0 QueueFull, 0 pages lost" in out
