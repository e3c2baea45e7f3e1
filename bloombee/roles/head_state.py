"""What of a head outlives its process: everything, where it has a directory for that (``roles/state_dir.py``), else nothing."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from bloombee.config import RuntimeConfig
from bloombee.errors import BloomBeeError, ConfigError
from bloombee.models.card import ModelCard
from bloombee.pipeline.journal import Journal, Listened, Noted, Planned, Record, Served
from bloombee.pipeline.swarm.planning import PlanRequest, wishes
from bloombee.plan.plan import Plan
from bloombee.roles.state_dir import StateDir
from bloombee.transport.keys import generate
from bloombee.types import WorkerId

log = logging.getLogger(__name__)


class HeadState:
    """Of one head, from its making until :meth:`close`.

    Args:
        config: ``state`` names the directory.

    Raises:
        ConfigError: as :class:`~bloombee.roles.state_dir.StateDir`.
    """

    def __init__(self, config: RuntimeConfig) -> None:
        self._directory = None if config.state is None else StateDir(config.state)
        self._config = config
        self.journal = Journal() if self._directory is None else self._directory.journal
        """What the heads before this one have left; not what happens now."""
        self.keys = generate() if self._directory is None else self._directory.keys
        self.notes = dict(self.journal.notes)
        """The application's, as they are now."""
        self._looking: asyncio.Task[None] | None = None

    @property
    def returns(self) -> bool:
        """Whether a head after this one goes on where it ends."""
        return self._directory is not None

    def put(self, record: Record) -> None:
        """Something happened."""
        if self._directory is not None:
            self._directory.put(record)

    async def close(self) -> None:
        """Write what was put, and look at nothing any more."""
        if self._looking is not None:
            self._looking.cancel()
        if self._directory is not None:
            await asyncio.to_thread(self._directory.close)

    # -- who and where the head is ---------------------------------------------------------

    @property
    def listen(self) -> str:
        """Where to: as asked, or, if the head before was asked the same, where that did."""
        before = self.journal.listened
        return before.bound if before is not None and before.wanted == self._config.listen else self._config.listen

    def listens(self, bound: str, tell: Callable[[str], object]) -> None:
        """It does. ``tell``, from any thread, what is not kept, and when everything is again; of a tail that was cut at once."""
        if self._directory is not None:
            self._directory.on_trouble(tell)
            if num_cut := self._directory.num_cut:
                tell(
                    f"{self._directory.path}: the last {num_cut} bytes of the journal were not written to their end, or are"
                    " damaged: they are cut, and kept in journal.cut if there was room"
                )
            if num_damaged := self._directory.num_damaged:
                tell(
                    f"{self._directory.path}: {num_damaged} bytes within the journal are damaged, and it goes on without them: a"
                    " request may be missing; the file as it was is kept in journal.cut if there was room"
                )
        self.put(Listened(self._config.listen, bound))

    # -- what it serves --------------------------------------------------------------------

    async def describe(self, look: Callable[[], Awaitable[ModelCard]], failed: Callable[[BloomBeeError], None]) -> ModelCard:
        """The model: as the head before had it, where its workers may be waiting already, and looked at meanwhile.

        Args:
            look: takes seconds. failed: told if the model is another by now.
        """
        before = self._card_before()
        if before is None or before.model != self._config.model or not self._config.remote_workers:
            return await look()
        self._looking = asyncio.create_task(self._look(look, before, failed))
        return before

    @property
    def has_other_name(self) -> bool:
        """The head before called its model otherwise: whether it is another is known once that has been looked at."""
        before = self._card_before()
        return before is not None and before.model != self._config.model

    def _card_before(self) -> ModelCard | None:
        """None: there was no head before, or it was of a release with other cards."""
        served = self.journal.served
        try:
            return None if served is None else ModelCard.from_json(json.loads(served.card))
        except (TypeError, KeyError, ValueError):
            return None

    async def _look(
        self, look: Callable[[], Awaitable[ModelCard]], before: ModelCard, failed: Callable[[BloomBeeError], None]
    ) -> None:
        try:
            self._check(await look(), before.config_digest, before.weight_digests, before.model)
        except ConfigError as error:
            failed(error)
        except BloomBeeError as error:  # workers have the model, and this process has its card
            log.warning("%s could not be looked at again: %s", before.model, error.message)

    def _check(self, card: ModelCard, digest: str, weights: Sequence[str], model: str) -> None:
        if (card.config_digest, tuple(card.weight_digests)) != (digest, tuple(weights)):
            raise ConfigError(
                f"state: {self._config.state} is of a head of another model than {card.model} is now: it had {model}; give that"
                " one, or name another directory",
                field="state",
            )

    def serves(self, request: PlanRequest) -> PlanRequest:
        """A plan is to be made: with that of the head before, if it was for the same.

        Raises:
            ConfigError: the model is another than that of the head before.
        """
        card, before = request.card, self.journal.served
        if before is not None:
            known = json.loads(before.card)
            self._check(card, before.digest, known["weight_digests"], known["model"])
        now = Served(card.config_digest, json.dumps(card.to_json()).encode())
        if now != before:
            self.put(now)
        planned = self.journal.planned
        is_same = request.takes_others and planned is not None and planned.asked == wishes(request)
        return replace(request, before=planned if is_same else None)

    def planned(self, plan: Plan, keys: dict[WorkerId, bytes], request: PlanRequest) -> None:
        """Who runs what from now on; of workers that are not all in there is nothing to come back to."""
        if all(stage.worker in keys for stage in plan.stages):
            self.put(Planned.of(plan, keys, wishes(request)))

    def note(self, name: str, value: bytes | None) -> None:
        """Keep something of the application's under ``name``; None: no longer."""
        if value is None:
            self.notes.pop(name, None)
        else:
            self.notes[name] = value
        self.put(Noted(name, value))
