"""What a worker holds of the sequences of one pipeline: pages, generations, how far each has come. Pure; outlives every plan.

What is held of a sequence is a prefix [0, have) within a generation. Generations are told by cuts (``cuts.py``), or begin with
the sequence itself: from its first row, or as a fork of another. Rows are taken when their frame comes (:meth:`take`); they get
pages when their work goes to the device (:meth:`place`), so what waits holds none, and what a work gives back can be had by
the next, which the device runs after it. Beyond the prefix there may be nodes of a draft (``trees.py``), which a cut ends.
Nothing here knows who sent a row or who gets it next.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from bloombee.kv.store import KvStore
from bloombee.pipeline.cuts import Cuts, rows_of
from bloombee.pipeline.held import Held, opening_of
from bloombee.pipeline.runs import Runs
from bloombee.pipeline.trees import Part, check_nodes, parts_on
from bloombee.pipeline.work import Pages, Segment
from bloombee.types import PageGroup, SequenceId
from bloombee.wire.messages import Cut, Fork, Holding, Item, Load, Opening, Tree


class SequenceStore:
    """Of one pipeline on one worker."""

    def __init__(self, load: Load) -> None:
        self.kv = KvStore([PageGroup(group.window, group.num_pages) for group in load.groups], load.page_size)
        self._has_windows = any(group.window for group in load.groups)
        self._is_last = load.stop == load.num_layers
        self._has_rules = load.rules is not None
        self._held: dict[SequenceId, Held] = {}
        self._cuts = Cuts()
        self._numbers: list[SequenceId] = []
        """Of those that are held, rising."""
        self._closed = Runs()
        """Of those from the floor on."""
        self._floor = 0
        self.kv.prefixes.places.is_open = self._held.__contains__

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

    def live(self, items: Sequence[Item]) -> Sequence[Item]:
        """Those whose sequences are not closed, nor cut before their rows came."""
        held = self._held
        live = [
            item for item in items if item.sequence in held or not (self.is_closed(item.sequence) or self._cuts.has_cut(item))
        ]
        return items if len(live) == len(items) else live

    def lost(self, items: Sequence[Item]) -> list[Holding]:
        """Forks whose first rows are here no more: they must not be taken."""
        return [
            Holding(item.sequence, item.generation, 0)
            for item in items
            if type(item.opening) is Fork and self._is_lost(item, item.opening)
        ]

    # -- rows in ---------------------------------------------------------------------------

    def gaps(self, items: Sequence[Item], *, most_nodes: int) -> list[Holding]:
        """Of each item that starts beyond what is held, and so must not be taken, what is held; closed sequences lack nothing.

        Args:
            most_nodes: of a tree.

        Raises:
            RemoteProtocolError: rows beside a tree, a tree that hangs on another row than the last, or one that is too large.
        """
        found = []
        for item in items:
            held = self._held.get(item.sequence)
            if held is not None and item.generation == held.generation:
                is_row = item.tree is None and not held.nodes.parents
                if is_row and item.position <= held.have:
                    continue
                if not is_row:
                    check_nodes(held, item, most_nodes)
            if held is None and self.is_closed(item.sequence):
                continue
            if (gap := self._gap(held, item)) is not None:
                found.append(gap)
        return found

    def _gap(self, held: Held | None, item: Item) -> Holding | None:
        """Also of a generation that is not known yet: of that no row is known to be held, whatever is of those before."""
        generation = -1 if held is None else held.generation
        have = 0 if held is None else held.have
        if item.generation > generation:
            if type(item.opening) is Fork:
                begins = _has_rows_of(self._held, item.opening)
            else:
                begins = item.position == 0 or _on_prefix(item)
            return None if begins else Holding(item.sequence, item.generation, 0)
        if held is not None and item.tree is not None:
            path = self._cuts.path(item, generation)
            return None if held.can_hang(item, item.tree, path) else Holding(item.sequence, item.generation, have)
        if item.position <= have or (held is not None and begins_anew(held, item)):
            return None
        if item.generation < generation and self._cuts.alive(item.sequence, item.generation, generation) <= have:
            return None
        return Holding(item.sequence, item.generation, have)

    def _is_lost(self, item: Item, fork: Fork) -> bool:
        """What the fork begins with is here no more."""
        held, parent = self._held.get(item.sequence), self._held.get(fork.sequence)
        if held is not None and item.generation <= held.generation:
            return False  # it has begun
        if parent is None:
            return self.is_closed(fork.sequence)
        if parent.settled < fork.length:  # on their way, or cut off before they came
            return parent.least < fork.length
        return not self.kv.can_go_back(fork.length, parent.newest)

    def open(self, item: Item) -> Held:
        """The sequence of an item that begins one, which was not held before."""
        assert item.opening is not None
        held = self._held[item.sequence] = Held(-1, item.opening, opening_of(item.opening), self.kv.open())
        insort(self._numbers, item.sequence)
        return held

    def take(self, held: Held, item: Item, num_rows: int) -> Item | None:
        """Hold an item that leaves no gap: its rows that were not held before and are alive, as rows of the sequence's
        generation now; None if it brings none."""
        if item.generation > held.generation or begins_anew(held, item):
            self._begin(held, item)
        alive = num_rows
        if item.generation < held.generation:
            alive = min(num_rows, self._cuts.alive(item.sequence, item.generation, held.generation) - item.position)
        skip = held.have - item.position
        if skip >= alive:
            return None
        _hold(held, self._cuts, item.sequence, item.position + alive)
        return item if alive - skip == num_rows else rows_of(item, skip, alive, held.generation)

    def take_nodes(self, held: Held, item: Item, tree: Tree) -> Sequence[Part]:
        """As :meth:`take`, of a tree's item: those of its rows that are taken. Of an older generation these are rows."""
        if item.generation < held.generation:
            path = self._cuts.path(item, held.generation)
            parts = [part for part in parts_on(item, tree, path, held.generation, held.have) if part.item is not None]
            if parts:
                _hold(held, self._cuts, item.sequence, held.have + sum(part.stop - part.start for part in parts))
            return parts
        taken = held.nodes.take(item, tree)
        return () if taken is None else (Part(item.num_rows - taken.num_rows, item.num_rows, taken),)

    def _begin(self, held: Held, item: Item) -> None:
        begun = item.opening
        assert begun is not None
        parent = self._held[begun.sequence] if isinstance(begun, Fork) else None
        held.begin(item.generation, begun, parent, self.kv.prefixes)
        self._cuts.begin(item.sequence, item.generation)
        self._advance(item.sequence, held)

    # -- cuts ------------------------------------------------------------------------------

    def cut(self, cut: Cut) -> list[Cut]:
        """Take a cut, if it :meth:`can_cut`; late ones and such as are known change nothing.

        Returns:
            The cuts that the sequence has gone through with that, in order: rows from the length of each on are dead, here or
            elsewhere, but for those on its path.
        """
        if _is_past(self, cut):
            return []
        held = self._held.get(cut.sequence)
        self._cuts.note(cut)
        return [] if held is None else self._advance(cut.sequence, held)

    def can_cut(self, cut: Cut) -> bool:
        """False: it would have to be remembered, and there is no room for that."""
        held = self._held.get(cut.sequence)
        return _is_past(self, cut) or self._cuts.has_room(cut, None if held is None else held.generation)

    def _advance(self, sequence: SequenceId, held: Held) -> list[Cut]:
        """To the newest generation whose cuts are all known. Returns as :meth:`cut`."""
        gone = []
        for cut in self._cuts.following(sequence, held.generation):
            if not self.kv.can_go_back(cut.length, held.newest):
                held.is_lost, cut = True, replace(cut, length=0, path=())
            held.cut(cut)
            if not held.have:
                held.let_go(self.kv.prefixes)
            gone.append(cut)
        if gone:
            self._cuts.held(sequence, held.generation, held.have)
        return gone

    def fresh(self, items: Sequence[Item]) -> Sequence[Item]:
        """Those whose sequences have not been closed or rolled back since."""
        held = self._held
        fresh = [item for item in items if (one := held.get(item.sequence)) is not None and one.generation == item.generation]
        return items if len(fresh) == len(items) else fresh

    # -- pages -----------------------------------------------------------------------------

    def place(self, held: Held, item: Item, num_rows: int, *, is_last: bool, wanted: int = 0) -> Segment:
        """The item's rows for the device, with pages to write to; :meth:`slide` follows once all of the work is placed.

        Args:
            is_last: of the stage; wanted: the first position of which the scheduler lacks a pick.

        Raises:
            PoolExhausted: the scheduler has admitted more than there is room for.
        """
        tree, opening = item.tree, held.opening
        start = item.position if tree is None else item.position + tree.first - 1
        stop = start + num_rows
        moves, held.moves = held.moves, []
        pages = []
        for table in held.tables:
            moved = tuple([(table.slot(one), table.slot(other)) for one, other in moves])
            source = table.place(start, stop)
            pages.append(Pages(table.pages, table.start, source, moved))
        if tree is None:
            held.placed = stop
        else:
            held.nodes.placed = tree.first - 1 + num_rows
        history = b""
        if is_last:
            del held.tokens[4 * item.position :]
            if tree is None:
                held.tokens += item.tokens
            history = bytes(held.tokens) if self._needs_history(opening) else b""
        num_picks = item.num_picks if is_last else 0
        return Segment(
            sequence=item.sequence,
            generation=item.generation,
            position=start,
            tokens=item.tokens,
            num_picks=max(0, min(num_picks, stop + 1 - wanted)) if wanted and tree is None else num_picks,
            pages=tuple(pages),
            sampling=opening.sampling if is_last else None,
            num_prompt_tokens=opening.num_prompt_tokens,
            history=history,
            max_new_tokens=opening.max_new_tokens,
            end_tokens=opening.end_tokens,
            tree=None if tree is None else held.nodes.branches(item.position, tree, num_rows),
            biases=opening.biases if is_last else (),
            grammar=opening.grammar if is_last else None,
        )

    def _needs_history(self, opening: Opening) -> bool:
        """Whether the sampler wants all tokens."""
        return self._has_rules or opening.grammar is not None or _has_penalty(opening)

    def slide(self, placed: Iterable[tuple[Held, Item]]) -> None:
        """Give back what no row after those of each item will see."""
        if not self._has_windows:
            return
        for held, item in placed:
            for table in held.tables:
                table.slide(item.position + (item.num_rows if item.tree is None else 1))

    # -- closing ---------------------------------------------------------------------------

    def close(self, sequences: Iterable[SequenceId], floor: int) -> list[SequenceId]:
        """Free at once all that they and all below ``floor`` hold: works that still read it are on the device already, before
        any that is to come. Returns those that were held."""
        gone = []
        for sequence in sequences:
            if sequence >= self._floor:
                self._closed.add(sequence)
                self._cuts.forget(sequence)
            if sequence in self._held:
                gone.append(sequence)
                self._let_go(sequence)
        if floor > self._floor:
            self._floor = floor
            self._closed.drop_below(floor)
            self._cuts.forget_below(floor)
            for sequence in self._numbers[: bisect_left(self._numbers, floor)]:
                gone.append(sequence)
                self._let_go(sequence)
        return gone

    def _let_go(self, sequence: SequenceId) -> None:
        del self._numbers[bisect_left(self._numbers, sequence)]
        self._held.pop(sequence).let_go(self.kv.prefixes)


def _is_past(store: SequenceStore, cut: Cut) -> bool:
    """Its sequence is closed, or has come further."""
    held = store.get(cut.sequence)
    return store.is_closed(cut.sequence) or (held is not None and cut.generation <= held.generation)


def begins_anew(held: Held, item: Item) -> bool:
    """Whether the item begins a generation, on kept rows, that a Commit has told of: nothing of before was to stay."""
    return not held.have and item.generation == held.generation and _on_prefix(item)


def _on_prefix(item: Item) -> bool:
    return isinstance(item.opening, Opening) and item.opening.prefix is not None


def _has_penalty(opening: Opening) -> bool:
    s = opening.sampling
    return s.repetition_penalty != 1.0 or s.presence_penalty != 0.0 or s.frequency_penalty != 0.0


def _has_rows_of(held: Mapping[SequenceId, Held], fork: Fork) -> bool:
    """Whether all rows that a fork begins with are here; else they are on their way."""
    parent = held.get(fork.sequence)
    return parent is not None and parent.settled >= fork.length


def _hold(held: Held, cuts: Cuts, sequence: SequenceId, have: int) -> None:
    """Rows [0, have) of the sequence's generation."""
    held.have = have
    if have > held.newest:
        held.newest = have
    if cuts.of:
        cuts.held(sequence, held.generation, have)
