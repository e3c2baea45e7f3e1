"""Text through real processes: what a model of odd tokens says, beside others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from engine_kit import make_checkpoint
from swarm_kit import Swarm
from text_kit import byte_fallback

import bloombee
from bloombee.errors import LocalProtocolError
from bloombee.roles.text import TextStream

TOKENIZER = byte_fallback()


@pytest.fixture(scope="module")
def odd(make_swarm: Callable[..., Swarm], tmp_path_factory: pytest.TempPathFactory) -> Swarm:
    """A random model over a tokenizer with a token for each byte; half of what it says is no UTF-8."""
    directory = tmp_path_factory.mktemp("odd")
    make_checkpoint("llama", directory, sizes={"vocab_size": TOKENIZER.get_vocab_size()})
    TOKENIZER.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return make_swarm(model=str(directory), workers=2, dtype="float32", threads=1)


async def _all_free(runtime: bloombee.Runtime) -> None:
    """Returns once no request runs and every page of every stage is free; the test's time-out is the limit."""
    while runtime.num_requests or await runtime.pages_free() != tuple(stage.num_pages for stage in runtime.plan.stages):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def test_nine_requests_of_odd_tokens_have_nine_answers(odd: Swarm) -> None:
    prompt = [TOKENIZER.token_to_id("a"), TOKENIZER.token_to_id("▁Hello")]

    async def all_at_once() -> list[bloombee.Generation]:
        hot = (odd.runtime.generate(prompt, temperature=3.0, seed=seed, max_new_tokens=200) for seed in range(8))
        return await asyncio.gather(*hot, odd.runtime.generate(prompt, max_new_tokens=200))

    for answer in odd.run(all_at_once()):
        whole = TOKENIZER.decode([*prompt, *answer.token_ids], skip_special_tokens=True)
        assert "a Hello" + answer.text == whole
    odd.run(_all_free(odd.runtime))


def test_a_text_that_fails_ends_its_own_request_and_frees_its_memory(odd: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    push = TextStream.push

    def fails_in_one(stream: TextStream, token_id: int) -> str:
        if stream._stops is not None:
            raise ValueError("this one")
        return push(stream, token_id)

    async def beside() -> tuple[bloombee.Generation, LocalProtocolError]:
        other = asyncio.ensure_future(odd.runtime.generate([257], max_new_tokens=100))
        with pytest.raises(LocalProtocolError, match="this one") as caught:
            await odd.runtime.generate([257], max_new_tokens=100, stop="x")
        return await other, caught.value

    alone = odd.generate([257], max_new_tokens=100)
    monkeypatch.setattr(TextStream, "push", fails_in_one)
    other, error = odd.run(beside())
    assert (other.text, other.token_ids) == (alone.text, alone.token_ids)
    assert not error.retryable
    odd.run(_all_free(odd.runtime))


def test_what_is_raised_while_a_request_begins_ends_that_one(odd: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloombee.roles.text.Spelling.check", lambda *_: 1 / 0)

    async def beside() -> bloombee.Generation:
        other = asyncio.ensure_future(odd.runtime.generate([257], max_new_tokens=100))
        with pytest.raises(LocalProtocolError, match="ZeroDivisionError"):
            await odd.runtime.generate([257], stop="x")
        return await other

    assert len(odd.run(beside()).token_ids) == 100
    odd.run(_all_free(odd.runtime))
