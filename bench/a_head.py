"""A head as a program of its own, which bench/heads.py kills: reads what to ask, writes what comes.

    python -m bench.a_head SETTINGS READ

SETTINGS: JSON, of a Runtime that awaits workers from elsewhere. READ: JSON, client -> how many of its tokens are known; it goes
on with the requests of the head before from there. A line of standard input is a JSON list of requests: [client, prompt,
parameters]. It writes lines of JSON: ["tokens", join tokens], ["up"], ["token", client, id], ["end", client, error or null].
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from typing import Any

import bloombee
from bloombee.errors import BloomBeeError
from bloombee.types import Token


def say(*what: Any) -> None:
    print(json.dumps(what), flush=True)


async def _tell(client: str, tokens: AsyncGenerator[Token, None]) -> None:
    error = None
    try:
        async for token in tokens:
            say("token", client, token.token_id)
    except BloomBeeError as raised:
        error = str(raised)
    say("end", client, error)


async def main(settings: dict[str, Any], known: dict[str, int]) -> None:
    """Until standard input ends."""
    runtime = bloombee.Runtime(**settings)
    await runtime.prepare(announce=lambda tokens: say("tokens", list(tokens)))
    work = [
        asyncio.ensure_future(_tell(one.client, runtime.resume(one.id, from_token=known.get(one.client, 0))))
        for one in runtime.running
    ]
    await runtime.ready()
    say("up")
    while line := await asyncio.to_thread(sys.stdin.readline):
        work += [
            asyncio.ensure_future(_tell(client, runtime.stream(prompt, client=client, **params)))
            for client, prompt, params in json.loads(line)
        ]
    await asyncio.gather(*work)
    await runtime.close()


if __name__ == "__main__":
    asyncio.run(main(*map(json.loads, sys.argv[1:3])))
