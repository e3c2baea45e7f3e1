"""Too few file descriptors are a sentence, not ZeroMQ's abort; a soft limit that may be raised is."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from bloombee.errors import CapacityError
from bloombee.runtime import Runtime

ROOT = Path(__file__).parents[2]
PROGRAM = """
import resource
from bloombee.errors import CapacityError
from bloombee.transport.descriptors import require_descriptors

soft, hard = {limits}
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    require_descriptors({workers})
except CapacityError as error:
    print(error.fields["needed"] - error.fields["limit"], error)
else:
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def told(limits: tuple[int, int], workers: int = 0) -> str:
    program = PROGRAM.format(limits=limits, workers=workers)
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("limit", [8, 20, 40, 64])
def test_too_few_are_refused_with_the_limit_that_would_do(limit: int) -> None:
    wanted = told((limit, limit), workers=3)
    assert wanted.startswith("70 this process may open too few files")
    assert f"'ulimit -n {limit + 70}'" in wanted


def test_a_soft_limit_is_raised_as_far_as_needed_and_no_further() -> None:
    assert told((40, 1024)) == "104"


def test_enough_is_left_as_it_is() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert told((256, hard if hard > 256 else 256), workers=16) == "256"


def test_a_head_counts_its_spares(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def require(workers: int) -> None:
        asked.append(workers)
        raise CapacityError("too few")

    monkeypatch.setattr("bloombee.runtime.require_descriptors", require)
    with pytest.raises(CapacityError):
        asyncio.run(Runtime("demo", remote_workers=2, spares=500).prepare())
    assert asked == [502]
