"""The embedding API: a swarm behind an async context manager. ``sync.py`` has the blocking face.

The Runtime's transport and cores run on an event loop and a thread of their own; calls cross with
``call_soon_threadsafe``, tokens come back the same way. So the caller's loop, of whatever kind, is never blocked,
and a caller that blocks its loop costs the swarm nothing. No policy, signal handler or other
global state is touched; several Runtimes live side by side.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from typing import Any

from bloombee.channel import Channel, Collected
from bloombee.config import LocalWorker, RuntimeConfig, merge, socket_folders
from bloombee.errors import ConfigError
from bloombee.grammar import Constraints
from bloombee.loop_thread import LoopThread
from bloombee.plan.plan import Plan
from bloombee.quote import quoted
from bloombee.restored import Restored
from bloombee.roles.head import HeadRole
from bloombee.roles.prompts import Chat as Chat
from bloombee.roles.prompts import Prompt
from bloombee.roles.reception import Reception
from bloombee.roles.told import told_by
from bloombee.sync import SyncRuntime
from bloombee.transport.descriptors import require_descriptors
from bloombee.types import Generation, LoadProgress, SamplingParams, Token
from bloombee.utf8 import surrogate_at


class Runtime(Restored):
    """One model over a swarm of workers.

    ::

        async with bloombee.Runtime("demo", workers=3) as rt:
            print((await rt.generate("def add(a, b):", max_new_tokens=32)).text)
            async for token in rt.stream("import ", temperature=0.8, seed=7):
                print(token.text, end="")

    Args:
        model: a checkpoint's directory, a hub id, or ``demo``.
        config: settings to start from; the keyword arguments are laid over it.
        local_workers: where each worker that is started here listens and reaches the head, if not plainly on loopback;
            one a worker, in the order of the stages.
        on_progress: called with :class:`~bloombee.types.LoadProgress` while workers join and load, on the Runtime's
            own thread: it must be quick and thread-safe.
        fields: any field of :class:`~bloombee.config.RuntimeConfig`, for example ``workers``, ``split``, ``dtype``.

    Raises:
        ConfigError: a field that does not exist or a value that is not allowed.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        config: RuntimeConfig | None = None,
        local_workers: Sequence[LocalWorker] = (),
        on_progress: Callable[[LoadProgress], None] | None = None,
        **fields: Any,
    ) -> None:
        if model is not None:
            fields["model"] = model
        if on_progress is not None and not callable(on_progress):
            raise ConfigError(f"on_progress = {quoted(on_progress)}: must be a function of one LoadProgress", field="on_progress")
        self.config = merge(config or RuntimeConfig(), fields)
        self._local_workers = _places(local_workers)
        self._on_progress = on_progress
        self._home: LoopThread | None = None
        self._closing: concurrent.futures.Future[None] | None = None
        self._numbers = itertools.count(1)

    # -- life ------------------------------------------------------------------------------

    async def __aenter__(self) -> Runtime:
        """Start the swarm and wait until it can generate.

        Cancelled or failed: everything that was started is ended before the exception leaves.

        Raises:
            ConfigError, ModelUnsupported, AddressInUse, CapacityError, Infeasible, DeviceError, TransportError: see errors.py.
        """
        await self.prepare()
        try:
            await self.ready()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def prepare(self, *, announce: Callable[[tuple[str, ...]], None] | None = None) -> None:
        """First half of starting: listen, make the join tokens, look at the model; no worker is started.

        For heads of remote workers, who need :attr:`join_tokens` before :meth:`ready` can return.

        Args:
            announce: called with the join tokens as soon as the head listens, and knows that ``state`` is not of another model.

        Cancelled or failed: everything that was started is ended.

        Raises:
            CapacityError: this process may open too few files.
        """
        if self._home is not None:
            raise ConfigError("this Runtime has been started before; make a new one")
        require_descriptors(self.config.num_workers)
        self._home = LoopThread("bloombee-runtime")
        try:
            await self._there(self._listen())
            looks_first = self._head.state.has_other_name
            if announce is not None and not looks_first:
                announce(self.join_tokens)
            await self._there(self._head.describe())
            if announce is not None and looks_first:
                announce(self.join_tokens)
        except BaseException:
            await self.close()
            raise

    async def ready(self) -> None:
        """Second half: start the local workers or await the remote ones; returns when the pipeline is up.

        Cancelled: remote workers may be awaited again.

        Raises:
            RuntimeClosed: there was no :meth:`prepare`; ConfigError: the local workers have been started before.
        """
        await self._there(self._started().start_workers())

    async def issue_token(self) -> str:
        """A join token for one more worker, at any time: it becomes a spare, or takes the place of one that is awaited.

        It lets in another when that worker is lost. Those of :attr:`join_tokens` do the same.
        """
        return await self._there(self._issue())

    async def _issue(self) -> str:
        return self._head.front_door.issue()

    async def replan(self, workers: Collection[int] | None = None, *, reason: str = "asked for") -> Plan:
        """Have the best plan of ``workers`` (by their ids; None: of all that are in and are to stay) run, while requests go on:
        workers load what they lack, get what sequences hold, and take over when they have it. Returns the plan that runs when
        nothing of the one before is left; where that is the best there is, at once.

        Cancelled: what has begun goes on.

        Raises:
            ConfigError: ``workers`` are no ids. PlanError, Infeasible: there is no such plan, or it cannot be taken over now.
            BloomBeeError: what kept it from being taken over; requests go on as before.
        """
        _check_wanted(workers, reason)
        return await self._there(self._started().replanner.replan(workers, reason))

    async def close(self) -> None:
        """End the swarm; running requests fail with RuntimeClosed. Closing twice changes nothing.

        Cancelled: the end goes on in the Runtime's thread.
        """
        home = self._home
        if home is None:
            return
        if not hasattr(self, "_head"):
            home.end()
            return
        if self._closing is None:
            self._closing = home.run(self._end())
            self._closing.add_done_callback(lambda _: home.end())
        await asyncio.shield(asyncio.wrap_future(self._closing))

    async def _listen(self) -> None:
        self._head = HeadRole(self.config, local_workers=self._local_workers, on_progress=self._on_progress)
        self._reception = Reception(told_by(self._head))
        self._numbers = itertools.count(self._head.state.journal.next_request)
        await self._head.listen()
        if self.config.control_socket:
            self._reception.open(socket_folders())

    async def _end(self) -> None:
        await self._reception.close()
        await self._head.close()

    # -- requests --------------------------------------------------------------------------

    async def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, *, client: str = "", priority: int = 0, **fields: Any
    ) -> Generation:
        """The whole answer to ``prompt``.

        Args:
            params: how to sample; ``fields`` are laid over it (``max_new_tokens=64, ...``). Besides: ``grammar``, a
                :class:`bloombee.Grammar` that the answer obeys, and ``logit_bias``, what is added to logits, by token id.
            client: whose request it is; turns are shared out fairly between clients, and a client that is named leaves some
                KV memory to others.
            priority: higher goes first.

        Cancelled: the request ends and its KV is freed on every stage.

        Raises:
            ConfigError: an empty or over-long prompt, a bad parameter, no chat template, an unsound grammar.
            GrammarFailed, QueueFull, Infeasible, LinkDown, DeadlineExceeded, DeviceError, RuntimeClosed: see errors.py.
        """
        asked = _asked(prompt, params, fields, client, priority)
        collected = Collected()
        async with contextlib.aclosing(self._tokens(asked, collected.opened)) as tokens:
            async for token in tokens:
                collected.add(token)
        return collected.generation(asked.params)

    async def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        client: str = "",
        priority: int = 0,
        on_prompt: Callable[[tuple[int, ...]], None] = lambda token_ids: None,
        **fields: Any,
    ) -> AsyncGenerator[Token, None]:
        """Tokens as they come; the last has a ``finish_reason``. Arguments and errors as :meth:`generate`.

        Args:
            on_prompt: called with the token ids of ``prompt`` before the first token comes.

        Cancelled, or the iteration left early: the request ends and its KV is freed on every stage.
        """
        asked = _asked(prompt, params, fields, client, priority)
        async with contextlib.aclosing(self._tokens(asked, on_prompt)) as tokens:
            async for token in tokens:
                yield token

    def _tokens(self, asked: _Asked, opened: Callable[[tuple[int, ...]], None]) -> AsyncGenerator[Token, None]:
        """``opened`` is called with the token ids of the prompt before the first token comes."""

        async def begin(head: HeadRole, number: int, channel: Channel) -> tuple[int, ...]:
            return await head.desk.submit(
                number, asked.prompt, asked.params, channel, asked.constraints, client=asked.client, priority=asked.priority
            )

        self._started()
        return self._requested(next(self._numbers), begin, opened)

    # -- the synchronous face --------------------------------------------------------------

    @classmethod
    def sync(cls, model: str | None = None, **arguments: Any) -> SyncRuntime:
        """The same for scripts: ``with bloombee.Runtime.sync("demo") as rt: rt.generate(...)``."""
        return SyncRuntime(cls(model, **arguments))


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """A request as a caller makes it."""

    prompt: Prompt
    params: SamplingParams
    constraints: Constraints
    client: str
    priority: int


def _places(local_workers: Sequence[LocalWorker]) -> tuple[LocalWorker, ...]:
    if isinstance(local_workers, (list, tuple)) and all(isinstance(place, LocalWorker) for place in local_workers):
        return tuple(local_workers)
    raise ConfigError(
        f"local_workers = {quoted(local_workers)}: must be a list of LocalWorker, one a worker", field="local_workers"
    )


def _check_sender(client: object, priority: object) -> None:
    if not isinstance(client, str):
        raise ConfigError(f"client = {quoted(client)}: must be text", field="client")
    if type(priority) is not int or abs(priority) > 1 << 31:
        raise ConfigError(f"priority = {quoted(priority)}: must be a whole number from -2**31 to 2**31", field="priority")
    if (at := surrogate_at(client)) is not None:
        raise ConfigError(f"client has a lone surrogate at character {at}: not text", field="client")


def _check_wanted(workers: object, reason: object) -> None:
    if not isinstance(reason, str):
        raise ConfigError(f"reason = {quoted(reason)}: must be text", field="reason")
    if workers is None or (isinstance(workers, Collection) and all(type(worker) is int for worker in workers)):
        return
    raise ConfigError(f"workers = {quoted(workers)}: must be the ids of workers, or None", field="workers")


def _asked(prompt: Prompt, params: SamplingParams | None, fields: dict[str, Any], client: str, priority: int) -> _Asked:
    constraints = Constraints.of(fields.pop("grammar", None), fields.pop("logit_bias", None))
    _check_sender(client, priority)
    return _Asked(prompt, _params(params, fields), constraints, client, priority)


def _params(params: SamplingParams | None, fields: dict[str, Any]) -> SamplingParams:
    if params is not None and not isinstance(params, SamplingParams):
        raise ConfigError(f"params of type {type(params).__name__}: must be SamplingParams", field="params")
    known = {field.name for field in dataclasses.fields(SamplingParams)}
    for name in fields:
        if name not in known:
            raise ConfigError(f"{name}: no such sampling parameter; there are {', '.join(sorted(known))}", field=name)
    try:
        return dataclasses.replace(params or SamplingParams(), **fields)
    except ValueError as error:
        raise ConfigError(str(error)) from None
