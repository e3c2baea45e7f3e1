"""What a stage does about first rows that are kept by content: keeps them, says which it lacks or has let go of. Pure.

What the scheduler says and hears of it is told once and may be lost: what is not here when a sequence is to begin on it is said
then (:func:`short`), again until the sequence comes in another way.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from bloombee.pipeline.commands import Command, Send
from bloombee.pipeline.events import Port
from bloombee.pipeline.sequences import SequenceStore, begins_anew
from bloombee.types import Lane
from bloombee.wire.messages import Have, Holding, Item, Keep, Kept, Opening
from bloombee.wire.messages.base import MAX_ROWS

MOST_SAID = 256
"""Prefixes, to a scheduler that begins."""


def short(store: SequenceStore, items: Iterable[Item]) -> list[Holding]:
    """Of items that begin on a prefix of which less is here: they must not be taken."""
    found = []
    for item in items:
        held, prefix = store.get(item.sequence), item.opening.prefix if isinstance(item.opening, Opening) else None
        if prefix is None or store.is_closed(item.sequence):
            continue
        if held is not None and item.generation <= held.generation and not begins_anew(held, item):
            continue
        have = store.kv.prefixes.usable(prefix.key, prefix.length)
        if have < prefix.length:
            found.append(Holding(item.sequence, item.generation, have))
    return found


def keep(store: SequenceStore, message: Keep) -> list[Command]:
    """Keep first rows of a sequence that is open, and say whether they are kept. Said again it changes nothing."""
    held, prefix = store.get(message.sequence), message.prefix
    is_here = held is not None and held.generation == message.generation and held.settled >= prefix.length
    if held is not None and is_here:
        tokens = bytes(held.tokens[: 4 * prefix.length])
        is_here = store.kv.prefixes.keep(prefix.key, message.sequence, held.tables, prefix.length, held.newest, tokens)
    elif held is None:
        is_here = store.kv.prefixes.usable(prefix.key, prefix.length) == prefix.length  # said twice, and closed since
    return [_have(message.pipeline, message.epoch, message.sequence, prefix.length if is_here else 0)]


def gone(store: SequenceStore, pipeline: int, epoch: int) -> list[Command]:
    """What has been let go of since."""
    return [_have(pipeline, epoch, sequence, 0) for sequence in store.kv.prefixes.take_gone()]


def say_kept(store: SequenceStore, pipeline: int, epoch: int) -> list[Command]:
    """Of a last stage, to a scheduler that may not know: what is kept here, what was of use last first."""
    latest = islice(store.kv.prefixes.latest, MOST_SAID)
    return [
        Send(Port.SCHEDULER, Lane.CONTROL, Kept(pipeline, epoch, kept.tokens, kept.newest))
        for kept in latest
        if 0 < kept.length <= MAX_ROWS
    ]


def say_short(pipeline: int, epoch: int, lacking: Iterable[Holding]) -> list[Command]:
    """How much there is of what sequences were to begin on."""
    return [_have(pipeline, epoch, one.sequence, one.have) for one in lacking]


def _have(pipeline: int, epoch: int, sequence: int, length: int) -> Send:
    return Send(Port.SCHEDULER, Lane.CONTROL, Have(pipeline, epoch, sequence, length))
