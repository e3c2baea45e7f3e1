"""Rules between fields: each broken in turn, and the error names the field."""

import json
import math
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from bloombee.errors import LocalProtocolError, RemoteProtocolError, VersionMismatch
from bloombee.types import Dtype, Kind
from bloombee.wire import messages as m
from bloombee.wire.envelope import HIDDEN, MAX_TENSOR_BYTES, TensorHeader, decode_envelope, encode_envelope
from bloombee.wire.schema import decode_message, encode_message

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "wire.json").read_text())
SAMPLING = m.Sampling(0.5, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 7, -1)
ITEM = m.Item(1, 0, Kind.DECODE, 5, bytes(8), 1, None, None)
OPENING = m.Opening(2, SAMPLING, 8, (), (), None, None)
FIRST = m.Item(1, 0, Kind.PROMPT, 0, bytes(8), 1, OPENING, None)
FORWARD = m.Forward(0, 1, 5, 9, 0, 0, (ITEM, FIRST))
FORK = m.Fork(3, 5, OPENING)
TREE = m.Tree(7, (0, 7), b"\x02")
PEER = m.Peer(1, "tcp://h:1", bytes(32), bytes(16), True, None)
LOAD = m.Load(
    1, 0, 4, 8, 12, "demo", bytes(16), (bytes(8), b"", bytes(16), b""), "float32", (m.Group(0, 10), m.Group(512, 4)), 16, 2,
    None, (), (),
)  # fmt: skip
WIRE = m.Wire(0, 2, 1, 1, 3, 2, 64, PEER, PEER, None, (), None, False, 1, False)
SCHEDULE = m.Schedule(1, (m.Group(0, 8), m.Group(16, 4)), 4, 600.0, False, (PEER, PEER), True)
FIRST_WIRE = m.Wire(0, 2, 1, 0, 3, 2, 64, None, PEER, None, (), SCHEDULE, False, 1, False)
RULES = m.Rules((), (), 0, 0, 0, None, (), False, None, (), (), None, 1.0, 0.0, 0.0, None)
LAST = msgspec.structs.replace(LOAD, start=8, stop=12, weight_digests=())
MANY = tuple(range(20_000))
TIMES = m.Times(0.001, 0.0002, 0.0001, 0.0, None)
HARDWARE = m.Hardware((1, 0, 0), None, None, None, 1e4, 2, "")
PROFILED = m.Profiled(bytes(16), "float32", "cpu", 2, TIMES, TIMES, TIMES, 0.1, 0.2, 1, 1, None, 1e9, (), HARDWARE)


def an_ask(**fields: Any) -> m.Ask:
    """For a sequence of a prompt of two tokens and one of its answer, with ``fields``."""
    return m.Ask(0, 1, 0, (replace(m.Request(1, 3, 1, bytes(8), OPENING, "", 0, None), **fields),), (), (), None)


UNDIALLABLE = (
    "http://x:1",
    "inproc://x",
    "ipc:///x",
    "tcp://x",
    "tcp://x:0",
    "tcp://a:99999",
    "tcp://0.0.0.0:1",
    "tcp://*:1",
    "tcp://[fe80::1%eth0]:1",
    "tcp://a\x1b[2J:1",
    "tcp://" + "a" * 4000 + ":1",
)
replace = msgspec.structs.replace


def with_item(**fields: Any) -> m.Forward:
    return replace(FORWARD, items=(FIRST, replace(ITEM, **fields)))


def with_sampling(**fields: Any) -> m.Forward:
    return replace(FORWARD, items=(replace(FIRST, opening=replace(OPENING, sampling=replace(SAMPLING, **fields))),))


BROKEN: list[tuple[str, Any]] = [
    ("Join.name", m.Join(1, bytes(16), "n\x1b[2J", "s", "", "cpu", 1, ())),
    ("Join.name", m.Join(1, bytes(16), "two\nlines", "s", "", "cpu", 1, ())),
    *(("Join.endpoint", m.Join(1, bytes(16), "n", "s", endpoint, "cpu", 1, ())) for endpoint in UNDIALLABLE),
    ("Joined.worker", m.Joined(0, 1, 0.5, 3.0, False)),
    ("Joined.heartbeat_s", m.Joined(1, 1, 3.0, 3.0, False)),
    ("Joined.heartbeat_s", m.Joined(1, 1, 0.0, 3.0, False)),
    ("Refused.fields", m.Refused("X", {"a": math.nan})),
    ("StageFailed.fields", m.StageFailed(0, 1, "X", {"a": math.inf})),
    ("Load.stop", replace(LOAD, stop=4)),
    ("Load.stop", replace(LOAD, stop=13)),
    ("Load.groups", replace(LOAD, groups=(m.Group(512, 10), m.Group(512, 4)))),
    ("Load.page_size", replace(LOAD, page_size=0)),
    ("Load.dtype", replace(LOAD, dtype="int8")),
    ("Loading.loaded_bytes", m.Loading(0, 5, 4)),
    ("Wire.oldest", replace(WIRE, oldest=3)),
    ("Wire.oldest", replace(WIRE, oldest=0)),
    ("Wire.stage", replace(WIRE, stage=3)),
    ("Wire.num_microbatches", replace(WIRE, num_microbatches=0)),
    ("Wire.predecessor", replace(WIRE, predecessor=None)),
    ("Wire.predecessor", replace(WIRE, stage=0)),
    ("Wire.successor", replace(WIRE, successor=None)),
    ("Wire.successor", replace(WIRE, stage=2)),
    *(("Wire.successor.endpoint", replace(WIRE, successor=replace(PEER, endpoint=endpoint))) for endpoint in UNDIALLABLE),
    ("Load.weight_digests", replace(LOAD, weight_digests=(bytes(8),) * 3)),
    ("Load.weight_digests", replace(LOAD, start=0, weight_digests=(bytes(8),) * 8)),
    ("Load.weight_digests", replace(LOAD, stop=12, weight_digests=(bytes(8),) * 8)),
    ("Load.weight_digests", replace(LOAD, weight_digests=(bytes(9), b"", b"", b""))),
    ("Load.rules", replace(LOAD, rules=RULES)),
    ("Load.rules.typical_p", replace(LAST, rules=replace(RULES, typical_p=0.0))),
    ("Load.rules.top_h", replace(LAST, rules=replace(RULES, top_h=2.0))),
    ("Load.rules.epsilon_cutoff", replace(LAST, rules=replace(RULES, epsilon_cutoff=1.0))),
    ("Load.rules.bad_words_ids", replace(LAST, rules=replace(RULES, bad_words_ids=((),)))),
    ("Load.rules.suppress_tokens", replace(LAST, rules=replace(RULES, suppress_tokens=MANY, begin_suppress_tokens=MANY))),
    ("Load.rules.watermark", replace(LAST, rules=replace(RULES, watermark=m.Watermark(1.5, 1.0, 1, False, 1)))),
    ("Forward.lane", replace(FORWARD, lane=2)),
    ("Forward.priority", replace(FORWARD, priority=5)),
    ("Forward.items", replace(FORWARD, items=(replace(ITEM, tokens=bytes(4 * m.MAX_ROWS)), ITEM))),
    ("Forward.items[1].tokens", with_item(tokens=bytes(7))),
    ("Forward.items[1].num_picks", with_item(num_picks=3)),
    ("Forward.items[1].opening", with_item(position=0)),
    ("Forward.items[1].position", with_item(position=2**32 - 2)),
    ("Forward.items[1].kind", with_item(kind=5)),
    ("Forward.items[1].opening.sequence", with_item(opening=replace(FORK, sequence=1))),
    ("Forward.items[1].opening.length", with_item(opening=replace(FORK, length=4))),
    (
        "Forward.items[1].opening.opening.prefix",
        with_item(opening=replace(FORK, opening=replace(OPENING, prefix=m.Prefix(bytes(32), 5)))),
    ),
    ("Forward.items[1].opening.prefix.length", with_item(opening=replace(OPENING, prefix=m.Prefix(bytes(32), 4)))),
    ("Forward.items[1].opening.biases", with_item(opening=replace(OPENING, biases=((7, 1.0), (7, 2.0))))),
    (
        "Forward.items[1].opening.grammar.text",
        with_item(opening=replace(OPENING, grammar=m.Grammar("regex", "\xe4" * (m.MAX_GRAMMAR_BYTES // 2 + 1)))),
    ),
    ("Forward.items[1].tree.parents", with_item(tree=replace(TREE, parents=(0,)))),
    ("Forward.items[1].tree.parents[1]", with_item(tree=replace(TREE, parents=(0, 8)))),
    ("Forward.items[1].tree.first", with_item(tree=replace(TREE, first=2**32 - 2))),
    ("Forward.items[1].tree.picks", with_item(tree=replace(TREE, picks=b"\x02\x00"))),
    ("Forward.items[1].tree.picks", with_item(tree=replace(TREE, picks=b"\x04"))),
    ("Forward.items[1].tree.picks", with_item(tree=replace(TREE, picks=b"\x03"))),
    ("Verdict.nodes", m.Verdict(0, 1, 1, 1, (m.Pick(1, 0, 1, 1, None, ()),), (1, 2))),
    ("Ack.logged", m.Ack(0, 1, 0, 5, (), 6, 9, 0)),
    ("Commit.cuts[1]", m.Commit(0, 1, (m.Cut(1, 1, 0, ()), m.Cut(1, 1, 5, ())))),
    ("Commit.cuts[0].path", m.Commit(0, 1, (m.Cut(1, 1, 5, (3, 3)),))),
    ("Commit.cuts[0].path", m.Commit(0, 1, (m.Cut(1, 1, 5, (0,)),))),
    ("Commit.cuts", m.Commit(0, 1, ())),
    ("Commit.cuts[0].generation", m.Commit(0, 1, (m.Cut(1, 0, 5, ()),))),
    ("Introduce.peer.worker", m.Introduce(replace(PEER, worker=0))),
    ("Introduce.peer.through", m.Introduce(replace(PEER, through=1))),
    *(("Introduce.peer.endpoint", m.Introduce(replace(PEER, endpoint=endpoint))) for endpoint in UNDIALLABLE[:3]),
    ("Wire.scheduler.worker", replace(WIRE, scheduler=replace(PEER, worker=0))),
    ("Wire.schedule", replace(WIRE, schedule=SCHEDULE)),
    ("Wire.schedule", replace(FIRST_WIRE, scheduler=PEER)),
    *(
        (f"Wire.schedule.{path}", replace(FIRST_WIRE, schedule=replace(SCHEDULE, **fields)))
        for path, fields in {
            "since": {"since": 3},
            "stages": {"stages": (PEER,)},
            "stages[1].worker": {"stages": (PEER, replace(PEER, worker=0))},
            "page_size": {"page_size": 0},
            "groups": {"groups": (m.Group(0, 8), m.Group(0, 4))},
        }.items()
    ),
    ("Wire.schedule.since", replace(FIRST_WIRE, schedule=replace(SCHEDULE, since=0))),
    ("Wire.schedule.step_deadline_s", replace(FIRST_WIRE, schedule=replace(SCHEDULE, step_deadline_s=-1.0))),
    *(
        (f"Ask.requests[0].{path}", an_ask(**fields))
        for path, fields in {
            "tokens": {"tokens": bytes(9)},
            "position": {"position": 4},
            "num_tokens": {"num_tokens": 1, "position": 0, "tokens": bytes(4)},
            "opening.prefix": {"opening": replace(OPENING, prefix=m.Prefix(bytes(32), 4))},
            "opening.max_new_tokens": {"opening": replace(OPENING, max_new_tokens=0)},
            "opening.num_prompt_tokens": {"opening": replace(OPENING, num_prompt_tokens=0)},
            "opening.sampling.top_p": {"opening": replace(OPENING, sampling=replace(SAMPLING, top_p=0.0))},
            "priority": {"priority": 2**31 + 1},
            "max_time_s": {"max_time_s": -1.0},
        }.items()
    ),
    ("Ask.requests[0].num_tokens", an_ask(num_tokens=10, position=8)),
    *(
        (
            "Ask.tuning.chunks",
            m.Ask(0, 1, 0, (), (), (), m.Tuning(1, tuple(m.ChunkSizes(at, 8, 8, None) for at in positions), None, True)),
        )
        for positions in ((), (1,), (0, 5, 5))
    ),
    ("Ask.tuning.num_microbatches", m.Ask(0, 1, 0, (), (), (), m.Tuning(0, (m.ChunkSizes(0, 8, 8, None),), None, True))),
    ("Ask.tuning.chunks[0].fast", m.Ask(0, 1, 0, (), (), (), m.Tuning(1, (m.ChunkSizes(0, 0, 8, None),), None, True))),
    ("Told.given[0].finish", m.Told(0, 1, 0, (m.Given(m.Pick(1, 0, 1, 1, None, ()), "bored", 0, False, 0),), ())),
    ("Told.over[0].fields", m.Told(0, 1, 0, (), (m.Over(1, "LinkDown", {"x": math.inf}),))),
    ("Standing.decoded_ago_s", m.Standing(0, 1, 0, 0, None, 0, 0, -1.0)),
    ("Wire.listeners", replace(WIRE, listeners=(PEER,))),
    ("Wire.listeners[0].worker", replace(WIRE, stage=2, successor=None, listeners=(replace(PEER, worker=0),))),
    ("Load.placement", replace(LOAD, placement=(0, 1))),
    ("Load.placement[3]", replace(LOAD, placement=(0, 1, 2, 3))),
    ("Load.budgets", replace(LOAD, budgets=(1, 2, 3, 4))),
    ("Loaded.weight_bytes", m.Loaded(1, 0, (), (1,))),
    ("Profile.dtype", m.Profile("demo", bytes(16), "int8")),
    ("Profiled.dtype", replace(PROFILED, dtype="int8")),
    ("Profiled.kinds", replace(PROFILED, kinds=(m.KindTimes(3, TIMES, 1, 1), m.KindTimes(3, TIMES, 1, 1)))),
    ("KvPages.stop", m.KvPages(0, 1, 1, 0, 4, 4, 0, 1)),
    ("KvPages.position", m.KvPages(0, 1, 1, 0, 4, 5, 2**32 - 1, 1)),
    ("KvPages.num_rows", m.KvPages(0, 1, 1, 0, 4, 5, 0, 0)),
    ("KvHeld.stop", m.KvHeld(0, 1, 1, 0, 4, 3, 0)),
    ("Draft.tokens", m.Draft(0, 1, 1, 0, 5, bytes(6), (0,), (0.0,))),
    ("Draft.parents", m.Draft(0, 1, 1, 0, 5, bytes(8), (0,), (0.0, 0.0))),
    ("Draft.scores", m.Draft(0, 1, 1, 0, 5, bytes(8), (0, 1), (0.0,))),
    ("Draft.parents[1]", m.Draft(0, 1, 1, 0, 5, bytes(8), (0, 2), (0.0, 0.0))),
    ("Snapshot.sequences[0].opening", m.Snapshot(0, 1, 0, (m.Known(1, 0, 0, bytes(4), None),), (), 0)),
    ("Snapshot.sequences[0].opening", m.Snapshot(0, 1, 0, (m.Known(1, 0, 5, bytes(4), OPENING),), (), 0)),
    ("Snapshot.sequences[0].tokens", m.Snapshot(0, 1, 0, (m.Known(1, 0, 5, bytes(5), None),), (), 0)),
    ("Snapshot.sequences[0].position", m.Snapshot(0, 1, 0, (m.Known(1, 0, 2**32 - 1, bytes(8), None),), (), 0)),
    (
        "Snapshot.sequences[0].opening.num_prompt_tokens",
        m.Snapshot(0, 1, 0, (m.Known(1, 0, 0, bytes(4), replace(OPENING, num_prompt_tokens=0)),), (), 0),
    ),
    (
        "Forward.items[0].opening.num_prompt_tokens",
        replace(FORWARD, items=(replace(FIRST, opening=replace(OPENING, num_prompt_tokens=0)),)),
    ),
    ("Forward.items[0].opening.sampling.temperature", with_sampling(temperature=-0.1)),
    ("Forward.items[0].opening.sampling.top_p", with_sampling(top_p=0.0)),
    ("Forward.items[0].opening.sampling.min_p", with_sampling(min_p=1.5)),
    ("Forward.items[0].opening.sampling.repetition_penalty", with_sampling(repetition_penalty=0.0)),
    ("Forward.items[0].opening.sampling.presence_penalty", with_sampling(presence_penalty=1e5)),
    ("Forward.items[0].opening.sampling.frequency_penalty", with_sampling(frequency_penalty=-1e5)),
    ("Forward.items[0].opening.sampling.temperature", with_sampling(temperature=math.nan)),
    ("Ack.lane", m.Ack(0, 1, 2, 5, (), 5, 9, 0)),
    ("TableUnknown.lane", m.TableUnknown(0, 1, 2, 5, bytes(4))),
    ("Ack.extra[1]", m.Ack(0, 1, 0, 5, (6, 4), 5, 9, 0)),
    ("Profiled.stage.fixed_s", replace(PROFILED, stage=replace(TIMES, fixed_s=-0.1))),
    ("Profiled.layer.context_s", replace(PROFILED, layer=replace(TIMES, context_s=math.inf))),
    ("Profiled.output.decode_row_s", replace(PROFILED, output=replace(TIMES, decode_row_s=3601.0))),
    ("Profiled.worst_error", replace(PROFILED, worst_error=-1.0)),
    ("Profiled.device", replace(PROFILED, device=257 * "x")),
    ("Profiled.layer_bytes", replace(PROFILED, layer_bytes=-1)),
    ("Profiled.encode_bytes_per_s", replace(PROFILED, encode_bytes_per_s=0.0)),
    ("Profiled.kinds", replace(PROFILED, kinds=(m.KindTimes(3, TIMES, 1, 1),) * 65)),
    ("Profiled.kinds[0].times.fixed_s", replace(PROFILED, kinds=(m.KindTimes(3, replace(TIMES, fixed_s=math.nan), 1, 1),))),
    ("Profiled.hardware.memory_bytes", replace(PROFILED, hardware=replace(HARDWARE, memory_bytes=(1, 2)))),
    ("Profiled.hardware.memory_bytes[2]", replace(PROFILED, hardware=replace(HARDWARE, memory_bytes=(1, 2, -1)))),
    ("Profiled.hardware.frames_per_s", replace(PROFILED, hardware=replace(HARDWARE, frames_per_s=math.inf))),
    ("Profiled.hardware.disk_bytes_per_s", replace(PROFILED, hardware=replace(HARDWARE, disk_bytes_per_s=-1.0))),
    ("LinkReport.rtt_s", m.LinkReport(2, "", -0.1, 0.0, None, None, None, 0.0, None, 1, 1, 0.0, 0, 0)),
    ("LinkReport.bandwidth_low_bytes_per_s", m.LinkReport(2, "", None, 0.0, None, 1.0, math.inf, 0.0, None, 1, 1, 0.0, 0, 0)),
    ("Introduced.fields", m.Introduced(bytes(16), "LinkDown", {"a": math.nan})),
    ("Pick.logprob", m.Verdict(0, 1, 1, 1, (m.Pick(1, 0, 1, 1, -math.inf, ()),), None)),
]


@pytest.mark.parametrize(("path", "message"), BROKEN, ids=[f"{i}-{path}" for i, (path, _) in enumerate(BROKEN)])
def test_a_broken_rule_names_its_field(path: str, message: Any) -> None:
    data = encode_message(message)
    with pytest.raises(RemoteProtocolError) as caught:
        decode_message(data)
    assert str(caught.value.fields["path"]).endswith(path.removeprefix("Pick"))
    assert len(caught.value.message) < 500


def test_the_unbroken_ones_are_read() -> None:
    most = replace(OPENING, grammar=m.Grammar("regex", "\xe4" * (m.MAX_GRAMMAR_BYTES // 2)))
    others = (FORK, OPENING, most, replace(OPENING, prefix=m.Prefix(bytes(32), 5)))
    trees = (TREE, replace(TREE, parents=(3, 6)))
    for message in (
        FORWARD, LOAD, WIRE, with_item(position=2**32 - 3), replace(LOAD, placement=(0, 1, 2, 2)),
        *(with_item(opening=other) for other in others), *(with_item(tree=tree) for tree in trees),
    ):  # fmt: skip
        assert decode_message(encode_message(message)) == message


@pytest.mark.parametrize("vector", GOLDEN, ids=lambda v: f"tag{v['tag']}")
def test_missing_and_surplus_fields(vector: dict[str, Any]) -> None:
    fields = msgpack.unpackb(bytes.fromhex(vector["message"]), strict_map_key=False)
    name = type(decode_message(bytes.fromhex(vector["message"]))).__name__
    for wrong in (fields[:-1], [*fields, 0]):
        with pytest.raises(RemoteProtocolError) as caught:
            decode_message(msgpack.packb(wrong))
        assert caught.value.fields["path"] == name


@pytest.mark.parametrize("vector", GOLDEN, ids=lambda v: f"tag{v['tag']}")
def test_a_field_of_another_type_is_named(vector: dict[str, Any]) -> None:
    fields = msgpack.unpackb(bytes.fromhex(vector["message"]), strict_map_key=False)
    kind = type(decode_message(bytes.fromhex(vector["message"])))
    for index, name in enumerate(kind.__struct_fields__, start=1):
        wrong = list(fields)
        wrong[index] = msgpack.ExtType(5, b"x")
        with pytest.raises(RemoteProtocolError) as caught:
            decode_message(msgpack.packb(wrong))
        assert caught.value.fields["path"] == f"{kind.__name__}.{name}"


def test_unknown_tag() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_message(msgpack.packb([99, 1]))
    assert caught.value.fields["path"] == "message.tag"


# -- envelope ----------------------------------------------------------------------------------

ROWS = sum(item.num_rows for item in FORWARD.items)
TENSOR = TensorHeader(HIDDEN, Dtype.BFLOAT16, (ROWS, 4), 0, ROWS * 8, ROWS * 8, 1)
PAYLOAD = bytes(ROWS * 8)
MANY_TENSORS = tuple(replace(TENSOR, name=f"t{index}") for index in range(9))
HUGE = replace(TENSOR, codec=1, shape=(ROWS, 2**22), raw_bytes=ROWS * 2**23, encoded_bytes=1)


def packed(*, message: Any = FORWARD, tensors: Any = (TENSOR,), version: int = 1) -> bytes:
    """A header that encode_envelope would refuse to make."""
    return msgspec.msgpack.encode([version, 7, msgspec.Raw(encode_message(message)), tensors])


@pytest.mark.parametrize(
    ("path", "frames"),
    [
        ("header", []),
        ("header", [b""]),
        ("header", [bytes(m.MAX_HEADER_BYTES + 1)]),
        ("header", [b"\x93\x01\x00\x00\x00"]),
        ("tensors", [packed()]),
        ("tensors", [packed(), PAYLOAD, PAYLOAD]),
        ("tensors", [packed(tensors=()), PAYLOAD]),
        ("tensors", [packed(tensors=(TENSOR, TENSOR)), PAYLOAD, PAYLOAD]),
        ("tensors", [packed(tensors=MANY_TENSORS), *[PAYLOAD] * 9]),
        ("tensors[0].name", [packed(tensors=(replace(TENSOR, name=""),)), PAYLOAD]),
        ("tensors[1].shape", [packed(tensors=(TENSOR, replace(TENSOR, name="b", shape=(1, 4 * ROWS)))), PAYLOAD, PAYLOAD]),
        ("tensors.raw_bytes", [packed(tensors=tuple(replace(HUGE, name=name) for name in "abc")), b"1", b"1", b"1"]),
        ("tensors", [packed(message=m.KvPages(0, 1, 1, 0, 4, 5, 0, 2), tensors=())]),
        ("tensors[0].shape", [packed(message=m.KvPages(0, 1, 1, 0, 4, 5, 0, 2)), PAYLOAD]),
        ("tensors", [packed(message=m.Heartbeat(1)), PAYLOAD]),
        ("tensors[0].encoded_bytes", [packed(), PAYLOAD[:-1]]),
        ("tensors[0].raw_bytes", [packed(tensors=(replace(TENSOR, raw_bytes=1),)), PAYLOAD]),
        ("tensors[0].shape", [packed(tensors=(replace(TENSOR, shape=(ROWS + 1, 4)),)), PAYLOAD]),
        ("tensors[0].shape", [packed(tensors=(replace(TENSOR, shape=(ROWS, 2, 2)),)), PAYLOAD]),
        ("tensors[0].shape", [packed(tensors=(replace(TENSOR, shape=(1, 1, 1, 1, 1)),)), PAYLOAD]),
        ("tensors[0].shape[1]", [packed(tensors=(replace(TENSOR, shape=(ROWS, 0)),)), b""]),
        ("tensors[0].dtype", [packed(tensors=([HIDDEN, "int8", *msgspec.to_builtins(TENSOR)[2:]],)), PAYLOAD]),
        ("tensors[0].encoded_bytes", [packed(tensors=(replace(TENSOR, codec=1, encoded_bytes=0),)), b""]),
        ("tensors[0].encoded_bytes", [packed(tensors=(replace(TENSOR, encoded_bytes=8),)), bytes(8)]),
        (
            "tensors[0].raw_bytes",
            [packed(tensors=(replace(TENSOR, shape=(ROWS, 2**30), raw_bytes=ROWS * 2**31, codec=1),)), PAYLOAD],
        ),
        ("tensors[0].encoded_bytes", [packed(tensors=(replace(TENSOR, codec=1, encoded_bytes=MAX_TENSOR_BYTES + 1),)), PAYLOAD]),
    ],
)
def test_a_lying_envelope_is_refused(path: str, frames: list[bytes]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_envelope(frames)
    assert caught.value.fields["path"] == path


def test_an_honest_envelope_is_read_and_its_payload_left_alone() -> None:
    envelope = decode_envelope([memoryview(packed()), memoryview(PAYLOAD)])
    assert envelope.tensors == (TENSOR,)
    assert envelope.swarm == 7


def test_an_envelope_carries_up_to_eight_named_tensors() -> None:
    tensors = (TENSOR, *(replace(TENSOR, name=f"t{index}", shape=(ROWS, 2, 2)) for index in range(7)))
    header = encode_envelope(7, FORWARD, tensors)
    assert decode_envelope([header, *[PAYLOAD] * 8]).tensors == tensors


def test_another_version_is_told_apart_from_noise() -> None:
    with pytest.raises(VersionMismatch) as caught:
        decode_envelope([packed(version=2)])
    assert caught.value.fields["theirs"] == 2


def test_what_the_peer_would_refuse_is_not_sent() -> None:
    with pytest.raises(LocalProtocolError):
        encode_envelope(7, m.Heartbeat(1), (TENSOR,))
    with pytest.raises(LocalProtocolError):
        encode_envelope(7, m.Heartbeat(2**70))
    with pytest.raises(LocalProtocolError):
        encode_envelope(7, m.Goodbye("x" * m.MAX_HEADER_BYTES))
    with pytest.raises(LocalProtocolError):
        encode_message(m.Goodbye("x" * m.MAX_HEADER_BYTES))
