"""``bloombee plan --replay``: decisions of a head's decision log, made again from what it was told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bloombee.control.events import Decision
from bloombee.control.log import MOST_LINE_BYTES, Replayed, replay
from bloombee.errors import ConfigError
from bloombee.quote import printable
from bloombee.terminal import count, write, write_line_of_json

MOST_SHOWN = 2000
"""Characters of a line that is shown."""


def replay_log(path: str, *, explain: bool, as_json: bool) -> int:
    """Say whether the decisions come out as they stand there; the exit status: 1 if not.

    Args:
        explain: say each of them, with its reason. as_json: print one line of JSON and nothing else.

    Raises:
        ConfigError: it cannot be read, or has no event.
    """
    try:
        with Path(path).open("rb") as file:
            found = replay(_lines(file))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this file: {error.strerror}", path=path) from error
    if not found.num_events and found.difference is None:
        raise ConfigError(f"{path}: no decision log: nothing was seen in it (--decisions FILE writes one)", path=path)
    if as_json:
        write_line_of_json(_record(found, explain=explain))
    else:
        write("\n".join(_text(path, found, explain=explain)) + "\n")
    return 0 if found.difference is None else 1


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """With their ends; one that is too long in pieces, each of which is none."""
    return iter(lambda: file.readline(MOST_LINE_BYTES), b"")


def _text(path: str, found: Replayed, *, explain: bool) -> Iterator[str]:
    if explain:
        yield from map(_decision, found.decisions)
    made = count(len(found.decisions), "decision")
    if found.difference is None:
        cut = "; the log is cut off at its end" if found.is_cut else ""
        yield f"{count(found.num_events, 'event')}: {made}, the same byte for byte{cut}"
        return
    yield f"{printable(path)}, line {found.difference.line}: what is written there is not what is decided again"
    yield f"  written: {_shown(found.difference.written)}"
    yield f"  now:     {_shown(found.difference.made)}"
    yield f"before it {count(found.num_events, 'event')}: {made}, the same byte for byte"


def _decision(one: Decision) -> str:
    return printable(f"{one.at_s:.3f} s, epoch {one.epoch}, {one.what}: {one.chosen} ({one.why})")


def _shown(line: str) -> str:
    return printable(line if len(line) <= MOST_SHOWN else f"{line[:MOST_SHOWN]} ...")


def _record(found: Replayed, *, explain: bool) -> dict[str, object]:
    record: dict[str, object] = {
        "events": found.num_events,
        "decisions": len(found.decisions),
        "is_same": found.difference is None,
        "is_cut": found.is_cut,
    }
    if found.difference is not None:
        one = found.difference
        record["difference"] = {"line": one.line, "written": _shown(one.written), "now": _shown(one.made)}
    return record | ({"made": found.decisions} if explain else {})
