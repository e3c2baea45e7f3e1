"""``bloombee serve``: a swarm and its HTTP server in one process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn

from bloombee.config import RuntimeConfig, ServeConfig
from bloombee.errors import BloomBeeError
from bloombee.roles.event_loop import new_event_loop
from bloombee.runtime import Runtime
from bloombee.serve.app import make_app
from bloombee.serve.connections import Connection
from bloombee.serve.entrance import Entrance
from bloombee.serve.health import Start
from bloombee.serve.keys import Clients, is_read_by_all, read_keys
from bloombee.serve.listening import listen, url
from bloombee.terminal import count, open_runtime, say, say_how_to_join, tell_of_losses
from bloombee.transport.descriptors import spare_descriptors

MOST_CONNECTIONS, BACKLOG = 4096, 1024
LAST_S = 2.0
"""For a program to take its answer, the last that there is."""
SOON_S = 1.0
"""By then connections that nobody uses are closed."""


def run(config: RuntimeConfig, serving: ServeConfig) -> int:
    """Serve until Ctrl-C or SIGTERM; requests that run may end before (``drain_s``).

    Raises:
        AddressInUse, ConfigError: before anything is started. BloomBeeError: the swarm has ended, or never began.
    """
    clients = None if serving.api_key_file is None else read_keys(serving.api_key_file)
    if serving.api_key_file is not None and is_read_by_all(serving.api_key_file):
        say(f"warning: every user of this machine may read the keys in {serving.api_key_file}; chmod 600 keeps them out")
    with contextlib.ExitStack() as opened, asyncio.Runner(loop_factory=new_event_loop) as runner:
        sockets = [opened.enter_context(one) for one in listen(serving.address)]
        runner.run(_serve(config, serving, clients, sockets))
    return 0


async def _serve(config: RuntimeConfig, serving: ServeConfig, clients: Clients | None, sockets: list[socket.socket]) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    announce = functools.partial(say_how_to_join, config) if config.remote_workers else None
    model, start = serving.model_name or model_name(config.model), Start()
    entrance = Entrance(model, clients, start)
    most = spare_descriptors(MOST_CONNECTIONS, config.num_workers)

    def prepared(runtime: Runtime) -> None:
        entrance.app = make_app(runtime, model=model, clients=clients, start=start)

    async with (
        Server(http_config(entrance, most_connections=most), entrance).listening(sockets) as server,
        open_runtime(config, announce=announce, prepared=prepared) as runtime,
    ):
        await _let_go(runtime)
        start.is_over()
        place = url(sockets[0], serving.address)
        say(f"{model} is served at {place}/v1, and shown at {place} (Ctrl-C ends it)")
        await server.until_asked(runtime, serving.drain_s)


async def _let_go(runtime: Runtime) -> None:
    """End what a head before this one was asked for: the connections that it came by are gone."""
    for request in runtime.running:
        async with contextlib.aclosing(runtime.resume(request.id)) as tokens:
            async for _ in tokens:
                break


def model_name(model: str) -> str:
    """What programs call a model: a hub id as it is, a directory by its last part."""
    return Path(model).expanduser().resolve().name if model.startswith((".", "/", "~")) else model


def http_config(app: object, *, most_connections: int) -> uvicorn.Config:
    """How ``app`` is served. Once it is to end, its requests may take as long as they do."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=Connection.bounded(most_connections),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
    )


class Server(uvicorn.Server):
    """uvicorn's, which a person may ask to stop twice: first to let requests end, then at once."""

    def __init__(self, config: uvicorn.Config, entrance: Entrance) -> None:
        super().__init__(config)
        self._entrance = entrance
        self._serving: asyncio.Task[None]
        self._ending: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def listening(self, sockets: list[socket.socket]) -> AsyncIterator[Server]:
        """Answers while the block runs; at its end, however it comes, at once no more."""
        for one in sockets:
            one.listen(BACKLOG)
        self._serving = asyncio.create_task(self.serve(sockets))
        try:
            yield self
        finally:
            self.should_exit = True
            self._hang_up()
            await self._serving

    async def until_asked(self, runtime: Runtime, drain_s: float) -> None:
        """Serve.

        Args:
            drain_s: that requests may take to end, then.

        Raises:
            BloomBeeError: the swarm has ended.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._asked_to_stop, runtime, drain_s)
        losses = asyncio.create_task(tell_of_losses(runtime))
        losses.add_done_callback(lambda ended: None if ended.cancelled() else self._end_now(runtime))
        try:
            await asyncio.shield(self._serving)
        finally:
            is_lost = losses.done()
            losses.cancel()
            found = await asyncio.gather(losses, return_exceptions=True)
            if is_lost and isinstance(found[0], BloomBeeError):
                raise found[0]

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        """The loop has them."""
        yield

    def _asked_to_stop(self, runtime: Runtime, drain_s: float) -> None:
        if self.should_exit:
            self._end_now(runtime)
            return
        self._no_more()
        loop = asyncio.get_running_loop()
        if num_requests := runtime.num_requests:
            _say_who_may_end(count(num_requests, "request"), drain_s)
        else:
            loop.call_later(SOON_S, self._say_who_is_left, drain_s)
        loop.call_later(drain_s, self._end_now, runtime)

    def _say_who_is_left(self, drain_s: float) -> None:
        """Half a request, or an answer that nobody takes, keeps a connection open."""
        if self.server_state.connections and self._ending is None:
            _say_who_may_end(count(len(self.server_state.connections), "connection"), drain_s)

    def _no_more(self) -> None:
        self.should_exit = True
        self._entrance.is_ending()

    def _end_now(self, runtime: Runtime) -> None:
        self._no_more()
        self._ending = self._ending or asyncio.create_task(self._end(runtime))

    async def _end(self, runtime: Runtime) -> None:
        """Programs whose requests still run are told that these have ended; those that do not take it are hung up on."""
        if runtime.num_requests:
            say(f"{count(runtime.num_requests, 'request')} that still ran had to end")
        await runtime.close()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=LAST_S)
        if self.server_state.tasks:
            say(f"{count(len(self.server_state.tasks), 'connection')} had to be cut: nothing comes, or nothing is taken")
        self._hang_up()

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _say_who_may_end(who: str, drain_s: float) -> None:
    say(f"no more requests are taken; {who} may end, for {drain_s:g} s (Ctrl-C ends that now)")
