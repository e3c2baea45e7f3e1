"""Workers' stages with real models and links in memory, and a scheduler that a test drives by hand."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from bloombee.config import WorkerConfig
from bloombee.engine.describe import describe
from bloombee.links.estimator import LinkEstimator
from bloombee.links.window import BulkWindow
from bloombee.models.card import ModelCard
from bloombee.roles.stages import Stages
from bloombee.types import Kind, Lane, Priority
from bloombee.wire.liveness import LoopClock
from bloombee.wire.messages import (
    Ack,
    Forward,
    Group,
    Holding,
    Item,
    Joined,
    Load,
    Loaded,
    Opening,
    Peer,
    Resume,
    Resumed,
    Sampling,
    StageFailed,
    Verdict,
    Wire,
    Wired,
)

HEAD = b"head" * 4
CREDIT = 64
SAMPLING = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, -1)
M = TypeVar("M")


class _Endpoint:
    """Of one worker: what it sends is handed to whoever is at the link's other end, later."""

    taken_ns = 0
    stamps = False

    def __init__(self, ring: Ring, worker: int) -> None:
        self._ring = ring
        self._worker = worker

    def send(self, link: bytes, lane: Lane, message: Any, tensors: Any = (), payloads: Any = ()) -> int:
        payload = (tensors[0], memoryview(payloads[0])) if payloads else None
        asyncio.get_running_loop().call_soon(self._ring.carry, self._worker, link, lane, message, payload)
        return 1

    def allow(self, *_: Any) -> None: ...
    def forbid(self, _: bytes) -> None: ...
    def dial(self, *_: Any) -> None: ...
    def hang_up(self, _: bytes) -> None: ...
    def probe(self, *_: Any) -> int:
        return 0

    def bulk_window(self, _: bytes) -> BulkWindow:
        return BulkWindow()

    def estimator(self, _: bytes) -> LinkEstimator:
        return LinkEstimator()


class Ring:
    """Workers 1, 2, ... and their head. Use :func:`ring`."""

    def __init__(self, card: ModelCard, num_workers: int, **config: Any) -> None:
        self.card = card
        settings = WorkerConfig(threads=1, **{"log_memory_bytes": 1 << 20, **config})
        self.stages = dict[int, Stages]()
        for worker in range(1, num_workers + 1):
            endpoint: Any = _Endpoint(self, worker)
            self.stages[worker] = Stages(settings, endpoint, clock=LoopClock(1.0), memory_bytes=1 << 30)
            self.stages[worker].joined(Joined(worker, 1, 0.5, 100.0, False), HEAD, lambda *_: None)
        self.tokens: dict[int, list[int]] = {}
        """Of each sequence, the prompt's and those picked."""
        self.errors: list[Exception] = []
        self._prompts: dict[int, int] = {}
        self._ends: dict[bytes, tuple[int, int]] = {}
        self._latest, self._num_orders = (0, 0), 0
        self.orders: dict[int, int] = {}
        """To load: the newest of each worker."""
        self.said: list[tuple[int, Any]] = []
        """To the head, with who said it."""
        self._news = asyncio.Condition()
        self._frames: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # -- the network -----------------------------------------------------------------------

    def carry(self, worker: int, link: bytes, lane: Lane, message: Any, payload: Any) -> None:
        if link == HEAD:
            self._to_head(worker, message)
            return
        ends = self._ends[link]
        self._deliver(ends[1] if ends[0] == worker else ends[0], link, lane, message, payload)

    def _deliver(self, worker: int, link: bytes, lane: Lane, message: Any, payload: Any = None) -> None:
        if link != HEAD and link not in self.stages[worker]._neighbours:
            return  # it has hung up
        try:
            self.stages[worker].received(link, lane, message, payload)
        except Exception as error:
            self.errors.append(error)

    def _to_head(self, worker: int, message: Any) -> None:
        match message:
            case Resume(epoch=epoch):
                self._deliver(worker, HEAD, Lane.CONTROL, Resumed(1, epoch))
            case Verdict(epoch=epoch, frame=frame, picks=picks):
                for pick in picks:
                    tokens = self.tokens[pick.sequence]
                    if pick.position == len(tokens):
                        tokens.append(pick.token)
                self._deliver(
                    worker, HEAD, Lane.CONTROL, Ack(1, epoch, Lane.CONTROL, frame + 1, (), frame + 1, frame + 1 + CREDIT, 0)
                )
            case StageFailed(code=code, fields=fields):
                self.errors.append(RuntimeError(f"{code}: {fields}"))
        self.said.append((worker, message))
        task = asyncio.ensure_future(self._tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for something that the workers bring about by saying something; raises what one of them was refused."""
        async with asyncio.timeout(60), self._news:
            await self._news.wait_for(lambda: is_so() or bool(self.errors))
        if self.errors:
            raise self.errors[0]

    def has_said(self, worker: int, message: Any, since: int = 0) -> bool:
        return any(who == worker and said == message for who, said in self.said[since:])

    # -- the head --------------------------------------------------------------------------

    def order(self, start: int, stop: int) -> Load:
        """Of the layers [start, stop); the one before, if it was of the same, else a new one."""
        if self._latest != (start, stop):
            self._latest, self._num_orders = (start, stop), self._num_orders + 1
        digest = bytes.fromhex(self.card.config_digest)
        last, group = self.card.num_layers, Group(0, 64)
        return Load(self._num_orders, 1, start, stop, last, self.card.model, digest, (), "float32", (group,), 16, 0, None, (), ())

    async def load(self, worker: int, start: int, stop: int) -> None:
        since, order = len(self.said), self.order(start, stop)
        self.orders[worker] = order.number
        self.stages[worker].load(order)
        await self.until(lambda: any(who == worker and isinstance(said, Loaded) for who, said in self.said[since:]))

    async def wire(self, epoch: int, oldest: int, *workers: int) -> None:
        """Seat them; the last is told which tokens are known."""
        pairs = [*itertools.pairwise(workers)]
        links = {pair: b"%d-%d".ljust(16) % pair for pair in pairs}
        self._ends |= {link: pair for pair, link in links.items()}
        for stage, worker in enumerate(workers):
            before = self._peer(workers[stage - 1], links[workers[stage - 1], worker], dials=False) if stage else None
            after = (
                self._peer(workers[stage + 1], links[worker, workers[stage + 1]], dials=True)
                if stage + 1 < len(workers)
                else None
            )
            self.stages[worker].wire(
                Wire(
                    1,
                    epoch,
                    oldest,
                    stage,
                    len(workers),
                    CREDIT,
                    64,
                    before,
                    after,
                    None,
                    (),
                    None,
                    False,
                    self.orders[worker],
                    False,
                )
            )
        await self.until(lambda: all(self.has_said(worker, Wired(1, epoch)) for worker in workers))
        known = tuple([Holding(sequence, 0, len(tokens)) for sequence, tokens in self.tokens.items()])
        self._deliver(workers[-1], HEAD, Lane.CONTROL, Resume(1, epoch, known))
        self._frames[epoch] = 0

    @staticmethod
    def _peer(worker: int, link: bytes, *, dials: bool) -> Peer:
        return Peer(worker, "tcp://127.0.0.1:1", bytes(32), link, dials, None)

    def open(self, sequence: int, prompt: list[int]) -> None:
        self.tokens[sequence] = list(prompt)
        self._prompts[sequence] = len(prompt)

    async def go(self, first: int, epoch: int, sequence: int, count: int, *, since: int = -1, generation: int = 0) -> None:
        """``count`` tokens more through the stages of ``epoch``, the first of which is worker ``first``.

        Args:
            since: the first position that is said (to a stage that holds no more); by default the last known token's, or the
                prompt's.
        """
        tokens = self.tokens[sequence]
        for _ in range(count):
            known = len(tokens)
            start = since if since >= 0 else 0 if known == self._prompts[sequence] else known - 1
            since = -1
            rows = b"".join(token.to_bytes(4, "little") for token in tokens[start:])
            opening = Opening(self._prompts[sequence], SAMPLING, 1000, (), (), None, None) if start == 0 else None
            item = Item(sequence, generation, Kind.DECODE, start, rows, 1, opening, None)
            frame = self._frames[epoch]
            self._frames[epoch] += 1
            self._deliver(first, HEAD, Lane.CONTROL, Forward(1, epoch, frame, frame, Lane.CONTROL, Priority.NOW, (item,)))
            await self.until(lambda known=known: len(tokens) > known)  # type: ignore[misc]


@asynccontextmanager
async def ring(num_workers: int, model: str = "demo", **config: Any) -> AsyncIterator[Ring]:
    """Args: as :class:`WorkerConfig`, of each worker."""
    made = Ring(describe(model), num_workers, **config)
    try:
        yield made
    finally:
        for stages in made.stages.values():
            stages.close()
