"""First rows of sequences that stages have kept, or soon will have, and which sequences begin on them. Pure.

Theory of operation. The tokens of a sequence are hashed page by page, each hash going on from the one before, so one hash names
all tokens up to there. What a sequence has in common with others is found by the longest of its hashes that is known. Known are

    coming    sequences in prefill. One that has much in common with such a one waits, rather than to compute the same rows.
    home      sequences that decode: all rows of their prompts are on every stage. They are kept as soon as somebody can use that.
    kept      what stages were asked to keep (Keep), of sequences that decode or have ended; usable once all have said that they
              have it (Have).

Rows are kept as long as nobody needs the pages. A stage that lets go of some says so, and so does one that lacks what a sequence
is to begin on: then that is sent from the rows on that all have. So nothing here has to be true for tokens to be right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from bloombee.kv.pool import can_go_back
from bloombee.pipeline.commands import Send
from bloombee.pipeline.scheduler.batching import Batcher
from bloombee.pipeline.scheduler.epoch import Epoch
from bloombee.pipeline.scheduler.sequence import SequenceState
from bloombee.plan.plan import Ring
from bloombee.types import Lane, SequenceId
from bloombee.wire.messages import Have, Keep, Kept, Prefix

WORTH_WAITING_ROWS = 256
"""So many more rows must be coming than are there for a sequence to wait for them."""
MOST_KEPT = 4096
FROM_BEFORE: SequenceId = 2**62
"""In the place of sequences that nobody here has opened: from this number on."""
KEPT_SHARE = 32
"""What is remembered as kept has no more than so many times the pages that there are: much of it is shared."""


class _Hashes:
    """Of the first 1, 2, .. pages of a sequence.

    Args:
        page_bytes: of the token ids of a page.
    """

    def __init__(self, page_bytes: int) -> None:
        self._page_bytes = page_bytes
        self._hash = blake2b(digest_size=32)
        self.keys: list[bytes] = []

    def extend(self, tokens: bytearray, num_pages: int) -> None:
        """To so many pages of ``tokens``, the first of which are known."""
        size = self._page_bytes
        with memoryview(tokens) as view:
            for page in range(len(self.keys), num_pages):
                self._hash.update(view[page * size : (page + 1) * size])
                self.keys.append(self._hash.digest())


@dataclass(slots=True, eq=False)
class _Source:
    """Rows that others can begin on, or will be able to."""

    sequence: SequenceId
    keys: list[bytes]
    """Of those of its pages up to which one can."""
    newest: int
    """Rows of the sequence when they are kept: windows have gone on that far."""
    is_coming: bool = False
    name: Prefix | None = None
    """As stages keep it."""
    generation: int = 0
    """Of the sequence, when stages were asked."""
    waiting: set[int] = field(default_factory=set)
    """Stages that have not said that they have it."""
    asked_at: float = -math.inf
    followers: dict[SequenceId, SequenceState] = field(default_factory=dict)
    """Who waits for it."""


class Prefixes:
    """Of one scheduler.

    Args:
        open_sequences: all that are open, kept by the owner.
        batcher: gets those that have waited, and those that are sent anew.
        is_on: else nothing is kept, and every sequence is computed.
    """

    def __init__(self, open_sequences: Mapping[SequenceId, SequenceState], batcher: Batcher, *, is_on: bool) -> None:
        self._open = open_sequences
        self._batcher = batcher
        self._is_on = is_on
        self._ring: Ring | None = None
        self._hashes: dict[SequenceId, _Hashes] = {}
        self._by_key: dict[bytes, dict[_Source, None]] = {}
        self._own: dict[SequenceId, _Source] = {}
        """Open sequences, coming or home."""
        self._kept: dict[bytes, _Source] = {}
        """By name; what was of use last at the end."""
        self._of: dict[SequenceId, dict[_Source, None]] = {}
        """What is kept of a sequence."""
        self._num_kept_tokens = self._num_from_before = 0
        self._asked: dict[_Source, None] = {}
        """Of those that are kept: what some stage has not said yet that it has."""
        self._follows: dict[SequenceId, _Source] = {}
        """Whom those that wait wait for."""

    def restart(self, ring: Ring | None) -> None:
        """Stages are others from now on, and nothing is known to be there; None: nor will be, until this is called again, or
        :meth:`resume`."""
        waited = [self._open[number] for number in self._follows]
        self._ring = ring if self._is_on else None
        for known in (self._hashes, self._by_key, self._own, self._kept, self._of, self._asked, self._follows):
            known.clear()
        self._num_kept_tokens = 0
        self._go_on(waited)

    def resume(self, ring: Ring | None) -> None:
        """It may be known again which stages there are."""
        if self._is_on and self._ring is None:
            self._ring = ring

    # -- beginning -------------------------------------------------------------------------

    def begin(self, sequence: SequenceState) -> bool:
        """Let it begin on what there is. False: it waits for rows that are coming."""
        ring = self._ring
        if ring is None:
            return True
        size = ring.page_size
        hashes = self._hashes[sequence.id] = _Hashes(4 * size)
        hashes.extend(sequence.tokens, sequence.num_to_fill // size)
        keys = hashes.keys[: (sequence.num_to_fill - 1) // size]  # the last row is always computed
        there, kept = self._find(keys, lambda source: source.name is not None and not source.waiting)
        coming, other = self._find(keys, lambda source: source.name is None or bool(source.waiting))
        if other is not None and coming > there:
            if not other.is_coming and other.name is None:
                other = self._keep(other.sequence, keys[:coming])
            if (coming - there) * size >= WORTH_WAITING_ROWS:
                other.followers[sequence.id] = sequence
                self._follows[sequence.id] = other
                return False
        if kept is not None and kept.name is not None:
            self._touch(kept.name.key)
            sequence.begin_on(Prefix(kept.name.key, there * size))
        self._own[sequence.id] = own = _Source(sequence.id, hashes.keys, sequence.num_to_fill, is_coming=True)
        self._add(own)
        return True

    def _find(self, keys: list[bytes], is_wanted: Callable[[_Source], bool]) -> tuple[int, _Source | None]:
        """The longest that is known and wanted: its pages, and who has them."""
        for count in range(len(keys), 0, -1):
            for source in reversed(self._by_key.get(keys[count - 1], {})):
                if is_wanted(source) and self._can_follow(count, source):
                    return count, source
        return 0, None

    def _can_follow(self, num_pages: int, source: _Source) -> bool:
        """Whether all layers still hold what rows see that follow on so many pages of it."""
        ring, own = self._ring, self._open.get(source.sequence)
        assert ring is not None
        newest = source.newest if source.name is not None or own is None else max(source.newest, own.most_sent)
        return all(can_go_back(num_pages * ring.page_size, newest, group.window) for group in ring.groups)

    # -- what becomes of sequences ---------------------------------------------------------

    def came_home(self, sequence: SequenceState) -> None:
        """A token has been picked: all rows before it are on every stage."""
        own = self._own.get(sequence.id)
        if own is not None and own.is_coming:
            own.is_coming = False
            self._release(own)

    def sent_anew(self, sequence: SequenceId) -> None:
        """Its rows are coming again."""
        if sequence in self._own:
            self._own[sequence].is_coming = True

    def ended(self, sequence: SequenceState, epoch: Epoch | None, now: float) -> list[Send]:
        """All stages are about to let go of it; what they are asked to keep before that."""
        own, hashes = self._own.pop(sequence.id, None), self._hashes.pop(sequence.id, None)
        if (followed := self._follows.pop(sequence.id, None)) is not None:
            del followed.followers[sequence.id]
        if self._ring is None or own is None or hashes is None:
            return []
        self._remove(own)
        if not own.is_coming:
            home = sequence.num_tokens - 1 if sequence.round is None else sequence.round.base
            hashes.extend(sequence.tokens, home // self._ring.page_size)
            if hashes.keys:
                self._keep(sequence.id, hashes.keys)
        self._release(own)
        return self.asks(epoch, now)

    def _release(self, source: _Source) -> None:
        """Nobody waits for it any more."""
        followers = list(source.followers.values())
        source.followers.clear()
        for follower in followers:
            del self._follows[follower.id]
        self._go_on(followers)

    def _go_on(self, waited: Iterable[SequenceState]) -> None:
        """They begin, unless there are other rows to wait for."""
        for sequence in waited:
            if self.begin(sequence):
                self._batcher.go_on(sequence)

    # -- what stages keep ------------------------------------------------------------------

    def _keep(self, sequence: SequenceId, keys: list[bytes]) -> _Source:
        """Have stages asked for it, unless they were."""
        known = self._kept.get(keys[-1])
        if known is not None:
            self._touch(keys[-1])
            return known
        own = self._open[sequence]
        return self._ask(_Source(sequence, keys, own.most_sent), own.generation)

    def _ask(self, source: _Source, generation: int) -> _Source:
        """Have all stages asked to keep it."""
        ring, keys = self._ring, source.keys
        assert ring is not None
        name = source.name = Prefix(keys[-1], len(keys) * ring.page_size)
        source.generation, source.waiting = generation, set(range(ring.num_stages))
        source.keys = [key for count, key in enumerate(keys, start=1) if self._can_follow(count, source)]
        self._kept[name.key] = source
        self._of.setdefault(source.sequence, {})[source] = None
        self._asked[source] = None
        self._num_kept_tokens += name.length
        self._add(source)
        while len(self._kept) > MOST_KEPT or self._num_kept_tokens > KEPT_SHARE * ring.num_tokens:
            oldest = next((one for one in self._kept.values() if not one.waiting), None)
            if oldest is None:
                break
            self._forget(oldest)
        return source

    def heard(self, stage: int, message: Have | Kept) -> list[SequenceState]:
        """Returns whom that a stage says has to be sent anew."""
        if isinstance(message, Have):
            return self._have(stage, message)
        self._from_before(message)
        return []

    def _from_before(self, there: Kept) -> None:
        """The last stage has rows that nobody here knows of; all are asked for them."""
        ring = self._ring
        if ring is None:
            return
        hashes = _Hashes(4 * ring.page_size)
        hashes.extend(bytearray(there.tokens), len(there.tokens) // (4 * ring.page_size))
        if hashes.keys and hashes.keys[-1] not in self._kept:
            self._num_from_before += 1
            self._ask(_Source(FROM_BEFORE + self._num_from_before, hashes.keys, there.newest), 0)

    def asks(self, epoch: Epoch | None, now: float, *, older_than_s: float = math.inf) -> list[Send]:
        """What stages are to keep and have not said that they have, for so long since they were asked; inf: if they were not."""
        sends = list[Send]()
        if epoch is None or not epoch.is_open:
            return sends
        ring = epoch.ring
        for source in self._asked:
            if source.name is not None and now - source.asked_at >= older_than_s:
                source.asked_at = now
                keep = Keep(ring.pipeline, ring.epoch, source.sequence, source.generation, source.name)
                sends += [Send(stage, Lane.CONTROL, keep) for stage in sorted(source.waiting)]
        return sends

    def _have(self, stage: int, have: Have) -> list[SequenceState]:
        """A stage has kept rows of a sequence; or has not, or no longer (length 0); or lacks what the sequence has begun on: then
        it is returned, to be sent anew."""
        for source in list(self._of.get(have.sequence, ())):
            if source not in self._of.get(have.sequence, ()):
                continue  # let go of for what began meanwhile, which waited for the one before
            if not have.length:
                self._forget(source)
            elif source in self._asked and source.name is not None and have.length == source.name.length:
                source.waiting.discard(stage)
                if not source.waiting:
                    del self._asked[source]
                    self._release(source)
        sequence = self._open.get(have.sequence)
        if sequence is None or sequence.prefix is None or have.length >= sequence.num_cached:
            return []
        if (missing := self._kept.get(sequence.prefix.key)) is not None:
            self._forget(missing)
        return [sequence]

    def _touch(self, name: bytes) -> None:
        self._kept[name] = self._kept.pop(name)

    def _forget(self, source: _Source) -> None:
        assert source.name is not None
        del self._kept[source.name.key]
        self._asked.pop(source, None)
        del self._of[source.sequence][source]
        if not self._of[source.sequence]:
            del self._of[source.sequence]
        self._num_kept_tokens -= source.name.length
        self._remove(source)
        self._release(source)

    def _add(self, source: _Source) -> None:
        for key in source.keys:
            self._by_key.setdefault(key, {})[source] = None

    def _remove(self, source: _Source) -> None:
        for key in source.keys:
            others = self._by_key[key]
            del others[source]
            if not others:
                del self._by_key[key]
