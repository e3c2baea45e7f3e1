"""Requests that go on under another head: what is kept of them, and who reads them then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bloombee.errors import BloomBeeError, ConfigError, DeviceError, RuntimeClosed
from bloombee.grammar import Constraints
from bloombee.pipeline.commands import Command, Conclude, Deliver, TellScheduler
from bloombee.pipeline.events import Cancel, Emitted, Open
from bloombee.pipeline.journal import Journal, Record
from bloombee.roles.desk import Desk
from bloombee.sim.cluster import sim_card
from bloombee.types import FinishReason, SamplingParams, Token
from bloombee.wire.messages import Pick

PARAMS = SamplingParams(temperature=0.8, seed=3, max_new_tokens=4, logprobs=1)

BIASED = Constraints(biases=((3, 2.0),))


class Reader:
    """A sink."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.ends: list[BloomBeeError | None] = []

    def token(self, token: Token) -> None:
        self.tokens.append(token)

    def end(self, error: BloomBeeError | None) -> None:
        self.ends.append(error)

    @property
    def ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]


class Head:
    """A desk, what its scheduler was told, and the journal of all that it keeps."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.told: list[Any] = []
        self.desk = Desk(8, self._do, self._keep)
        self.desk.open(sim_card((0,) * 4), 32)

    def _keep(self, record: Record) -> None:
        self.journal.take(record)

    def _do(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case TellScheduler(message=message):
                    self.told.append(message)
                case Deliver():
                    self.desk.deliver(command)
                case Conclude(request=number, error=error):
                    self.desk.conclude(number, error)

    def picks(self, token: int, position: int, finish: FinishReason | None = None) -> None:
        """The scheduler says so of the sequence that was opened last."""
        sequence = [message.sequence for message in self.told if isinstance(message, Open)][-1]
        self.desk.told(Emitted(Pick(sequence, 0, position, token, -0.5, ((token, -0.5),)), finish))

    async def next(self) -> Head:
        """Another one, which goes on where this one has come to."""
        after = Head()
        after.journal = self.journal
        await after.desk.restore(self.journal.requests)
        return after


def _run(use: Callable[[Head], Any]) -> None:
    async def main() -> None:
        await use(Head())

    asyncio.run(main())


async def _asked(head: Head) -> Reader:
    reader = Reader()
    assert await head.desk.submit(7, [5, 6], PARAMS, reader, BIASED, client="me", priority=1) == (5, 6)
    head.picks(11, 2)
    head.picks(12, 3)
    return reader


def test_it_goes_on_with_its_tokens_and_settings_and_whoever_comes_reads_all() -> None:
    async def use(head: Head) -> None:
        first = await _asked(head)
        after = await head.next()
        (begun,) = head.told
        (again,) = after.told
        assert (again.prompt, again.sampling, again.max_new_tokens) == (begun.prompt, begun.sampling, 4)
        assert (again.client, again.priority, again.biases) == ("me", 1, BIASED.biases)
        assert again.output == b"\x0b\0\0\0\x0c\0\0\0"
        after.picks(13, 4)
        (running,) = [backlog.told() for backlog in after.desk.restored.values()]
        assert (running.id, running.prompt_token_ids, running.client, running.num_tokens) == (7, (5, 6), "me", 3)
        reader = Reader()
        assert after.desk.read(7, reader, 0) == (5, 6)
        assert reader.tokens[:2] == first.tokens
        after.picks(14, 5, FinishReason.LENGTH)
        assert reader.ids == [11, 12, 13, 14]
        assert (reader.tokens[-1].finish_reason, reader.tokens[-1].top_logprobs) == (FinishReason.LENGTH, ((14, -0.5),))
        assert reader.ends == [None]
        assert list((await after.next()).desk.restored) == [7]  # its end has been told, and not taken
        after.desk.cancel(7, reader)
        assert (await after.next()).desk.restored == {}

    _run(use)


def test_a_reader_may_begin_at_any_token_that_is_there() -> None:
    async def use(head: Head) -> None:
        await _asked(head)
        after = await head.next()
        with pytest.raises(ConfigError, match=r"from_token = -1: must be a whole number from 0; request 7 has 2 tokens"):
            after.desk.read(7, Reader(), -1)
        reader, late = Reader(), Reader()
        after.desk.read(7, reader, 2)
        with pytest.raises(ConfigError, match="request 7 is being read already"):
            after.desk.read(7, late, 0)
        after.desk.cancel(7, late)  # which is not its reader
        after.picks(13, 4)
        assert reader.ids == [13]
        with pytest.raises(ConfigError, match=r"request 8 does not go on .*: 7"):
            after.desk.read(8, late, 0)

    _run(use)


def test_what_was_given_and_not_written_down_comes_again_and_is_passed_over() -> None:
    async def use(head: Head) -> None:
        await _asked(head)
        after = await head.next()
        reader = Reader()
        after.desk.read(7, reader, 3)
        after.picks(13, 4)
        assert reader.ids == []
        after.picks(14, 5, FinishReason.LENGTH)
        assert (reader.ids, reader.ends) == ([14], [None])
        with pytest.raises(ConfigError, match=r"from_token = 5: .* request 7 has 4 tokens"):
            (await after.next()).desk.read(7, Reader(), 5)

    _run(use)


def test_whoever_stops_reading_ends_it() -> None:
    async def use(head: Head) -> None:
        await _asked(head)
        after = await head.next()
        reader = Reader()
        after.desk.read(7, reader, 0)
        after.desk.cancel(7, reader)
        assert isinstance(after.told[-1], Cancel)
        assert (await after.next()).told == []

    _run(use)


def test_an_end_that_nobody_has_read_is_there_and_nothing_is_computed_again() -> None:
    async def use(head: Head) -> None:
        await _asked(head)
        head.picks(2, 4, FinishReason.STOP)
        after = await head.next()
        assert after.told == []
        (running,) = [backlog.told() for backlog in after.desk.restored.values()]
        assert running.has_ended
        reader = Reader()
        after.desk.read(7, reader, 1)
        assert (reader.ids, reader.ends) == ([12, 2], [None])
        assert reader.tokens[-1].finish_reason is FinishReason.STOP

    _run(use)


def test_what_was_cancelled_or_has_failed_does_not_go_on_once_whoever_asked_knows() -> None:
    async def use(head: Head) -> None:
        reader = await _asked(head)
        head.desk.conclude(7, DeviceError("x"))
        assert isinstance(reader.ends[0], DeviceError)
        assert list((await head.next()).desk.restored) == [7]  # perhaps it was never told
        head.desk.cancel(7, reader)
        assert (await head.next()).desk.restored == {}

    _run(use)


def test_a_head_that_closes_leaves_its_requests_to_the_next() -> None:
    async def use(head: Head) -> None:
        reader = await _asked(head)
        head.desk.close(RuntimeClosed("the Runtime was closed"))
        head.desk.cancel(7, reader)  # as whoever asked does then
        assert list((await head.next()).desk.restored) == [7]

    _run(use)
