"""Schedules: how a link changes over time, as text that a person writes and a trace file holds.

One line is a time and what changes then; ``#`` starts a comment::

    0s    bandwidth=100M delay=30ms          # absolute values; delay and jitter are one way
    10s   bandwidth=x0.1                     # a tenth of what the profile says
    20s   bandwidth=x1                       # and back
    25s   down                               # an outage: nothing enters the wire
    26s   up
    28s   reset                              # its TCP connections are reset, at both ends
    30s   forward ramp bandwidth=x1..x0.2 over=10s every=500ms   # steps along a line
    40s   repeat                             # from the top, for ever: here a sawtooth with an outage

Fields: bandwidth, delay, jitter, loss, stall; ``forward`` or ``backward`` in front means that direction only (a reset has
none). A time never lies before the line above it. What a line does not name stays as it is.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.arguments import OptionError
from bench.shapes import Shape, ShapeError, parse_bandwidth, parse_duration

Way = Literal["forward", "backward"]

_FIELDS = {"bandwidth": "bandwidth_bits_per_s", "delay": "delay_s", "jitter": "jitter_s", "loss": "loss", "stall": "stall_s"}
_RELATIVE = {"bandwidth", "delay", "jitter", "loss"}
_MAX_STEPS = 10_000


class ScheduleError(OptionError):
    """A schedule that cannot be read or cannot be followed; the message names the line or the time."""


@dataclass(frozen=True, slots=True)
class Change:
    """From ``at_s`` on, ``field`` of a shape (or ``up``: 1 or 0) is ``value``, or ``value`` times the base's.

    The field ``reset`` is a moment and not a state: connections are reset.
    """

    at_s: float
    field: str
    value: float
    is_factor: bool = False
    way: Way | None = None
    """None: both directions."""


@dataclass(frozen=True, slots=True)
class Step:
    """A direction from ``at_s`` on, whole."""

    at_s: float
    shape: Shape
    is_up: bool = True
    reset: bool = False
    """Connections are reset at that moment. Of a link's two directions the forward one says so."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Changes in order of time; with ``period_s`` they repeat, each round beginning with the base shape.

    Raises:
        ScheduleError: no change at all, times that fall, or a period that ends before the last change.
    """

    changes: tuple[Change, ...]
    period_s: float | None = None

    def __post_init__(self) -> None:
        if not self.changes:
            raise ScheduleError("a schedule needs at least one change")
        if len(self.changes) > _MAX_STEPS:
            raise ScheduleError(f"{len(self.changes)} steps: at most {_MAX_STEPS}")
        times = [change.at_s for change in self.changes]
        if times[0] < 0 or times != sorted(times):
            raise ScheduleError(f"times must rise from 0, not {', '.join(f'{t:g}' for t in times)}")
        if self.period_s is not None and self.period_s <= times[-1]:
            raise ScheduleError(f"repeat at {self.period_s:g} s must come after the last change at {times[-1]:g} s")

    def steps(self, base: Shape, way: Way) -> tuple[Step, ...]:
        """The shape of one direction after each change that concerns it, starting from ``base``.

        Raises:
            ScheduleError: a change gives an impossible shape (a jitter above the delay, a factor of no limit).
        """
        shape, is_up = base, True
        steps = [Step(0.0, base)] if self.period_s is not None else []
        for at_s, group in itertools.groupby(self.changes, lambda change: change.at_s):
            changes = [change for change in group if change.way in (None, way)]
            reset = way == "forward" and any(change.field == "reset" for change in changes)
            changes = [change for change in changes if change.field != "reset"]
            if not changes and not reset:
                continue
            shape = _changed(shape, base, [change for change in changes if change.field != "up"])
            is_up = next((bool(change.value) for change in reversed(changes) if change.field == "up"), is_up)
            if steps and steps[-1].at_s == at_s:
                steps.pop()
            steps.append(Step(at_s, shape, is_up, reset))
        return tuple(steps)

    def swapped(self) -> Schedule:
        """Forward and backward exchanged."""
        other: dict[Way | None, Way | None] = {"forward": "backward", "backward": "forward", None: None}
        return replace(self, changes=tuple(replace(change, way=other[change.way]) for change in self.changes))

    def scaled(self, factor: float) -> Schedule:
        """Absolute bandwidths times ``factor``; factors of the base stay."""
        return replace(
            self,
            changes=tuple(
                replace(change, value=change.value * factor) if change.field == "bandwidth" and not change.is_factor else change
                for change in self.changes
            ),
        )


def _changed(shape: Shape, base: Shape, changes: list[Change]) -> Shape:
    """All changes of one moment together: a new delay makes room for a new jitter, whichever is written first."""
    patch: dict[str, Any] = {}
    for change in changes:
        value, field = change.value, _FIELDS[change.field]
        if change.is_factor:
            before = getattr(base, field)
            if before is None:
                raise ScheduleError(f"at {change.at_s:g} s: {change.field}=x{value:g} of a link without a {change.field} limit")
            value *= before
        patch[field] = value
    try:
        return replace(shape, **patch)
    except ShapeError as error:
        raise ScheduleError(f"at {changes[0].at_s:g} s: {error}") from error


def read_schedule(path: str | Path) -> Schedule:
    """The schedule in a trace file.

    Raises:
        ScheduleError: the file cannot be read, or see :func:`parse_schedule`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScheduleError(f"schedule {str(path)!r}: {error}") from error
    try:
        return parse_schedule(text)
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}") from error


def parse_schedule(text: str) -> Schedule:
    """The schedule that ``text`` describes; the module's docstring has the grammar.

    Raises:
        ScheduleError: names the line that is malformed, or what cannot be followed.
    """
    changes: list[Change] = []
    period_s: float | None = None
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        try:
            if period_s is not None:
                raise ScheduleError("nothing may follow repeat")
            at_s = parse_duration(words[0])
            if words[1:] == ["repeat"]:
                period_s = at_s
                continue
            if changes and at_s < changes[-1].at_s:
                raise ScheduleError(f"{at_s:g} s lies before {changes[-1].at_s:g} s")
            changes += _parse_line(at_s, words[1:])
        except (ShapeError, ScheduleError) as error:
            raise ScheduleError(f"schedule line {number} ({line.strip()!r}): {error}") from error
    return Schedule(tuple(changes), period_s)


def _parse_line(at_s: float, words: list[str]) -> list[Change]:
    way: Way | None = None
    if words and words[0] in ("forward", "backward"):
        way = "forward" if words[0] == "forward" else "backward"
        words = words[1:]
    if words and words[0] == "ramp":
        return _parse_ramp(at_s, words[1:], way)
    if not words:
        raise ScheduleError("a time and no change")
    changes = []
    for word in words:
        if word in ("up", "down"):
            changes.append(Change(at_s, "up", float(word == "up"), way=way))
            continue
        if word == "reset":
            if way is not None:
                raise ScheduleError("a connection has both directions: reset takes neither forward nor backward")
            changes.append(Change(at_s, "reset", 1.0))
            continue
        field, text = _assignment(word)
        value, is_factor = _value(field, text)
        changes.append(Change(at_s, field, value, is_factor, way))
    return changes


def _parse_ramp(at_s: float, words: list[str], way: Way | None) -> list[Change]:
    """``FIELD=A..B over=T [every=T]``: equal steps from A to B, the last one at the end."""
    if not 2 <= len(words) <= 3:
        raise ScheduleError("a ramp is written: ramp FIELD=A..B over=TIME [every=TIME]")
    field, ends = _assignment(words[0])
    first, dots, last = ends.partition("..")
    options = dict(word.partition("=")[::2] for word in words[1:])
    if not dots or "over" not in options or not options.keys() <= {"over", "every"}:
        raise ScheduleError("a ramp is written: ramp FIELD=A..B over=TIME [every=TIME]")
    (start, is_factor), (stop, stop_is_factor) = _value(field, first), _value(field, last)
    if is_factor != stop_is_factor:
        raise ScheduleError("the two ends of a ramp must both be absolute or both be factors")
    over_s, every_s = parse_duration(options["over"]), parse_duration(options.get("every", "250ms"))
    if over_s <= 0 or every_s <= 0 or over_s / every_s > _MAX_STEPS:
        raise ScheduleError(
            f"a ramp of {over_s:g} s in steps of {every_s:g} s: both must be > 0, with at most {_MAX_STEPS} steps"
        )
    count = max(1, math.ceil(over_s / every_s - 1e-9))
    return [
        Change(at_s + over_s * i / count, field, start + (stop - start) * i / count, is_factor, way) for i in range(count + 1)
    ]


def _assignment(word: str) -> tuple[str, str]:
    field, equals, text = word.partition("=")
    if not equals or field not in _FIELDS:
        raise ScheduleError(f"{word!r}: expected up, down, reset, or one of {', '.join(_FIELDS)} with =VALUE")
    return field, text


def _value(field: str, text: str) -> tuple[float, bool]:
    """(value, is it a factor of the base's)."""
    if text.startswith("x"):
        if field not in _RELATIVE:
            raise ScheduleError(f"{field} takes no factor")
        return _real(text[1:]), True
    if field == "bandwidth":
        return parse_bandwidth(text), False
    if field == "loss":
        return _real(text), False
    return parse_duration(text), False


def _real(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ScheduleError(f"{text!r} is not a number >= 0")
    return value
