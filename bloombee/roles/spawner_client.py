"""The head's end of the spawner process (``roles/spawner.py``)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import queue
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from bloombee.config import WorkerConfig
from bloombee.errors import ConfigError, DeviceError, from_wire
from bloombee.roles.child import start_child
from bloombee.transport.keys import KeyPair

END_S = 4.0


class SpawnerClient:
    """Starts the spawner and talks to it. All methods belong to one event loop.

    Args:
        on_exit: called with (pid, wait status) when a worker process has ended.
        on_lost: called if the spawner itself ends unasked.
    """

    def __init__(self, *, on_exit: Callable[[int, int], None], on_lost: Callable[[], None]) -> None:
        self._on_exit = on_exit
        self._on_lost = on_lost
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._count = 0
        self._closing = False
        self._process: subprocess.Popen[bytes] | None = None
        self._has_workers = False
        self._orders: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        """A pipe may be full: only the writing thread ever waits for it."""

    def start(self) -> None:
        """Raises DeviceError if no process can be started."""
        self._loop = asyncio.get_running_loop()
        # A session of its own: Ctrl-C at the terminal reaches the application, which ends its workers in order.
        self._process = start_child(
            "bloombee.roles.spawner", stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        threading.Thread(target=self._read, name="bloombee-spawner-reader", daemon=True).start()
        threading.Thread(target=self._write, name="bloombee-spawner-writer", daemon=True).start()

    async def ask(self, order: str, **arguments: Any) -> Any:
        """The answer to an order. Cancelled: the order is carried out all the same, its answer dropped.

        Raises:
            BloomBeeError: as the spawner answered; DeviceError if it has ended.
        """
        if self._process is None or self._process.stdin is None or self._process.poll() is not None:
            raise DeviceError("the spawner process has ended")
        self._count += 1
        number = self._count
        try:
            line = json.dumps({"id": number, "do": order, "with": arguments}).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{order}: {error}") from None
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._answers[number] = answer
        self._orders.put(line)
        try:
            return await answer
        finally:
            self._answers.pop(number, None)

    async def spawn(self, config: WorkerConfig, keys: KeyPair) -> int:
        """Fork a worker that is known by ``keys``; its process id."""
        self._has_workers = True
        pair = [keys.public.hex(), keys.secret.hex()]
        return int(await self.ask("spawn", config=dataclasses.asdict(config), keys=pair))

    async def close(self) -> None:
        """End every worker and the spawner; returns when they are gone."""
        self._closing = True
        process = self._process
        if process is None:
            return
        self._orders.put(None)
        if not self._has_workers:
            process.kill()  # it may be in the middle of its imports, and nobody depends on it
        try:
            await asyncio.to_thread(process.wait, END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)

    def _write(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as stream:
            while (line := self._orders.get()) is not None:
                stream.write(line)
                stream.flush()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._heard, json.loads(line))
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._lost)

    def _heard(self, answer: dict[str, Any]) -> None:
        if "exited" in answer:  # after whoever started it has been told its number
            self._loop.call_soon(self._on_exit, answer["exited"], answer["status"])
            return
        waiting = self._answers.get(answer["id"])
        if waiting is None or waiting.done():
            return
        if "error" in answer:
            code, fields = answer["error"]
            waiting.set_exception(from_wire(code, fields))
        else:
            waiting.set_result(answer["ok"])

    def _lost(self) -> None:
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(DeviceError("the spawner process has ended"))
        if not self._closing:
            self._on_lost()
