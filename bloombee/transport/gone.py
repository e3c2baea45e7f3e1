"""Whether a port that could not be dialled refuses: then nobody listens there any more, and waiting is of no use.

ZeroMQ tells that a try to connect failed, and not why.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

ASK_S = 5.0
"""An answer that takes longer is none."""


class PortWatch:
    """Asks one port at a time whether it still takes connections.

    Args:
        on_refused: called when it does not.
    """

    def __init__(self, endpoint: str, on_refused: Callable[[], None]) -> None:
        self._endpoint = endpoint
        self._on_refused = on_refused
        self._asking: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Connect and hang up, unless that is under way already."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask(), name=f"bloombee-ask-{self._endpoint}")

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    async def _ask(self) -> None:
        host, _, port = self._endpoint.removeprefix("tcp://").rpartition(":")
        try:
            async with asyncio.timeout(ASK_S):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except ConnectionRefusedError:
            self._on_refused()
        except (OSError, TimeoutError):
            return  # no route, no answer: it may come back
        else:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
