"""The official client of npm, where npm can install it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serve_kit import MODEL, served
from swarm_kit import Swarm

SCRIPT = Path(__file__).with_name("openai_client.mjs")
PACKAGE = "openai@6.49.0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with the client and the script."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm's openai: no npm or node here")
    directory = tmp_path_factory.mktemp("npm")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm's openai: {PACKAGE} was not to be had in two minutes")
    if done.returncode:
        pytest.skip(f"npm's openai: npm cannot install {PACKAGE}: {done.stderr.strip()[-200:]}")
    shutil.copy(SCRIPT, directory)
    return directory


def test_every_feature(folder: Path, make_swarm: Callable[..., Swarm]) -> None:
    swarm = make_swarm(model="demo", workers=3, dtype="float32")
    known = swarm.generate("def add(a, b):", max_new_tokens=12)
    with served(swarm) as server:
        command = ["node", SCRIPT.name, f"{server.url}/v1", MODEL]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    got: dict[str, Any] = json.loads(done.stdout)
    assert got["models"] == [MODEL]
    assert got["text"] == [known.text] * 2
    assert got["chat"] == got["streamed"] == got["response"] == got["events"] == known.text
    assert got["usage"]["completion_tokens"] == got["logprobs"] == 12
    assert got["format"]["city"] in ("Paris", "Rome")
    assert got["call"]["name"] == "weather"
    assert json.loads(got["call"]["arguments"])["city"] in ("Paris", "Rome")
    assert got["last"] == "response.incomplete"
    assert got["left"]
    assert got["unknown"] == {"status": 404, "kind": "NotFoundError", "param": "model", "code": "model_not_found"}
    assert got["absurd"] == {"status": 400, "kind": "BadRequestError", "param": "n", "code": None}
