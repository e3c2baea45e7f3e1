"""A head that is killed in mid-stream, and one that goes on in its place: same key, same address, same workers, same tokens."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from heads_kit import HeadProgram, workers_of
from swarm_kit import Swarm

import bloombee
from bloombee.config import WorkerConfig
from bloombee.errors import AddressInUse, ConfigError, LinkDown
from bloombee.roles.head import HeadRole
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
        told: list[tuple[str, ...]] = []
        runtime = bloombee.Runtime("demo", workers=1, state=state)
        await runtime.prepare(announce=told.append)
        await runtime.close()
        assert len(told) == 1
        with pytest.raises(ConfigError, match=r"state: .* is of a head of another model than standin:.* is now: it had demo"):
            await bloombee.Runtime("standin:512x4", workers=1, state=state).prepare(announce=told.append)
        assert len(told) == 1, "nobody is told how to join a head that is none"
        async with bloombee.Runtime("demo", workers=1, state=state) as runtime:
            with pytest.raises(ConfigError, match="another head, process"):
                await bloombee.Runtime("demo", workers=1, state=state).prepare()
            assert runtime.running == ()

    _once(use)


def test_requests_that_a_close_cut_short_go_on_and_can_be_read_from_any_token(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"workers": 1, "dtype": "float32", "state": str(tmp_path)}
    params: dict[str, Any] = {"max_new_tokens": 40, "temperature": 0.8, "seed": 3, "ignore_eos": True}
    first: list[int] = []

    async def use() -> None:
        async with bloombee.Runtime("demo", **settings) as runtime:
            stream = runtime.stream("import ", **params)
            first.extend([(await anext(stream)).token_id for _ in range(3)])
            await runtime.close()  # while the stream is open
            assert runtime.running == ()

    _once(use)
    with bloombee.Runtime.sync("demo", **settings) as runtime:
        (one,) = runtime.running
        with pytest.raises(ConfigError, match="from_token = -1"):
            next(runtime.resume(one.id, from_token=-1))
        rest = [token.token_id for token in runtime.resume(one.id, from_token=3)]
        assert first + rest == list(runtime.generate("import ", **params).token_ids)
        assert runtime.running == ()
        with pytest.raises(ConfigError, match=f"request {one.id} does not go on"):
            next(runtime.resume(one.id))


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


def test_a_worker_that_was_not_let_in_yet_awaits_the_next_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one ends while it still looks at the model, and answers nobody."""

    async def use() -> None:
        first = bloombee.Runtime("demo", remote_workers=1, dtype="float32", state=str(tmp_path))
        tokens: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
        with monkeypatch.context() as patched:
            patched.setattr(HeadRole, "describe", lambda _: asyncio.Event().wait())
            preparing = asyncio.ensure_future(first.prepare(announce=tokens.put_nowait))
            (token,) = await tokens.get()
            role = WorkerRole(WorkerConfig(join=token, threads=1, head_wait_s=60.0))
            worker = asyncio.ensure_future(role.serve())
            while role._joining is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            preparing.cancel()
            await asyncio.gather(preparing, return_exceptions=True)
        async with bloombee.Runtime("demo", remote_workers=1, dtype="float32", state=str(tmp_path)) as runtime:
            assert (await runtime.generate("import ", max_new_tokens=2)).token_ids
        await asyncio.wait_for(worker, 60)

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


def _head_command(state: Path) -> list[str]:
    settings = ["--workers", "1", "--split", "8", "--dtype", "float32", "--state", str(state), "--json"]
    sampling = ["--max-new-tokens", "150", "--temperature", "0.8", "--seed", "5"]
    return [sys.executable, "-m", "bloombee", "head", *settings, *sampling]


def test_lines_that_a_head_had_read_are_finished_by_the_next(tmp_path: Path) -> None:
    lines = ["import os", "", "def f(x):", "class A:"]
    swarm = Swarm(model="demo", workers=1, dtype="float32")
    try:
        expected = [list(swarm.generate(line, max_new_tokens=150, temperature=0.8, seed=5).token_ids) for line in lines if line]
    finally:
        swarm.close()
    first = subprocess.Popen(
        _head_command(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert first.stdin is not None
    assert first.stdout is not None
    assert first.stderr is not None
    first.stdin.write("".join(f"{line}\n" for line in lines))
    first.stdin.flush()  # and more may come
    token = next(line.split()[-1] for line in first.stderr if "bloombee worker --join" in line)
    with workers_of([token]) as (worker,):
        answers = [json.loads(first.stdout.readline())]
        first.kill()
        answers += map(json.loads, first.communicate()[0].splitlines())
        done = subprocess.run(_head_command(tmp_path), input="", capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        answers += map(json.loads, done.stdout.splitlines())
        assert worker.wait(60) == 0
    # An answer of the last moment, whose being written was not written down, comes again: the same, under its id.
    assert list(dict.fromkeys((answer["id"], answer["position"]) for answer in answers)) == [(1, 1), (2, 3), (3, 4)]
    assert [answer["token_ids"] for answer in answers] == [expected[answer["id"] - 1] for answer in answers]
