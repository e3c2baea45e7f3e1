"""What a worker holds of the sequences of one pipeline: pages, generations, how far each has come. Pure; outlives every plan.

What is held of a sequence is a prefix [0, have) within a generation. Rows are taken when their frame comes (:meth:`take`); they
get pages when their work goes to the device (:meth:`place`), so what waits holds none, and what a work gives back can be had by
the next, which the device runs after it. Nothing here knows who sent a row or who gets it next.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from bloombee.kv.pool import PageTable
from bloombee.kv.store import KvStore
from bloombee.pipeline.runs import Runs
from bloombee.pipeline.work import Pages, Segment
from bloombee.types import PageGroup, SequenceId
from bloombee.wire.messages import Holding, Item, Load, Opening, Pick


@dataclass(slots=True)
class Held:
    """One sequence."""

    generation: int
    opening: Opening
    tables: tuple[PageTable, ...]
    """One a group; of what the device has been given so far."""
    have: int = 0
    newest: int = 0
    """The most that was ever held of it, since it last began at 0: how far back it can go depends on that."""
    tokens: bytearray = field(default_factory=bytearray)
    """All token ids that the device has been given, kept on the last stage for penalties."""
    picks: tuple[Pick, ...] = ()
    """On the last stage, what its newest work gave: the scheduler may have to be told again."""
    num_prefill: int = 0
    """Works in the prefill queue: decode of the same sequence must not overtake them."""

    @property
    def is_decoding(self) -> bool:
        """All of its prompt is here; what comes is decode."""
        return self.have >= self.opening.num_prompt_tokens


class SequenceStore:
    """Of one pipeline on one worker."""

    def __init__(self, load: Load) -> None:
        self.kv = KvStore([PageGroup(group.window, group.num_pages) for group in load.groups], load.page_size)
        self._has_windows = any(group.window for group in load.groups)
        self._has_rules = load.rules is not None
        self._held: dict[SequenceId, Held] = {}
        self._numbers: list[SequenceId] = []
        """Of those that are held, rising."""
        self._closed = Runs()
        """Of those from the floor on."""
        self._floor = 0

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[tuple[SequenceId, Held]]:
        return iter(self._held.items())

    def get(self, sequence: SequenceId) -> Held | None:
        return self._held.get(sequence)

    @property
    def any_decodes(self) -> bool:
        return any(held.is_decoding for held in self._held.values())

    def holdings(self) -> tuple[Holding, ...]:
        """Of every sequence, as a new neighbour is told."""
        return tuple([Holding(sequence, held.generation, held.have) for sequence, held in self._held.items()])

    def is_closed(self, sequence: SequenceId) -> bool:
        return sequence < self._floor or sequence in self._closed

    # -- rows in ---------------------------------------------------------------------------

    def gaps(self, items: Sequence[Item]) -> list[Holding]:
        """Of each item that starts beyond what is held, and so must not be taken, what is held; closed sequences lack nothing."""
        found = []
        for item in items:
            held = self._held.get(item.sequence)
            if held is not None and item.generation == held.generation and item.position <= held.have:
                continue
            if held is None and self.is_closed(item.sequence):
                continue
            if (gap := self._gap(held, item)) is not None:
                found.append(gap)
        return found

    def _gap(self, held: Held | None, item: Item) -> Holding | None:
        if held is None:
            have, generation = 0, item.generation
        elif item.generation < held.generation:
            return None
        else:
            have, generation = held.have, item.generation
            if item.generation > held.generation and not self.kv.can_go_back(item.position, held.newest):
                have = 0
        if item.position <= have and (held is not None or item.opening is not None):
            return None
        return Holding(item.sequence, generation, have)

    def open(self, item: Item) -> Held:
        """The sequence of an item at position 0, which was not held before."""
        assert item.opening is not None
        held = self._held[item.sequence] = Held(item.generation, item.opening, self.kv.open())
        insort(self._numbers, item.sequence)
        return held

    def fresh(self, items: Sequence[Item]) -> Sequence[Item]:
        """Those whose sequences have not been closed or rolled back since."""
        held = self._held
        fresh = [item for item in items if (one := held.get(item.sequence)) is not None and one.generation == item.generation]
        return items if len(fresh) == len(items) else fresh

    @staticmethod
    def take(held: Held, item: Item, num_rows: int) -> int | None:
        """Hold an item that leaves no gap: how many of its first rows were held before; None if it brings nothing."""
        if item.generation < held.generation:
            return None
        if item.generation > held.generation:
            held.generation = item.generation
            held.have = item.position
            held.newest = held.newest if item.position else 0
        skip = held.have - item.position
        if skip >= num_rows:
            return None
        held.have = item.position + num_rows
        if held.have > held.newest:
            held.newest = held.have
        return skip

    # -- pages -----------------------------------------------------------------------------

    def place(self, held: Held, item: Item, num_rows: int, *, is_last: bool, wanted: int = 0) -> Segment:
        """The item's rows for the device, with pages to write to; :meth:`slide` follows once all of the work is placed.

        Args:
            is_last: of the stage; wanted: the first position of which the scheduler lacks a pick.

        Raises:
            PoolExhausted: the scheduler has admitted more than there is room for.
        """
        stop, opening = item.position + num_rows, held.opening
        pages = []
        for table in held.tables:
            source = table.place(item.position, stop)
            pages.append(Pages(table.pages, table.start, source))
        history = b""
        if is_last and (self._has_rules or _has_penalty(opening)):
            del held.tokens[4 * item.position :]
            held.tokens += item.tokens
            history = bytes(held.tokens)
        return Segment(
            sequence=item.sequence,
            generation=item.generation,
            position=item.position,
            tokens=item.tokens,
            num_picks=max(0, min(item.num_picks, stop + 1 - wanted)) if wanted else item.num_picks if is_last else 0,
            pages=tuple(pages),
            sampling=opening.sampling if is_last else None,
            num_prompt_tokens=opening.num_prompt_tokens,
            history=history,
            max_new_tokens=opening.max_new_tokens,
            end_tokens=opening.end_tokens,
        )

    def slide(self, placed: Iterable[tuple[Held, Item]]) -> None:
        """Give back what no row after those of each item will see."""
        if not self._has_windows:
            return
        for held, item in placed:
            for table in held.tables:
                table.slide(item.position + item.num_rows)

    # -- closing ---------------------------------------------------------------------------

    def close(self, sequences: Iterable[SequenceId], floor: int) -> list[SequenceId]:
        """Free at once all that they and all below ``floor`` hold: works that still read it are on the device already, before
        any that is to come. Returns those that were held."""
        gone = []
        for sequence in sequences:
            if sequence >= self._floor:
                self._closed.add(sequence)
            if sequence in self._held:
                gone.append(sequence)
                self._let_go(sequence)
        if floor > self._floor:
            self._floor = floor
            self._closed.drop_below(floor)
            for sequence in self._numbers[: bisect_left(self._numbers, floor)]:
                gone.append(sequence)
                self._let_go(sequence)
        return gone

    def _let_go(self, sequence: SequenceId) -> None:
        del self._numbers[bisect_left(self._numbers, sequence)]
        for table in self._held.pop(sequence).tables:
            table.truncate(0)


def _has_penalty(opening: Opening) -> bool:
    s = opening.sampling
    return s.repetition_penalty != 1.0 or s.presence_penalty != 0.0 or s.frequency_penalty != 0.0
