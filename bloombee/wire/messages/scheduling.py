"""What a head and a scheduler in another process say to each other: requests there, tokens back. Tags 53 to 55.

Ask and Told are streams: numbered, kept until they are acknowledged (Ack), taken in order. ``epoch`` is the one in which the
scheduler began, whatever plan runs: what is for one that began sooner is not for this one.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from bloombee.wire.messages.base import (
    MAX_ITEMS,
    MAX_ROWS,
    U32,
    U63,
    Amount,
    Facts,
    Message,
    Name,
    PackedTokens,
    Part,
    Text,
)
from bloombee.wire.messages.ring import Opening, Pick


class Request(Part, frozen=True):
    """A sequence that is to be run, or tokens of one that has too many for a message: then each says the same but for
    ``position`` and ``tokens``, and it begins with the last of them."""

    sequence: U63
    num_tokens: U32
    """Of all: the prompt, then what the head has been given of the answer."""
    position: U32
    """Of the first of ``tokens``."""
    tokens: PackedTokens
    opening: Opening
    client: Text
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31)]
    max_time_s: Amount | None
    """After which it gets no more tokens; None: whenever."""


class ChunkSizes(Part, frozen=True):
    """How prompts are cut from ``position`` on: control.chunks.Chunks."""

    position: U32
    fast: Annotated[int, Meta(ge=1, le=MAX_ROWS)]
    gentle: Annotated[int, Meta(ge=1, le=MAX_ROWS)]
    under_way: Annotated[float, Meta(gt=0, le=1e18)] | None
    """None: any number."""


class Tuning(Part, frozen=True):
    """How the pipeline is run from now on: pipeline.events.Tune."""

    num_microbatches: Annotated[int, Meta(ge=1, le=2**16 - 1)]
    chunks: Annotated[tuple[ChunkSizes, ...], Meta(min_length=1, max_length=256)]
    max_sequences: U32 | None
    sizes_apart: bool


class Ask(Message, frozen=True, tag=53):
    """What the scheduler is to do, in this order. Nothing at all: something comes on over some link, though no frame may be
    acknowledged."""

    pipeline: U32
    epoch: U32
    frame: U63
    """Counts those of the epoch from 0."""
    requests: Annotated[tuple[Request, ...], Meta(max_length=MAX_ITEMS)]
    cancelled: Annotated[tuple[U63, ...], Meta(max_length=MAX_ITEMS)]
    finished: Annotated[tuple[U63, ...], Meta(max_length=MAX_ITEMS)]
    """Their text has ended, by a stop string."""
    tuning: Tuning | None


class Given(Part, frozen=True):
    """A token that counts."""

    pick: Pick
    finish: Annotated[str, Meta(max_length=16)] | None
    """types.FinishReason, of a sequence's last."""
    drafted: U32
    """Tokens that were drafted beside the row that it was picked after."""
    was_drafted: bool
    """It was among those of the round before it."""
    num_cached: U32
    """Of a sequence's first: rows of its prompt that it began on."""


class Over(Part, frozen=True):
    """A sequence ended without a last token."""

    sequence: U63
    code: Name
    """Of the error; empty: it was cancelled."""
    fields: Facts


class Told(Message, frozen=True, tag=54):
    """What has come of requests, in the order in which it came: of each sequence its tokens, then its end."""

    pipeline: U32
    epoch: U32
    frame: U63
    """Counts those of the epoch from 0."""
    given: Annotated[tuple[Given, ...], Meta(max_length=MAX_ROWS)]
    over: Annotated[tuple[Over, ...], Meta(max_length=MAX_ITEMS)]


class Standing(Message, frozen=True, tag=55):
    """The scheduler at a glance, twice a second: control.events.Looked. Nobody answers it; the next one says it anew."""

    pipeline: U32
    epoch: U32
    num_open: U32
    num_waiting: U32
    loop_s: Amount | None
    """Of the microbatch that came home quickest of late; None: none has."""
    loop_rows: U32
    num_decoded: U63
    """Tokens that came of microbatches that decode."""
    decoded_ago_s: Amount
    """Since the last of them came."""
