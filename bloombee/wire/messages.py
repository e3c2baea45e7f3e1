"""Every message of the protocol: the one list of what may be on the network.

A message is a frozen struct; on the wire it is a msgpack array ``[tag, field, ...]`` with an integer
tag. The decoder is closed and bounded: an unknown tag, a missing, surplus or out-of-range field gives
:class:`~bloombee.errors.RemoteProtocolError` with the path of the field (``wire/schema.py``). Tensors are
never inside a message: they are frames of their own, described in the envelope (``wire/envelope.py``).

Who says what to whom (docs/wire.md has the rules of each)::

    worker -> head      Join Hello Loading Loaded Wired StageFailed Lost Measured LinkReport Profiled Heartbeat Closed Goodbye
    head -> worker      Joined Refused Welcome Load Wire Retire Measure Close Heartbeat Goodbye
    along the ring      Forward (scheduler -> stage 0 -> ... -> last), Verdict (last stage -> scheduler), Resumed, CodecTable
    against the ring    Ack Gap Resume TableHeld TableUnknown
    worker -> worker    Hello Welcome Refused, then the ring's
    within a link       Piece PieceAck Probe (between the two endpoints; nobody above them sees one)
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

PROTOCOL_VERSION = 2

MAX_HEADER_BYTES = 1 << 20
"""Largest header frame; checked before it is parsed."""
MAX_ROWS = 1 << 16
"""Most rows (new tokens) in one frame."""
MAX_ITEMS = 4096
"""Most sequences in one frame."""
MAX_RULE_TOKENS = 1 << 15
"""Most token ids in all of a checkpoint's rules together; so they fit a header however they are spread over its lists."""
MAX_HOLDINGS = 1 << 15
"""Most sequences in one Resume."""
REPLAY = 2**63 - 1
"""The microbatch of frames that are no microbatch of the scheduler's: rows that are said again."""
NO_TOKEN = 2**32 - 1
"""A pick that could not be made: no logit of the row was finite, or picking failed. It ends the sequence with DeviceError."""

U8 = Annotated[int, Meta(ge=0, le=2**8 - 1)]
U16 = Annotated[int, Meta(ge=0, le=2**16 - 1)]
U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
U63 = Annotated[int, Meta(ge=0, le=2**63 - 1)]
U64 = Annotated[int, Meta(ge=0)]
"""msgpack has no integer above 2**64 - 1, and msgspec takes no bound that exceeds an int64."""
Real = Annotated[float, Meta(ge=-1e18, le=1e18)]
Amount = Annotated[float, Meta(ge=0, le=1e18)]
Duration = Annotated[float, Meta(ge=0, le=3600)]
Rate = Annotated[float, Meta(ge=1, le=1e18)]
Name = Annotated[str, Meta(max_length=256)]
Path = Annotated[str, Meta(max_length=4096)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
LinkId = Annotated[bytes, Meta(min_length=16, max_length=16)]
"""Unguessable routing id of one link; lane n of it is the id + one byte n."""
WEIGHT_DIGEST_BYTES = 8
"""Of each tensor of a checkpoint."""
WeightDigests = Annotated[bytes, Meta(max_length=WEIGHT_DIGEST_BYTES << 14)]
"""Digests of some tensors, one after the other."""
TokenIds = Annotated[tuple[U32, ...], Meta(max_length=MAX_RULE_TOKENS)]
TableKey = Annotated[bytes, Meta(min_length=4, max_length=4)]
Text = Annotated[str, Meta(max_length=8192)]
Facts = Annotated[dict[Name, Text | int | float | bool | None], Meta(max_length=32)]


class Message(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of all messages. They hold no cycles, so Python's garbage collector is spared them."""


class Part(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of what messages are made of."""


# -- membership and handshake ------------------------------------------------------------------


class Join(Message, frozen=True, tag=1):
    """The only message that a head reads from an unknown key."""

    protocol: U16
    secret: Annotated[bytes, Meta(min_length=16, max_length=64)]
    name: Name
    software: Name
    endpoint: Path
    """Where other workers reach this one (``tcp://host:port``); empty if they cannot."""
    device: Name
    memory_bytes: U63
    """What a span (weights + KV) may use on this worker."""
    codecs: Annotated[tuple[U16, ...], Meta(max_length=64)]


class Joined(Message, frozen=True, tag=2):
    worker: U32
    swarm: U64
    heartbeat_s: Real
    silence_s: Real
    """A side that hears nothing for this long declares the other gone."""


class Refused(Message, frozen=True, tag=3):
    """A typed error (errors.to_wire) in answer to whatever the peer sent."""

    code: Name
    fields: Facts


class Hello(Message, frozen=True, tag=4):
    """First message on each lane, from the side that dialled."""

    protocol: U16
    swarm: U64
    worker: U32
    software: Name
    codecs: Annotated[tuple[U16, ...], Meta(max_length=64)]
    sent_ns: U63


class Welcome(Message, frozen=True, tag=5):
    """Answer to Hello; with the dialler's receive time the four stamps give the clock offset."""

    protocol: U16
    codecs: Annotated[tuple[U16, ...], Meta(max_length=64)]
    hello_sent_ns: U63
    received_ns: U63
    sent_ns: U63


class Heartbeat(Message, frozen=True, tag=6):
    count: U63


class Goodbye(Message, frozen=True, tag=7):
    reason: Text


# -- bulk in pieces ----------------------------------------------------------------------------


class Piece(Message, frozen=True, tag=8):
    """The next bytes of the frame whose header came before, as one payload frame; bulk lanes only."""

    number: U63
    """Counts the pieces of this lane and direction from 0."""
    offset: U32
    """Of its first byte in the frame's payload."""


class Probe(Message, frozen=True, tag=10):
    """Padding, to see how fast it comes; bulk lanes only, between frames. Acknowledged as a piece, and forgotten."""

    number: U63
    """Of the pieces' numbers the next."""
    padding: Annotated[bytes, Meta(min_length=1, max_length=1 << 17)]


class PieceAck(Message, frozen=True, tag=9):
    """Every piece < upto that came on this link's bulk lane has been read. Control lanes only; cumulative."""

    upto: U63


# -- plans -------------------------------------------------------------------------------------


class Peer(Part, frozen=True):
    """One end of a worker -> worker link, as the head tells it to the other end."""

    worker: U32
    endpoint: Path
    key: Key
    link: LinkId


class Group(Part, frozen=True):
    """Layers of a span that see equally far (types.PageGroup): their window, 0 for all positions, and the pages of their pool."""

    window: U32
    num_pages: Annotated[int, Meta(ge=1, le=2**32 - 1)]


class Watermark(Part, frozen=True):
    """Of Rules: a bias on part of the vocabulary, which part being a hash of the last tokens."""

    greenlist_ratio: Real
    bias: Real
    hashing_key: U63
    is_selfhash: bool
    context_width: Annotated[int, Meta(ge=1, le=2**16 - 1)]


class Rules(Part, frozen=True):
    """What the last stage does to all logits, by the checkpoint's generation_config.json; see plan.rules.LogitsRules."""

    sequence_bias: Annotated[tuple[tuple[TokenIds, Real], ...], Meta(max_length=MAX_RULE_TOKENS)]
    bad_words_ids: Annotated[tuple[TokenIds, ...], Meta(max_length=MAX_RULE_TOKENS)]
    no_repeat_ngram_size: U32
    min_length: U32
    min_new_tokens: U32
    forced_bos_token_id: U32 | None
    forced_eos_token_id: TokenIds
    remove_invalid_values: bool
    exponential_decay_length_penalty: tuple[U32, Real] | None
    suppress_tokens: TokenIds
    begin_suppress_tokens: TokenIds
    top_h: Real | None
    typical_p: Real
    epsilon_cutoff: Real
    eta_cutoff: Real
    watermark: Watermark | None


class Load(Message, frozen=True, tag=16):
    """Have layers [start, stop) of a model, and KV memory for them, ready for ``pipeline``. They outlive every plan until the
    worker ends. Said again it changes nothing but that it is answered again."""

    pipeline: U32
    start: U16
    stop: U16
    num_layers: U16
    model: Path
    config_digest: Annotated[bytes, Meta(min_length=16, max_length=32)]
    weight_digests: Annotated[tuple[WeightDigests, ...], Meta(max_length=2**16)]
    """Of the embedding on the first stage, then each layer of the span, then on the last what comes after the layers; empty
    of what the head does not know. None at all: it knows nothing, or there is nothing to compare."""
    dtype: Name
    groups: Annotated[tuple[Group, ...], Meta(min_length=1, max_length=64)]
    """Those that have a layer in the span, of different windows."""
    page_size: U16
    codec: U8
    """What to do about activations that leave the span: codec.choice.CodecMode."""
    rules: Rules | None
    """Of the checkpoint, for the logits; None where there are none, and without the model's last layer."""


class Loading(Message, frozen=True, tag=17):
    pipeline: U32
    loaded_bytes: U63
    total_bytes: U63


class Loaded(Message, frozen=True, tag=18):
    pipeline: U32
    weight_bytes: U63
    kv_bytes: U63


class Wire(Message, frozen=True, tag=25):
    """Be stage ``stage`` of ``pipeline`` in plan ``epoch``, between these neighbours, with what was loaded for it."""

    pipeline: U32
    epoch: U32
    oldest: U32
    """Seats of epochs before this one are retired."""
    stage: U16
    num_stages: U16
    num_microbatches: U16
    """Credits this stage grants its predecessor."""
    max_rows: Annotated[int, Meta(ge=1, le=MAX_ROWS)]
    """Most rows in a frame."""
    predecessor: Peer | None
    """None: the scheduler feeds this stage over the head's link."""
    successor: Peer | None
    """None: this stage sends verdicts over the head's link."""
    trace: bool


class Wired(Message, frozen=True, tag=26):
    """Answer to Wire, once both neighbours have been greeted."""

    pipeline: U32
    epoch: U32


class StageFailed(Message, frozen=True, tag=19):
    """A stage cannot go on: loading failed (epoch 0), the device failed, a link of its own is gone."""

    pipeline: U32
    epoch: U32
    code: Name
    fields: Facts


class Retire(Message, frozen=True, tag=20):
    """Refuse every frame of this epoch from now on. Weights, KV and what has been computed stay."""

    pipeline: U32
    epoch: U32


class Tally(Part, frozen=True, gc=False):
    """Sums over forwards: how many, rows, nanoseconds, rows squared, rows times nanoseconds, tokens attended to by rows."""

    works: U63
    rows: U63
    ns: U63
    rows_squared: U63
    row_ns: U63
    attended: U63


class Measure(Message, frozen=True, tag=21):
    """Say how this stage stands."""

    pipeline: U32
    epoch: U32
    number: U63
    """The answer repeats it."""


class Measured(Message, frozen=True, tag=22):
    """Answer to Measure: forwards since the stage was loaded, by phase, and free KV pages of all its groups."""

    pipeline: U32
    epoch: U32
    number: U63
    decode: Tally
    prefill: Tally
    pages_free: U32
    encoded_frames: U63
    """Calls of the codec; raw and sent bytes are of all frames of activations, coded or not."""
    raw_bytes: U63
    sent_bytes: U63


class LinkReport(Message, frozen=True, tag=23):
    """What the sender knows of its link to the next stage or the scheduler (links/estimator.py); now and then."""

    pipeline: U32
    epoch: U32
    target: U32
    """The worker at the link's other end; 0: the head."""
    codec: Annotated[str, Meta(max_length=256)]
    """Whether activations of one row are coded on it now, and why; for people. Empty where none go."""
    rtt_s: Amount | None
    rtt_std_s: Amount
    base_rtt_s: Amount | None
    bandwidth_bytes_per_s: Amount | None
    bandwidth_low_bytes_per_s: Amount | None
    bandwidth_std_bytes_per_s: Amount
    fast_bytes_per_s: Amount | None
    num_frames: U63
    num_bytes: U63
    busy_s: Amount
    num_changes: U32


class Times(Part, frozen=True, gc=False):
    """Seconds of a pass, linear in its rows: plan.topology.RowTime."""

    fixed_s: Duration
    decode_row_s: Duration
    prefill_row_s: Duration
    context_s: Duration


class Profiled(Message, frozen=True, tag=24):
    """How fast the sender's device runs the model that it has a stage of; its first guess and what it measured while idle."""

    pipeline: U32
    epoch: U32
    device: Name
    threads: U16
    stage: Times
    layer: Times
    output: Times
    """Of a last stage besides; zeros on others."""
    median_error: Amount
    worst_error: Amount
    """Of the linear model against the passes measured, relative."""
    layer_bytes: U63
    kv_token_bytes: U63
    memory_bytes: U63
    """What the device had for weights and KV; 0: not known."""
    encode_bytes_per_s: Rate | None
    decode_bytes_per_s: Rate | None
    """Of the codec, in raw bytes; None: not known."""


# -- the ring ----------------------------------------------------------------------------------


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


class Opening(Part, frozen=True):
    """Travels with the rows at position 0, so that a replay from 0 needs nothing else."""

    num_prompt_tokens: U32
    sampling: Sampling
    max_new_tokens: U32
    end_tokens: Annotated[tuple[U32, ...], Meta(max_length=256)]
    """Of this request; the scheduler ends the sequence, the checkpoint's rules may forbid or prefer them."""


class Item(Part, frozen=True):
    """The rows of one sequence in a Forward, at positions ``position ..``."""

    sequence: U63
    generation: U32
    position: U32
    tokens: Annotated[bytes, Meta(min_length=4, max_length=4 * MAX_ROWS)]
    """[num_rows] little-endian uint32."""
    num_picks: U32
    """How many of the last rows get a token sampled (0: a chunk of a prompt that is not its last)."""
    opening: Opening | None
    """Present iff ``position`` is 0."""
    parents: Annotated[tuple[U16, ...], Meta(max_length=MAX_ROWS)] | None
    """Rows as a tree: row i hangs on row ``parents[i] - 1``, 0 being the sequence's last confirmed
    row. None: a chain. Refused until drafts travel as trees."""

    @property
    def num_rows(self) -> int:
        return len(self.tokens) // 4


class Forward(Message, frozen=True, tag=32):
    """One microbatch on its way. Carries one tensor frame [rows, d] except on the link to stage 0."""

    pipeline: U32
    epoch: U32
    frame: U63
    """Counts the frames of this link, lane and epoch from 0; a resent frame keeps its number."""
    microbatch: U63
    """The scheduler's number; the same all the way round, so that every microbatch comes home."""
    phase: U8
    """Decides the lane too: decode control, prefill bulk."""
    items: Annotated[tuple[Item, ...], Meta(max_length=MAX_ITEMS)]
    """Empty once every sequence of the microbatch has been closed; then there is no tensor."""


class Pick(Part, frozen=True):
    """A sampled token (NO_TOKEN: the row had no finite logits) and the absolute position it takes."""

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


class Ack(Message, frozen=True, tag=34):
    """What the receiver has and may still get; says the same thing however often it is said."""

    pipeline: U32
    epoch: U32
    lane: U8
    """Whose frames; everything below is of this lane alone."""
    upto: U63
    """Every frame < upto is held."""
    extra: Annotated[tuple[U63, ...], Meta(max_length=256)]
    """Frames >= upto that are held too."""
    limit: U63
    """The sender may send frames < limit (credit)."""
    waited_us: U63
    """Since the newest of these frames came. So the sender knows the link's share of its round trip."""


class Gap(Message, frozen=True, tag=35):
    """Rows came that start beyond what is held; resend from ``have``."""

    pipeline: U32
    epoch: U32
    sequence: U63
    generation: U32
    have: U32


class Close(Message, frozen=True, tag=36):
    """Free the KV of ``sequences`` and of every sequence < floor; late frames of them are dropped."""

    pipeline: U32
    epoch: U32
    sequences: Annotated[tuple[U63, ...], Meta(max_length=MAX_ITEMS)]
    floor: U63


class Closed(Message, frozen=True, tag=37):
    """Answer to Close; ``pages_free``, of all groups together, lets the head see a leak."""

    pipeline: U32
    epoch: U32
    sequences: Annotated[tuple[U63, ...], Meta(max_length=MAX_ITEMS)]
    floor: U63
    pages_free: U32


class Holding(Part, frozen=True, gc=False):
    """Rows [0, have) of a sequence are held, in this generation; by the scheduler: its tokens [0, have) are known."""

    sequence: U63
    generation: U32
    have: U32


class Resume(Message, frozen=True, tag=38):
    """What the sender holds, to whoever feeds it in a new epoch: go on from there. Repeated until Resumed comes."""

    pipeline: U32
    epoch: U32
    holdings: Annotated[tuple[Holding, ...], Meta(max_length=MAX_HOLDINGS)]
    """A sequence that is not named is held from nowhere on."""


class Resumed(Message, frozen=True, tag=39):
    """Answer to Resume."""

    pipeline: U32
    epoch: U32


class Lost(Message, frozen=True, tag=43):
    """Rows that the next stage needs are in no log any more: the scheduler sends these sequences again from their start, as
    another generation. Repeated until that comes, or they are closed."""

    pipeline: U32
    epoch: U32
    holdings: Annotated[tuple[Holding, ...], Meta(max_length=MAX_ITEMS)]
    """The sequences, in the generation that is lost, and how far the next stage has come."""
    is_final: bool
    """They broke a rule of the wire, and would again: the scheduler ends them."""


class CodecTable(Message, frozen=True, tag=40):
    """A codec table fitted to what this boundary carries; used once the receiver says that it is held."""

    pipeline: U32
    epoch: U32
    body: Annotated[bytes, Meta(min_length=1, max_length=1 << 20)]
    """docs/codec.md, "Tables"."""


class TableHeld(Message, frozen=True, tag=41):
    pipeline: U32
    epoch: U32
    key: TableKey


class TableUnknown(Message, frozen=True, tag=42):
    """A frame needs a table that is not held here; it was not taken, and must come again with the default table."""

    pipeline: U32
    epoch: U32
    lane: U8
    frame: U63
    key: TableKey


AnyMessage = (
    Join | Joined | Refused | Hello | Welcome | Heartbeat | Goodbye | Piece | PieceAck | Probe
    | Load | Loading | Loaded | Wire | Wired | StageFailed | Retire | Measure | Measured | LinkReport | Profiled
    | Forward | Verdict | Ack | Gap | Close | Closed | Resume | Resumed | Lost
    | CodecTable | TableHeld | TableUnknown
)  # fmt: skip
