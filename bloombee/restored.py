"""What a head before this one has left: its requests and the application's notes. One half of the embedding API."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

from bloombee.channel import Begin, Channel, Collected, tokens_of
from bloombee.errors import ConfigError
from bloombee.facts import Facts
from bloombee.quote import quoted
from bloombee.roles.head import HeadRole
from bloombee.types import Generation, RunningRequest, SamplingParams, Token
from bloombee.utf8 import surrogate_at

MOST_NOTE_BYTES = 1 << 26
"""Of a name and its value."""
T = TypeVar("T")


class Restored(Facts):
    """Of a swarm whose head may go on where another has ended (``state``), for :class:`~bloombee.runtime.Runtime`."""

    @property
    def running(self) -> tuple[RunningRequest, ...]:
        """Requests of the head before this one, with which this one goes on (``state``), in the order in which they were made.

        Each until :meth:`resume` has come to its end.
        """
        return tuple(backlog.told() for backlog in list(self._started().desk.restored.values()))

    async def resume(self, id: int, *, from_token: int = 0) -> AsyncGenerator[Token, None]:
        """Tokens of one of :attr:`running` from a token on, those that are there at once and the others as they come.

        It may have fewer tokens than the head before gave out in its last moments: those come again, the same.

        Cancelled, or the iteration left early: as of :meth:`stream`, the request ends.

        Raises:
            ConfigError: no such request, one that is read already, or one that has ended with fewer tokens.
            BloomBeeError: as :meth:`generate`.
        """
        for name, value in (("id", id), ("from_token", from_token)):
            if type(value) is not int:
                raise ConfigError(f"{name} = {quoted(value)}: must be a whole number from 0", field=name)

        async def begin(head: HeadRole, number: int, channel: Channel) -> None:
            head.desk.read(number, channel, from_token)

        async with contextlib.aclosing(self._requested(id, begin)) as tokens:
            async for token in tokens:
                yield token

    async def rest(self, id: int, params: SamplingParams) -> Generation:
        """All of one of :attr:`running` once it has ended, as of :meth:`generate`; ``params`` say whether log-probabilities are
        wanted. Raises and cancelled as :meth:`resume`."""
        asked = next((one for one in self.running if one.id == id), None)
        collected = Collected()
        collected.opened(() if asked is None else asked.prompt_token_ids)
        async with contextlib.aclosing(self.resume(id)) as tokens:
            async for token in tokens:
                collected.add(token)
        return collected.generation(params)

    @property
    def notes(self) -> dict[str, bytes]:
        """What was noted and is still to be known, by heads before this one too (``state``)."""
        return dict(self._started().state.notes)

    def note(self, name: str, value: bytes | None) -> None:
        """Keep something of the application's own beside its requests; None: no longer. In the order of calls; does not wait.
        Raises ConfigError: the name is no text, or the value neither bytes nor None, or too large to be kept."""
        _check_note(name, value)
        if self._home is not None:
            self._home.soon(self._started().state.note, name, value)

    def _requested(
        self, number: int, begin: Begin[T], begun: Callable[[T], None] = lambda begun: None
    ) -> AsyncGenerator[Token, None]:
        """As :func:`~bloombee.channel.tokens_of`, of this swarm's head. Raises RuntimeClosed."""
        head = self._started()
        assert self._home is not None
        return tokens_of(number, self._home, head, begin, begun)


def _check_note(name: object, value: object) -> None:
    if not isinstance(name, str) or surrogate_at(name) is not None:
        raise ConfigError(f"note {quoted(name)}: its name must be text", field="name")
    if not (value is None or isinstance(value, bytes)) or len(name) + len(value or b"") > MOST_NOTE_BYTES:
        raise ConfigError(f"note {quoted(name)}: its value must be at most {MOST_NOTE_BYTES} bytes, or None", field="value")
