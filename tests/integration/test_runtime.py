"""Real processes over ZeroMQ with CURVE, against one transformers process."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from swarm_kit import Swarm

import bloombee
from bloombee.errors import ConfigError, Infeasible, RuntimeClosed

PROMPTS = ["def add(a, b):\n", "import os\n", "class Stack:\n    def push(self", "for i in range(", "x", "    return self._"]
DEMO = Path(bloombee.__file__).parent / "demo_model" / "target"


@pytest.fixture(scope="module")
def oracle() -> Callable[[str, int], tuple[list[int], str]]:
    """Greedy tokens and text of transformers alone, fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)

    def generate(prompt: str, count: int) -> tuple[list[int], str]:
        ids = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=count, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()
        return out, tokenizer.decode(out, skip_special_tokens=True)

    return generate


async def _until_idle(runtime: bloombee.Runtime) -> None:
    """Returns once no request runs and every page of every stage is free; the test's time-out is the limit."""
    all_free = tuple(stage.num_pages for stage in runtime.plan.stages)
    while runtime.num_requests or await runtime.pages_free() != all_free:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def test_text_is_what_transformers_generates(demo: Swarm, oracle: Callable[[str, int], tuple[list[int], str]]) -> None:
    async def all_at_once() -> list[bloombee.Generation]:
        return await asyncio.gather(*(demo.runtime.generate(prompt, max_new_tokens=60) for prompt in PROMPTS))

    for prompt, got in zip(PROMPTS, demo.run(all_at_once()), strict=True):
        ids, text = oracle(prompt, 60)
        assert list(got.token_ids) == ids
        assert got.text == text


def test_stream_gives_the_same_text_in_pieces_and_says_why_it_ended(demo: Swarm) -> None:
    async def collect() -> list[bloombee.Token]:
        return [token async for token in demo.runtime.stream(PROMPTS[0], max_new_tokens=24)]

    tokens = demo.run(collect())
    whole = demo.generate(PROMPTS[0], max_new_tokens=24)
    assert "".join(token.text for token in tokens) == whole.text
    assert [token.token_id for token in tokens] == list(whole.token_ids)
    assert [token.finish_reason for token in tokens] == [None] * 23 + ["length"]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_seeded_sampling_does_not_depend_on_stages_or_company(
    workers: int, demo: Swarm, make_swarm: Callable[..., Swarm]
) -> None:
    other = make_swarm(model="demo", workers=workers, dtype="float32")
    fields = {
        "temperature": 0.9,
        "top_p": 0.95,
        "top_k": 200,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "max_new_tokens": 40,
    }
    alone = [demo.generate(prompt, seed=seed, **fields).token_ids for seed, prompt in enumerate(PROMPTS)]

    async def in_company() -> list[bloombee.Generation]:
        noise = [other.runtime.generate("noise " * n, temperature=1.0, seed=n, max_new_tokens=10 + n) for n in range(1, 9)]
        mine = [other.runtime.generate(prompt, seed=seed, **fields) for seed, prompt in enumerate(PROMPTS)]
        return (await asyncio.gather(*noise, *mine))[len(noise) :]

    assert [got.token_ids for got in other.run(in_company())] == alone
    assert len(set(alone)) == len(alone)


def test_two_seeds_differ_and_one_repeats(demo: Swarm) -> None:
    one, two, again = (demo.generate("def ", temperature=1.0, seed=seed, max_new_tokens=24).token_ids for seed in (1, 2, 1))
    assert one == again != two


def test_a_hundred_requests_with_random_cancellations_leak_nothing(demo: Swarm) -> None:
    rng = random.Random(0)
    runtime = demo.runtime

    async def one(number: int) -> str:
        prompt = [rng.randrange(1, 4096) for _ in range(rng.randint(1, 60))]
        task = asyncio.ensure_future(runtime.generate(prompt, max_new_tokens=rng.randint(1, 40), ignore_eos=True))
        if number % 3 == 0:
            await asyncio.sleep(rng.uniform(0, 0.3))
            task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return "cancelled"
        return "done"

    async def all_of_them() -> list[str]:
        before = len(asyncio.all_tasks())
        ends = await asyncio.gather(*(one(number) for number in range(100)))
        await _until_idle(runtime)
        assert len(asyncio.all_tasks()) == before
        return ends

    ends = demo.run(all_of_them())
    assert {"cancelled", "done"} == set(ends)


def test_leaving_a_stream_early_ends_the_request(demo: Swarm) -> None:
    async def first_only() -> str:
        async for token in demo.runtime.stream("import ", max_new_tokens=500, ignore_eos=True):
            return token.text
        return ""

    assert demo.run(first_only())
    demo.run(_until_idle(demo.runtime))


def test_stop_strings_end_the_text_before_themselves(demo: Swarm) -> None:
    free = demo.generate("def add(a, b):\n", max_new_tokens=40)
    stop = free.text[12:17]
    got = demo.generate("def add(a, b):\n", max_new_tokens=40, stop=[stop])
    assert got.text == free.text[: free.text.index(stop)]
    assert got.finish_reason == "stop"


def test_logprobs_are_of_the_models_own_distribution(demo: Swarm) -> None:
    plain = demo.generate("import ", max_new_tokens=6, logprobs=3)
    hot = demo.generate("import ", max_new_tokens=6, logprobs=3, temperature=0.0, min_p=0.5)
    assert plain.logprobs == hot.logprobs
    assert plain.logprobs is not None
    assert len(plain.logprobs) == 6
    assert all(-20 < value <= 0 for value in plain.logprobs)

    async def tops() -> list[bloombee.Token]:
        return [token async for token in demo.runtime.stream("import ", max_new_tokens=6, logprobs=3)]

    for token in demo.run(tops()):
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0] == (token.token_id, token.logprob)


def test_an_end_token_stops_unless_ignored(demo: Swarm) -> None:
    prompt = "if __name__ == '__main__':\n    unittest.main()\n"
    found = demo.generate(prompt, max_new_tokens=40)
    assert (found.text, found.token_ids, found.finish_reason) == ("", (0,), "stop")
    longer = demo.generate(prompt, max_new_tokens=8, ignore_eos=True)
    assert longer.finish_reason == "length"
    assert longer.token_ids[0] == 0
    assert len(longer.token_ids) == 8


@pytest.mark.parametrize(
    ("prompt", "fields", "says"),
    [
        ("", {}, "prompt is empty"),
        ([], {}, "prompt is empty"),
        ([5000], {}, "0 to 4095"),
        ([1.5], {}, "text, a list of token ids"),
        ("x " * 3000, {}, "but the model has 2048"),
        ("x", {"max_new_tokens": 4000}, "but the model has 2048"),
        ("x", {"max_new_tokens": 0}, "max_new_tokens = 0"),
        ("x", {"temperature": -1}, "temperature = -1"),
        ("x", {"temperature": float("nan")}, "temperature = nan"),
        ("x", {"top_p": 2}, "top_p = 2"),
        ("x", {"seed": -1}, "seed = -1"),
        ("x", {"stop": ("",)}, "stop = ('',)"),
        ("x", {"tempersture": 1}, "no such sampling parameter"),
        ([{"content": "hi"}], {}, "has no role"),
        (bloombee.Chat(5), {}, "messages of type int"),
        (bloombee.Chat([{"role": "user", "content": "hi"}], tools=[{1: 2}]), {}, "keys must be text"),
        (bloombee.Chat([{"role": "user", "content": "hi"}], arguments={"_x": 2}), {}, "the name '_x'"),
        ("x" * 20_000_000, {}, "at least 444445 tokens"),
        ([1, True], {}, "item 1 of the prompt is of type bool"),
        ([{"role": "user", "content": "hi \ud83d"}, 5], {}, "lone surrogate at character 3"),
        ("hi \ud83d", {}, "lone surrogate"),
        ("x", {"stop": ("\ud83d",)}, "without lone surrogates"),
        ("x", {"client": "\ud83d"}, "client has a lone surrogate"),
    ],
)
def test_bad_requests_are_refused_with_what_to_do(demo: Swarm, prompt: object, fields: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        demo.generate(prompt, **fields)
    assert says in str(caught.value)


@pytest.mark.parametrize("id", ["1", 1.0, True, None, [], 2**70, -1])
def test_what_is_no_request_of_a_head_before_cannot_be_resumed(demo: Swarm, id: Any) -> None:
    async def use() -> None:
        with pytest.raises(ConfigError):
            await anext(demo.runtime.resume(id))

    demo.run(use())
    assert len(demo.generate("x", max_new_tokens=2).token_ids) == 2


def test_a_request_that_runs_cannot_be_resumed_and_goes_on(demo: Swarm) -> None:
    async def use() -> None:
        stream = demo.runtime.stream("import ", max_new_tokens=40, ignore_eos=True)
        await anext(stream)
        ((number, _),) = demo.runtime._head.desk.running
        with pytest.raises(ConfigError, match=f"request {number} does not go on from a head before"):
            await anext(demo.runtime.resume(number))
        assert len([token async for token in stream]) == 39

    demo.run(use())


@pytest.mark.parametrize(
    ("workers", "reason"), [(5, "x"), ("12", "x"), ([None], "x"), (["local-0"], "x"), ([1.0], "x"), (None, 5), (None, None)]
)
def test_a_plan_of_no_workers_is_refused(demo: Swarm, workers: Any, reason: Any) -> None:
    with pytest.raises(ConfigError, match="must be"):
        demo.run(demo.runtime.replan(workers, reason=reason))


@pytest.mark.parametrize(
    ("name", "value"), [(5, b""), ("\ud800", b""), ("x", "text"), ("x", 5), ("x", bytearray(b"x")), (None, None)]
)
def test_what_cannot_be_kept_is_no_note(demo: Swarm, name: Any, value: Any) -> None:
    with pytest.raises(ConfigError, match="note"):
        demo.runtime.note(name, value)
    assert demo.runtime.notes == {}


def test_a_conversation_is_answered_as_its_text_is(tmp_path: Path, make_swarm: Callable[..., Swarm]) -> None:
    for file in DEMO.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    refuse = "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(f"{{% for m in messages %}}{refuse}# {{{{ m.content }}}}\n{{% endfor %}}")
    swarm = make_swarm(model=str(tmp_path), workers=1, dtype="float32")
    chat = swarm.generate([{"role": "user", "content": "import os"}], max_new_tokens=12)
    assert chat.token_ids == swarm.generate("# import os\n", max_new_tokens=12).token_ids
    assert swarm.generate(chat.prompt_token_ids, max_new_tokens=12).token_ids == chat.token_ids
    for bad, says in (([{"role": "tool", "content": "x"}], "no tools"), ([{"role": "user", "content": "\ud83d"}], "surrogate")):
        with pytest.raises(ConfigError, match=says):
            swarm.generate(bad)


def test_a_request_that_can_never_fit_the_pool_is_refused(make_swarm: Callable[..., Swarm]) -> None:
    small = make_swarm(model="demo", workers=1, dtype="float32", kv_tokens=64)
    with pytest.raises(Infeasible) as caught:
        small.generate([1] * 50, max_new_tokens=50)
    assert caught.value.fields["allowed"] == 64
    assert len(small.generate([1] * 50, max_new_tokens=15, ignore_eos=True).token_ids) == 15


def test_more_workers_than_layers_are_refused_before_any_is_started() -> None:
    with pytest.raises(ConfigError, match="at most one worker a layer"):
        asyncio.run(bloombee.Runtime("demo", workers=9).prepare())


def test_a_closed_runtime_says_so() -> None:
    async def use() -> None:
        runtime = bloombee.Runtime("demo", workers=1)
        with pytest.raises(RuntimeClosed):
            await runtime.generate("x")
        async with runtime:
            waiting = asyncio.ensure_future(runtime.generate("x", max_new_tokens=1500, ignore_eos=True))
            async for _ in runtime.stream("x", max_new_tokens=2):
                pass
        with pytest.raises(RuntimeClosed):
            await waiting
        with pytest.raises(RuntimeClosed):
            await runtime.generate("x")
        await runtime.close()

    asyncio.run(use())


def test_the_plan_says_who_runs_what(demo: Swarm) -> None:
    summary = json.loads(json.dumps(demo.runtime.plan.summary()))
    assert [stage["layers"] for stage in summary["stages"]] == [[0, 3], [3, 6], [6, 8]]


def test_bf16_runs_and_agrees_with_itself(make_swarm: Callable[..., Swarm]) -> None:
    swarm = make_swarm(model="demo", workers=2)
    assert swarm.runtime.plan.dtype == "bfloat16"
    one, two = (swarm.generate("import os\n", max_new_tokens=20) for _ in range(2))
    assert one.token_ids == two.token_ids
