"""Orders of the head to a worker and what it says of itself: loading, wiring, measuring. Tags 16 to 31, 56."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from bloombee.wire.messages.base import (
    MAX_KINDS,
    MAX_LISTENERS,
    MAX_ROWS,
    MAX_RULE_TOKENS,
    U8,
    U16,
    U32,
    U63,
    Amount,
    ConfigDigest,
    Duration,
    Facts,
    Message,
    Name,
    Part,
    Path,
    Rate,
    Real,
    TierNumber,
    TokenIds,
    WeightDigests,
)
from bloombee.wire.messages.membership import Peer


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
    """Have layers [start, stop) of a model, and KV memory for them, ready for ``pipeline``. They outlive every plan until
    Unload. Said again it changes nothing but that it is answered again."""

    number: U63
    """Counts the head's orders to load and to unload; the answer repeats it."""
    pipeline: U32
    start: U16
    stop: U16
    num_layers: U16
    model: Path
    config_digest: ConfigDigest
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
    placement: Annotated[tuple[TierNumber, ...], Meta(max_length=2**16)]
    """Where each layer's weights lie. None at all: on the device."""
    budgets: Annotated[tuple[U63, ...], Meta(max_length=3)]
    """Most bytes of each tier. None at all: what the worker has offered."""


class Loading(Message, frozen=True, tag=17):
    """How far a Load has come."""

    pipeline: U32
    loaded_bytes: U63
    total_bytes: U63


class Loaded(Message, frozen=True, tag=18):
    """Answer to Load."""

    number: U63
    pipeline: U32
    weight_bytes: Annotated[tuple[U63, ...], Meta(min_length=1, max_length=3)]
    """Of each tier that holds any, the device's first."""
    kv_bytes: Annotated[tuple[U63, ...], Meta(min_length=1, max_length=3)]


class Unload(Message, frozen=True, tag=19):
    """Let go of what was loaded for ``pipeline``, its KV and its seats. Nothing to let go of is answered alike."""

    number: U63
    pipeline: U32


class Unloaded(Message, frozen=True, tag=20):
    """Answer to Unload."""

    number: U63
    pipeline: U32


class Schedule(Part, frozen=True):
    """Of Wire: schedule the pipeline, beside its first stage."""

    since: U32
    """The epoch in which this scheduler begins: whoever has it since then goes on with what it has; else it has nothing yet."""
    groups: Annotated[tuple[Group, ...], Meta(min_length=1, max_length=64)]
    """Of all layers, widest window first."""
    page_size: U16
    step_deadline_s: Amount
    drafts: bool
    """It drafts tokens ahead."""
    stages: Annotated[tuple[Peer, ...], Meta(max_length=2**16 - 1)]
    """The workers of all stages after the first, in ring order."""
    prefix_cache: bool
    """Have stages keep what they have computed for other sequences."""


class Wire(Message, frozen=True, tag=21):
    """Be stage ``stage`` of ``pipeline`` in plan ``epoch``, between these neighbours, with what was loaded for it. The epoch is
    the order's number: it is never used for another."""

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
    """None: the scheduler feeds this stage."""
    successor: Peer | None
    """None: this stage sends verdicts to the scheduler."""
    scheduler: Peer | None
    """Where the scheduler is. None: with the head, over the head's link, unless ``schedule`` says that it is here."""
    listeners: Annotated[tuple[Peer, ...], Meta(max_length=MAX_LISTENERS)]
    """Who gets a copy of each verdict of the last stage, numbered and acknowledged on their own links."""
    schedule: Schedule | None
    """The scheduler is here, on the first stage's worker."""
    trace: bool
    load: U63
    """The order to load whose span this is about."""
    shadow: bool
    """Of a worker that follows ``stage`` in case it is lost, and of the stage before it, which feeds it beside what runs: the one
    has no successor, the other no predecessor. Such an epoch ends by Retire and by nothing else."""


class Wired(Message, frozen=True, tag=22):
    """Answer to Wire, once both neighbours have been greeted."""

    pipeline: U32
    epoch: U32


class Retire(Message, frozen=True, tag=23):
    """Refuse every frame of this epoch from now on. Weights, KV and what has been computed stay. Said again it is answered
    again."""

    pipeline: U32
    epoch: U32


class Retired(Message, frozen=True, tag=24):
    """Answer to Retire."""

    pipeline: U32
    epoch: U32


class Follows(Message, frozen=True, tag=56):
    """A worker that follows a stage has so many rows of open sequences now. Nobody answers it; the next one says it anew."""

    pipeline: U32
    epoch: U32
    rows: U63


class StageFailed(Message, frozen=True, tag=25):
    """A stage cannot go on: loading failed (epoch 0), the device failed, a link of its own is gone."""

    pipeline: U32
    epoch: U32
    code: Name
    fields: Facts


class Tally(Part, frozen=True, gc=False):
    """Sums over forwards: how many, rows, nanoseconds, rows squared, rows times nanoseconds, tokens attended to by rows."""

    works: U63
    rows: U63
    ns: U63
    rows_squared: U63
    row_ns: U63
    attended: U63


class Measure(Message, frozen=True, tag=26):
    """Say how this stage stands."""

    number: U63
    """Counts the head's questions; the answer repeats it, so that none is taken for that of a later question."""
    pipeline: U32
    epoch: U32


class Measured(Message, frozen=True, tag=27):
    """Answer to Measure: forwards since the stage was loaded, by phase, and free KV pages of all its groups."""

    number: U63
    pipeline: U32
    epoch: U32
    decode: Tally
    prefill: Tally
    pages_free: U32
    encoded_frames: U63
    """Calls of the codec; raw and sent bytes are of all frames of activations, coded or not."""
    raw_bytes: U63
    sent_bytes: U63


class Profile(Message, frozen=True, tag=28):
    """Say how fast your device runs this model; nothing of it need be loaded. Repeated until Profiled or Refused comes."""

    model: Path
    config_digest: ConfigDigest
    dtype: Name


class Times(Part, frozen=True, gc=False):
    """Seconds of a pass, linear in its rows: plan.topology.RowTime."""

    fixed_s: Duration
    decode_row_s: Duration
    prefill_row_s: Duration
    context_s: Duration
    decode_context_s: Duration | None


class KindTimes(Part, frozen=True, gc=False):
    """Of layers that differ: those of one kind."""

    layer: U16
    """One of them."""
    times: Times
    layer_bytes: U63
    kv_token_bytes: U63


class Hardware(Part, frozen=True, gc=False):
    """What the sender's machine offers, whatever the model: plan.profile.Hardware. 0, None, empty: none, or not known."""

    memory_bytes: Annotated[tuple[U63, ...], Meta(min_length=3, max_length=3)]
    """Of each tier, what a model may take."""
    to_device_bytes_per_s: Rate | None
    from_device_bytes_per_s: Rate | None
    disk_bytes_per_s: Rate | None
    frames_per_s: Rate | None
    cores: U16
    machine: Name
    """Whose cores these are."""


class Profiled(Message, frozen=True, tag=29):
    """How fast the sender's device runs a model: the answer to Profile, and what it measured while idle."""

    config_digest: ConfigDigest
    dtype: Name
    device: Name
    threads: U16
    stage: Times
    layer: Times
    """Where layers differ, their mean."""
    output: Times
    """Of a last stage besides; zeros where that is not known."""
    median_error: Amount
    worst_error: Amount
    """Of the linear model against the passes measured, relative."""
    layer_bytes: U63
    kv_token_bytes: U63
    encode_bytes_per_s: Rate | None
    decode_bytes_per_s: Rate | None
    """Of the codec, in raw bytes; None: not known."""
    kinds: Annotated[tuple[KindTimes, ...], Meta(max_length=MAX_KINDS)]
    """Of layers; none at all where they are alike or were not told apart."""
    hardware: Hardware


class LinkReport(Message, frozen=True, tag=30):
    """What the sender knows of its link to a worker or to the head (links/estimator.py); now and then, whatever plan there is."""

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
    number: U63
    """Of the MeasureLink that this answers; 0: of none."""


class MeasureLink(Message, frozen=True, tag=31):
    """Find out by padding what your link to ``target`` is like, now. Answered with a LinkReport of its number, whatever came of
    it; repeated until that comes."""

    number: U63
    """Counts the head's orders to measure."""
    target: U32
    """The worker at the link's other end; 0: the head."""
    fills: bool
    """How wide it is, by keeping it full for a moment; else how long it is."""
