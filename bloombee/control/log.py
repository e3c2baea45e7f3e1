"""The control core's log: its events and its decisions, a line of JSON each.

The events alone make the decisions again, byte for byte (:func:`replay`): why a swarm ran as it did can be found out anywhere,
later. A core's log begins with the core; the decisions that an event led to stand behind it, before the next event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from bloombee.control.core import ControlCore
from bloombee.control.events import Decision, Event
from bloombee.errors import ConfigError

MOST_LINE_BYTES = 1 << 20
"""No line of a log is longer."""
NOTHING = "no decision"

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
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a line of a decision log: {error}") from error
    return record


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a log and what is decided again part.

    Args:
        line: from 1 on. written: what stands there. made: what the core decides there, or what is wrong with the line.
    """

    line: int
    written: str
    made: str


@dataclass(slots=True)
class Replayed:
    """What came of a log's events.

    Args:
        decisions: that were made again, as they are written.
        difference: the first; None: there was none. What follows it was not looked at.
        is_cut: its last line, or decisions of its last event, are missing: whoever wrote it was ended in the middle.
    """

    num_events: int = 0
    decisions: list[Decision] = field(default_factory=list)
    difference: Difference | None = None
    is_cut: bool = False


def replay(lines: Iterable[bytes]) -> Replayed:
    """Give a new core the events of a log, and hold its decisions against those that are written there, byte for byte.

    Args:
        lines: with their ends. No log's line is longer than MOST_LINE_BYTES.
    """
    core, found, due = ControlCore(), Replayed(), deque[Decision]()
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n") and len(line) < MOST_LINE_BYTES:
            found.is_cut = True  # nothing follows it
            break
        found.difference = _take(core, found, due, number, line[:-1])
        if found.difference is not None:
            return found
    found.is_cut = found.is_cut or bool(due)
    return found


def _take(core: ControlCore, found: Replayed, due: deque[Decision], number: int, line: bytes) -> Difference | None:
    written = line.decode(errors="replace")
    try:
        record = from_line(line)
    except ConfigError as error:
        return Difference(number, written, error.message)
    if isinstance(record, Decision):
        made = to_line(due[0]) if due else NOTHING.encode()
        if made != line:
            return Difference(number, written, made.decode())
        found.decisions.append(due.popleft())
        return None
    if due:
        return Difference(number, written, to_line(due[0]).decode())
    if to_line(record) != line:
        return Difference(number, written, "not as this release writes an event")
    found.num_events += 1
    due.extend(_decided(core, record))
    return None


def _decided(core: ControlCore, event: Event) -> list[Decision]:
    """What ``core`` decides when it is told ``event``. As for whoever asks it live, an event that it fails at decides nothing."""
    try:
        commands = core.handle(event)
    except Exception:
        return []
    return [command for command in commands if isinstance(command, Decision)]
