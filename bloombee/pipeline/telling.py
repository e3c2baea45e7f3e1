"""What the stage after this one has been told of each sequence, and which rows are still to be said. Pure.

A sequence that is **behind** has rows in the log that the next stage has not been told. They are said out of the log, a few
hundred at a time and each sequence in its turn; until all of that has come, nothing of the sequence may overtake it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bloombee.pipeline.beginnings import has_room
from bloombee.pipeline.log import BoundaryLog, Said
from bloombee.pipeline.sequences import SequenceStore
from bloombee.pipeline.work import Piece
from bloombee.types import Kind, SequenceId
from bloombee.wire.messages import Cut, Fork, Holding, Item, Opening

NEVER = 1 << 32
"""Beyond every position."""


@dataclass(slots=True)
class _Told:
    """The next stage has been sent, or holds, rows [0, upto) of a sequence in this generation."""

    generation: int
    upto: int
    num_nodes: int = 0
    """Of a draft's tree beyond these rows it has been sent the first so many nodes."""
    is_behind: bool = False
    num_replays: int = 0
    """Frames that say rows of it again and are not acknowledged."""
    cut_at: int = NEVER
    """Where the newest Commit cut it: the next stage is told so too, and takes no rows of before from there on."""

    def add(self, item: Item) -> None:
        """It is sent these rows."""
        if item.tree is None:
            self.upto += len(item.tokens) // 4
        else:
            self.num_nodes += len(item.tokens) // 4


class Telling:
    """Of one seat.

    Args:
        to_shadow: the next stage is a shadow: it is told rows alone, no drafts.
    """

    def __init__(self, store: SequenceStore, log: BoundaryLog, *, to_shadow: bool = False) -> None:
        self._store = store
        self._log = log
        self._to_shadow = to_shadow
        self._of: dict[SequenceId, _Told] = {}
        self._behind: dict[SequenceId, _Told] = {}
        """In the order in which they are served."""

    @property
    def is_behind(self) -> bool:
        """There is something to say again."""
        return bool(self._behind)

    def begin(self, there: Mapping[SequenceId, Holding]) -> None:
        """The next stage holds this much."""
        for sequence, mine in self._store:
            held = there.get(sequence)
            upto = held.have if held is not None and held.generation == mine.generation else 0
            self._of[sequence] = _Told(mine.generation, upto)
            self.catch_up(sequence)
        for sequence, held in there.items():  # what has yet to come here need not go there again
            self._of.setdefault(sequence, _Told(held.generation, held.have))

    # -- as rows come ----------------------------------------------------------------------

    def in_turn(self, alive: Sequence[Item], dead: Sequence[Item]) -> bool:
        """Whether a frame with these rows leaves the next stage waiting for none before them; then it is told them now.

        Args:
            dead: rows whose sequences have been cut, begun anew or closed since. They are no use to anybody, but they are in the
                frame. A stage that has not heard of that yet asks for what it lacks before them and takes nothing of the frame
                until it comes. It never comes if it died unsaid, and what would tell of the new history may have to wait for the
                room that this frame takes.
        """
        told = [self._told(item) for item in alive]
        for one, item in zip(told, alive, strict=True):
            if one.upto != item.position or one.is_behind or one.num_replays:
                return False
            if item.tree is not None and one.num_nodes != item.tree.first - 1:
                return False
        if dead and not self._can_go_along(alive, dead):
            return False
        for one, item in zip(told, alive, strict=True):
            one.add(item)
        return True

    def _can_go_along(self, alive: Sequence[Item], dead: Sequence[Item]) -> bool:
        leading = {item.sequence for item in alive}
        others = [item for item in dead if item.sequence not in leading and self._store.get(item.sequence) is not None]
        if not all(map(self._leaves_no_gap, others)):
            return False
        for item in others:
            told = self._told(item)
            if told.generation == item.generation:
                told.add(item)
        return True

    def _leaves_no_gap(self, item: Item) -> bool:
        """The next stage has been sent all that it has to have before it can take these dead rows, or drop them."""
        told = self._told(item)
        needed = item.position if told.generation == item.generation else min(item.position, told.cut_at)
        return told.upto >= needed and not told.num_replays

    def _told(self, item: Item) -> _Told:
        """Of the item's sequence, in the item's generation or a newer one."""
        told = self._of.get(item.sequence)
        if told is not None and told.generation >= item.generation:
            if told.generation == item.generation and not told.upto:
                told.upto = _begins_at(item)  # a Commit has told of the generation already, and that nothing of before stays
            return told
        return self._told_of(item.sequence, item.generation, _begins_at(item))

    def _told_of(self, sequence: SequenceId, generation: int, begins_at: int) -> _Told:
        """As :meth:`_told`; ``begins_at``: what the next stage holds of a generation that is new, without being sent it."""
        told = self._of.get(sequence)
        if told is None:
            told = self._of[sequence] = _Told(generation, begins_at)
        elif generation > told.generation:
            told.generation, told.upto, told.num_nodes = generation, begins_at, 0
        return told

    # -- out of the log --------------------------------------------------------------------

    def catch_up(self, sequence: SequenceId) -> None:
        """The log has rows of the sequence that are still to be said, unless it has not."""
        held = self._store.get(sequence)
        if held is None:
            return
        told = self._told_of(sequence, held.generation, 0)
        if self._log.bounds(sequence)[1] > told.upto or self._num_nodes(sequence) > told.num_nodes:
            told.is_behind = True
            self._behind.setdefault(sequence, told)

    def _num_nodes(self, sequence: SequenceId) -> int:
        """Of those that the next stage is to be told."""
        return 0 if self._to_shadow else self._log.num_nodes(sequence)

    def lacks(self, sequence: SequenceId, generation: int, have: int) -> None:
        """The next stage holds no more of it than this, and could not take what followed."""
        told = self._of.get(sequence)
        if told is not None and told.generation == generation and have < told.upto:
            told.upto = have
            self.catch_up(sequence)

    def next_rows(self, room: int, lost: list[Holding]) -> tuple[tuple[Item, ...], list[Piece]]:
        """Up to ``room`` rows of those that are behind, in turn. ``lost`` gets those whose rows are kept no more."""
        items: list[Item] = []
        pieces: list[Piece] = []
        while room and self._behind:
            sequence, told = next(iter(self._behind.items()))
            start, stop = self._log.bounds(sequence)
            held = self._store.get(sequence)
            has_rows, has_nodes = start <= told.upto < stop, told.upto == stop and self._num_nodes(sequence) > told.num_nodes
            if held is None or not (has_rows or has_nodes):
                if held is not None and told.upto < start:
                    lost.append(Holding(sequence, told.generation, told.upto))
                del self._behind[sequence]
                told.is_behind = False
                continue
            if (items and items[-1].sequence == sequence) or (told.upto == held.begun_at and not has_room(items, held.begun)):
                break
            if has_rows:
                said = self._log.read(sequence, told.upto, min(stop, told.upto + room))
            else:
                said = self._log.read_nodes(sequence, told.num_nodes + 1, room)
            opening = held.begun if said.position == held.begun_at else None
            items.append(_item(sequence, told.generation, said, opening))
            pieces += said.pieces
            told.add(items[-1])
            told.num_replays += 1
            room -= said.num_rows
        return tuple(items), pieces

    def came(self, items: Iterable[Item]) -> None:
        """These, of :meth:`next_rows`, have been acknowledged."""
        for item in items:
            if (told := self._of.get(item.sequence)) is not None:
                told.num_replays -= 1

    def give_up(self, items: Iterable[Item]) -> None:
        """These, of :meth:`next_rows`, cannot be had: the log has them no more."""
        for item in items:
            if item.tree is None:
                self._log.lose(item.sequence, item.position + item.num_rows)
            else:
                self._log.lose_nodes(item.sequence)
            told = self._of.get(item.sequence)
            if told is None:
                continue
            told.num_replays -= 1
            if told.generation == item.generation:
                told.upto = min(told.upto, item.position)
                told.is_behind = True
                self._behind.setdefault(item.sequence, told)

    # -- what becomes of sequences ---------------------------------------------------------

    def cut(self, cut: Cut) -> None:
        """The sequence goes on as the cut's generation. Of nodes on the path the next stage makes rows where it has been sent
        them; the rest it is sent as rows."""
        told = self._of.get(cut.sequence)
        if told is None:
            return
        has_all = told.upto == cut.length
        told.generation, told.upto, told.cut_at = cut.generation, min(told.upto, cut.length), cut.length
        if has_all:
            told.upto += sum(node <= told.num_nodes for node in cut.path)
        told.num_nodes = 0

    def recheck(self, sequence: SequenceId) -> None:
        """What was nodes may have come to be rows that the next stage has not been sent."""
        if sequence in self._of:
            self.catch_up(sequence)

    def forget(self, sequence: SequenceId) -> None:
        """It is closed."""
        self._of.pop(sequence, None)
        self._behind.pop(sequence, None)


def _begins_at(item: Item) -> int:
    """A generation that no Commit has told of begins with its sequence: what the next stage holds then, without being sent it."""
    return item.position if item.opening is not None else 0


def _item(sequence: SequenceId, generation: int, said: Said, opening: Opening | Fork | None) -> Item:
    return Item(
        sequence=sequence,
        generation=generation,
        kind=Kind.REPLAY,
        position=said.position,
        tokens=said.tokens,
        num_picks=said.num_picks,
        opening=opening,
        tree=said.tree,
    )
