"""Swarms that many tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
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
