"""Workers that die or hang, parents that are killed, strangers, wrong tokens: typed errors, no orphan, no hang."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from engine_kit import make_checkpoint
from safetensors.torch import load_file, save_file

import bloombee
from bloombee.config import WorkerConfig
from bloombee.errors import (
    AddressInUse,
    AuthenticationError,
    ConfigError,
    DeadlineExceeded,
    Infeasible,
    LinkDown,
    VersionMismatch,
)
from bloombee.roles.worker import WorkerRole
from bloombee.wire import messages
from bloombee.wire.token import JoinToken, decode_token, encode_token


def _newest_workers() -> list[psutil.Process]:
    """Of the Runtime of this process that was started last, in their order: other tests may keep swarms running.

    Process ids say nothing of the order: they begin anew at pid_max.
    """

    def age(process: psutil.Process) -> tuple[float, int]:
        return process.create_time(), process.pid

    spawners = [child for child in psutil.Process().children() if "bloombee.roles.spawner" in " ".join(child.cmdline())]
    return sorted(max(spawners, key=age).children(), key=age)


def _gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def _wait_until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


async def _mid_generation(act: Callable[[bloombee.Runtime], Awaitable[None]], **arguments: Any) -> list[BaseException]:
    """Start three workers and two requests, ``act`` after some tokens, and return how the requests ended."""
    async with bloombee.Runtime("demo", workers=3, dtype="float32", **arguments) as runtime:
        started = asyncio.Event()

        async def one(prompt: str) -> None:
            count = 0
            async for _ in runtime.stream(prompt, max_new_tokens=1900, ignore_eos=True):
                count += 1
                if count == 5:
                    started.set()

        running = [asyncio.ensure_future(one(prompt)) for prompt in ("import ", "def ")]
        await started.wait()
        await act(runtime)
        ended = await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), 30)
        with pytest.raises(LinkDown):
            await runtime.generate("x")
        return [end for end in ended if end is not None]


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_is_a_typed_error_at_every_caller(which: int, how: signal.Signals) -> None:
    pids: list[int] = []

    async def act(_: bloombee.Runtime) -> None:
        pids.extend(worker.pid for worker in _newest_workers())
        os.kill(pids[which], how)

    ended = asyncio.run(_mid_generation(act))
    assert [type(end) for end in ended] == [LinkDown, LinkDown]
    assert f"local-{which}" in str(ended[0])
    assert _wait_until(lambda: _gone(pids))


SCRIPT = """
import asyncio, bloombee, psutil, sys
async def main():
    async with bloombee.Runtime("demo", workers=3, dtype="float32") as rt:
        async for token in rt.stream("import ", max_new_tokens=1900, ignore_eos=True):
            print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)
            await asyncio.sleep(0.01)
asyncio.run(main())
"""


def _hear_ctrl_c() -> None:
    """A test run started in the background ignores Ctrl-C, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_outlives_the_application(how: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=_hear_ctrl_c
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 4
    os.kill(pids[-1], signal.SIGSTOP)  # not even a stopped worker may stay
    parent.send_signal(how)
    parent.stdout.close()
    assert parent.wait(20) != 0
    assert _wait_until(lambda: _gone(pids))


def test_workers_join_from_elsewhere_and_end_with_the_head() -> None:
    async def use() -> list[int]:
        runtime = bloombee.Runtime("demo", remote_workers=2, split=(4, 4), dtype="float32")
        workers = []

        def start(tokens: tuple[str, ...]) -> None:
            assert tokens == runtime.join_tokens
            assert not hasattr(runtime, "card")  # long before the model has been looked at
            for n, token in enumerate(tokens):
                command = [sys.executable, "-m", "bloombee", "worker", "--join", token, "--name", f"far-{n}"]
                workers.append(subprocess.Popen(command))

        try:
            await runtime.prepare(announce=start)
            await runtime.ready()
            assert {stage.name for stage in runtime.plan.stages} == {"far-0", "far-1"}
            assert len((await runtime.generate("import os\n", max_new_tokens=8)).token_ids) == 8
        finally:
            await runtime.close()
        return [worker.wait(20) for worker in workers]

    assert asyncio.run(use()) == [0, 0]


async def _with_head(use: Callable[[bloombee.Runtime], Awaitable[None]]) -> None:
    runtime = bloombee.Runtime("demo", remote_workers=1, split=(8,), dtype="float32")
    await runtime.prepare()
    try:
        await use(runtime)
    finally:
        await runtime.close()


def _altered(token: str, **changes: Any) -> str:
    old = decode_token(token)
    fields = {"key": old.key, "secret": old.secret, "endpoints": old.endpoints, **changes}
    return encode_token(JoinToken(**fields))


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"secret": bytes(24)}, AuthenticationError, "secret is wrong"),
        ({"key": b"k" * 32}, (AuthenticationError, DeadlineExceeded), ""),
        ({"endpoints": ("tcp://127.0.0.1:9",)}, DeadlineExceeded, "did not answer"),
    ],
    ids=["secret", "key", "address"],
)
def test_a_wrong_join_token_is_refused_with_the_reason(changes: dict[str, Any], kind: Any, says: str) -> None:
    async def use(runtime: bloombee.Runtime) -> None:
        deadline_s = 3 if kind is not AuthenticationError else 30
        config = WorkerConfig(join=_altered(runtime.join_token, **changes), join_deadline_s=deadline_s)
        with pytest.raises(kind) as caught:
            await asyncio.wait_for(WorkerRole(config).serve(), 40)
        assert says in str(caught.value)

    asyncio.run(_with_head(use))


def test_a_worker_with_another_model_of_the_same_shape_is_refused_by_name(tmp_path: Path) -> None:
    """A fine-tune saved under its base's name: only the values of its weights differ."""
    right, other = tmp_path / "right", tmp_path / "other"
    make_checkpoint("llama", right)
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 3)]  # whichever stage it gets
    shutil.copytree(right, other)
    weights = load_file(right / "model.safetensors")
    save_file({**weights, **{name: weights[name] * 1.01 for name in names}}, other / "model.safetensors")

    async def use() -> None:
        runtime = bloombee.Runtime(str(right), remote_workers=2, split=(2, 2), dtype="float32")
        await runtime.prepare()
        places = zip(runtime.join_tokens, (right, other), strict=True)
        configs = [WorkerConfig(join=token, model=str(place), name=place.name) for token, place in places]
        workers = [asyncio.ensure_future(WorkerRole(config).serve()) for config in configs]
        try:
            with pytest.raises(ConfigError) as caught:
                await asyncio.wait_for(runtime.ready(), 60)
            said = f"worker 'other': the weights in {other} are not those of the head's model: "
            assert caught.value.message.startswith(tuple(said + name for name in names))
        finally:
            await runtime.close()
            await asyncio.gather(*workers, return_exceptions=True)

    asyncio.run(use())


def test_a_token_lets_one_worker_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(runtime: bloombee.Runtime) -> None:
        config = WorkerConfig(join=runtime.join_token, join_deadline_s=30)
        first = asyncio.ensure_future(WorkerRole(config).serve())
        await asyncio.wait_for(runtime.ready(), 60)
        with pytest.raises(AuthenticationError) as caught:
            await asyncio.wait_for(WorkerRole(config).serve(), 40)
        assert "spent" in str(caught.value)
        assert (await runtime.generate("x", max_new_tokens=2)).token_ids
        await runtime.close()
        await asyncio.wait_for(first, 20)

    asyncio.run(_with_head(use))


def test_another_protocol_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from bloombee.roles import joining

    monkeypatch.setattr(joining, "PROTOCOL_VERSION", messages.PROTOCOL_VERSION + 1)

    async def use(runtime: bloombee.Runtime) -> None:
        with pytest.raises(VersionMismatch):
            await asyncio.wait_for(WorkerRole(WorkerConfig(join=runtime.join_token, join_deadline_s=30)).serve(), 40)

    asyncio.run(_with_head(use))


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]

        async def use() -> None:
            await bloombee.Runtime("demo", listen=f"tcp://127.0.0.1:{port}").prepare()

        with pytest.raises(AddressInUse) as caught:
            asyncio.run(use())
        assert str(port) in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"model": "/no/such/dir"}, ConfigError, "/no/such/dir"),
        ({"workers": 9}, ConfigError, "8 layers"),
        ({"split": (4, 3)}, ConfigError, "8 layers"),
        ({"workers": 2, "kv_tokens": 2**31}, Infeasible, "short by"),
    ],
)
def test_a_swarm_that_cannot_be_says_why_and_leaves_nothing(arguments: dict[str, Any], kind: type[Exception], says: str) -> None:
    async def use() -> None:
        async with bloombee.Runtime(**{"model": "demo", **arguments}):
            raise AssertionError("it came up")

    before = psutil.Process().children(recursive=True)
    with pytest.raises(kind) as caught:
        asyncio.run(use())
    assert says in str(caught.value)
    assert not set(psutil.Process().children(recursive=True)) - set(before)


def test_a_worker_started_by_hand_ends_when_its_head_is_killed() -> None:
    script = (
        "import asyncio, bloombee, json, sys\n"
        "async def main():\n"
        "    rt = bloombee.Runtime('demo', remote_workers=1, split=(8,))\n"
        "    await rt.prepare()\n"
        "    print(json.dumps(rt.join_tokens), flush=True)\n"
        "    await rt.ready()\n"
        "    print('up', flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    head = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert head.stdout is not None
    (token,) = json.loads(head.stdout.readline())
    worker = subprocess.Popen([sys.executable, "-m", "bloombee", "worker", "--join", token], stderr=subprocess.PIPE, text=True)
    try:
        assert head.stdout.readline() == "up\n"
        head.kill()
        assert worker.wait(30) == 1
        assert worker.stderr is not None
        assert "the head" in worker.stderr.read()
    finally:
        head.kill()
        worker.kill()
        head.wait()
        worker.wait()
        head.stdout.close()
        if worker.stderr is not None:
            worker.stderr.close()
