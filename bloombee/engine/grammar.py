"""Which tokens a grammar allows after those that there are: one state a sequence, and the states of a last stage.

A state is a function of the grammar and the output's tokens alone. Whoever asks says which tokens these are, and the state goes
there, forward or back; so recovery, replay and rollback need nothing else. The mask after a pick is made at once, on a thread
beside the next forward, and is there when its row's logits are. docs/adr/0082 has why.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TimedOut
from dataclasses import dataclass, field

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from bloombee.errors import GrammarFailed
from bloombee.grammar import source
from bloombee.pipeline.work import Segment
from bloombee.wire.messages import Grammar

log = logging.getLogger(__name__)
Mask = NDArray[np.uint64]
"""[ceil(v / 64)]: bit i % 64 of word i // 64 is whether token i may be picked."""
MOST_STATES = 512
"""Of sequences; of one that is forgotten its tokens are followed anew."""
MOST_COMPILED = 32
"""Grammars that are kept compiled for requests to come."""
MOST_READY_S = 5.0
"""From when a sequence is first seen until it can be picked for: its grammar is compiled, as it was for the head in half a
second."""


def vocabulary(tokenizer_json: str, vocab_size: int, end_tokens: Sequence[int]) -> LLTokenizer:
    """What each token stands for, in bytes, and which tokens end a text.

    Args:
        tokenizer_json: of the tokenizers library.
        vocab_size: of the logits, which may have more tokens than the tokenizer, or fewer.

    Raises:
        GrammarFailed: llguidance cannot read it.
    """
    try:
        return LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=list(end_tokens))
    except Exception as error:  # of whatever is in a tokenizer
        raise GrammarFailed(f"the tokenizer cannot be read for grammars: {error}") from error


class GrammarState:
    """Where one sequence is in its grammar. Any thread may ask for :meth:`mask` and :meth:`masks`.

    Args:
        matcher: compiled, at the beginning; its own.
        vocab_size: of the logits.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._lock = threading.Lock()
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._output = bytearray()
        """[n] little-endian uint32: the tokens that the matcher has taken."""
        self._mask: Mask | None = None
        """After them, once it is known."""

    def mask(self, output: bytes) -> Mask:
        """After ``output`` ([n] little-endian uint32): of tokens with which the text can still become what it must.

        Raises:
            GrammarFailed: it does not allow these tokens, or is too much to be followed.

        Time: none where it was asked for last; else that of a mask, and of as many tokens as were not known before.
        """
        with self._lock:
            self._go_to(output)
            if self._mask is None:
                self._mask = self._computed()
            return self._mask

    def mask_after(self, path: Sequence[int]) -> Mask:
        """As :meth:`mask`, after the output of before and then ``path``, as a draft goes on; the state stays as it is.

        Where the grammar does not allow these tokens, or they end the text, nothing is allowed.
        """
        if self._matcher.validate_tokens(list(path)) < len(path):
            return np.zeros(-(-self._vocab_size // 64), np.uint64)
        self._take(path)
        try:
            return self._computed()
        finally:
            self._back(len(path))

    def masks(self, segment: Segment) -> dict[int, Mask]:
        """After each row of the segment that is sampled after, by its node, or in a chain by the position of what is sampled.
        Raises as :meth:`mask`."""
        tree, output = segment.tree, segment.history[4 * segment.num_prompt_tokens :]
        if tree is not None:
            with self._lock:
                self._go_to(output)
                nodes = [tree.first + row for row in segment.picked()]
                return {node: self.mask_after(np.frombuffer(tree.tokens_on(node), "<u4").tolist()) for node in nodes}
        positions = [segment.position + row + 1 for row in segment.picked()]
        return {position: self.mask(output[: 4 * (position - segment.num_prompt_tokens)]) for position in positions}

    def _go_to(self, output: bytes) -> None:
        if output == self._output:
            return
        self._mask = None
        known = _num_alike(self._output, output)
        self._back(len(self._output) // 4 - known)
        del self._output[4 * known :]
        self._take(np.frombuffer(output, "<u4")[known:].tolist())
        self._output += output[4 * known :]

    def _take(self, tokens: Sequence[int]) -> None:
        if tokens and not self._matcher.consume_tokens(list(tokens)):
            self._fail()

    def _back(self, count: int) -> None:
        if count and not self._matcher.rollback(count):
            self._fail()

    def _computed(self) -> Mask:
        words = np.zeros(-(-self._vocab_size // 64), np.uint64)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, -(-self._vocab_size // 32) * 4)
        if self._matcher.is_error():
            self._fail()
        return words

    def _fail(self) -> None:
        raise GrammarFailed(f"the grammar cannot be followed: {_said(self._matcher)}")


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What a state was told to do.

    Args:
        of: whose ``masks`` there will be; None: there will be none, but the state is after the newest pick then, and knows the
            mask there.
    """

    of: Segment | None
    masks: Future[dict[int, Mask]]


@dataclass(slots=True)
class _Entry:
    """Of one sequence."""

    grammar: Grammar
    end_tokens: tuple[int, ...]
    state: Future[GrammarState]
    asked_at: float
    ahead: _Ahead | None = None
    """The newest."""

    def ahead_of(self, segment: Segment) -> _Ahead | None:
        """After which its masks are there; None: the state was told something else."""
        ahead = self.ahead
        is_its = ahead is not None and (ahead.of is segment or (ahead.of is None and segment.tree is None))
        return ahead if is_its else None


@dataclass(slots=True)
class Grammars:
    """The states of a last stage's sequences. One thread picks at a time; any thread may :meth:`begin`.

    Args:
        tokenizer_json: reads the model's tokenizer; None: it has none here.
        vocab_size: of the logits.
    """

    tokenizer_json: Callable[[], str | None]
    vocab_size: int
    _entries: OrderedDict[int, _Entry] = field(default_factory=OrderedDict)
    """By sequence, the one that was used last at the end; under the lock."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _compiled: OrderedDict[tuple[Grammar, tuple[int, ...]], LLMatcher] = field(default_factory=OrderedDict)
    _vocabularies: dict[tuple[int, ...], LLTokenizer] = field(default_factory=dict)
    _compiling: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "bloombee-grammar-compile"))
    _following: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "bloombee-grammar"))

    def prepare(self, end_tokens: Sequence[int]) -> None:
        """Read the tokenizer for requests that will end so, if at all. To be called before anything runs: it holds the
        interpreter's lock.

        Time: half a second for 128k tokens.
        """
        if not end_tokens:
            return
        try:
            self._vocabulary(tuple(sorted(set(end_tokens))))
        except Exception as error:  # of whatever is in its files
            log.warning("no grammar can be obeyed here: %s", error)

    def begin(self, segments: Iterable[Segment]) -> None:
        """These are about to be computed: states that are missing are made meanwhile, and masks that are not under way."""
        for segment in segments:
            if segment.grammar is None:
                continue
            entry = self._entry(segment)
            is_there = entry.state.done() and entry.state.exception() is None  # else :meth:`mask` says what is wrong
            if segment.num_picks and is_there and entry.ahead_of(segment) is None:
                self._look(entry, segment)

    def mask(self, segment: Segment, position: int, node: int = 0) -> Mask:
        """Of tokens that position ``position`` of the segment's sequence may have, of a tree after ``node``; not to be written.

        Raises:
            GrammarFailed: it cannot be followed, or was not ready in :data:`MOST_READY_S`.
        """
        entry = self._entry(segment)
        try:
            state = entry.state.result(max(0.0, entry.asked_at + MOST_READY_S - time.monotonic()))
            ahead = entry.ahead_of(segment) or self._look(entry, segment)  # the entry's may be of another segment any moment
            masks = ahead.masks.result(MOST_READY_S)
            if ahead.of is segment:
                return masks[node or position]
            return state.mask(segment.history[4 * segment.num_prompt_tokens : 4 * position])
        except TimedOut:
            raise GrammarFailed(f"the grammar was not ready within {MOST_READY_S:g} s") from None
        except BaseException as error:
            self._forget(segment.sequence)  # a matcher that has failed stays so
            if isinstance(error, (GrammarFailed, KeyboardInterrupt, SystemExit)):
                raise
            raise GrammarFailed(f"the grammar cannot be followed: {error}") from error  # a library's panic is no Exception

    def picked(self, picks: Iterable[tuple[Segment, int, int]]) -> None:
        """(segment, position, token) that were picked of chains, one of each sequence: the masks after them are made from now on,
        beside what comes."""
        due: list[tuple[GrammarState, bytes]] = []
        ahead = _Ahead(None, Future())
        for segment, position, token in picks:
            entry = self._entries.get(segment.sequence)
            if entry is None:
                continue
            if token in segment.end_tokens or position + 1 - segment.num_prompt_tokens >= segment.max_new_tokens:
                self._forget(segment.sequence)
                continue
            entry.ahead = ahead
            output = segment.history[4 * segment.num_prompt_tokens : 4 * position]
            due.append((entry.state.result(), output + token.to_bytes(4, "little")))
        if due:
            self._following.submit(_lead, due, ahead.masks)

    def _look(self, entry: _Entry, segment: Segment) -> _Ahead:
        """Have the segment's masks made."""
        ahead = entry.ahead = _Ahead(segment, self._following.submit(entry.state.result().masks, segment))
        return ahead

    def _entry(self, segment: Segment) -> _Entry:
        assert segment.grammar is not None
        with self._lock:
            entry = self._entries.get(segment.sequence)
            if entry is None or (entry.grammar, entry.end_tokens) != (segment.grammar, segment.end_tokens):
                made = self._compiling.submit(self._state, segment.grammar, segment.end_tokens)
                entry = self._entries[segment.sequence] = _Entry(segment.grammar, segment.end_tokens, made, time.monotonic())
                if len(self._entries) > MOST_STATES:
                    self._entries.popitem(last=False)
            self._entries.move_to_end(segment.sequence)
            return entry

    def _forget(self, sequence: int) -> None:
        with self._lock:
            self._entries.pop(sequence, None)

    # -- on the thread that compiles -------------------------------------------------------

    def _state(self, grammar: Grammar, end_tokens: tuple[int, ...]) -> GrammarState:
        key = grammar, end_tokens
        matcher = self._compiled.get(key)
        if matcher is None:
            matcher = LLMatcher(self._vocabulary(end_tokens), source(grammar), log_level=0)
            if matcher.is_error():
                raise GrammarFailed(f"the grammar cannot be compiled: {_said(matcher)}")
            self._compiled[key] = matcher
            if len(self._compiled) > MOST_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        state = GrammarState(matcher.deep_copy(), self.vocab_size)
        state.mask(b"")
        return state

    def _vocabulary(self, end_tokens: tuple[int, ...]) -> LLTokenizer:
        found = self._vocabularies.get(end_tokens)
        if found is None:
            tokenizer_json = self.tokenizer_json()
            if tokenizer_json is None:
                raise GrammarFailed("this worker's copy of the model has no tokenizer: put the head's files there")
            found = self._vocabularies[end_tokens] = vocabulary(tokenizer_json, self.vocab_size, end_tokens)
        return found


def _lead(due: Sequence[tuple[GrammarState, bytes]], ahead: Future[dict[int, Mask]]) -> None:
    """Have each state know the mask after these tokens."""
    for state, output in due:
        try:
            state.mask(output)
        except BaseException as error:  # whoever needs the mask asks again, and is told
            log.debug("a mask ahead: %s", error)
    ahead.set_result({})


def _num_alike(one: bytes | bytearray, other: bytes) -> int:
    """Tokens that both begin with."""
    a, b = np.frombuffer(bytes(one), "<u4"), np.frombuffer(other, "<u4")
    count = min(len(a), len(b))
    different = np.flatnonzero(a[:count] != b[:count])
    return int(different[0]) if len(different) else count


def _said(matcher: LLMatcher) -> str:
    return next(iter(matcher.get_error().splitlines()), "")
