"""Which rows go into the next microbatch. Pure.

Decoding sequences are spread evenly over the microbatches that may be under way, so that with several in flight every stage has
work while others travel. Prompts are cut into chunks, in turns that are fair between clients.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

from bloombee.control.chunks import Chunks, chunks_at
from bloombee.control.operate import apart
from bloombee.pipeline.beginnings import has_room
from bloombee.pipeline.events import Drafted, DrafterSeen, Priced, Tune
from bloombee.pipeline.fair import FairQueue
from bloombee.pipeline.scheduler.awaited import Awaited
from bloombee.pipeline.scheduler.epoch import Epoch
from bloombee.pipeline.scheduler.rounds import Rounds
from bloombee.pipeline.scheduler.sequence import SequenceState
from bloombee.types import Kind, Phase, SequenceId
from bloombee.wire.messages import Cut, Item

BESIDE_DECODE = 0.25
"""Of the rows of prompts that may be under way, while sequences decode: half of what fills the ring. With more of them
prompts are quicker and decode is slower: ``bench/prefill.py beside``."""
MOST_ITEMS = 2048
"""Sequences of one microbatch: their picks, with twenty likely tokens each, must fit a verdict."""


class Batcher:
    """The open sequences that have rows to be sent.

    Args:
        open_sequences: all that are open, kept by the owner.
        max_rows: most rows of one microbatch; longer prompts go in chunks.
        rounds: of drafts.
    """

    def __init__(self, open_sequences: Mapping[SequenceId, SequenceState], rounds: Rounds, *, max_rows: int) -> None:
        self._open = open_sequences
        self._rounds = rounds
        self._max_rows = max_rows
        self.prompts: FairQueue[SequenceState] = FairQueue()
        """Those whose rows wait for their turn as a prompt's do."""
        self._decode: deque[SequenceState] = deque()
        self._home: list[SequenceState] = []
        """That have one more token, for which no draft was asked yet."""
        self._awaited = Awaited()
        self.hungry: dict[SequenceId, SequenceState] = {}
        """Those that have rows, and no pages for them: see room.py."""
        self._chunks: tuple[Chunks, ...] = (Chunks(0, max_rows, max_rows, math.inf),)
        self._max_flights: int | None = None
        self._sizes_apart = False
        self._is_large_turn = False
        self._next_chunk_at = -math.inf

    def tune(self, event: Tune) -> None:
        self._max_flights = max(1, event.num_microbatches)
        self._chunks = event.chunks
        self._sizes_apart = event.sizes_apart

    # -- who has rows ----------------------------------------------------------------------

    def go_on(self, sequence: SequenceState) -> None:
        """It has rows to be sent, and pages for them."""
        if sequence.in_prefill:
            self.prompts.push(sequence)
        elif self._rounds.asks:
            self._home.append(sequence)
        else:
            self._decode.append(sequence)

    def picked(self, sequence: SequenceState) -> None:
        """It has one more token, and goes on with that."""
        was_filling = sequence.in_prefill
        if was_filling:  # it is being sent again, and this was known further on
            sequence.num_to_fill = sequence.num_tokens
        if sequence.num_tokens > sequence.num_covered:
            if was_filling:
                self.prompts.remove(sequence)
            self.hungry[sequence.id] = sequence
        elif not was_filling:
            self.go_on(sequence)

    def informed(self, event: Priced | DrafterSeen | Drafted) -> None:
        """What others know of drafts and their price."""
        self._rounds.informed(event)
        if isinstance(event, Drafted):
            self._awaited.answered(event.sequence)

    def ask_for_drafts(self, epoch: Epoch, now: float) -> None:
        """For who has come home; who has waited for an answer for long enough goes on."""
        home, self._home = self._home, []
        if home:
            self._rounds.num_flights = epoch.num_decoding + 1
            asked = {sequence.id: self._rounds.ask(sequence, len(home) - 1, now) for sequence in home}
            until_s = {one: moment for one, moment in asked.items() if moment is not None}
            may_part = self._rounds.may_part(epoch.num_decoding + len(home))
            for group in [[one] for one in home] if may_part else [home]:
                self._awaited.hold(group, until_s)
        self._decode += self._awaited.ready(now)

    def send_again(self, sequence: SequenceState, position: int) -> None:
        """Rows from ``position`` on, in turn with prompts."""
        if not sequence.in_prefill and sequence.id not in self.hungry:
            self._take_out(sequence)
            self.prompts.push(sequence)
        sequence.go_back(position)

    def abandon_rounds(self) -> list[Cut]:
        """No draft outlives the epoch that it is under way in."""
        cuts = []
        for sequence in self._open.values():
            if sequence.round is not None:
                cuts.append(sequence.abandon_round())
                self.send_again(sequence, sequence.num_sent)
        return cuts

    def remove(self, sequence: SequenceState) -> None:
        """It has ended, or makes way."""
        self.hungry.pop(sequence.id, None)
        if not self.prompts.remove(sequence):
            self._take_out(sequence)

    def _take_out(self, sequence: SequenceState) -> None:
        """Of those that decode."""
        for waiting in (self._decode, self._home):
            if sequence in waiting:
                waiting.remove(sequence)
        self._awaited.remove(sequence)

    def clear(self) -> None:
        self.prompts.clear()
        for waiting in (self._decode, self._home, self._awaited, self.hungry):
            waiting.clear()

    # -- decode ----------------------------------------------------------------------------

    def may_decode(self, epoch: Epoch) -> bool:
        """When fewer are to be under way than are, small ones come home: they go on as soon as they make a large one. Rounds of
        drafts part those that went together, as some take longer: where the ring idles nobody waits for that."""
        if not self._decode or not epoch.can_send(Phase.DECODE):
            return False
        if epoch.num_decoding < self._most_flights(epoch) or len(self._decode) >= self._largest(epoch):
            return True
        return self._rounds.may_part(epoch.num_decoding + 1)

    def decode_items(self, epoch: Epoch) -> list[Item]:
        """About an even share of the decoding sequences for each microbatch that may be in flight.

        By turns more and less while that is asked for (``control/operate.py`` says why). What came home together goes on
        together, so nothing waits for the sake of that.
        """
        share = self._share(epoch)
        count, most = len(self._decode), self._largest(epoch)
        if count > most:
            self._is_large_turn = not self._is_large_turn
            count = most if self._is_large_turn else max(1, 2 * share - most)
        elif epoch.num_decoding + 1 < self._most_flights(epoch):
            count = min(count, share)  # those that met on the way part again
        count = min(count, self._max_rows, MOST_ITEMS)
        chosen = [self._decode.popleft() for _ in range(count)]
        if self._rounds.speculator is not None:
            self._rounds.num_flights = epoch.num_decoding + 1
            return _with_drafts(chosen, self._rounds, self._max_rows - count)
        return [_item(sequence, 1) for sequence in chosen]

    def _most_flights(self, epoch: Epoch) -> int:
        """Microbatches that may decode at once: so many as hold everybody in even shares. More would be smaller ones, and each
        costs a forward whatever it holds: 24 of 1 or 2 sequences are slower than 16 of 2."""
        num_decoding = self._num_decoding
        return -(-num_decoding // self._share(epoch)) if num_decoding else self._credit(epoch)

    def _share(self, epoch: Epoch) -> int:
        """Sequences of a microbatch when all that decode are spread evenly over those that may be under way."""
        return min(self._max_rows, MOST_ITEMS, -(-self._num_decoding // self._credit(epoch)))

    def _largest(self, epoch: Epoch) -> int:
        share = self._share(epoch)
        return max(1, min(self._max_rows, MOST_ITEMS, share + (apart(share) if self._sizes_apart else 0)))

    def _credit(self, epoch: Epoch) -> int:
        return min(self._max_flights or epoch.ring.num_microbatches, epoch.ring.num_microbatches)

    @property
    def _num_decoding(self) -> int:
        return sum([not sequence.in_prefill for sequence in self._open.values()])

    # -- prompts ---------------------------------------------------------------------------

    def may_prefill(self, epoch: Epoch, now: float) -> bool:
        if not self.prompts or not epoch.can_send(Phase.PREFILL):
            return False
        # What makes sure that no wire runs dry also makes decode wait.
        is_gentle = self._is_gentle
        has_room = epoch.prefill_share < (BESIDE_DECODE if is_gentle else 1) - 1e-9
        return has_room and (not is_gentle or now >= self._next_chunk_at)

    def prefill_items(self) -> list[Item]:
        """A chunk of the prompt whose turn it is, filled up with others where their position allows that many rows."""
        items: list[Item] = []
        rows, is_gentle = 0, self._is_gentle
        while self.prompts and len(items) < MOST_ITEMS:
            sequence = self.prompts.peek()
            room = self._rows_at(sequence.num_sent, is_gentle=is_gentle) - rows
            if room <= 0 or not has_room(items, sequence.opening_at(sequence.num_sent)):
                break
            count = min(room, sequence.num_to_fill - sequence.num_sent)
            items.append(_item(sequence, count))
            rows += count
            if sequence.in_prefill:
                self.prompts.charge(sequence, count)
            else:
                self.prompts.pop(count)
        return items

    def whole_prompt(self, sequence: SequenceState) -> list[Item]:
        """In even chunks, of one item each."""
        count = sequence.num_to_fill - sequence.num_sent
        rows = -(-count // -(-count // self._rows_at(sequence.num_sent, is_gentle=True)))
        items = []
        while sequence.in_prefill:
            items.append(_item(sequence, min(rows, sequence.num_to_fill - sequence.num_sent)))
        return items

    def share_of_prompts(self, items: list[Item]) -> float:
        """Of the rows of prompts that may be under way."""
        return sum(item.num_rows / chunks_at(self._chunks, item.position).under_way for item in items)

    def space_chunks(self, items: list[Item], loop_s: float | None, now: float) -> None:
        """Beside decode chunks go spread over a loop: all that fill the ring at once would meet each microbatch everywhere."""
        if loop_s is not None and self._is_gentle:
            apart_s = loop_s * self.share_of_prompts(items) / BESIDE_DECODE
            self._next_chunk_at = max(self._next_chunk_at, now - apart_s) + apart_s

    @property
    def _is_gentle(self) -> bool:
        """Whether prompts make way for decode: at full speed they would hold up each sequence that decodes, gently each of them
        takes longer itself. So those of a burst do not while they are more than what decodes."""
        num_started = sum(sequence.num_output > 0 for sequence in self._open.values())
        return num_started > 0 and num_started >= len(self.prompts)

    def _rows_at(self, position: int, *, is_gentle: bool) -> int:
        """Most rows of a chunk that begins at ``position``."""
        chunks = chunks_at(self._chunks, position)
        return min(chunks.gentle if is_gentle else chunks.fast, self._max_rows)


def _with_drafts(sequences: list[SequenceState], rounds: Rounds, room: int) -> list[Item]:
    """The next row of each, with up to ``room`` rows of all that may follow."""
    items = list[Item]()
    for sequence in sequences:
        item = rounds.item(sequence, room, len(sequences) - 1) or _item(sequence, 1)
        room -= item.num_rows - 1
        items.append(item)
    return items


def _item(sequence: SequenceState, count: int) -> Item:
    """Its next ``count`` rows, which count as sent from now on."""
    start = sequence.num_sent
    sequence.num_sent += count
    sequence.most_sent = max(sequence.most_sent, sequence.num_sent)
    return Item(
        sequence=sequence.id,
        generation=sequence.generation,
        kind=_kind_of(sequence, start),
        position=start,
        tokens=bytes(sequence.tokens[4 * start : 4 * sequence.num_sent]),
        num_picks=0 if sequence.in_prefill else 1,
        opening=sequence.opening_at(start),
        tree=None,
    )


_PROMPT, _DECODE, _REPLAY = int(Kind.PROMPT), int(Kind.DECODE), int(Kind.REPLAY)


def _kind_of(sequence: SequenceState, start: int) -> int:
    """Of rows from ``start`` on, up to the newest that is known or less."""
    if sequence.num_prompt_tokens < sequence.num_to_fill and start < sequence.num_to_fill:
        return _REPLAY
    return _PROMPT if start < sequence.num_prompt_tokens else _DECODE
