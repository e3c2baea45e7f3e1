"""The application's requests: read, checked, begun, delivered and ended, each apart from the others."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping

from bloombee.config import DEFAULT_NEW_TOKENS
from bloombee.errors import BloomBeeError, ConfigError, RuntimeClosed
from bloombee.grammar import UNBOUND, Constraints
from bloombee.models.card import ModelCard
from bloombee.pipeline.commands import Command, Deliver
from bloombee.pipeline.events import CancelRequest, Emitted, Ended, SchedulerBegan, SchedulerSaid, Submit, SwarmLost
from bloombee.pipeline.journal import Asked, Kept, Record, Taken
from bloombee.pipeline.requests import Request, RequestCore
from bloombee.plan.plan import Plan
from bloombee.roles.backlog import Backlog, unpacked
from bloombee.roles.grammars import GrammarCheck
from bloombee.roles.lengths import Lengths
from bloombee.roles.prompts import Prompt, PromptIds, Prompts
from bloombee.roles.requests import Requests, Sink, shown, typed
from bloombee.roles.served import ServedCount
from bloombee.roles.text import TextCodec
from bloombee.types import FinishReason, SamplingParams

log = logging.getLogger(__name__)


class Desk:
    """Of one head; belongs to its loop. Nothing is taken before :meth:`open`.

    Args:
        max_waiting: requests that may be open or waiting at once.
        do: acts on what the requests' core asks for.
        keep: told what a head after this one must know of them.
        answer_tokens: of an answer whose length nobody says, where there is room for so many.
    """

    def __init__(
        self,
        max_waiting: int,
        do: Callable[[list[Command]], None],
        keep: Callable[[Record], None] = lambda record: None,
        answer_tokens: int | None = None,
    ) -> None:
        self._answer_tokens = answer_tokens or DEFAULT_NEW_TOKENS
        self._core = RequestCore(max_waiting)
        self._do = do
        self._keep = keep
        self._requests = Requests(self._free, keep)
        self.restored: dict[int, Backlog] = {}
        """Requests of heads before this one, until their end is taken."""
        self._is_closed = False
        self._prompts: Prompts | None = None
        self._grammars: GrammarCheck
        self._card: ModelCard
        self._lengths: Lengths
        self._text: TextCodec

    def open(self, card: ModelCard, max_rows: int) -> None:
        """The model is known.

        Raises:
            ConfigError: its tokenizer cannot be read.
        """
        for ignored in card.ignored:
            log.warning("%s: %s", card.model, ignored)
        self._card, self._lengths = card, Lengths(card, max_rows, self._answer_tokens)
        self._text = TextCodec(card.tokenizer_json, cleans_up=card.cleans_up, splits_special=card.splits_special)
        self._prompts, self._grammars = Prompts(card, self._text), GrammarCheck(card)

    def spelled(self, token_id: int) -> bytes:
        """What a token stands for in the middle of a text. Callable from any thread, once the model is known."""
        return self._text.spelled(token_id)

    def planned(self, plan: Plan) -> None:
        """From now on what can never fit ``plan`` is refused."""
        self._lengths.plan = plan

    def close(self, error: BloomBeeError) -> None:
        """Every request ends with ``error``; none is taken any more."""
        self._is_closed = True
        if self._prompts is not None:
            self._prompts.close()
            self._grammars.close()
        self.end_all(error)

    def __len__(self) -> int:
        """Requests that are waiting or running."""
        return len(self._requests)

    @property
    def running(self) -> Iterator[tuple[int, Request]]:
        """Requests that are waiting or running, by number."""
        return self._core.running

    @property
    def served(self) -> ServedCount:
        """What has become of requests so far."""
        return self._requests.served

    async def submit(
        self,
        number: int,
        prompt: Prompt,
        params: SamplingParams,
        sink: Sink,
        constraints: Constraints = UNBOUND,
        *,
        client: str = "",
        priority: int = 0,
    ) -> tuple[int, ...]:
        """Start request ``number`` (of the caller's choice, never used before); tokens and the end go to ``sink``.

        Returns:
            The token ids of ``prompt``.

        Raises:
            ConfigError: as :meth:`Prompts.read` and :meth:`GrammarCheck.check`, a prompt that is empty or over-long, a bias of a
                token that there is not.
            Infeasible: it can never fit the KV memory.
            RuntimeClosed: the Runtime was closed.

        Cancelled: the request has not begun, unless this had returned.
        """
        made_at = time.monotonic()
        if self._is_closed or self._prompts is None:
            raise RuntimeClosed("the Runtime was closed" if self._is_closed else "the model is still being looked at")
        read = await self._prompts.read(prompt, functools.partial(self._lengths.check, params))
        await self._check_constraints(constraints, params)
        if self._is_closed:
            raise RuntimeClosed("the Runtime was closed")
        try:
            with typed():
                self._begin(number, read, params, sink, client, priority, made_at, constraints)
        except BloomBeeError:
            self.cancel(number, sink)
            raise
        return read.ids

    async def _check_constraints(self, constraints: Constraints, params: SamplingParams) -> None:
        for token, _ in constraints.biases:
            if token >= self._card.vocab_size:
                raise ConfigError(
                    f"logit_bias of token {token}: the model has 0 to {self._card.vocab_size - 1}", field="logit_bias"
                )
        if constraints.grammar is not None:
            can_end = bool(self._card.eos_token_ids) and not params.ignore_eos
            await self._grammars.check(constraints.grammar.to_wire(), can_end=can_end)

    def _begin(
        self,
        number: int,
        prompt: PromptIds,
        params: SamplingParams,
        sink: Sink,
        client: str,
        priority: int,
        made_at: float,
        constraints: Constraints,
    ) -> None:
        self._lengths.check(params, len(prompt.ids), False)
        asked = self._lengths.ask(params, len(prompt.ids))
        grammar = None if constraints.grammar is None else constraints.grammar.to_wire()
        self._requests.add(number, sink, self._text.stream(asked.stop, prompt.ids), len(prompt.ids), made_at)
        self._keep(
            Asked(
                number,
                prompt.packed,
                asked.sampling,
                asked.max_new_tokens,
                tuple(asked.end_tokens),
                asked.stop,
                client,
                priority,
                asked.max_time_s,
                time.time(),
                constraints.biases,
                grammar,
            )
        )
        event = Submit(
            number,
            prompt.packed,
            asked.sampling,
            asked.max_new_tokens,
            asked.end_tokens,
            time.monotonic(),
            client,
            priority,
            asked.max_time_s,
            biases=constraints.biases,
            grammar=grammar,
        )
        self._do(self._core.handle(event))

    def cancel(self, number: int, sink: Sink) -> None:
        """End a request and free its KV on every stage; nothing more goes to its sink. One that has ended is forgotten.

        One that somebody else reads goes on.
        """
        if number in self.restored and not self.restored[number].is_read_by(sink):
            return
        self._requests.cancel(number)
        if not self._is_closed:  # else whoever asked was not told its end, and the head after this one goes on with it
            self.restored.pop(number, None)
            self._keep(Taken(number))

    async def restore(self, requests: Mapping[int, Kept]) -> None:
        """Go on with requests of the head before, whose tokens wait for whoever comes to :meth:`read` them."""
        for number, kept in requests.items():
            self.restored[number] = backlog = Backlog(kept.asked)
            try:
                with typed():
                    self._restore(number, kept, backlog)
            except BloomBeeError as error:
                backlog.end(error)
            await asyncio.sleep(0)

    def _restore(self, number: int, kept: Kept, backlog: Backlog) -> None:
        asked, now = kept.asked, time.monotonic()
        text = self._text.stream(asked.stop, unpacked(asked.prompt))
        for given in kept.given:
            backlog.token(shown(text, given, FinishReason(given.finish) if given.finish else None))
        if kept.finish is not None:
            backlog.end(None)
            return
        self._requests.add(number, backlog, text)
        left_s = kept.time_left_s(time.time())
        event = Submit(
            number,
            asked.prompt,
            asked.sampling,
            asked.max_new_tokens,
            frozenset(asked.end_tokens),
            now,
            asked.client,
            asked.priority,
            left_s,
            kept.output,
            asked.biases,
            asked.grammar,
        )
        self._do(self._core.handle(event))

    def read(self, number: int, sink: Sink, from_token: int) -> tuple[int, ...]:
        """Everything of a restored request from a token on goes to ``sink``, what is there already at once.

        Returns:
            The token ids of its prompt.

        Raises:
            ConfigError: there is no such request, it has fewer tokens, or it is being read.
        """
        backlog = self.restored.get(number)
        if backlog is None:
            known = ", ".join(map(str, self.restored)) or "none"
            raise ConfigError(f"request {number} does not go on from a head before this one; those that do: {known}", field="id")
        backlog.read(sink, from_token)
        return unpacked(backlog.asked.prompt)

    def _free(self, number: int, is_finished: bool) -> None:
        """A request's KV on every stage, where there still is a pipeline."""
        if not self._is_closed and self._core.error is None:
            self._do(self._core.handle(CancelRequest(number, time.monotonic(), is_finished)))

    # -- what becomes of them --------------------------------------------------------------

    def told(self, message: Emitted | Ended) -> None:
        """Of the scheduler."""
        self._do(self._core.handle(SchedulerSaid(message, time.monotonic())))

    def scheduler_began(self) -> None:
        """Another one, which is to be told of every request."""
        self._do(self._core.handle(SchedulerBegan(time.monotonic())))

    def deliver(self, given_out: Deliver) -> None:
        """A token, to whoever asked."""
        self._requests.deliver(given_out)

    def conclude(self, number: int, error: BloomBeeError | None) -> None:
        """The end without a last token, to whoever asked."""
        self._requests.end(number, error)

    def lost(self, error: BloomBeeError) -> None:
        """No pipeline will run any more."""
        self._do(self._core.handle(SwarmLost(error)))

    def end_all(self, error: BloomBeeError) -> None:
        """Each ends with ``error`` and is freed; others may come."""
        self._requests.end_all(error)
