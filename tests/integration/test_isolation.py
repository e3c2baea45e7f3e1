"""What one request does - its receiver, its template, its stop strings, its sampling - touches no other request."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from swarm_kit import Swarm

import bloombee
from bloombee.config import WorkerConfig
from bloombee.engine import sampler
from bloombee.engine.sampler import SamplerRow
from bloombee.errors import BloomBeeError, ConfigError, DeviceError
from bloombee.roles.worker import WorkerRole

DEMO = Path(bloombee.__file__).parent / "demo_model" / "target"
PROMPT, NEW = [5, 6, 7, 8], 64


@pytest.fixture(scope="module")
def odd(make_swarm: Callable[..., Swarm], tmp_path_factory: pytest.TempPathFactory) -> Swarm:
    """The demo model with a chat template that fails for some messages."""
    directory = tmp_path_factory.mktemp("odd") / "model"
    shutil.copytree(DEMO, directory)
    (directory / "chat_template.jinja").write_text(
        "{% if messages[0].content == 'raise' %}{{ raise_exception('never this') }}"
        "{% elif messages[0].content == 'divide' %}{{ 1 / 0 }}"
        "{% else %}{{ messages[0].content }}{% endif %}"
    )
    return make_swarm(model=str(directory), workers=2, dtype="float32", threads=1)


async def _all_free(runtime: bloombee.Runtime) -> None:
    """Returns once no request runs and every page of every stage is free; the test's time-out is the limit."""
    while runtime.num_requests or await runtime.pages_free() != tuple(stage.num_pages for stage in runtime.plan.stages):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def _beside(runtime: bloombee.Runtime, deed: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """``deed`` while another request decodes, which must be as without."""
    alone = await runtime.generate(PROMPT, max_new_tokens=NEW, ignore_eos=True)
    stream = runtime.stream(PROMPT, max_new_tokens=NEW, ignore_eos=True)
    tokens = [(await anext(stream)).token_id]
    await deed()
    tokens += [token.token_id async for token in stream]
    assert tuple(tokens) == alone.token_ids
    await _all_free(runtime)


@pytest.mark.parametrize(("said", "reason"), [("raise", "never this"), ("divide", "division")])
def test_a_template_that_raises_refuses_its_own_request(said: str, reason: str, odd: Swarm) -> None:
    async def ask() -> None:
        with pytest.raises(ConfigError, match=reason):
            await odd.runtime.generate([{"role": "user", "content": said}])

    odd.run(_beside(odd.runtime, ask))


def test_a_stop_string_that_cannot_be_refuses_its_own_request(odd: Swarm) -> None:
    async def ask() -> None:
        for stop in ("", "\ud800", 7):
            with pytest.raises((ConfigError, ValueError)):
                await odd.runtime.generate(PROMPT, stop=stop)

    odd.run(_beside(odd.runtime, ask))


def test_a_receiver_that_raises_ends_its_own_request(odd: Swarm) -> None:
    async def ask() -> None:
        with contextlib.suppress(ZeroDivisionError):
            async with contextlib.aclosing(odd.runtime.stream(PROMPT, max_new_tokens=500, ignore_eos=True)) as stream:
                async for _ in stream:
                    raise ZeroDivisionError

    odd.run(_beside(odd.runtime, ask))


def test_clients_that_never_read_hold_nobody_up_and_lose_nothing(odd: Swarm) -> None:
    async def use() -> None:
        runtime = odd.runtime
        sleepers = [runtime.stream(PROMPT, max_new_tokens=NEW, ignore_eos=True) for _ in range(8)]
        firsts = [(await anext(sleeper)).token_id for sleeper in sleepers]
        alone = (await runtime.generate(PROMPT, max_new_tokens=NEW, ignore_eos=True)).token_ids
        await _all_free(runtime)  # theirs have come to their end too, unread
        for first, sleeper in zip(firsts, sleepers, strict=True):
            assert (first, *[token.token_id async for token in sleeper]) == alone

    odd.run(use())


def test_a_reader_that_leaves_without_a_word_costs_nobody_anything(odd: Swarm) -> None:
    async def leave() -> None:
        task = asyncio.ensure_future(odd.runtime.generate(PROMPT, max_new_tokens=1500, ignore_eos=True))
        await anext(odd.runtime.stream(PROMPT, max_new_tokens=2))
        task.cancel()

    odd.run(_beside(odd.runtime, leave))


def test_sampling_that_fails_ends_its_own_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the last stage rows of all requests are sampled together."""
    penalised = sampler.penalised

    def fails_in_one(row: Any, request: SamplerRow) -> Any:
        if request.sampling.seed == 666:
            raise IndexError("this one")
        return penalised(row, request)

    async def use() -> None:
        runtime = bloombee.Runtime("demo", remote_workers=1, split=(8,), dtype="float32")
        await runtime.prepare()
        worker = asyncio.ensure_future(WorkerRole(WorkerConfig(join=runtime.join_token, threads=1)).serve())
        try:
            await runtime.ready()
            fields: dict[str, Any] = {"max_new_tokens": NEW, "ignore_eos": True, "temperature": 0.7, "repetition_penalty": 1.1}
            alone = await runtime.generate(PROMPT, seed=1, **fields)
            monkeypatch.setattr(sampler, "penalised", fails_in_one)
            asked = [runtime.generate(PROMPT, seed=seed, **fields) for seed in (1, 666, 1)]
            one, bad, other = await asyncio.gather(*asked, return_exceptions=True)
            assert isinstance(bad, DeviceError)
            for got in (one, other):
                assert not isinstance(got, BaseException), got
                assert got.token_ids == alone.token_ids
            await _all_free(runtime)
        finally:
            await runtime.close()
            with contextlib.suppress(BloomBeeError):
                await worker

    asyncio.run(asyncio.wait_for(use(), 120))


def test_a_row_whose_rules_fail_costs_no_other_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from bloombee.wire.messages import Sampling

    def row(seed: int) -> SamplerRow:
        sampling = Sampling(
            temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.5, presence_penalty=0.0, frequency_penalty=0.0,
            seed=seed, logprobs=-1,
        )  # fmt: skip
        return SamplerRow(sampling, 1, np.array([3], "<u4"))

    monkeypatch.setattr(sampler, "penalised", lambda logits, request: logits if request.sampling.seed else 1 / 0)
    logits = np.arange(8, dtype=np.float32)[None].repeat(2, 0)
    bad, good = sampler.sample(logits, [row(0), row(1)])
    assert not bad.is_finite
    assert (good.token, good.is_finite) == (7, True)
