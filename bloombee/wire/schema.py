"""Bytes <-> messages, closed and bounded.

``msgspec`` checks types, lengths and ranges while it parses (nothing is allocated for a field that is
refused); what one field cannot know about another is in the table :data:`_CHECKS`. Everything that is
wrong with a peer's bytes is one error, :class:`~bloombee.errors.RemoteProtocolError`, whose ``path``
names the field: ``Forward.items[3].tokens``.

Why msgspec and not checks by hand over msgpack: docs/adr/0010-msgspec-on-the-wire.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import msgspec

from bloombee.address import TOLD_RULE, read_told
from bloombee.errors import LocalProtocolError, RemoteProtocolError
from bloombee.types import Dtype, Lane, Phase
from bloombee.wire import messages as m
from bloombee.wire.messages import AnyMessage

Buffer = bytes | bytearray | memoryview

SCHEMA_ERRORS = (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError)
"""All that msgspec raises on bytes that it does not like."""

_decoder = msgspec.msgpack.Decoder(AnyMessage)
_encoder = msgspec.msgpack.Encoder()
_PATH = re.compile(r" - at (?:`key` in )?`\$(?P<path>[^`]*)`$")
_MAX_NAMED_BYTES = 1 << 16
"""Beyond it errors carry no field names: a refused header must not cost more than its own size."""
_STEP = re.compile(r"\[(\d+|\.\.\.)\]")


def encode_message(message: AnyMessage) -> bytes:
    """msgpack bytes of ``message``.

    Raises:
        LocalProtocolError: a field that msgpack cannot hold, or more than ``MAX_HEADER_BYTES``.
    """
    try:
        data = _encoder.encode(message)
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise LocalProtocolError(f"{type(message).__name__} does not encode: {error}", path=type(message).__name__) from error
    if len(data) > m.MAX_HEADER_BYTES:
        raise LocalProtocolError(
            f"{type(message).__name__} takes {len(data)} bytes, at most {m.MAX_HEADER_BYTES} are allowed",
            path=type(message).__name__,
        )
    return data


def decode_message(data: Buffer) -> AnyMessage:
    """The message in ``data``, every field checked.

    Raises:
        RemoteProtocolError: too long, truncated, of an unknown tag, or with a missing, surplus, out-of-range
            or contradictory field; ``fields["path"]`` names it.
    """
    num_bytes = len(data)
    if num_bytes > m.MAX_HEADER_BYTES:
        raise RemoteProtocolError(
            f"a message of {num_bytes} bytes, at most {m.MAX_HEADER_BYTES} are allowed", path="message", num_bytes=num_bytes
        )
    try:
        message: AnyMessage = _decoder.decode(data)
    except SCHEMA_ERRORS as error:
        raise schema_error(error, data, AnyMessage) from None
    check_message(message)
    return message


def check_message(message: AnyMessage) -> None:
    """The rules between fields.

    Raises:
        RemoteProtocolError: a rule is broken; ``fields["path"]`` names the field.
    """
    check = _CHECKS.get(type(message))
    if check is not None:
        check(message)


# -- rules between fields ----------------------------------------------------------------------


def refuse(path: str, value: object, allowed: str) -> RemoteProtocolError:
    """The error for ``value`` at ``path``."""
    return RemoteProtocolError(f"{path} = {shorten(repr(value))}: must be {allowed}", path=path)


def shorten(text: str, most: int = 80) -> str:
    """``text``, its end left out where it has more than ``most`` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def _check_endpoint(path: str, endpoint: str) -> None:
    """Refused here, at the door, it cannot fail where somebody else is told to dial it."""
    if endpoint:
        try:
            read_told(endpoint)
        except ValueError as error:
            raise refuse(path, endpoint, f"empty or {TOLD_RULE}; {shorten(str(error), 200)}") from None


def _check_facts(path: str, facts: dict[str, Any]) -> None:
    for value in facts.values():
        if type(value) is float and not math.isfinite(value):
            raise refuse(path, value, "finite")


def _check_join(join: m.Join) -> None:
    _check_endpoint("Join.endpoint", join.endpoint)


def _check_joined(joined: m.Joined) -> None:
    if joined.worker == 0:
        raise refuse("Joined.worker", 0, "at least 1 (0 is the head)")
    if not 0 < joined.heartbeat_s < joined.silence_s:
        raise refuse("Joined.heartbeat_s", joined.heartbeat_s, f"in (0, silence_s = {joined.silence_s})")


def _check_refused(refused: m.Refused) -> None:
    _check_facts("Refused.fields", refused.fields)


def _check_failed(failed: m.StageFailed) -> None:
    _check_facts("StageFailed.fields", failed.fields)


def _check_load(load: m.Load) -> None:
    if not load.start < load.stop <= load.num_layers:
        raise refuse("Load.stop", load.stop, f"in (start = {load.start}, num_layers = {load.num_layers}]")
    if load.page_size < 1:
        raise refuse("Load.page_size", load.page_size, "at least 1")
    if len({group.window for group in load.groups}) != len(load.groups):
        raise refuse("Load.groups", [group.window for group in load.groups], "of different windows")
    homes = load.stop - load.start + (load.start == 0) + (load.stop == load.num_layers)
    if len(load.weight_digests) not in (0, homes):
        raise refuse("Load.weight_digests", len(load.weight_digests), f"none or {homes}")
    if any(len(known) % m.WEIGHT_DIGEST_BYTES for known in load.weight_digests):
        raise refuse("Load.weight_digests", "a part of a digest", f"multiples of {m.WEIGHT_DIGEST_BYTES} bytes")
    if load.rules is not None:
        if load.stop < load.num_layers:
            raise refuse("Load.rules", "rules", "None without the last layer")
        _check_rules(load.rules)
    if load.dtype not in _DTYPES:
        raise refuse("Load.dtype", load.dtype, "one of " + ", ".join(sorted(_DTYPES)))


def _check_wire(wire: m.Wire) -> None:
    if not 1 <= wire.oldest <= wire.epoch:
        raise refuse("Wire.oldest", wire.oldest, f"in [1, epoch = {wire.epoch}]")
    if not wire.stage < wire.num_stages:
        raise refuse("Wire.stage", wire.stage, f"< num_stages = {wire.num_stages}")
    if wire.num_microbatches < 1:
        raise refuse("Wire.num_microbatches", wire.num_microbatches, "at least 1")
    for name, peer, is_end in (
        ("predecessor", wire.predecessor, wire.stage == 0),
        ("successor", wire.successor, wire.stage == wire.num_stages - 1),
    ):
        if (peer is None) is not is_end:
            raise refuse(f"Wire.{name}", peer, f"absent on the {'first' if name == 'predecessor' else 'last'} stage and no other")
        if peer is not None:
            _check_endpoint(f"Wire.{name}.endpoint", peer.endpoint)


def _check_rules(rules: m.Rules) -> None:
    """The ranges of models.rules.LogitsRules, and that all lists together are of bounded length."""
    sequences = [*rules.bad_words_ids, *(tokens for tokens, _ in rules.sequence_bias)]
    lists = [*sequences, rules.forced_eos_token_id, rules.suppress_tokens, rules.begin_suppress_tokens]
    mark = rules.watermark
    for ok, name, allowed in (
        (sum(map(len, lists)) <= m.MAX_RULE_TOKENS, "suppress_tokens", f"at most {m.MAX_RULE_TOKENS} with all other lists"),
        (all(map(len, sequences)), "bad_words_ids", "and sequence_bias of one token or more each"),
        (rules.top_h is None or 0 < rules.top_h <= 1, "top_h", "in (0, 1]"),
        (0 < rules.typical_p <= 1, "typical_p", "in (0, 1]"),
        (0 <= rules.epsilon_cutoff < 1, "epsilon_cutoff", "in [0, 1)"),
        (0 <= rules.eta_cutoff < 1, "eta_cutoff", "in [0, 1)"),
        (mark is None or 0 <= mark.greenlist_ratio <= 1, "watermark", "of a greenlist_ratio in [0, 1]"),
    ):
        if not ok:
            raise refuse(f"Load.rules.{name}", getattr(rules, name), allowed)


def _check_loading(loading: m.Loading) -> None:
    if loading.loaded_bytes > loading.total_bytes:
        raise refuse("Loading.loaded_bytes", loading.loaded_bytes, f"<= total_bytes = {loading.total_bytes}")


def _check_forward(forward: m.Forward) -> None:
    if forward.phase not in _PHASES:
        raise refuse("Forward.phase", forward.phase, "0 (decode) or 1 (prefill)")
    total = 0
    for index, item in enumerate(forward.items):
        num_token_bytes = len(item.tokens)
        num_rows = num_token_bytes >> 2
        total += num_rows
        if (
            num_token_bytes & 3
            or item.num_picks > num_rows
            or (item.opening is None) is (item.position == 0)
            or item.position + num_rows > _MAX_POSITION
            or item.opening is not None
            or item.parents is not None
        ):
            _check_item(f"Forward.items[{index}]", item, num_rows)
    if total > m.MAX_ROWS:
        raise refuse("Forward.items", total, f"at most {m.MAX_ROWS} rows together")


def _check_item(path: str, item: m.Item, num_rows: int) -> None:
    """The rules of one item, told apart; the caller has seen that one may be broken."""
    if len(item.tokens) % 4:
        raise refuse(f"{path}.tokens", len(item.tokens), "a multiple of 4 bytes long")
    if item.num_picks > num_rows:
        raise refuse(f"{path}.num_picks", item.num_picks, f"at most the {num_rows} rows of the item")
    if (item.opening is not None) != (item.position == 0):
        raise refuse(f"{path}.opening", item.opening, f"present iff position (= {item.position}) is 0")
    if item.position + num_rows > _MAX_POSITION:
        raise refuse(f"{path}.position", item.position, f"such that position + rows <= {_MAX_POSITION}")
    if item.opening is not None:
        if item.opening.num_prompt_tokens < 1:
            raise refuse(f"{path}.opening.num_prompt_tokens", 0, "at least 1")
        _check_sampling(f"{path}.opening.sampling", item.opening.sampling)
    if item.parents is not None:
        if len(item.parents) != num_rows:
            raise refuse(f"{path}.parents", len(item.parents), f"as many as the {num_rows} rows")
        for row, parent in enumerate(item.parents):
            if parent > row:
                raise refuse(f"{path}.parents[{row}]", parent, f"at most {row}: a row hangs on an earlier one")


def _check_sampling(path: str, s: m.Sampling) -> None:
    """The ranges of types.SamplingParams."""
    for ok, name, allowed in (
        (0 <= s.temperature <= 1e4, "temperature", "in [0, 10000]"),
        (0 < s.top_p <= 1, "top_p", "in (0, 1]"),
        (0 <= s.min_p <= 1, "min_p", "in [0, 1]"),
        (0 < s.repetition_penalty <= 1e4, "repetition_penalty", "in (0, 10000]"),
        (abs(s.presence_penalty) <= 1e4, "presence_penalty", "in [-10000, 10000]"),
        (abs(s.frequency_penalty) <= 1e4, "frequency_penalty", "in [-10000, 10000]"),
    ):
        if not ok:
            raise refuse(f"{path}.{name}", getattr(s, name), allowed)


def _check_ack(ack: m.Ack) -> None:
    _check_lane("Ack", ack.lane)
    for index, frame in enumerate(ack.extra):
        if frame < ack.upto:
            raise refuse(f"Ack.extra[{index}]", frame, f">= upto = {ack.upto}")


def _check_table_unknown(unknown: m.TableUnknown) -> None:
    _check_lane("TableUnknown", unknown.lane)


def _check_lane(name: str, lane: int) -> None:
    if lane not in _LANES:
        raise refuse(f"{name}.lane", lane, "0 (control) or 1 (bulk)")


_MAX_POSITION = 2**32 - 1
_LANES = frozenset(int(lane) for lane in Lane)
_PHASES = frozenset(int(phase) for phase in Phase)
_DTYPES = frozenset(str(dtype) for dtype in Dtype)
_CHECKS: dict[type, Callable[[Any], None]] = {
    m.Join: _check_join,
    m.Joined: _check_joined,
    m.Refused: _check_refused,
    m.Load: _check_load,
    m.Loading: _check_loading,
    m.Wire: _check_wire,
    m.StageFailed: _check_failed,
    m.Forward: _check_forward,
    m.Ack: _check_ack,
    m.TableUnknown: _check_table_unknown,
}


# -- where it is wrong -------------------------------------------------------------------------


def schema_error(error: Exception, data: Buffer, root: Any) -> RemoteProtocolError:
    """``error`` of msgspec as ours, ``path`` in field names instead of array indices.

    Only names are looked up in ``data`` (its tags); nothing else of it is built.
    """
    text = str(error)
    if len(text) > 400:  # msgspec quotes the value of an enum
        text = text[:200] + " ... " + text[-200:]
    if not isinstance(error, msgspec.ValidationError):
        return RemoteProtocolError(f"the bytes do not parse: {text}", path="message")
    match = _PATH.search(text)  # none: it is the array as a whole
    path = _named_path(_STEP.findall(match["path"]) if match else [], data, root)
    return RemoteProtocolError(f"{path}: {text[: match.start()] if match else text}", path=path)


def _named_path(steps: list[str], data: Buffer, root: Any) -> str:
    info: Any = msgspec.inspect.type_info(root)
    raw: Buffer | None = data
    path = "message"
    for step in steps:
        info, raw = _resolve(info, raw)
        index = int(step) if step.isdigit() else 0
        if isinstance(info, msgspec.inspect.StructType):
            if info.tag is not None:
                path = info.cls.__name__  # a message is named by itself, wherever it is kept
            fields = info.fields if info.tag is None else (None, *info.fields)
            field = fields[index] if index < len(fields) else None
            path += f".{field.encode_name}" if field is not None else ".tag"
            info = field.type if field is not None else None
        else:
            path += ".tag" if info is None else f"[{step}]"
            info = getattr(info, "item_type", None) or _nth(getattr(info, "item_types", ()), index)
        raw = _child(raw, index) if step.isdigit() else None
    info, _ = _resolve(info, raw)
    if isinstance(info, msgspec.inspect.StructType) and info.tag is not None:
        path = info.cls.__name__
    return "header" if path == "Envelope" else path.removeprefix("Envelope.")


def _resolve(info: Any, raw: Buffer | None) -> tuple[Any, Buffer | None]:
    """The member of a union that ``raw`` is: by its tag, or the only one that is not None."""
    if not isinstance(info, msgspec.inspect.UnionType):
        return info, raw
    members = [t for t in info.types if not isinstance(t, msgspec.inspect.NoneType)]
    if len(members) == 1:
        return members[0], raw
    tag = _tag(raw)
    for member in members:
        if isinstance(member, msgspec.inspect.StructType) and member.tag == tag:
            return member, raw
    return None, raw


def _tag(raw: Buffer | None) -> object:
    first = _child(raw, 0)
    try:
        return None if first is None else msgspec.msgpack.decode(first, type=int)
    except SCHEMA_ERRORS:
        return None


def _child(raw: Buffer | None, index: int) -> Buffer | None:
    """Element ``index`` of the msgpack array ``raw``, if it parses and is small enough to be worth a name."""
    if raw is None or len(raw) > _MAX_NAMED_BYTES:
        return None
    try:
        parts = msgspec.msgpack.decode(raw, type=list[msgspec.Raw])
    except SCHEMA_ERRORS:
        return None
    return memoryview(parts[index]) if index < len(parts) else None


def _nth(types: Any, index: int) -> Any:
    return types[index] if index < len(types) else None
