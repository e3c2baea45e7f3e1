"""A Runtime that runs answers other programs of its user: what it knows, as a topology that can be planned for."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from swarm_kit import Swarm

from bloombee.config import LocalWorker, socket_folders
from bloombee.plan.document import from_json
from bloombee.roles.running_heads import running_heads
from bloombee.wire.token import decode_token

PACE = "2,0.01,0.1/3"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder for what runs; nothing of his runs yet."""
    folder = tmp_path_factory.mktemp("session")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder / "bloombee"


@pytest.fixture(scope="module")
def swarm(session: Path) -> Iterator[Swarm]:
    swarm = Swarm(model="standin:1024x6", workers=2, pace=PACE)
    swarm.generate([1, 2, 3], max_new_tokens=20)
    yield swarm
    swarm.close()
    assert list(session.iterdir()) == []


def plan(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bloombee", "plan", *words], capture_output=True, text=True, timeout=120)


def test_the_plan_of_what_runs(swarm: Swarm) -> None:
    done = plan("--json", "--objective", "throughput")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    (ring,) = found["pipelines"]
    assert [(stage["worker"], stage["layers"]) for stage in ring["stages"]] == [("local-0", [0, 3]), ("local-1", [3, 6])]
    assert ring["stages"][0]["compute_s"] == pytest.approx(2e-3 + 1e-5 * ring["sequences"])
    assert all(link["latency_s"] > 0 for link in ring["links"])


def test_what_a_head_says_of_itself(swarm: Swarm, session: Path, tmp_path: Path) -> None:
    (head,) = running_heads([session])
    assert head.name == str(os.getpid()) == str(head.status.process)
    assert (head.status.model, head.status.workers, head.status.requests) == ("standin:1024x6", 2, 0)
    assert head.ask("plan") == json.loads(json.dumps(swarm.runtime.plan.summary()))
    document = head.topology()
    assert from_json(document.to_json()) == document
    assert set(document.nodes) == {"head", "local-0", "local-1"}
    ends = {(link.source, link.target) for link in document.links}
    assert ends == set(itertools.permutations(document.nodes, 2))
    assert document.cores is not None


def test_spares_and_the_links_of_a_head_whose_scheduler_is_elsewhere_are_known(session: Path) -> None:
    """Workers with places of their own, cut as asked: nobody looked at them before the plan."""
    places = [LocalWorker(source="127.0.0.1")] * 3
    far = Swarm(model="standin:1024x6", workers=2, spares=1, scheduler="stage0", local_workers=places, pace=PACE)
    try:
        far.generate([1, 2, 3], max_new_tokens=20)
        (head,) = (head for head in running_heads([session]) if head.status.workers == 3)
        document = head.topology()
        assert set(document.nodes) == {"head", "local-0", "local-1", "local-2"}
        ends = {(link.source, link.target) for link in document.links}
        ring = {("local-0", "local-1"), ("local-1", "local-0")}
        assert ends == ring | {pair for name in ("local-0", "local-1", "local-2") for pair in (("head", name), (name, "head"))}
        done = plan("--json", "--head", head.name, "--objective", "throughput")
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)
        assert {stage["worker"] for ring in found["pipelines"] for stage in ring["stages"]} == {"local-0", "local-1"}
        assert list(found["spares"]) == ["local-2"]
    finally:
        far.close()


def bloombee(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bloombee", *words], capture_output=True, text=True, timeout=120)


def test_the_status_of_what_runs(swarm: Swarm) -> None:
    """While a request does."""
    first = threading.Event()

    async def read() -> None:
        async for _ in swarm.runtime.stream([1, 2, 3], max_new_tokens=1900, ignore_eos=True, client="ann"):
            first.set()

    reading = asyncio.run_coroutine_threadsafe(read(), swarm.loop)
    try:
        assert first.wait(60)
        done = bloombee("status", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        status = json.loads(done.stdout)
        shown = bloombee("status")
    finally:
        reading.cancel()
    assert (status["version"], status["state"], status["missing"], status["process"]) == (1, "up", 0, os.getpid())
    assert [(one["name"], one["state"], one["stage"], one["layers"]) for one in status["workers"]] == [
        ("local-0", "serving", 0, [0, 3]),
        ("local-1", "serving", 1, [3, 6]),
    ]
    assert all(one["silent_s"] < 10 and one["address"].startswith("tcp://127.0.0.1:") for one in status["workers"])
    assert status["workers"][0]["layer_s"] == pytest.approx((2e-3 + 1e-5) / 3)
    assert [(link["source"], link["target"]) for link in status["links"]] == [
        ("head", "local-0"),
        ("local-0", "local-1"),
        ("local-1", "head"),
    ]
    assert status["plan"]["epoch"] == 1
    assert status["plan"]["measured"]["microbatches"] >= 1
    (request,) = status["requests"]
    assert (request["client"], request["phase"], request["prompt_tokens"]) == ("ann", "decode", 3)
    assert 1 <= request["tokens"] <= request["max_new_tokens"] == 1900
    assert shown.returncode == 0
    assert "local-1" in shown.stdout
    assert "1 request" in map(str.strip, shown.stdout.splitlines())


def test_a_token_lets_one_more_worker_in(swarm: Swarm) -> None:
    done = bloombee("token")
    assert done.returncode == 0
    command, option, token = done.stdout.split()[1:]
    assert (command, option) == ("worker", "--join")
    assert token not in swarm.runtime.join_tokens
    assert decode_token(token).endpoints == decode_token(swarm.runtime.join_token).endpoints
    worker = subprocess.Popen([sys.executable, "-m", "bloombee", "worker", "--join", token, "--name", "late"])
    try:
        (head,) = running_heads(socket_folders())
        while not any(one.name == "late" for one in head.swarm().workers):
            assert worker.poll() is None
        late = head.swarm().workers[-1]
        assert (late.name, late.state, late.reason) == ("late", "spare", "takes the place of a worker that is lost")
    finally:
        worker.terminate()
        worker.wait(30)


def test_a_head_may_be_told_to_answer_nobody(session: Path) -> None:
    before = {head.name for head in running_heads([session])}
    quiet = Swarm(model="standin:512x4", workers=1, pace=PACE, control_socket=False)
    try:
        assert {head.name for head in running_heads([session])} == before
    finally:
        quiet.close()


def test_a_head_without_a_folder_serves_all_the_same(session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    unasked = Swarm(model="standin:512x4", workers=1, pace=PACE)
    try:
        assert len(unasked.generate([1], max_new_tokens=5).token_ids) == 5
    finally:
        unasked.close()


def test_a_checkpoint_in_a_file_is_read_by_another_process(tmp_path: Path) -> None:
    workers = {name: {"worker": {"pace": "1,0.01,0.1/1", "memory_bytes": 2**30}} for name in ("a", "b")}
    file = tmp_path / "topology.json"
    file.write_text(json.dumps({"version": 1, "nodes": {"head": {}, **workers}, "model": "demo", "objective": "throughput"}))
    done = plan(str(file), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["pipelines"][0]["stages"][-1]["layers"][1] == 8
    file.write_text(file.read_text().replace("demo", str(tmp_path)))
    done = plan(str(file))
    assert done.returncode == 2
    assert done.stderr.startswith("bloombee: ")
