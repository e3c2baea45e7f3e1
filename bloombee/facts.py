"""What can be known of a swarm that runs: one half of the embedding API, for :class:`~bloombee.runtime.Runtime`."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from bloombee.errors import RuntimeClosed
from bloombee.links.estimator import LinkFacts
from bloombee.loop_thread import LoopThread
from bloombee.models.card import ModelCard
from bloombee.plan.plan import Plan
from bloombee.plan.profile import Profile
from bloombee.plan.topology import Topology
from bloombee.roles.head import HeadRole
from bloombee.roles.status import SwarmStatus
from bloombee.roles.status_of import state_of_swarm, status_of
from bloombee.types import StageUse, SwarmEvent, WorkerId

T = TypeVar("T")


class Facts:
    """Of a swarm whose head lives on a loop and a thread of its own. Everything raises RuntimeClosed before it has begun."""

    _home: LoopThread | None
    _head: HeadRole

    def _started(self) -> HeadRole:
        if not hasattr(self, "_head"):
            raise RuntimeClosed("the Runtime has not been started: use 'async with bloombee.Runtime(...)'")
        return self._head

    async def _there(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._home is None:
            coroutine.close()
            raise RuntimeClosed("the Runtime has not been started: use 'async with bloombee.Runtime(...)'")
        return await asyncio.wrap_future(self._home.run(coroutine))

    @property
    def plan(self) -> Plan:
        """Who runs what. Raises RuntimeClosed before the pipeline is up."""
        plan = self._started().plan
        if plan is None:
            raise RuntimeClosed("the pipeline is not up yet")
        return plan

    @property
    def card(self) -> ModelCard:
        """Facts of the model."""
        return self._started().card

    def spelled(self, token_id: int) -> bytes:
        """What a token stands for in the middle of a text: part of a character, perhaps; nothing where there is no such token."""
        return self._started().desk.spelled(token_id)

    @property
    def join_tokens(self) -> tuple[str, ...]:
        """One a worker that was awaited at the start; for ``bloombee worker --join``. More: :meth:`Runtime.issue_token`."""
        return self._started().join_tokens

    @property
    def join_token(self) -> str:
        """The first of :attr:`join_tokens`."""
        return self.join_tokens[0]

    @property
    def profile(self) -> Profile | None:
        """How fast the model's layers are on this machine; None unless ``profile=True`` was asked for and local workers run."""
        return self._started().profile

    @property
    def links(self) -> dict[tuple[WorkerId, WorkerId], LinkFacts]:
        """(from, to) -> what the ring's own frames have told of each link: round trip, bandwidth and its lower bound.

        Worker 0 is the head. Workers report twice a second while there is news; empty before the pipeline is up.
        """
        return self._started().observatory.links

    @property
    def profiles(self) -> dict[WorkerId, Profile]:
        """How fast each worker, here or elsewhere, says that it runs the model's layers.

        Known a moment after the start where a worker has measured this model before; else once it has been idle for a second.
        """
        return dict(self._started().observatory.profiles)

    @property
    def topology(self) -> Topology:
        """:attr:`profiles` and :attr:`links` as the cost model takes them (``bloombee.plan.cost.evaluate``)."""
        return self._started().observatory.topology

    @property
    def is_settled(self) -> bool:
        """Whether how many microbatches are under way has been measured under the present load and found right.

        Takes some seconds of steady decode; with a fixed number there is nothing to find.
        """
        return self._started().helm.core.is_settled

    @property
    def state(self) -> str:
        """``waiting`` (for workers), ``loading``, ``up``, ``recovering`` or ``down``: :meth:`status` in a word, at once."""
        return state_of_swarm(self._started())

    async def status(self) -> SwarmStatus:
        """Workers, links, plan, requests and what has been served: what ``bloombee status`` shows, as it is now.

        Raises RuntimeClosed while the model is being looked at.
        """
        return await self._there(self._status())

    async def _status(self) -> SwarmStatus:
        return status_of(self._started())

    @property
    def num_requests(self) -> int:
        """Requests that are waiting or running."""
        return len(self._started().desk)

    @property
    def worker_pids(self) -> dict[WorkerId, int]:
        """Process ids of the workers that were started here and live."""
        head = self._started()
        pids = {name: pid for pid, name in head.local.processes.items()}
        return {worker: pids[name] for worker in head.members if (name := head.members.name(worker)) in pids}

    async def events(self) -> AsyncGenerator[SwarmEvent, None]:
        """What happened in the swarm so far (the last thousand events), and what happens from now on, until it is closed.

        What was chosen is among it, with the lines of the decision log. Of a Runtime that has been closed: what is kept.

        Cancelled: nothing is left behind.
        """
        caller, arrived = asyncio.get_running_loop(), asyncio.Event()
        waiting: collections.deque[SwarmEvent | None] = collections.deque()

        def take(event: SwarmEvent | None) -> None:
            waiting.append(event)
            with contextlib.suppress(RuntimeError):  # the caller's loop has ended
                caller.call_soon_threadsafe(arrived.set)

        bulletin, home = self._started().bulletin, self._home
        assert home is not None
        if not home.soon(bulletin.listen, take):
            bulletin.listen(take)  # its owner has ended, after its last word
        try:
            while True:
                while waiting:
                    event = waiting.popleft()
                    if event is None:
                        return
                    yield event
                await arrived.wait()
                arrived.clear()
        finally:
            home.soon(bulletin.leave, take)

    async def pages_free(self) -> tuple[int, ...]:
        """Free KV pages of every stage, asked now; all of them when nothing runs."""
        return tuple(stage.pages_free for stage in await self._there(self._started().helm.measure()))

    async def stage_use(self) -> tuple[StageUse, ...]:
        """What the device of every stage has done since it was loaded, asked now."""
        return tuple(stage.use for stage in await self._there(self._started().helm.measure()))

    @property
    def codec_choices(self) -> dict[tuple[WorkerId, WorkerId], str]:
        """(from, to) -> whether one row's activations are compressed on that link now, and why; for people."""
        return {link: choice for link, choice in self._started().observatory.codec_choices.items() if choice}
