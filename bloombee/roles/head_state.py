"""What of a head outlives its process: everything, where it has a directory for that (``roles/state_dir.py``), else nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

from bloombee.config import RuntimeConfig
from bloombee.errors import ConfigError
from bloombee.pipeline.journal import Issued, Journal, Listened, Noted, Planned, Record, Served
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
        self._secrets = iter(self.journal.secrets)

    @property
    def returns(self) -> bool:
        """Whether a head after this one goes on where it ends."""
        return self._directory is not None

    def put(self, record: Record) -> None:
        """Something happened."""
        if self._directory is not None:
            self._directory.put(record)

    def close(self) -> None:
        """Write what was put. Blocks."""
        if self._directory is not None:
            self._directory.close()

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
                    f"{self._directory.path}: the last {num_cut} bytes of the journal were not written to their end, and are cut"
                )
        self.put(Listened(self._config.listen, bound))

    def secrets(self, new: Callable[[], bytes]) -> Iterator[bytes]:
        """Of join tokens: those of the heads before, then ``new`` ones."""
        yield from self._secrets
        while True:
            secret = new()
            self.put(Issued(secret))
            yield secret

    # -- what it serves --------------------------------------------------------------------

    def serves(self, request: PlanRequest) -> PlanRequest:
        """A plan is to be made: with that of the head before, if it was for the same.

        Raises:
            ConfigError: the model is another than that of the head before.
        """
        card = request.card
        before = self.journal.served
        if before is not None and before.digest != card.config_digest:
            model = json.loads(before.card)["model"]
            raise ConfigError(
                f"state: {self._config.state} is of a head of another model than {card.model}: it had {model}; give that one, or"
                " name another directory",
                field="state",
            )
        if before is None:
            self.put(Served(card.config_digest, json.dumps(card.to_json()).encode()))
        planned = self.journal.planned
        is_same = request.takes_others and planned is not None and planned.asked == wishes(request)
        return replace(request, before=planned if is_same else None)

    def planned(self, plan: Plan, keys: dict[WorkerId, bytes], request: PlanRequest) -> None:
        """Who runs what from now on."""
        self.put(Planned.of(plan, keys, wishes(request)))

    def note(self, name: str, value: bytes | None) -> None:
        """Keep something of the application's under ``name``; None: no longer."""
        if value is None:
            self.notes.pop(name, None)
        else:
            self.notes[name] = value
        self.put(Noted(name, value))
