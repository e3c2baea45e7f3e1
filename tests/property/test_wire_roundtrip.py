"""Any legal message survives the wire, and no bytes give anything but a message or RemoteProtocolError."""

import math
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from bloombee.errors import RemoteProtocolError
from bloombee.types import Dtype, FinishReason
from bloombee.wire import messages as m
from bloombee.wire.envelope import Envelope, TensorHeader, decode_envelope, encode_envelope
from bloombee.wire.schema import decode_message, encode_message

inspect = msgspec.inspect


def any_of(info: Any) -> st.SearchStrategy[Any]:
    """Values of a msgspec type within its bounds."""
    if isinstance(info, inspect.IntType):
        return st.integers(info.ge if info.ge is not None else -(2**63), info.le if info.le is not None else 2**64 - 1)
    if isinstance(info, inspect.FloatType):
        return st.floats(info.ge, info.le, allow_nan=False, allow_infinity=False)
    if isinstance(info, inspect.StrType):
        return st.text(max_size=min(info.max_length or 20, 20))
    if isinstance(info, inspect.BytesType):
        return st.binary(min_size=info.min_length or 0, max_size=min(info.max_length or 32, 64))
    if isinstance(info, inspect.VarTupleType):
        return st.lists(any_of(info.item_type), min_size=info.min_length or 0, max_size=min(info.max_length or 4, 4)).map(tuple)
    if isinstance(info, inspect.TupleType):
        return st.tuples(*map(any_of, info.item_types))
    if isinstance(info, inspect.DictType):
        return st.dictionaries(any_of(info.key_type), any_of(info.value_type), max_size=4)
    if isinstance(info, inspect.UnionType):
        return st.one_of(*map(any_of, info.types))
    if isinstance(info, inspect.StructType):
        special = SPECIAL.get(info.cls)
        return special if special is not None else st.builds(info.cls, **{f.name: any_of(f.type) for f in info.fields})
    return {inspect.BoolType: st.booleans(), inspect.NoneType: st.none()}[type(info)]


u16, u32, u63 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1)
endpoint = st.sampled_from(["", "tcp://10.0.0.1:4100", "tcp://[::1]:1"])
peer = st.builds(
    m.Peer, st.integers(1, 2**32 - 1), endpoint, st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16),
    st.booleans(), st.none() | st.just(0),
)  # fmt: skip
sampling = st.builds(
    m.Sampling, st.floats(0, 1e4), u32, st.floats(1e-6, 1), st.floats(0, 1), st.floats(1e-3, 1e4),
    st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.integers(0, 2**64 - 1), st.integers(-1, 20),
)  # fmt: skip
token_ids = st.lists(u32, max_size=4).map(tuple)
some_ids = st.lists(u32, min_size=1, max_size=4).map(tuple)
real, share = st.floats(-1e18, 1e18), st.floats(0, 0.99)
watermark = st.builds(m.Watermark, share, real, u63, st.booleans(), st.integers(1, 2**16 - 1))
rules = st.builds(
    m.Rules, st.lists(st.tuples(some_ids, real), max_size=3).map(tuple), st.lists(some_ids, max_size=3).map(tuple), u32, u32, u32,
    st.none() | u32, token_ids, st.booleans(), st.none() | st.tuples(u32, real), token_ids, token_ids,
    st.none() | st.floats(0.01, 1), st.floats(0.01, 1), share, share, st.none() | watermark,
)  # fmt: skip


grammar = st.builds(m.Grammar, st.text(max_size=9), st.text(max_size=30))


@st.composite
def openings(draw: st.DrawFn, position: int = 0, *, may_have_prefix: bool = True) -> m.Opening:
    prefix = st.none()
    if position and may_have_prefix:
        prefix = prefix | st.builds(m.Prefix, st.binary(min_size=32, max_size=32), st.just(position))
    biases = tuple((token, draw(real)) for token in draw(st.sets(u32, max_size=3)))
    return m.Opening(
        draw(st.integers(1, 2**32 - 1)),
        draw(sampling),
        draw(u32),
        draw(token_ids),
        biases,
        draw(st.none() | grammar),
        draw(prefix),
    )


@st.composite
def trees(draw: st.DrawFn, rows: int, picks: set[int]) -> m.Tree:
    first = draw(st.integers(1, 2**32 - 1 - rows))
    parents = tuple(draw(st.integers(0, first + row - 1)) for row in range(rows))
    return m.Tree(first, parents, sum(1 << row for row in picks).to_bytes((rows + 7) // 8, "little"))


@st.composite
def items(draw: st.DrawFn) -> m.Item:
    rows = draw(st.integers(1, 20))
    sequence = draw(st.integers(1, 2**63 - 1))
    position = draw(st.one_of(st.just(0), st.integers(1, 2**32 - 1 - rows)))
    begins: st.SearchStrategy[Any] = openings(position)
    if position:
        forks = st.builds(m.Fork, st.just(0), st.just(position), openings(position, may_have_prefix=False))
        begins = st.none() | begins | forks
    picks = draw(st.sets(st.integers(0, rows - 1)))
    opening = draw(begins)
    tree = draw(st.none() | trees(rows, picks)) if opening is None else None
    tokens = draw(st.binary(min_size=4 * rows, max_size=4 * rows))
    return m.Item(sequence, draw(u32), draw(st.integers(0, 4)), position, tokens, len(picks), opening, tree)


@st.composite
def verdicts(draw: st.DrawFn) -> m.Verdict:
    picks = tuple(draw(st.lists(any_of(inspect.type_info(m.Pick)), max_size=3)))
    nodes = draw(st.none() | st.tuples(*[u32] * len(picks)))
    return m.Verdict(draw(u32), draw(u32), draw(u63), draw(u63), picks, nodes)


@st.composite
def commits(draw: st.DrawFn) -> m.Commit:
    names = draw(st.sets(st.tuples(u63, st.integers(1, 2**32 - 1)), min_size=1, max_size=4))
    paths = st.sets(st.integers(1, 2**32 - 1), max_size=4).map(lambda nodes: tuple(sorted(nodes)))
    return m.Commit(draw(u32), draw(u32), tuple(m.Cut(*name, draw(u32), draw(paths)) for name in names))


@st.composite
def drafts(draw: st.DrawFn) -> m.Draft:
    count = draw(st.integers(1, 5))
    tokens = draw(st.binary(min_size=4 * count, max_size=4 * count))
    parents = tuple(draw(st.integers(0, index)) for index in range(count))
    return m.Draft(draw(u32), draw(u32), draw(u63), draw(u32), draw(u32), tokens, parents, draw(st.tuples(*[real] * count)))


@st.composite
def snapshots(draw: st.DrawFn) -> m.Snapshot:
    known = []
    for position in draw(st.lists(st.just(0) | st.integers(1, 2**32 - 9), max_size=3)):
        opening = draw(openings()) if position == 0 else None
        known.append(m.Known(draw(u63), draw(u32), position, draw(st.binary(min_size=8, max_size=8)), opening))
    closed = tuple(draw(st.lists(u63, max_size=3)))
    return m.Snapshot(draw(u32), draw(u32), draw(u63), tuple(known), closed, draw(u63))


@st.composite
def loads(draw: st.DrawFn) -> m.Load:
    num_layers = draw(st.integers(1, 200))
    start = draw(st.integers(0, num_layers - 1))
    stop = draw(st.integers(start + 1, num_layers))
    return m.Load(
        number=draw(u63), pipeline=draw(u32), start=start, stop=stop, num_layers=num_layers, weight_digests=(),
        rules=draw(st.none() | rules) if stop == num_layers else None,
        model=draw(st.text(max_size=9)), config_digest=bytes(16), dtype=str(draw(st.sampled_from(Dtype))),
        groups=tuple(m.Group(window, draw(st.integers(1, 2**32 - 1))) for window in draw(st.sets(u32, min_size=1, max_size=4))),
        page_size=draw(st.integers(1, 2**16 - 1)), codec=draw(st.integers(0, 2)),
        placement=draw(st.just(()) | st.tuples(*[st.integers(0, 2)] * (stop - start))),
        budgets=tuple(draw(st.lists(u63, max_size=3))),
    )  # fmt: skip


@st.composite
def schedules(draw: st.DrawFn, epoch: int, num_stages: int) -> m.Schedule:
    windows = draw(st.sets(u32, min_size=1, max_size=4))
    groups = tuple(m.Group(window, draw(st.integers(1, 2**32 - 1))) for window in sorted(windows))
    stages = tuple(draw(peer) for _ in range(num_stages - 1))
    return m.Schedule(
        draw(st.integers(1, epoch)),
        groups,
        draw(st.integers(1, 2**16 - 1)),
        draw(st.floats(0, 1e18)),
        draw(st.booleans()),
        stages,
        draw(st.booleans()),
    )


@st.composite
def wires(draw: st.DrawFn) -> m.Wire:
    num_stages = draw(st.one_of(st.integers(1, 4), st.integers(1, 2**16 - 1)))
    stage = draw(st.integers(0, num_stages - 1))
    epoch = draw(st.integers(1, 2**32 - 1))
    shadow = draw(st.booleans())
    feeds = shadow and stage < num_stages - 1 and draw(st.booleans())
    is_first, is_last = stage == 0 or feeds, stage == num_stages - 1 or (shadow and not feeds)
    schedule = draw(st.none() | schedules(epoch, num_stages)) if stage == 0 and num_stages < 5 and not shadow else None
    return m.Wire(
        pipeline=draw(u32), epoch=epoch, oldest=draw(st.integers(1, epoch)), stage=stage, num_stages=num_stages,
        num_microbatches=draw(st.integers(1, 2**16 - 1)), max_rows=draw(st.integers(1, m.MAX_ROWS)),
        predecessor=None if is_first else draw(peer), successor=None if is_last else draw(peer),
        scheduler=draw(st.none() | peer) if schedule is None and not shadow else None, schedule=schedule,
        listeners=tuple(draw(st.lists(peer, max_size=3))) if stage == num_stages - 1 else (), trace=draw(st.booleans()),
        load=draw(u63), shadow=shadow,
    )  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> m.Request:
    prompt, output, rows = draw(st.integers(1, 2**20)), draw(st.integers(0, 2**10)), draw(st.integers(1, 4))
    total = prompt + output + rows
    opening = draw(openings(may_have_prefix=False))
    opening = msgspec.structs.replace(
        opening, num_prompt_tokens=prompt + rows, max_new_tokens=output + draw(st.integers(1, 2**20))
    )
    tokens = draw(st.binary(min_size=4 * rows, max_size=4 * rows))
    return m.Request(
        draw(u63), total, draw(st.integers(0, total - rows)), tokens, opening, draw(st.text(max_size=9)),
        draw(st.integers(-(2**31), 2**31)), draw(st.none() | st.floats(0, 1e18)),
    )  # fmt: skip


@st.composite
def tunings(draw: st.DrawFn) -> m.Tuning:
    rows = st.integers(1, m.MAX_ROWS)
    positions = [0, *sorted(draw(st.sets(st.integers(1, 2**32 - 1), max_size=3)))]
    under_way = st.none() | st.floats(1e-3, 1e18)
    chunks = tuple(m.ChunkSizes(position, draw(rows), draw(rows), draw(under_way)) for position in positions)
    return m.Tuning(draw(st.integers(1, 2**16 - 1)), chunks, draw(st.none() | u32), draw(st.booleans()))


def _ack(pipeline: int, upto: int, extra: list[int]) -> m.Ack:
    return m.Ack(pipeline, 1, upto % 2, upto, tuple(upto + e for e in extra), upto // 2, upto + 4, 7)


SPECIAL: dict[type, st.SearchStrategy[Any]] = {
    m.Item: items(),
    m.Load: loads(),
    m.Wire: wires(),
    m.Request: requests(),
    m.Tuning: tunings(),
    m.Ack: st.builds(_ack, u32, st.integers(0, 2**62), st.lists(st.integers(0, 2**61), max_size=5)),
    m.TableUnknown: st.builds(m.TableUnknown, u32, u32, st.integers(0, 1), u63, st.binary(min_size=4, max_size=4)),
    m.Loading: st.builds(lambda p, a, b: m.Loading(p, min(a, b), max(a, b)), u32, u63, u63),
    m.Joined: st.builds(m.Joined, st.integers(1, 2**32 - 1), st.integers(0, 2**64 - 1), st.floats(0.01, 1), st.floats(1.1, 9)),
}
SPECIAL |= {
    m.Introduce: st.builds(m.Introduce, peer),
    m.Profile: st.builds(m.Profile, st.text(max_size=9), st.just(bytes(16)), st.sampled_from(Dtype).map(str)),
    m.Verdict: verdicts(),
    m.Commit: commits(),
    m.Draft: drafts(),
    m.Snapshot: snapshots(),
    m.KvPages: st.builds(lambda a, n: m.KvPages(0, 1, a, 0, a % 99, 100, a % 2**31, n), u63, st.integers(1, 2**16)),
    m.KvHeld: st.builds(lambda a, n: m.KvHeld(0, 1, a, 0, a % 99, 100, n), u63, u32),
}
SPECIAL[m.Join] = st.builds(
    m.Join, u16, st.binary(min_size=16, max_size=64), st.text(max_size=9).filter(str.isprintable), st.just("x"), endpoint,
    st.just("cpu"), u63, st.lists(u16, max_size=4).map(tuple),
)  # fmt: skip
SPECIAL[m.Forward] = st.builds(
    m.Forward, u32, u32, u63, u63, st.integers(0, 1), st.integers(0, 4), st.lists(items(), max_size=4).map(tuple)
)  # fmt: skip

SPECIAL[m.Given] = st.builds(
    m.Given, any_of(inspect.type_info(m.Pick)), st.none() | st.sampled_from(FinishReason).map(str), u32, st.booleans(), u32
)  # fmt: skip

SPECIAL[m.Profiled] = st.builds(
    msgspec.structs.replace,
    st.builds(m.Profiled, **{f.name: any_of(f.type) for f in inspect.type_info(m.Profiled).fields}),
    dtype=st.sampled_from(Dtype).map(str),
    kinds=st.lists(any_of(inspect.type_info(m.KindTimes)), max_size=4, unique_by=lambda kind: kind.layer).map(
        lambda kinds: tuple(sorted(kinds, key=lambda kind: kind.layer))
    ),
)  # fmt: skip

MESSAGE = any_of(inspect.type_info(m.AnyMessage))


def outcome(decode: Any, data: Any) -> None:
    """A message, or RemoteProtocolError with a path; nothing else."""
    try:
        decoded = decode(data)
    except RemoteProtocolError as error:
        path = error.fields["path"]
        assert path, error.message  # noqa: PT017
        return
    assert type(decoded) in (*m.AnyMessage.__args__, Envelope)


@given(MESSAGE)
@settings(max_examples=400, deadline=None)
def test_any_message_survives(message: Any) -> None:
    data = encode_message(message)
    again = decode_message(data)
    assert again == message
    assert encode_message(again) == data


@given(st.integers(0, 2**64 - 1), SPECIAL[m.Forward], st.sampled_from(Dtype), st.integers(1, 8), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_any_envelope_survives(swarm: int, forward: m.Forward, dtype: Dtype, d: int, checksum: int) -> None:
    rows = sum(item.num_rows for item in forward.items)
    shape = (rows, d)
    size = math.prod(shape) * dtype.num_bytes
    tensors = (TensorHeader("hidden", dtype, shape, 0, size, size, checksum),) if rows else ()
    payload = bytes(size)
    header = encode_envelope(swarm, forward, tensors)
    envelope = decode_envelope([header, memoryview(payload)] if rows else [header])
    assert envelope == Envelope(swarm, forward, tensors)


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_noise_is_refused_or_read(data: bytes) -> None:
    for decode in (decode_message, lambda b: decode_envelope([b]), lambda b: decode_envelope([b"\x94\x01" + b])):
        outcome(decode, data)


@given(MESSAGE, st.integers(0, 10**6), st.integers(0, 7))
@settings(max_examples=600, deadline=None)
def test_a_flipped_bit_is_refused_or_read(message: Any, where: int, bit: int) -> None:
    data = bytearray(encode_message(message))
    data[where % len(data)] ^= 1 << bit
    outcome(decode_message, data)
