"""Rows and picks on their way round a pipeline, what is held of them, and what becomes of sequences. Tags 32 to 52."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from bloombee.wire.messages.base import (
    MAX_BIASES,
    MAX_GRAMMAR_CHARS,
    MAX_HOLDINGS,
    MAX_ITEMS,
    MAX_PATH,
    MAX_ROWS,
    U16,
    U32,
    U63,
    U64,
    KindNumber,
    LaneNumber,
    Message,
    Name,
    PackedTokens,
    Part,
    PrefixKey,
    PriorityNumber,
    Real,
    TableKey,
)


class Sampling(Part, frozen=True):
    """What the last stage needs of a request; see types.SamplingParams."""

    temperature: Real
    top_k: U32
    top_p: Real
    min_p: Real
    repetition_penalty: Real
    presence_penalty: Real
    frequency_penalty: Real
    seed: U64
    logprobs: Annotated[int, Meta(ge=-1, le=20)]
    """-1: none wanted."""


class Grammar(Part, frozen=True):
    """What a request's text must be."""

    kind: Name
    """How ``text`` is written: one of bloombee.grammar.KINDS."""
    text: Annotated[str, Meta(max_length=MAX_GRAMMAR_CHARS)]
    """At most MAX_GRAMMAR_BYTES of UTF-8."""


class Prefix(Part, frozen=True):
    """Rows that stages may have kept of a closed sequence."""

    key: PrefixKey
    length: Annotated[int, Meta(ge=1, le=2**32 - 1)]


class Opening(Part, frozen=True, tag=1):
    """What stages must know of a sequence; with the first rows that one is sent, so that a replay needs nothing else."""

    num_prompt_tokens: U32
    sampling: Sampling
    max_new_tokens: U32
    end_tokens: Annotated[tuple[U32, ...], Meta(max_length=256)]
    """Of this request; the scheduler ends the sequence, the checkpoint's rules may forbid or prefer them."""
    biases: Annotated[tuple[tuple[U32, Real], ...], Meta(max_length=MAX_BIASES)]
    """Added to the logits of these tokens."""
    grammar: Grammar | None
    prefix: Prefix | None
    """The rows before the item's are these, where a stage has kept them."""


class Fork(Part, frozen=True, tag=2):
    """The sequence begins as rows [0, length) of another one; the item's rows follow them."""

    sequence: U63
    length: Annotated[int, Meta(ge=1, le=2**32 - 1)]
    opening: Opening


class Tree(Part, frozen=True):
    """The rows of an item as nodes of a tree. Nodes are numbered within a generation; 0 is the last confirmed row."""

    first: Annotated[int, Meta(ge=1, le=2**32 - 1)]
    """Node of the item's first row; the others follow in order."""
    parents: Annotated[tuple[U32, ...], Meta(max_length=MAX_ROWS)]
    """Of each row: the node that it hangs on, of this frame or an earlier one."""
    picks: Annotated[bytes, Meta(max_length=MAX_ROWS // 8)]
    """Bit i % 8 of byte i // 8: row i gets a token sampled."""


class Item(Part, frozen=True):
    """The rows of one sequence in a Forward, at positions ``position ..``; of a tree, the first hang on ``position - 1``."""

    sequence: U63
    generation: U32
    kind: KindNumber
    """types.Kind: what they are. How they travel is the frame's to say."""
    position: U32
    tokens: PackedTokens
    num_picks: U32
    """How many rows get a token sampled, the last ones or as the tree says (0: a chunk of a prompt that is not its last)."""
    opening: Opening | Fork | None
    """How a sequence begins that the receiver may not hold; MUST be there at position 0."""
    tree: Tree | None
    """None: a chain."""

    @property
    def num_rows(self) -> int:
        return len(self.tokens) // 4


class Forward(Message, frozen=True, tag=32):
    """One microbatch on its way. Carries a tensor "hidden" [rows, d] except on the link to stage 0."""

    pipeline: U32
    epoch: U32
    frame: U63
    """Counts the frames of this link, lane and epoch from 0; a resent frame keeps its number."""
    microbatch: U63
    """The scheduler's number; the same all the way round, so that every microbatch comes home."""
    lane: LaneNumber
    """That it travels on."""
    priority: PriorityNumber
    """types.Priority: what goes first where several wait."""
    items: Annotated[tuple[Item, ...], Meta(max_length=MAX_ITEMS)]
    """Empty once every sequence of the microbatch has been closed; then there is no tensor."""


class Pick(Part, frozen=True):
    """A sampled token (NO_TOKEN: the row had no finite logits; NO_GRAMMAR: its grammar could not be obeyed) and the absolute
    position it takes."""

    sequence: U63
    generation: U32
    position: U32
    token: U32
    logprob: Real | None
    top: Annotated[tuple[tuple[U32, Real], ...], Meta(max_length=20)]


class Verdict(Message, frozen=True, tag=33):
    pipeline: U32
    epoch: U32
    frame: U63
    microbatch: U63
    picks: Annotated[tuple[Pick, ...], Meta(max_length=MAX_ROWS)]
    nodes: Annotated[tuple[U32, ...], Meta(max_length=MAX_ROWS)] | None
    """Of each pick, the node whose row it was picked after (0 for a chain's). None: all are of chains."""


class Ack(Message, frozen=True, tag=34):
    """What the receiver has and may still get; says the same thing however often it is said."""

    pipeline: U32
    epoch: U32
    lane: LaneNumber
    """Whose frames; everything below is of this lane alone."""
    upto: U63
    """Every frame < upto is held."""
    extra: Annotated[tuple[U63, ...], Meta(max_length=256)]
    """Frames >= upto that are held too."""
    logged: U63
    """Every frame < logged is through, and what it gave is in the receiver's log."""
    limit: U63
    """The sender may send frames < limit (credit)."""
    waited_us: U63
    """Since the newest of these frames came. So the sender knows the link's share of its round trip."""


class Gap(Message, frozen=True, tag=35):
    """Rows came that start beyond what is held, or are of a generation of which nothing is known yet (``have`` is 0 then); send
    again from ``have``."""

    pipeline: U32
    epoch: U32
    sequence: U63
    generation: U32
    have: U32


class Holding(Part, frozen=True, gc=False):
    """Rows [0, have) of a sequence are held, in this generation; by the scheduler: its tokens [0, have) are known."""

    sequence: U63
    generation: U32
    have: U32


class Resume(Message, frozen=True, tag=36):
    """What the sender holds, to whoever feeds it in a new epoch: go on from there. Repeated until Resumed comes."""

    pipeline: U32
    epoch: U32
    holdings: Annotated[tuple[Holding, ...], Meta(max_length=MAX_HOLDINGS)]
    """A sequence that is not named is held from nowhere on."""


class Resumed(Message, frozen=True, tag=37):
    """Answer to Resume."""

    pipeline: U32
    epoch: U32


class Lost(Message, frozen=True, tag=38):
    """Rows that the next stage needs are in no log any more: the scheduler sends these sequences again from their start, as
    another generation. Repeated until that comes, or they are closed."""

    pipeline: U32
    epoch: U32
    holdings: Annotated[tuple[Holding, ...], Meta(max_length=MAX_ITEMS)]
    """The sequences, in the generation that is lost, and how far the next stage has come."""
    is_final: bool
    """They broke a rule of the wire, and would again, or could not be computed: the scheduler ends them."""


class Cut(Part, frozen=True):
    """From generation ``generation`` on a sequence is its rows [0, length) of the generation before, then the rows of the nodes
    ``path``; all else that is held or under way of it is dead."""

    sequence: U63
    generation: Annotated[int, Meta(ge=1, le=2**32 - 1)]
    length: U32
    path: Annotated[tuple[U32, ...], Meta(max_length=MAX_PATH)]
    """Accepted nodes, from the root down; empty: the sequence is cut."""


class Commit(Message, frozen=True, tag=39):
    """What became of rows that were sent: accepted, rolled back, truncated, or all of them given up for a while (length 0).
    Overtakes data. Repeated until Committed comes."""

    pipeline: U32
    epoch: U32
    cuts: Annotated[tuple[Cut, ...], Meta(min_length=1, max_length=MAX_ITEMS)]


class Done(Part, frozen=True, gc=False):
    """A Cut, by its name."""

    sequence: U63
    generation: U32


class Committed(Message, frozen=True, tag=40):
    """Answer to Commit: these are known here."""

    pipeline: U32
    epoch: U32
    cuts: Annotated[tuple[Done, ...], Meta(min_length=1, max_length=MAX_ITEMS)]
    pages_free: U32


class Close(Message, frozen=True, tag=41):
    """Free the KV of ``sequences`` and of every sequence < floor; late frames of them are dropped."""

    pipeline: U32
    epoch: U32
    sequences: Annotated[tuple[U63, ...], Meta(max_length=MAX_ITEMS)]
    floor: U63


class Closed(Message, frozen=True, tag=42):
    """Answer to Close; ``pages_free``, of all groups together, lets the head see a leak."""

    pipeline: U32
    epoch: U32
    sequences: Annotated[tuple[U63, ...], Meta(max_length=MAX_ITEMS)]
    floor: U63
    pages_free: U32


class CodecTable(Message, frozen=True, tag=43):
    """A codec table fitted to what this boundary carries; used once the receiver says that it is held."""

    pipeline: U32
    epoch: U32
    body: Annotated[bytes, Meta(min_length=1, max_length=1 << 20)]
    """docs/codec.md, "Tables"."""


class TableHeld(Message, frozen=True, tag=44):
    pipeline: U32
    epoch: U32
    key: TableKey


class TableUnknown(Message, frozen=True, tag=45):
    """A frame needs a table that is not held here; it was not taken, and must come again with the default table."""

    pipeline: U32
    epoch: U32
    lane: LaneNumber
    frame: U63
    key: TableKey


class Keep(Message, frozen=True, tag=46):
    """Keep rows [0, prefix.length) of a sequence under that key, beyond its end, as long as nobody needs the room. Repeated until
    Have comes."""

    pipeline: U32
    epoch: U32
    sequence: U63
    generation: U32
    """Of the sequence, all of whose rows up to there are home: a stage that has yet to hear of it keeps nothing."""
    prefix: Prefix


class Have(Message, frozen=True, tag=47):
    """Answer to Keep: rows [0, length) of the sequence are kept; 0: nothing is, or no longer, which is said once. Of a sequence
    that was to begin on kept rows: so many of them are here, and not all; the least of all stages counts. Repeated until it
    begins in another way, or is closed."""

    pipeline: U32
    epoch: U32
    sequence: U63
    length: U32


class Kept(Message, frozen=True, tag=57):
    """The last stage has kept these tokens' rows since before this epoch; whether the others have, Keep asks them. A hint."""

    pipeline: U32
    epoch: U32
    tokens: PackedTokens
    """Whole pages."""
    newest: U32
    """The most rows that the sequence had: how far back one can go depends on that."""


class KvPages(Message, frozen=True, tag=48):
    """Keys and values of a sequence in layers [start, stop) at positions ``position ..``, from whoever has computed them to
    whoever takes these layers over. Carries tensors [num_rows, ...]."""

    pipeline: U32
    epoch: U32
    sequence: U63
    generation: U32
    start: U16
    stop: U16
    position: U32
    num_rows: Annotated[int, Meta(ge=1, le=MAX_ROWS)]


class KvHeld(Message, frozen=True, tag=49):
    """Answer to KvPages: positions [0, have) of these layers are here; go on from there."""

    pipeline: U32
    epoch: U32
    sequence: U63
    generation: U32
    start: U16
    stop: U16
    have: U32


class Draft(Message, frozen=True, tag=50):
    """What a drafter expects of a sequence: nodes beyond its first ``position`` tokens, best first."""

    pipeline: U32
    epoch: U32
    sequence: U63
    generation: U32
    position: U32
    tokens: PackedTokens
    parents: Annotated[tuple[U32, ...], Meta(max_length=MAX_ROWS)]
    """Of each token: 0 for the last of the sequence's, else 1 + the number of the token before it in this message."""
    scores: Annotated[tuple[Real, ...], Meta(max_length=MAX_ROWS)]
    """Of each token: the logarithm of how likely it is, given its parent."""


class Known(Part, frozen=True):
    """Tokens of a sequence from ``position`` on, as the scheduler knows them."""

    sequence: U63
    generation: U32
    position: U32
    tokens: PackedTokens
    opening: Opening | None
    """At position 0."""


class Snapshot(Message, frozen=True, tag=51):
    """What the scheduler has, to a head or a drafter elsewhere: what is new since the one before. Repeated until SnapshotHeld
    comes."""

    pipeline: U32
    epoch: U32
    number: U63
    """Counts the snapshots of an epoch from 0."""
    sequences: Annotated[tuple[Known, ...], Meta(max_length=MAX_ITEMS)]
    closed: Annotated[tuple[U63, ...], Meta(max_length=MAX_ITEMS)]
    floor: U63
    """All sequences below are closed."""


class SnapshotHeld(Message, frozen=True, tag=52):
    """Answer to Snapshot: all < upto are here."""

    pipeline: U32
    epoch: U32
    upto: U63
