from __future__ import annotations

import asyncio

from bloombee.roles.ticker import Ticker


def test_one_part_that_fails_keeps_no_other_from_its_tick_nor_the_next_from_coming() -> None:
    async def use() -> tuple[list[float], list[str]]:
        came, errors, enough = list[float](), list[str](), asyncio.Event()

        def fails(_: float) -> None:
            raise ValueError("this part")

        def goes_on(now: float) -> None:
            came.append(now)
            if len(came) == 3:
                enough.set()

        ticker = Ticker([fails, goes_on], on_error=lambda error: errors.append(str(error)))
        await asyncio.wait_for(enough.wait(), 30)
        await ticker.stop()
        return came, errors

    came, errors = asyncio.run(use())
    assert came == sorted(came)
    assert errors == ["this part"] * 3
