"""What a head must know to go on after its process has ended, as records of what happened, in their order. Pure.

A journal is :data:`MAGIC` and then records. Each is the length of its body (u32, little-endian), the body's CRC-32C (u32) and
the body: a msgpack array that begins with the record's tag. It only grows; now and then it is written anew, with the fewest
records that come to the same. What a process that was killed had begun to write ends in the middle of a record: that tail is cut.

Whole records behind one that is not are no tail: something between was damaged, a bit on a disk perhaps. They count, but for
tokens of a request that was asked before the damage: what was lost may be tokens of it, and it is to generate all from there
again, the same (ADR 58).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from bloombee.codec.checksum import crc32c
from bloombee.errors import ConfigError
from bloombee.plan.plan import Plan, Prediction
from bloombee.types import FinishReason, SchedulerPlace, WorkerId
from bloombee.wire.messages import Grammar, Sampling

MAGIC = b"bloombee-journal-1\n"
MOST_BYTES = 1 << 28
"""Of a record: a length beyond that is damage."""
LEAST_FOUND = 3
"""Bytes of the shortest body: an array of the tag and a number."""
LEAST_TO_REWRITE = 1 << 20
"""A file of fewer bytes is left as it is."""
_FRAME = struct.Struct("<II")


class _Record(Struct, frozen=True, array_like=True, tag_field="kind", forbid_unknown_fields=True, gc=False):
    """Something that happened."""


class Numbered(_Record, frozen=True, tag=1):
    """Requests before this number have been, whether or not anything else is known of them."""

    next_request: int


class Listened(_Record, frozen=True, tag=2):
    """The head was told to listen on ``wanted``, and does on ``bound``, where workers know it."""

    wanted: str
    bound: str


class Served(_Record, frozen=True, tag=3):
    """Which model it is. ``card``: JSON of a ModelCard."""

    digest: str
    card: bytes


class Issued(_Record, frozen=True, tag=4):
    """The secret of a join token."""

    secret: bytes


class Seat(Struct, frozen=True, array_like=True, gc=False):
    """Layers [start, stop) are the worker's with this key."""

    key: bytes
    start: int
    stop: int


class Planned(_Record, frozen=True, tag=5):
    """Who runs what.

    Args:
        asked: what the plan was made for, as :func:`~bloombee.pipeline.swarm.planning.wishes` says it; else it is of no use.
    """

    asked: str
    seats: tuple[Seat, ...]
    scheduler: SchedulerPlace
    prediction: Prediction | None

    @classmethod
    def of(cls, plan: Plan, keys: dict[WorkerId, bytes], asked: str) -> Planned:
        seats = tuple(Seat(keys[stage.worker], stage.span.start, stage.span.stop) for stage in plan.stages)
        return cls(asked, seats, plan.scheduler, plan.prediction)


class Asked(_Record, frozen=True, tag=6):
    """A request has begun.

    Args:
        prompt: [n] little-endian uint32.
        at_s: when, by the clock on the wall.
    """

    request: int
    prompt: bytes
    sampling: Sampling
    max_new_tokens: int
    end_tokens: tuple[int, ...]
    stop: tuple[str, ...]
    client: str
    priority: int
    max_time_s: float | None
    at_s: float
    biases: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None


class Given(Struct, frozen=True, array_like=True, gc=False):
    """A token that was given to whoever asked. ``finish``: why it was the last; empty: it was not."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: str = ""


class Gave(_Record, frozen=True, tag=7):
    """The next tokens of a request."""

    request: int
    tokens: tuple[Given, ...]


class Taken(_Record, frozen=True, tag=8):
    """Nobody wants anything of a request any more: its end was taken, or it was cancelled."""

    request: int


class Noted(_Record, frozen=True, tag=9):
    """Something of the application's, by a name of its own; None: not any more."""

    name: str
    value: bytes | None


Record = Numbered | Listened | Served | Issued | Planned | Asked | Gave | Taken | Noted
_decode = msgspec.msgpack.Decoder(Record).decode
_encode = msgspec.msgpack.Encoder().encode


@dataclass(slots=True)
class Kept:
    """A request that goes on, or whose end nobody has taken.

    Args:
        given: its tokens so far.
    """

    asked: Asked
    given: list[Given] = field(default_factory=list)

    @property
    def finish(self) -> FinishReason | None:
        """Why it has ended, if it has."""
        return FinishReason(self.given[-1].finish) if self.given and self.given[-1].finish else None

    @property
    def output(self) -> bytes:
        """[n] little-endian uint32."""
        return b"".join(given.token.to_bytes(4, "little") for given in self.given)

    def time_left_s(self, wall_s: float) -> float | None:
        """Of what it may take, which went on while no head was there; None: any."""
        limit = self.asked.max_time_s
        return None if limit is None else min(limit, max(0.0, limit - (wall_s - self.asked.at_s)))


@dataclass(slots=True)
class Journal:
    """What all records together come to."""

    next_request: int = 1
    listened: Listened | None = None
    served: Served | None = None
    secrets: list[bytes] = field(default_factory=list)
    planned: Planned | None = None
    requests: dict[int, Kept] = field(default_factory=dict)
    """By number, in the order in which they were asked."""
    notes: dict[str, bytes] = field(default_factory=dict)

    def take(self, record: Record) -> None:
        """What is said of a request that is not known any more changes nothing."""
        match record:
            case Numbered(next_request=number):
                self.next_request = max(self.next_request, number)
            case Listened():
                self.listened = record
            case Served():
                self.served = record
            case Issued(secret=secret):
                self.secrets.append(secret)
            case Planned():
                self.planned = record
            case Asked(request=number):
                self.requests[number] = Kept(record)
                self.next_request = max(self.next_request, number + 1)
            case Gave(request=number, tokens=tokens):
                if number in self.requests:
                    self.requests[number].given += tokens
            case Taken(request=number):
                self.requests.pop(number, None)
            case Noted(name=name, value=None):
                self.notes.pop(name, None)
            case Noted(name=name, value=bytes(value)):
                self.notes[name] = value

    def records(self) -> Iterator[Record]:
        """The fewest that come to the same."""
        yield Numbered(self.next_request)
        yield from (record for record in (self.listened, self.served, self.planned) if record is not None)
        yield from map(Issued, self.secrets)
        yield from (Noted(name, value) for name, value in self.notes.items())
        for number, kept in self.requests.items():
            yield kept.asked
            if kept.given:
                yield Gave(number, tuple(kept.given))


def given(token: int, logprob: float | None, top: tuple[tuple[int, float], ...], finish: FinishReason | None) -> Given:
    """As a journal has it."""
    return Given(token, logprob, top, str(finish or ""))


def pack(record: Record) -> bytes:
    """With its length and checksum."""
    body = _encode(record)
    return _FRAME.pack(len(body), crc32c(body)) + body


def whole(journal: Journal) -> bytes:
    """A file that :func:`read` makes ``journal`` of."""
    return MAGIC + b"".join(map(pack, journal.records()))


@dataclass(frozen=True, slots=True)
class Reading:
    """Of a file.

    Args:
        journal: what it comes to.
        num_bytes: so many count; the rest is a tail that was not written to its end.
        num_damaged: of those, so many bytes in the middle were damaged, and left out.
    """

    journal: Journal
    num_bytes: int
    num_damaged: int = 0


def read(data: bytes, place: str) -> Reading:
    """What was written to a file.

    Args:
        place: for people.

    Raises:
        ConfigError: it is no journal, or another release's.
    """
    journal, at, num_damaged = Journal(), len(MAGIC), 0
    if not data.startswith(MAGIC):
        if not MAGIC.startswith(data):
            raise ConfigError(f"{place} is no journal of a head: name another directory with --state, or a new one", path=place)
        return Reading(journal, 0)
    end = at
    uncertain: frozenset[int] = frozenset()
    while True:
        body = _body(data, at)
        if body is None:
            following = _next_record(data, at + 1)
            if following is None:
                return Reading(journal, end, num_damaged)
            num_damaged += following - at
            at, uncertain = following, frozenset(journal.requests)
            continue
        record = _decoded(body, at, place)
        if not (isinstance(record, Gave) and record.request in uncertain):
            journal.take(record)
        end = at = at + _FRAME.size + len(body)


def _decoded(body: memoryview, at: int, place: str) -> Record:
    try:
        record: Record = _decode(body)
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"{place} is of another release of bloombee ({error} at byte {at}): go on with that one, or name a new directory"
            " with --state",
            path=place,
        ) from error
    return record


def _next_record(data: bytes, at: int) -> int | None:
    """Where the first whole record from ``at`` on begins; None: there is none."""
    for start in range(at, len(data) - _FRAME.size):
        if (body := _body(data, start)) is not None and len(body) >= LEAST_FOUND:
            try:
                _decode(body)
            except msgspec.DecodeError:
                continue
            return start
    return None


def _body(data: bytes, at: int) -> memoryview | None:
    """Of the record that begins at ``at``, if all of it is there and as it was written."""
    if at + _FRAME.size > len(data):
        return None
    length, checksum = _FRAME.unpack_from(data, at)
    start = at + _FRAME.size
    if not 0 < length <= MOST_BYTES or start + length > len(data):
        return None
    body = memoryview(data)[start : start + length]
    return body if crc32c(body) == checksum else None


def should_rewrite(num_bytes: int, num_whole: int) -> bool:
    """Whether a file of so many bytes, ``num_whole`` of them from when it was last written anew, is worth writing anew."""
    return num_bytes > max(LEAST_TO_REWRITE, 2 * num_whole)
