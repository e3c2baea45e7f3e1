"""What a process looks at often: it goes on whatever is raised, and its clock goes with it."""

from __future__ import annotations

import asyncio
from typing import Any

from bloombee.roles.pulse import Pulse


def test_a_look_that_raises_goes_to_the_loops_handler_and_the_next_comes_all_the_same() -> None:
    async def use() -> None:
        told: list[Any] = []
        looked = asyncio.Event()

        def look(now: float) -> None:
            if told:
                looked.set()
            raise ValueError("a bug")

        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        pulse = Pulse(look)
        assert pulse.clock.awake_s(0.0) == 0.0
        pulse.start()
        await asyncio.wait_for(looked.wait(), 20)
        pulse.stop()
        assert all(isinstance(error, ValueError) for error in told)

    asyncio.run(use())
