"""The client of bench/serve.py, a process of its own: asks over HTTP as it is told on stdin, and does no more than it must.

A line in, ``{"prompts": [...], "tokens": t, "seed": s}``, is a line out: seconds to the first token of each request, all tokens,
seconds until the last. Connections are there before the clock starts.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any

_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def _request(prompt: str, tokens: int, seed: int) -> bytes:
    body = json.dumps(
        {
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 1,
            "seed": seed,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    lines = ("POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + body


async def _ask(streams: Streams, request: bytes) -> tuple[float, int]:
    """Seconds to the first event, and how many tokens there were."""
    reader, writer = streams
    start = time.perf_counter()
    writer.write(request)
    await reader.readuntil(b"data: ")
    first_s = time.perf_counter() - start
    answer = await reader.readuntil(b"\r\n0\r\n\r\n")
    found = _TOKENS.search(answer)
    return first_s, int(found[1]) if found else 0


async def _measure(port: int, asked: dict[str, Any]) -> dict[str, Any]:
    connections = [await asyncio.open_connection("127.0.0.1", port, limit=1 << 26) for _ in asked["prompts"]]
    requests = [_request(prompt, asked["tokens"], asked["seed"] + number) for number, prompt in enumerate(asked["prompts"])]
    start = time.perf_counter()
    answers = await asyncio.gather(*map(_ask, connections, requests))
    seconds = time.perf_counter() - start
    for _, writer in connections:
        writer.close()
    return {"first_s": [first for first, _ in answers], "tokens": sum(count for _, count in answers), "seconds": seconds}


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await _measure(port, json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
