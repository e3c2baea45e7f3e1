"""Rules between the fields of a message, which their types cannot say: the table :data:`_CHECKS`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from bloombee.address import TOLD_RULE, read_told
from bloombee.errors import RemoteProtocolError
from bloombee.types import Dtype, FinishReason
from bloombee.wire import messages as m
from bloombee.wire.messages import AnyMessage


def check_message(message: AnyMessage) -> None:
    """The rules between fields.

    Raises:
        RemoteProtocolError: a rule is broken; ``fields["path"]`` names the field.
    """
    check = _CHECKS.get(type(message))
    if check is not None:
        check(message)


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
    if not join.name.isprintable():
        raise refuse("Join.name", join.name, "printable signs, for people will read it")


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
    _check_dtype("Load", load.dtype)
    if len(load.placement) not in (0, load.stop - load.start):
        raise refuse("Load.placement", len(load.placement), f"none or {load.stop - load.start}, one a layer")


def _check_dtype(name: str, dtype: str) -> None:
    if dtype not in _DTYPES:
        raise refuse(f"{name}.dtype", dtype, "one of " + ", ".join(sorted(_DTYPES)))


def _check_profile(profile: m.Profile | m.Profiled) -> None:
    _check_dtype(type(profile).__name__, profile.dtype)
    if isinstance(profile, m.Profiled):
        layers = [kind.layer for kind in profile.kinds]
        if any(after <= before for before, after in itertools.pairwise(layers)):
            raise refuse("Profiled.kinds", f"layers {layers}", "of rising layers")


def _check_introduce(introduce: m.Introduce) -> None:
    _check_peer("Introduce.peer", introduce.peer)


def _check_introduced(introduced: m.Introduced) -> None:
    _check_facts("Introduced.fields", introduced.fields)


def _check_peer(path: str, peer: m.Peer) -> None:
    if peer.worker == 0:
        raise refuse(f"{path}.worker", 0, "at least 1: the head is known")
    if peer.through == peer.worker:
        raise refuse(f"{path}.through", peer.through, "another worker than the peer")
    _check_endpoint(f"{path}.endpoint", peer.endpoint)


def _check_wire(wire: m.Wire) -> None:
    if not 1 <= wire.oldest <= wire.epoch:
        raise refuse("Wire.oldest", wire.oldest, f"in [1, epoch = {wire.epoch}]")
    if not wire.stage < wire.num_stages:
        raise refuse("Wire.stage", wire.stage, f"< num_stages = {wire.num_stages}")
    if wire.num_microbatches < 1:
        raise refuse("Wire.num_microbatches", wire.num_microbatches, "at least 1")
    feeds = wire.shadow and wire.successor is not None
    for name, peer, is_end in (
        ("predecessor", wire.predecessor, wire.stage == 0 or feeds),
        ("successor", wire.successor, wire.stage == wire.num_stages - 1 or (wire.shadow and not feeds)),
    ):
        if (peer is None) is not is_end:
            raise refuse(f"Wire.{name}", peer, f"absent on the {'first' if name == 'predecessor' else 'last'} stage and no other")
        if peer is not None:
            _check_peer(f"Wire.{name}", peer)
    if wire.scheduler is not None:
        _check_peer("Wire.scheduler", wire.scheduler)
    if wire.shadow and (wire.scheduler is not None or wire.schedule is not None):
        raise refuse("Wire.shadow", True, "only where the scheduler is with the head")
    if wire.schedule is not None:
        _check_schedule(wire, wire.schedule)
    if wire.listeners and wire.stage < wire.num_stages - 1:
        raise refuse("Wire.listeners", len(wire.listeners), "absent on all but the last stage")
    for index, listener in enumerate(wire.listeners):
        _check_peer(f"Wire.listeners[{index}]", listener)


def _check_schedule(wire: m.Wire, schedule: m.Schedule) -> None:
    if wire.stage or wire.scheduler is not None:
        raise refuse(
            "Wire.schedule", f"on stage {wire.stage}", "absent on all but the first stage, and where the scheduler is elsewhere"
        )
    if not 1 <= schedule.since <= wire.epoch:
        raise refuse("Wire.schedule.since", schedule.since, f"in [1, epoch = {wire.epoch}]")
    if len(schedule.stages) != wire.num_stages - 1:
        raise refuse("Wire.schedule.stages", len(schedule.stages), f"one for each of {wire.num_stages - 1} further stages")
    if schedule.page_size < 1:
        raise refuse("Wire.schedule.page_size", schedule.page_size, "at least 1")
    if len({group.window for group in schedule.groups}) != len(schedule.groups):
        raise refuse("Wire.schedule.groups", [group.window for group in schedule.groups], "of different windows")
    for index, peer in enumerate(schedule.stages):
        _check_peer(f"Wire.schedule.stages[{index}]", peer)


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
    total = 0
    for index, item in enumerate(forward.items):
        num_token_bytes = len(item.tokens)
        if (  # most: the one row of a sequence that decodes
            num_token_bytes == 4
            and item.opening is None
            and item.tree is None
            and item.num_picks <= 1
            and 0 < item.position < _MAX_POSITION
        ):
            total += 1
            continue
        num_rows = num_token_bytes >> 2
        total += num_rows
        if (
            num_token_bytes & 3
            or item.num_picks > num_rows
            or not 0 < item.position <= _MAX_POSITION - num_rows
            or item.opening is not None
            or item.tree is not None
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
    if item.position + num_rows > _MAX_POSITION:
        raise refuse(f"{path}.position", item.position, f"such that position + rows <= {_MAX_POSITION}")
    if item.opening is None and item.position == 0:
        raise refuse(f"{path}.opening", None, "present where position is 0")
    if isinstance(item.opening, m.Fork):
        _check_fork(f"{path}.opening", item, item.opening)
    elif item.opening is not None:
        _check_opening(f"{path}.opening", item.opening, item.position)
    if item.tree is not None:
        if item.opening is not None:
            raise refuse(f"{path}.tree", "a tree", "None where a sequence begins: it hangs on a confirmed row")
        _check_tree(f"{path}.tree", item.tree, num_rows, item.num_picks)


def _check_fork(path: str, item: m.Item, fork: m.Fork) -> None:
    if fork.sequence == item.sequence:
        raise refuse(f"{path}.sequence", fork.sequence, "another sequence")
    if fork.length != item.position:
        raise refuse(f"{path}.length", fork.length, f"the item's position ({item.position})")
    if fork.opening.prefix is not None:
        raise refuse(f"{path}.opening.prefix", "a prefix", "None in a Fork")
    _check_opening(f"{path}.opening", fork.opening, item.position)


def _check_opening(path: str, opening: m.Opening, position: int) -> None:
    if opening.num_prompt_tokens < 1:
        raise refuse(f"{path}.num_prompt_tokens", 0, "at least 1")
    if opening.prefix is not None and opening.prefix.length != position:
        raise refuse(f"{path}.prefix.length", opening.prefix.length, f"the position ({position})")
    if opening.grammar is not None and len(opening.grammar.text.encode()) > m.MAX_GRAMMAR_BYTES:
        raise refuse(f"{path}.grammar.text", len(opening.grammar.text), f"at most {m.MAX_GRAMMAR_BYTES} bytes of UTF-8")
    if len({token for token, _ in opening.biases}) != len(opening.biases):
        raise refuse(f"{path}.biases", len(opening.biases), "each token once")
    _check_sampling(f"{path}.sampling", opening.sampling)


def _check_tree(path: str, tree: m.Tree, num_rows: int, num_picks: int) -> None:
    if tree.first + num_rows > _MAX_POSITION:
        raise refuse(f"{path}.first", tree.first, f"such that first + rows <= {_MAX_POSITION}")
    if len(tree.parents) != num_rows:
        raise refuse(f"{path}.parents", len(tree.parents), f"as many as the {num_rows} rows")
    for row, parent in enumerate(tree.parents):
        if parent >= tree.first + row:
            raise refuse(f"{path}.parents[{row}]", parent, f"less than {tree.first + row}: a node hangs on an earlier one")
    bits = int.from_bytes(tree.picks, "little")
    if len(tree.picks) != (num_rows + 7) // 8 or bits >> num_rows or bits.bit_count() != num_picks:
        raise refuse(f"{path}.picks", tree.picks[:64], f"one bit for each of {num_rows} rows, {num_picks} of them set")


def _check_verdict(verdict: m.Verdict) -> None:
    if verdict.nodes is not None and len(verdict.nodes) != len(verdict.picks):
        raise refuse("Verdict.nodes", len(verdict.nodes), f"one for each of the {len(verdict.picks)} picks")


def _check_commit(commit: m.Commit) -> None:
    seen = set()
    for index, cut in enumerate(commit.cuts):
        if (cut.sequence, cut.generation) in seen:
            raise refuse(f"Commit.cuts[{index}]", (cut.sequence, cut.generation), "named once")
        seen.add((cut.sequence, cut.generation))
        if any(parent >= node for parent, node in zip((0, *cut.path), cut.path, strict=False)):
            raise refuse(f"Commit.cuts[{index}].path", cut.path[:16], "rising: a node hangs on an earlier one")


def _check_layers(message: m.KvPages | m.KvHeld) -> None:
    if not message.start < message.stop:
        raise refuse(f"{type(message).__name__}.stop", message.stop, f"> start = {message.start}")


def _check_kv_pages(pages: m.KvPages) -> None:
    _check_layers(pages)
    if pages.position + pages.num_rows > _MAX_POSITION:
        raise refuse("KvPages.position", pages.position, f"such that position + rows <= {_MAX_POSITION}")


def _check_draft(draft: m.Draft) -> None:
    num_nodes = len(draft.tokens) // 4
    if len(draft.tokens) % 4:
        raise refuse("Draft.tokens", len(draft.tokens), "a multiple of 4 bytes long")
    for name, values in (("parents", draft.parents), ("scores", draft.scores)):
        if len(values) != num_nodes:
            raise refuse(f"Draft.{name}", len(values), f"as many as the {num_nodes} tokens")
    for index, parent in enumerate(draft.parents):
        if parent > index:
            raise refuse(f"Draft.parents[{index}]", parent, f"at most {index}: a node hangs on an earlier one")


def _check_snapshot(snapshot: m.Snapshot) -> None:
    for index, known in enumerate(snapshot.sequences):
        path = f"Snapshot.sequences[{index}]"
        if len(known.tokens) % 4:
            raise refuse(f"{path}.tokens", len(known.tokens), "a multiple of 4 bytes long")
        if known.position + len(known.tokens) // 4 > _MAX_POSITION:
            raise refuse(f"{path}.position", known.position, f"such that position + tokens <= {_MAX_POSITION}")
        if (known.opening is None) is (known.position == 0):
            raise refuse(f"{path}.opening", known.opening is not None, f"present iff position (= {known.position}) is 0")
        if known.opening is not None:
            _check_opening(f"{path}.opening", known.opening, 0)


def _check_ask(ask: m.Ask) -> None:
    for index, request in enumerate(ask.requests):
        _check_request(f"Ask.requests[{index}]", request)
    if ask.tuning is not None:
        positions = [sizes.position for sizes in ask.tuning.chunks]
        if positions[0] or any(after <= before for before, after in itertools.pairwise(positions)):
            raise refuse("Ask.tuning.chunks", positions[:16], "at rising positions, the first of them 0")


def _check_request(path: str, request: m.Request) -> None:
    if len(request.tokens) % 4:
        raise refuse(f"{path}.tokens", len(request.tokens), "a multiple of 4 bytes long")
    if request.position + len(request.tokens) // 4 > request.num_tokens:
        raise refuse(f"{path}.position", request.position, f"such that position + tokens <= num_tokens = {request.num_tokens}")
    if request.opening.num_prompt_tokens > request.num_tokens:
        raise refuse(f"{path}.num_tokens", request.num_tokens, f"at least the prompt's {request.opening.num_prompt_tokens}")
    if request.opening.prefix is not None:
        raise refuse(f"{path}.opening.prefix", "a prefix", "None: stages are asked for those")
    if request.opening.max_new_tokens < 1:
        raise refuse(f"{path}.opening.max_new_tokens", 0, "at least 1")
    if request.num_tokens - request.opening.num_prompt_tokens >= request.opening.max_new_tokens:
        raise refuse(f"{path}.num_tokens", request.num_tokens, "fewer than it ends with: else nothing is to be done")
    _check_opening(f"{path}.opening", request.opening, 0)


def _check_told(told: m.Told) -> None:
    for index, given in enumerate(told.given):
        if given.finish is not None and given.finish not in _FINISHES:
            raise refuse(f"Told.given[{index}].finish", given.finish, "None or one of " + ", ".join(sorted(_FINISHES)))
    for index, over in enumerate(told.over):
        _check_facts(f"Told.over[{index}].fields", over.fields)


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
    for index, frame in enumerate(ack.extra):
        if frame < ack.upto:
            raise refuse(f"Ack.extra[{index}]", frame, f">= upto = {ack.upto}")
    if ack.logged > ack.upto:
        raise refuse("Ack.logged", ack.logged, f"at most upto = {ack.upto}")


_MAX_POSITION = 2**32 - 1
_DTYPES = frozenset(str(dtype) for dtype in Dtype)
_FINISHES = frozenset(str(reason) for reason in FinishReason)
_CHECKS: dict[type, Callable[[Any], None]] = {
    m.Join: _check_join,
    m.Joined: _check_joined,
    m.Refused: _check_refused,
    m.Introduce: _check_introduce,
    m.Introduced: _check_introduced,
    m.Load: _check_load,
    m.Loading: _check_loading,
    m.Wire: _check_wire,
    m.StageFailed: _check_failed,
    m.Profile: _check_profile,
    m.Profiled: _check_profile,
    m.Forward: _check_forward,
    m.Verdict: _check_verdict,
    m.Ack: _check_ack,
    m.Commit: _check_commit,
    m.KvPages: _check_kv_pages,
    m.KvHeld: _check_layers,
    m.Draft: _check_draft,
    m.Snapshot: _check_snapshot,
    m.Ask: _check_ask,
    m.Told: _check_told,
}
