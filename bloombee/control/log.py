"""The control core's log: its events and its decisions, a line of JSON each.

The events alone make the decisions again, byte for byte (:func:`replay`): why a swarm ran as it did can be found out anywhere,
later.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from bloombee.control.core import ControlCore
from bloombee.control.events import Decision, Event
from bloombee.errors import ConfigError

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Event | Decision)


def to_line(record: Event | Decision) -> bytes:
    """Without the end of the line."""
    return _ENCODER.encode(record)


def from_line(line: bytes | str) -> Event | Decision:
    """The inverse of :func:`to_line`.

    Raises:
        ConfigError: it is no line of such a log.
    """
    try:
        record: Event | Decision = _DECODER.decode(line)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"not a line of a decision log: {error}") from error
    return record


def replay(records: Iterable[Event | Decision]) -> list[Decision]:
    """What a new core decides when it is given the events among ``records``."""
    core = ControlCore()
    events = (record for record in records if not isinstance(record, Decision))
    return [command for event in events for command in core.handle(event) if isinstance(command, Decision)]
