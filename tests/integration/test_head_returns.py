"""A head that is killed in mid-stream, and one that goes on in its place: same key, same address, same workers, same tokens."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from heads_kit import HeadProgram, workers_of
from swarm_kit import Swarm

import bloombee
from bloombee.config import WorkerConfig
from bloombee.errors import AddressInUse, ConfigError, LinkDown
from bloombee.roles.worker import WorkerRole
from bloombee.wire.token import decode_token

KILL_AT = 30
"""Tokens of the first request."""
SETTINGS = {"remote_workers": 2, "split": [3, 5], "kv_tokens": 8192}
REQUESTS: list[tuple[str, Any, dict[str, Any], int]] = [
    ("greedy", "import ", {"max_new_tokens": 120, "ignore_eos": True}, KILL_AT),
    ("sampled", "def f(", {"max_new_tokens": 120, "ignore_eos": True, "temperature": 0.8, "seed": 7}, KILL_AT),
    (
        "penalties",
        "class A",
        {
            "max_new_tokens": 120,
            "ignore_eos": True,
            "temperature": 0.8,
            "seed": 2**64 - 1,
            "repetition_penalty": 1.1,
            "presence_penalty": 0.3,
            "frequency_penalty": 0.1,
        },
        KILL_AT,
    ),
    ("stop string", "for ", {"max_new_tokens": 120, "temperature": 0.8, "seed": 11, "stop": ["\n\n\n\n", "qqq"]}, KILL_AT),
    ("long prompt", list(range(5, 805)), {"max_new_tokens": 60, "ignore_eos": True}, KILL_AT),
]


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, tuple[list[int], str, str]]:
    """Id -> what a swarm that nobody kills answers."""
    swarm = Swarm(model="demo", workers=2, split=(3, 5), dtype="float32")
    try:
        found = {id: swarm.generate(prompt, **params) for id, prompt, params, _ in REQUESTS}
    finally:
        swarm.close()
    return {id: (list(one.token_ids), one.text, str(one.finish_reason)) for id, one in found.items()}


def _said(answers: dict[str, dict[str, Any]]) -> dict[str, tuple[list[int], str, str]]:
    return {id: (said["ids"], said["text"], said["finish"]) for id, said in answers.items()}


@pytest.mark.parametrize("moment", ["prefill", "decode"])
def test_a_new_head_goes_on_with_every_request_token_for_token(
    moment: str, undisturbed: dict[str, tuple[list[int], str, str]], tmp_path: Path
) -> None:
    head = HeadProgram(tmp_path, REQUESTS, **SETTINGS)
    with workers_of(head.until_it_says("listening")["tokens"]) as workers:
        stages = head.until_it_says("up")["stages"]
        # The first request decodes, and the long prompt is being read, when the first token is there.
        head.until_it_says("tokens", id="greedy", count=1 if moment == "prefill" else KILL_AT)
        head.kill()
        before = {said["id"]: (said["ids"], said["text"], said["finish"]) for said in head.said if said["what"] == "answer"}
        after = HeadProgram(tmp_path, **SETTINGS)
        running = after.until_it_says("running")["requests"]
        assert after.until_it_says("up")["stages"] == stages
        assert {id for _, id, _ in running} >= undisturbed.keys() - before.keys()
        assert before | _said(after.answers()) == undisturbed
        assert [worker.wait(60) for worker in workers] == [0, 0]


def test_it_goes_on_however_often_heads_are_killed(undisturbed: dict[str, tuple[list[int], str, str]], tmp_path: Path) -> None:
    head = HeadProgram(tmp_path, REQUESTS[:3], **SETTINGS)
    with workers_of(head.until_it_says("listening")["tokens"]):
        head.until_it_says("tokens", id="greedy", count=KILL_AT)
        for _ in range(2):
            head.kill()
            head = HeadProgram(tmp_path, **SETTINGS)
            head.until_it_says("up")
        assert _said(head.answers()) == {id: undisturbed[id] for id, *_ in REQUESTS[:3]}


def test_workers_of_its_own_process_begin_afresh(undisturbed: dict[str, tuple[list[int], str, str]], tmp_path: Path) -> None:
    settings = {"workers": 2, "split": [3, 5]}
    head = HeadProgram(tmp_path, REQUESTS[:3], **settings)
    head.until_it_says("tokens", id="greedy", count=KILL_AT)
    head.kill()
    assert _said(HeadProgram(tmp_path, **settings).answers()) == {id: undisturbed[id] for id, *_ in REQUESTS[:3]}


def _once(use: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(use(), 300))


def test_another_model_is_refused_by_name_and_the_state_is_as_it_was(tmp_path: Path) -> None:
    async def use() -> None:
        state = str(tmp_path / "state")
        async with bloombee.Runtime("demo", workers=1, state=state):
            pass
        with pytest.raises(ConfigError, match=r"state: .* is of a head of another model than standin:.*: it had demo"):
            await bloombee.Runtime("standin:512x4", workers=1, state=state).prepare()
        async with bloombee.Runtime("demo", workers=1, state=state) as runtime:
            with pytest.raises(ConfigError, match="another head, process"):
                await bloombee.Runtime("demo", workers=1, state=state).prepare()
            assert runtime.running == ()

    _once(use)


def test_requests_that_a_close_cut_short_go_on_and_can_be_read_from_any_token(tmp_path: Path) -> None:
    async def use() -> None:
        settings: dict[str, Any] = {"workers": 1, "dtype": "float32", "state": str(tmp_path)}
        first: list[int] = []
        async with bloombee.Runtime("demo", **settings) as runtime:
            stream = runtime.stream("import ", max_new_tokens=40, temperature=0.8, seed=3, ignore_eos=True)
            first += [(await anext(stream)).token_id for _ in range(3)]
            await runtime.close()  # while the stream is open
        async with bloombee.Runtime("demo", **settings) as runtime:
            (one,) = runtime.running
            with pytest.raises(ConfigError, match="from_token = 41"):
                await anext(runtime.resume(one.id, from_token=41))
            rest = [token.token_id async for token in runtime.resume(one.id, from_token=3)]
            whole = await runtime.generate("import ", max_new_tokens=40, temperature=0.8, seed=3, ignore_eos=True)
            assert first + rest == list(whole.token_ids)
            assert runtime.running == ()
            with pytest.raises(ConfigError, match=f"request {one.id} does not go on"):
                await anext(runtime.resume(one.id))

    _once(use)


def test_a_worker_ends_with_a_head_that_keeps_no_state_and_else_when_none_comes_in_its_place(tmp_path: Path) -> None:
    async def ends(state: Path | None, match: str) -> None:
        runtime = bloombee.Runtime("demo", remote_workers=1, dtype="float32", state=None if state is None else str(state))
        await runtime.prepare()
        config = WorkerConfig(join=runtime.join_token, threads=1, head_wait_s=0.5)
        worker = asyncio.ensure_future(WorkerRole(config).serve())
        await runtime.ready()
        runtime._head.members.close = lambda reason: None  # type: ignore[method-assign]  # no word of goodbye
        await runtime.close()
        with pytest.raises(LinkDown, match=match):
            await asyncio.wait_for(worker, 60)

    async def use() -> None:
        await ends(None, "has ended|has closed the connection")
        await ends(tmp_path, r"no other has come in its place in 0\.5 s")

    _once(use)


def test_the_address_is_kept_and_one_that_was_taken_meanwhile_is_named(tmp_path: Path) -> None:
    async def use() -> None:
        async with bloombee.Runtime("demo", workers=1, state=str(tmp_path)) as runtime:
            (before,) = decode_token(runtime.join_token).endpoints
        async with bloombee.Runtime("demo", workers=1, state=str(tmp_path)) as runtime:
            token = decode_token(runtime.join_token)
            assert token.endpoints == (before,)
        with socket.create_server(("127.0.0.1", int(before.rpartition(":")[2]))), pytest.raises(AddressInUse):
            await bloombee.Runtime("demo", workers=1, state=str(tmp_path)).prepare()

    _once(use)
