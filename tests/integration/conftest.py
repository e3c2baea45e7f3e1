"""Swarms that many tests share, and servers over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai import OpenAI
from serve_kit import Served, served
from swarm_kit import Swarm


@pytest.fixture(scope="session")
def make_swarm() -> Iterator[Callable[..., Swarm]]:
    """Swarms by their arguments, each started once a session, and again once it is down: one test has failed by then."""
    swarms: dict[str, Swarm] = {}

    def make(**arguments: Any) -> Swarm:
        key = repr(sorted(arguments.items()))
        if key in swarms and swarms[key].is_down:
            swarms.pop(key).close()
        if key not in swarms:
            swarms[key] = Swarm(**arguments)
        return swarms[key]

    yield make
    for swarm in swarms.values():
        swarm.close()


@pytest.fixture
def demo(make_swarm: Callable[..., Swarm]) -> Swarm:
    """The packaged model over three workers, fp32."""
    return make_swarm(model="demo", workers=3, dtype="float32")


@pytest.fixture(scope="module")
def server(make_swarm: Callable[..., Swarm]) -> Iterator[Served]:
    """Over the same swarm."""
    with served(make_swarm(model="demo", workers=3, dtype="float32")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> OpenAI:
    return server.client()
