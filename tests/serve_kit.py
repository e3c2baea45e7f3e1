"""An HTTP server over a started swarm for tests, in the loop of the application that embeds it."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from openai import OpenAI
from swarm_kit import Swarm

from bloombee.address import read_listen
from bloombee.serve.app import make_app
from bloombee.serve.command import http_config
from bloombee.serve.keys import Clients
from bloombee.serve.listening import listen

MODEL = "demo"


class Served:
    """A server that runs.

    Args:
        most_connections: that it takes.
    """

    def __init__(self, swarm: Swarm, *, clients: Clients | None = None, most_connections: int = 2048) -> None:
        self.swarm = swarm
        (bound,) = listen(read_listen("tcp://127.0.0.1:0"))
        self.port: int = bound.getsockname()[1]
        self._app = make_app(swarm.runtime, model=MODEL, clients=clients)
        self._server = uvicorn.Server(http_config(self._app, most_connections=most_connections))
        self._serving = asyncio.run_coroutine_threadsafe(self._server.serve([bound]), swarm.loop)
        bound.listen()  # whoever dials before it accepts waits

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of the answer; ``body``: JSON, unless it is bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            told = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, data, told)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, json.loads(answer.read())
        finally:
            connection.close()

    def close(self) -> None:
        self._server.should_exit = self._app.state.is_ending = True
        self._serving.result(30)


@contextmanager
def served(swarm: Swarm, **arguments: Any) -> Iterator[Served]:
    server = Served(swarm, **arguments)
    try:
        yield server
    finally:
        server.close()
