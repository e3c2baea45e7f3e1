from __future__ import annotations

from typing import Any

import pytest

from bloombee.pipeline.acting import each
from bloombee.pipeline.commands import ReportProgress


def test_a_command_that_fails_does_not_lose_those_after_it() -> None:
    done: list[int] = []

    def act(command: Any) -> None:
        if command.worker < 3:
            raise ValueError(command.worker)
        done.append(command.worker)

    commands = [ReportProgress(worker, 0, 0, 1) for worker in (1, 2, 3, 4)]
    with pytest.raises(ValueError, match="1"):
        each(act, commands)
    assert done == [3, 4]
