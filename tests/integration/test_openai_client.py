"""The official client against a server over the demo model: what it asks for is what the Runtime gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from serve_kit import MODEL, Served, served
from swarm_kit import Swarm

PROMPT = "def add(a, b):"
USER: Any = [{"role": "user", "content": PROMPT}]


def chat(client: OpenAI, messages: Any = USER, **fields: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, **fields)


def text(client: OpenAI, prompt: Any = PROMPT, **fields: Any) -> Any:
    return client.completions.create(model=MODEL, prompt=prompt, **fields)


def joined(stream: Any) -> dict[int, str]:
    """The text of each choice of a stream."""
    found: dict[int, str] = {}
    for chunk in stream:
        for choice in chunk.choices:
            piece = choice.text if hasattr(choice, "text") else choice.delta.content
            found[choice.index] = found.get(choice.index, "") + (piece or "")
    return found


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    "fields", [{"temperature": 0}, {"temperature": 1, "seed": 7}, {"temperature": 0.7, "top_p": 0.5, "seed": 3}]
)
def test_answers_are_the_runtimes_own(fields: dict[str, Any], client: OpenAI, server: Served) -> None:
    known = server.swarm.generate(PROMPT, max_new_tokens=20, **fields)
    answer = text(client, max_tokens=20, **fields)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (known.text, known.finish_reason.value)
    assert answer.usage.prompt_tokens == len(known.prompt_token_ids)
    assert answer.usage.completion_tokens == len(known.token_ids)
    assert joined(text(client, max_tokens=20, stream=True, **fields)) == {0: known.text}
    said = chat(client, max_tokens=20, **fields)
    assert said.choices[0].message.content == known.text
    assert said.usage.total_tokens == len(known.prompt_token_ids) + len(known.token_ids)
    assert joined(chat(client, max_completion_tokens=20, stream=True, **fields)) == {0: known.text}


def test_a_chat_stream_has_a_role_an_end_and_usage_if_asked_for(client: OpenAI) -> None:
    chunks = list(chat(client, max_tokens=6, temperature=0, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 6
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    without = list(chat(client, max_tokens=6, temperature=0, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in without)


def test_choices_of_a_seed_are_those_of_the_seeds_that_follow(client: OpenAI) -> None:
    alone = [text(client, max_tokens=12, seed=seed, temperature=1).choices[0].text for seed in (40, 41, 42)]
    together = text(client, max_tokens=12, seed=40, temperature=1, n=3)
    assert [choice.text for choice in together.choices] == alone
    assert len(set(alone)) > 1
    assert together.usage.completion_tokens > 12
    assert joined(text(client, max_tokens=12, seed=40, temperature=1, n=3, stream=True)) == dict(enumerate(alone))
    assert joined(chat(client, max_tokens=12, seed=40, temperature=1, n=3, stream=True)) == dict(enumerate(alone))


def test_a_negative_seed_is_a_seed(client: OpenAI) -> None:
    one, two = (text(client, max_tokens=8, seed=-5, temperature=1).choices[0].text for _ in range(2))
    assert one == two


def test_several_prompts_of_text_or_of_ids(client: OpenAI, server: Served) -> None:
    known = [server.swarm.generate(prompt, max_new_tokens=5) for prompt in (PROMPT, "import ")]
    texts = text(client, [PROMPT, "import "], max_tokens=5, temperature=0, n=2)
    assert [choice.text for choice in texts.choices] == [known[0].text] * 2 + [known[1].text] * 2
    assert texts.usage.prompt_tokens == sum(len(one.prompt_token_ids) for one in known)
    ids = [list(one.prompt_token_ids) for one in known]
    assert [c.text for c in text(client, ids, max_tokens=5, temperature=0).choices] == [one.text for one in known]
    assert text(client, ids[0], max_tokens=5, temperature=0).choices[0].text == known[0].text


@pytest.mark.parametrize("prompt", [PROMPT, [100, 200, 300]])
@pytest.mark.parametrize("stream", [False, True])
def test_echo(prompt: Any, stream: bool, client: OpenAI, server: Served) -> None:
    after = server.swarm.generate(prompt, max_new_tokens=5).text
    answer = text(client, prompt, max_tokens=5, temperature=0, echo=True, stream=stream)
    whole = joined(answer)[0] if stream else answer.choices[0].text
    before = prompt if isinstance(prompt, str) else b"".join(map(server.swarm.runtime.spelled, prompt)).decode("utf-8", "replace")
    assert whole == before + after


def test_stop_strings_end_the_text_and_are_no_part_of_it(client: OpenAI) -> None:
    whole = text(client, max_tokens=30, temperature=0).choices[0].text
    stop = whole[10:13]
    answer = text(client, max_tokens=30, temperature=0, stop=stop).choices[0]
    assert (answer.text, answer.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert joined(chat(client, max_tokens=30, temperature=0, stop=["never there", stop], stream=True)) == {0: answer.text}


@pytest.mark.parametrize("fields", [{"frequency_penalty": 2.0}, {"presence_penalty": 2.0}])
def test_penalties(fields: dict[str, float], client: OpenAI, server: Served) -> None:
    known = server.swarm.generate(PROMPT, max_new_tokens=40, **fields).text
    assert text(client, max_tokens=40, temperature=0, **fields).choices[0].text == known
    assert text(client, max_tokens=40, temperature=0).choices[0].text != known


def test_log_probabilities(client: OpenAI, server: Served) -> None:
    known = server.swarm.generate(PROMPT, max_new_tokens=6, logprobs=3)
    said = chat(client, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert [one.logprob for one in said] == list(known.logprobs)
    assert [bytes(one.bytes) for one in said] == [server.swarm.runtime.spelled(id) for id in known.token_ids]
    assert [[top.logprob for top in one.top_logprobs] for one in said] == [[p for _, p in one] for one in known.top_logprobs]
    assert [one.token for one in said] == [bytes(one.bytes).decode("utf-8", "replace") for one in said]
    bare = chat(client, max_tokens=6, temperature=0, logprobs=True).choices[0].logprobs.content
    assert [(one.token, one.logprob, one.top_logprobs) for one in bare] == [(one.token, one.logprob, []) for one in said]
    stream = chat(client, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3, stream=True)
    assert [one for chunk in stream for c in chunk.choices if c.logprobs for one in c.logprobs.content] == said


def test_log_probabilities_of_plain_completions(client: OpenAI, server: Served) -> None:
    known = server.swarm.generate(PROMPT, max_new_tokens=6, logprobs=2)
    answer = text(client, max_tokens=6, temperature=0, logprobs=2).choices[0]
    assert answer.logprobs.token_logprobs == list(known.logprobs)
    assert "".join(answer.logprobs.tokens) == answer.text
    offsets = [sum(map(len, answer.logprobs.tokens[:index])) for index in range(6)]
    assert answer.logprobs.text_offset == offsets
    streamed = [chunk.choices[0].logprobs for chunk in text(client, max_tokens=6, temperature=0, logprobs=2, stream=True)]
    assert [one.text_offset[0] for one in streamed] == offsets
    assert [one.top_logprobs[0] for one in streamed] == answer.logprobs.top_logprobs


def test_conversations_are_put_into_the_models_template(client: OpenAI, server: Served) -> None:
    messages = [
        {"role": "developer", "content": "Answer in Python."},
        {"role": "user", "content": [{"type": "text", "text": "import "}, {"type": "text", "text": "os"}]},
        {"role": "assistant", "content": "import sys", "refusal": None},
        {"role": "user", "content": "def "},
    ]
    rendered = "# Answer in Python.\nimport os\nimport sys\ndef "
    known = server.swarm.generate(rendered, max_new_tokens=8)
    answer = chat(client, messages, max_tokens=8, temperature=0)
    assert answer.choices[0].message.content == known.text
    assert answer.usage.prompt_tokens == len(known.prompt_token_ids)


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model"),
        ({"n": 10**9}, openai.BadRequestError, "n"),
        ({"n": 0}, openai.BadRequestError, "n"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "max_tokens"),
        ({"top_logprobs": 3}, openai.BadRequestError, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, openai.BadRequestError, "top_logprobs"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, openai.BadRequestError, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            openai.BadRequestError,
            "messages[0].content[0].type",
        ),
        ({"extra_body": {"max_token": 5}}, openai.BadRequestError, None),
        ({"seed": 2**70}, openai.BadRequestError, "seed"),
        ({"stop": [""]}, openai.BadRequestError, "stop[0]"),
        ({"stop": ["x"] * 17}, openai.BadRequestError, "stop"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_had_is_refused(
    fields: Any, kind: type[openai.APIStatusError], param: str, stream: bool, client: OpenAI
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": USER, "stream": stream, **fields})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.body["message"]


def test_a_context_that_is_too_long_has_its_code(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        text(client, "x " * 3000, max_tokens=5)
    assert caught.value.code == "context_length_exceeded"


def test_a_stream_that_is_left_ends_its_request(client: OpenAI, server: Served) -> None:
    runtime = server.swarm.runtime
    stream = chat(client, max_tokens=1500, temperature=0, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    assert runtime.num_requests == 1
    stream.close()
    server.swarm.await_idle()


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": 1}])
def test_64_at_once_get_what_each_gets_alone(fields: dict[str, Any], client: OpenAI, server: Served) -> None:
    prompts = [f"def f{number}(x, y={number}):" for number in range(64)]
    alone = [text(client, prompt, max_tokens=16, seed=n, **fields).choices[0].text for n, prompt in enumerate(prompts)]

    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as many:

            async def one(number: int, prompt: str) -> str:
                stream = await many.completions.create(
                    model=MODEL, prompt=prompt, max_tokens=16, seed=number, stream=True, **fields
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(prompts)))

    assert asyncio.run(ask()) == alone


def test_an_answer_of_no_length_goes_as_far_as_there_is_room(make_swarm: Callable[..., Swarm]) -> None:
    swarm = make_swarm(model="demo", workers=1, dtype="float32", kv_tokens=64, answer_tokens=1024)
    with served(swarm) as little, little.client() as one:
        answer = chat(one, temperature=0, extra_body={"ignore_eos": True})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.total_tokens == 65


@pytest.mark.parametrize("stream", [False, True])
def test_usage_tells_what_other_requests_had_computed(stream: bool, client: OpenAI) -> None:
    prompt = f"# {stream}\n" + "x = 1\n" * 40
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    usages = []
    for _ in range(2):
        answer = text(client, prompt, max_tokens=2, temperature=0, n=2, **options)
        usages.append([chunk.usage for chunk in answer][-1] if stream else answer.usage)
    first, second = (usage.prompt_tokens_details.cached_tokens for usage in usages)
    assert 0 <= first < 16
    assert 100 < second < usages[1].prompt_tokens
