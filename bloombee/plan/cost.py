"""What a plan costs on a topology: time of each stage and link, the loop, the bottleneck, memory, bytes.

One microbatch of b sequences goes round the ring: scheduler -> stage 0 -> ... -> last stage -> scheduler. The scheduler is where
the head is, or in the process of stage 0's worker: then the first of these links is nothing. What a microbatch
meets is either *busy* with it (a device computing, a wire serialising, a codec coding: one microbatch at a time) or
holds any number at a time (latency). With M microbatches under way::

    L = the sum of all times                       one microbatch, alone, once round
    T = the longest busy time                      nothing passes faster than the bottleneck
    step = max(M * T, L)                           after which each microbatch is back
    tokens/s = M * b * tokens a round / step       time per token = step / tokens a round

An access line that several links of the ring share (``Topology.sites``) is busy with the bytes of all of them, once each.
Where all workers share the cores of one machine (``Topology.cores``), a microbatch also needs C seconds of them once round, and
step = max(M * T, L + W) with W, the wait for a core, from :func:`core_wait_s`.

Source: docs/design.md (planning). Exact for times that do not vary: tests/unit/test_cost.py has the ring as a
queueing network and finds the same step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from bloombee.errors import ConfigError, Infeasible
from bloombee.models.shape import ModelShape
from bloombee.plan.candidate import Candidate
from bloombee.plan.memory import kv_slots, stage_memory
from bloombee.plan.topology import Cores, Device, Topology
from bloombee.types import WorkerId

__all__ = [
    "Candidate",
    "Cost",
    "LinkCost",
    "ModelShape",
    "StageCost",
    "core_wait_s",
    "evaluate",
    "held_slots",
    "prefill_passes",
    "prefill_s",
    "seen_tokens",
]  # fmt: skip

TOKEN_BYTES = 4

FRAME_BYTES = 140
"""Of a frame of activations besides its items: envelope 55, ZeroMQ and CURVE 85 for its two parts."""
ITEM_BYTES = 15
"""Of each sequence in it, its rows' token ids (4 each) apart."""
VERDICT_BYTES = 70
"""Of a verdict besides its picks: envelope 27, ZeroMQ and CURVE 43."""
PICK_BYTES = 15


@dataclass(frozen=True, slots=True)
class StageCost:
    worker: WorkerId
    name: str
    layers: int
    compute_s: float
    stream_s: float
    """Weights from outside the device; goes on beside the compute."""
    memory_bytes: int
    memory_limit_bytes: int | None

    @property
    def short_bytes(self) -> int:
        """Of memory; 0 where it fits."""
        return 0 if self.memory_limit_bytes is None else max(0, self.memory_bytes - self.memory_limit_bytes)

    @property
    def busy_s(self) -> float:
        return max(self.compute_s, self.stream_s)


@dataclass(frozen=True, slots=True)
class LinkCost:
    """``payload_bytes`` are raw activations (or nothing, where token ids go); ``frame_bytes`` what is on the wire."""

    source: WorkerId
    target: WorkerId
    payload_bytes: int
    frame_bytes: float
    wire_s: float
    latency_s: float
    encode_s: float
    decode_s: float
    name: str
    """From whom to whom."""

    @property
    def busy_s(self) -> float:
        """The longest of what passes one microbatch at a time."""
        return max(self.wire_s, self.encode_s, self.decode_s)

    @property
    def pass_s(self) -> float:
        """From handing the microbatch over to having it."""
        return self.encode_s + self.wire_s + self.latency_s + self.decode_s


@dataclass(frozen=True, slots=True)
class Cost:
    """A candidate on a topology. ``links[0]`` leads to stage 0, ``links[i]`` away from stage i - 1."""

    candidate: Candidate
    stages: tuple[StageCost, ...]
    links: tuple[LinkCost, ...]
    cores: Cores | None = None
    lines: tuple[tuple[str, float], ...] = ()
    """(access line, seconds that a microbatch keeps it busy once round)."""
    loop_s: float = field(init=False)
    bottleneck_s: float = field(init=False)
    bottleneck: str = field(init=False)

    def __post_init__(self) -> None:
        busy = [(stage.busy_s, f"worker {stage.name}") for stage in self.stages]
        busy += [(link.busy_s, f"link {link.name}") for link in self.links]
        busy += [(busy_s, f"line {name}") for name, busy_s in self.lines]
        longest, name = max(busy, key=lambda item: item[0])
        object.__setattr__(self, "loop_s", sum(stage.busy_s for stage in self.stages) + sum(link.pass_s for link in self.links))
        object.__setattr__(self, "bottleneck_s", longest)
        object.__setattr__(self, "bottleneck", name)

    @property
    def step_s(self) -> float:
        return max(self.candidate.num_microbatches * self.bottleneck_s, self.loop_s + self.core_wait_s)

    @property
    def cpu_s(self) -> float:
        """Of shared cores, for one microbatch once round."""
        if self.cores is None:
            return 0.0
        return self.cores.is_computing * self.compute_s + len(self.stages) * self.cores.hop_cpu_s

    @property
    def core_wait_s(self) -> float:
        """For a core that others have, once round."""
        if self.cores is None:
            return 0.0
        return core_wait_s(self.cpu_s, self.loop_s, self.candidate.num_microbatches, self.cores.count)

    @property
    def tokens_per_s(self) -> float:
        tokens = self.candidate.num_microbatches * self.candidate.microbatch_sequences * self.candidate.tokens_per_round
        return tokens / self.step_s if self.step_s > 0 else math.inf

    @property
    def time_per_token_s(self) -> float:
        """Between two tokens of one sequence."""
        return self.step_s / self.candidate.tokens_per_round

    @property
    def bubble(self) -> float:
        """Share of the step in which the bottleneck stands idle."""
        return 1 - self.candidate.num_microbatches * self.bottleneck_s / self.step_s if self.step_s > 0 else 0.0

    @property
    def filling_microbatches(self) -> int:
        """Fewest microbatches of this size that leave the bottleneck no idle moment; more only add waiting."""
        return max(1, math.ceil(self.loop_s / self.bottleneck_s - 1e-9)) if self.bottleneck_s > 0 else 1

    @property
    def compute_s(self) -> float:
        return sum(stage.busy_s for stage in self.stages)

    @property
    def wire_s(self) -> float:
        return sum(link.wire_s for link in self.links)

    @property
    def delay_s(self) -> float:
        return sum(link.latency_s for link in self.links)

    @property
    def codec_s(self) -> float:
        return sum(link.encode_s + link.decode_s for link in self.links)

    @property
    def bytes_per_token(self) -> tuple[float, ...]:
        """On the wire of each link, per emitted token."""
        tokens = self.candidate.microbatch_sequences * self.candidate.tokens_per_round
        return tuple(link.frame_bytes / tokens for link in self.links)

    def check(self) -> None:
        """Raises Infeasible if a stage does not fit its worker; says which and short by how much."""
        for stage in self.stages:
            if (short := stage.short_bytes) and stage.memory_limit_bytes is not None:
                raise Infeasible(
                    f"{stage.layers} layers need {stage.memory_bytes / 1e9:.2f} GB on worker {stage.name!r}, which has"
                    f" {stage.memory_limit_bytes / 1e9:.2f} GB: short by {short / 1e9:.2f} GB",
                    constraint="memory",
                    worker=stage.name,
                    short_bytes=short,
                )

    def explain(self) -> str:
        """A table for people: where a step's time goes, what limits it, what would help."""
        return _explain(self)


def core_wait_s(cpu_s: float, loop_s: float, num_microbatches: int, num_cores: int) -> float:
    """How long a microbatch waits for cores once round, where it needs ``cpu_s`` of them and takes ``loop_s`` if it never waits.

    Mean value analysis of a closed network: a newcomer finds what a ring with one microbatch fewer would hold, and of what runs
    half is still to come, for times scatter little. ``num_cores`` cores count as one of so many times the speed, and a delay
    for the rest (Seidmann et al. 1987; Reiser and Lavenberg 1980). The step is at least what the cores need for all.
    """
    turn_s = cpu_s / num_cores
    queue = busy = wait_s = 0.0
    for count in range(1, num_microbatches + 1):
        wait_s = turn_s * max(0.0, queue - busy / 2)
        rate = count / (loop_s + wait_s) if loop_s + wait_s > 0 else 0.0
        queue, busy = rate * (turn_s + wait_s), rate * turn_s
    return max(wait_s, num_microbatches * turn_s - loop_s)


def evaluate(candidate: Candidate, topology: Topology, model: ModelShape) -> Cost:
    """The cost of decode steps of ``candidate``.

    Raises:
        PlanError: a worker or a link that the topology does not have.
        ConfigError: layers that do not add up to the model's, or streaming on a device that cannot.
    """
    _check_layers(candidate, model)
    last = len(candidate.workers) - 1
    slots = held_slots(candidate, model)
    stages = tuple(_stage(candidate, topology, model, index, slots, is_last=index == last) for index in range(last + 1))
    links = _links(candidate, topology, model, candidate.microbatch_sequences, candidate.rows)
    return Cost(candidate, stages, links, topology.cores, _lines(links, topology))


def prefill_s(
    candidate: Candidate, topology: Topology, model: ModelShape, *, tokens: int, chunk: int | Callable[[int], int]
) -> float:
    """Seconds until the first token of one prompt of ``tokens``, in chunks of ``chunk`` rows, through an idle ring.

    Chunks follow each other: each starts on a stage or a link when it has arrived and the one before it is done there.

    Args:
        chunk: the same everywhere, or by the position of a chunk's first row (``control/chunks.py``).

    Raises:
        ConfigError: ``tokens`` or ``chunk`` below 1, and as :func:`evaluate`.
    """
    _check_layers(candidate, model)
    free: dict[tuple[str, int], float] = {}
    last, finish, start = len(candidate.workers) - 1, 0.0, 0
    for rows in _chunk_sizes(tokens, chunk):
        links = _links(candidate, topology, model, 1, rows)
        now = _through_link(free, 0, links[0], 0.0)
        for index, worker in enumerate(candidate.workers):
            device, context = topology.device(worker), candidate.context + start
            busy_s = _prefill_pass_s(candidate, device, model, index, rows, context)
            if index == last and start + rows == tokens:
                busy_s += device.output.decode_s(1)
            now = _use(free, ("stage", index), now, max(busy_s, _stream_s(candidate, topology, index)))
            if index < last or start + rows == tokens:
                now = _through_link(free, index + 1, links[index + 1], now)
        finish, start = now, start + rows
    return finish


def _chunk_sizes(tokens: int, chunk: int | Callable[[int], int]) -> list[int]:
    sizes: list[int] = []
    start = 0
    while start < tokens or not sizes:
        rows = chunk if isinstance(chunk, int) else chunk(start)
        if tokens < 1 or rows < 1:
            raise ConfigError(f"a prefill of {tokens} tokens in chunks of {rows}: both must be >= 1", tokens=tokens, chunk=rows)
        sizes.append(min(rows, tokens - start))
        start += sizes[-1]
    return sizes


def prefill_passes(
    candidate: Candidate, topology: Topology, model: ModelShape, *, chunk: int
) -> tuple[tuple[float, ...], tuple[LinkCost, ...]]:
    """Of a chunk of ``chunk`` rows at the candidate's context: (seconds on each stage, each link as in :class:`Cost`)."""
    stages = tuple(
        _prefill_pass_s(candidate, topology.device(worker), model, index, chunk, candidate.context)
        for index, worker in enumerate(candidate.workers)
    )
    return stages, _links(candidate, topology, model, 1, chunk)


def _through_link(free: dict[tuple[str, int], float], index: int, link: LinkCost, now: float) -> float:
    now = _use(free, ("encode", index), now, link.encode_s)
    now = _use(free, ("wire", index), now, link.wire_s) + link.latency_s
    return _use(free, ("decode", index), now, link.decode_s)


def _use(free: dict[tuple[str, int], float], resource: tuple[str, int], now: float, seconds: float) -> float:
    """When ``resource``, busy until ``free`` says, is done with what came ``now`` and takes ``seconds``."""
    free[resource] = max(now, free.get(resource, 0.0)) + seconds
    return free[resource]


def _check_layers(candidate: Candidate, model: ModelShape) -> None:
    if sum(candidate.layers) != model.num_layers:
        raise ConfigError(
            f"layers {candidate.layers} add up to {sum(candidate.layers)}, the model has {model.num_layers}",
            layers=sum(candidate.layers),
            num_layers=model.num_layers,
        )


def _counts(candidate: Candidate, model: ModelShape, index: int) -> tuple[int, ...]:
    """Layers of each kind on a stage."""
    start = sum(candidate.layers[:index])
    return model.counts(start, start + candidate.layers[index])


def seen_tokens(window: int, context: int) -> int:
    """How many of ``context`` cached tokens a layer sees that sees ``window`` positions (0: all)."""
    return min(window, context) if window else context


def _prefill_pass_s(candidate: Candidate, device: Device, model: ModelShape, index: int, rows: int, context: int) -> float:
    seconds = device.stage.prefill_s(rows, context)
    for kind, count in enumerate(_counts(candidate, model, index)):
        seconds += count * device.layer_of(kind).prefill_s(rows, seen_tokens(model.layer_kinds[kind].window, context))
    return seconds


def held_slots(candidate: Candidate, model: ModelShape) -> tuple[int, ...]:
    """KV slots of a layer of each kind."""
    if candidate.kv_tokens is not None:
        return kv_slots(model, candidate.kv_tokens, page_size=candidate.page_size, rows=candidate.max_rows)
    sequences = candidate.num_microbatches * candidate.microbatch_sequences
    return tuple(sequences * seen_tokens(kind.window, candidate.context) for kind in model.layer_kinds)


def _stage(
    candidate: Candidate, topology: Topology, model: ModelShape, index: int, slots: tuple[int, ...], *, is_last: bool
) -> StageCost:
    worker, layers, rows = candidate.workers[index], candidate.layers[index], candidate.rows
    device = topology.device(worker)
    compute_s = device.stage.decode_s(rows, candidate.context)
    for number, (count, kind) in enumerate(zip(_counts(candidate, model, index), model.layer_kinds, strict=True)):
        compute_s += count * device.layer_of(number).decode_s(rows, seen_tokens(kind.window, candidate.context))
    if is_last:
        compute_s += device.output.decode_s(rows)
    start = sum(candidate.layers[:index])
    memory = stage_memory(model, start, start + layers, slots)
    streamed = candidate.streamed_bytes[index] if candidate.streamed_bytes else 0
    resident = max(0, memory.weights - streamed) + (model.streaming_bytes if streamed else 0)
    return StageCost(
        worker=worker,
        name=device.name,
        layers=layers,
        compute_s=compute_s,
        stream_s=_stream_s(candidate, topology, index),
        memory_bytes=resident + memory.kv + memory.scratch,
        memory_limit_bytes=device.memory_bytes,
    )


def _stream_s(candidate: Candidate, topology: Topology, index: int) -> float:
    streamed = candidate.streamed_bytes[index] if candidate.streamed_bytes else 0
    if streamed == 0:
        return 0.0
    device = topology.device(candidate.workers[index])
    if device.stream_bytes_per_s is None:
        raise ConfigError(f"worker {device.name!r} cannot stream weights, {streamed} bytes asked", worker=device.name)
    return streamed / device.stream_bytes_per_s


def _links(candidate: Candidate, topology: Topology, model: ModelShape, sequences: int, rows: int) -> tuple[LinkCost, ...]:
    """Token ids to stage 0, activations between stages, verdicts home."""
    workers, scheduler = candidate.workers, candidate.scheduler_worker
    items = FRAME_BYTES + sequences * ITEM_BYTES + rows * TOKEN_BYTES
    links = [_link(topology, scheduler, workers[0], items)]
    ratios = candidate.ratios or (None,) * (len(workers) - 1)
    for source, target, ratio in zip(workers, workers[1:], ratios, strict=False):
        raw = rows * model.row_bytes
        coded = raw if ratio is None else raw * ratio
        codec = (
            (0.0, 0.0)
            if ratio is None
            else (raw / topology.device(source).encode_bytes_per_s, raw / topology.device(target).decode_bytes_per_s)
        )
        links.append(_link(topology, source, target, items + coded, raw, *codec))
    links.append(_link(topology, workers[-1], scheduler, VERDICT_BYTES + sequences * PICK_BYTES * candidate.rows_per_sequence))
    return tuple(links)


def _link(
    topology: Topology,
    source: WorkerId,
    target: WorkerId,
    frame: float,
    raw: int = 0,
    encode_s: float = 0.0,
    decode_s: float = 0.0,
) -> LinkCost:
    link = topology.link(source, target)
    wire_s = max([link.wire_s(frame), *(frame / rate for _, rate in topology.lines(source, target))])
    name = f"{topology.name(source)} -> {topology.name(target)}"
    return LinkCost(source, target, raw, frame, wire_s, link.latency_s, encode_s, decode_s, name)


def _lines(links: tuple[LinkCost, ...], topology: Topology) -> tuple[tuple[str, float], ...]:
    """Access lines that more than one link of the ring goes through, and how long all together keep each busy."""
    busy: dict[str, list[float]] = {}
    for link in links:
        for name, rate in topology.lines(link.source, link.target):
            busy.setdefault(name, []).append(link.frame_bytes / rate)
    return tuple((name, sum(times)) for name, times in busy.items() if len(times) > 1)


def _explain(cost: Cost) -> str:
    candidate = cost.candidate
    busy = candidate.num_microbatches / cost.step_s if cost.step_s > 0 else 0.0
    width = max(14, *(2 + len(stage.name) for stage in cost.stages), *(2 + len(link.name) for link in cost.links))
    lines = [f"{'':<{width}}{'layers':>7}{'compute':>11}{'stream':>11}{'memory':>11}{'busy':>7}"]
    for stage in cost.stages:
        memory = f"{stage.memory_bytes / 1e9:.2f} GB"
        lines.append(
            f"{stage.name:<{width}}{stage.layers:>7}{_ms(stage.compute_s):>11}{_ms(stage.stream_s):>11}"
            f"{memory:>11}{stage.busy_s * busy:>7.0%}"
        )
    lines.append(f"{'':<{width}}{'bytes/token':>12}{'wire':>11}{'latency':>11}{'codec':>11}{'busy':>7}")
    for link, per_token in zip(cost.links, cost.bytes_per_token, strict=True):
        lines.append(
            f"{link.name:<{width}}{per_token:>12.0f}{_ms(link.wire_s):>11}{_ms(link.latency_s):>11}"
            f"{_ms(link.encode_s + link.decode_s):>11}{link.busy_s * busy:>7.0%}"
        )
    parts = f"compute {_ms(cost.compute_s)} + wire {_ms(cost.wire_s)} + latency {_ms(cost.delay_s)} + codec {_ms(cost.codec_s)}"
    sizes = f"M = {candidate.num_microbatches} microbatches of b = {candidate.microbatch_sequences} sequences"
    limit = "the loop" if cost.step_s > candidate.num_microbatches * cost.bottleneck_s else cost.bottleneck
    waits = cost.cores is not None and cost.core_wait_s > 0
    limit += " and the wait for a core" if waits and limit == "the loop" else ""
    lines += [
        f"loop L {_ms(cost.loop_s)} = {parts}",
        f"bottleneck T {_ms(cost.bottleneck_s)} ({cost.bottleneck}); {sizes}",
        *_cores_line(cost),
        f"step = max(M T, L{' + W' if cost.cores else ''}) = {_ms(cost.step_s)}, set by {limit}",
        f"{cost.tokens_per_s:.1f} tokens/s, {_ms(cost.time_per_token_s)} a token, bottleneck idle {cost.bubble:.0%};"
        f" {cost.filling_microbatches} such microbatches would fill it",
    ]
    return "\n".join(lines)


def _cores_line(cost: Cost) -> list[str]:
    if cost.cores is None:
        return []
    share = cost.candidate.num_microbatches * cost.cpu_s / cost.cores.count / cost.step_s if cost.step_s > 0 else 0.0
    return [f"{cost.cores.count} shared cores: C {_ms(cost.cpu_s)} each microbatch, busy {share:.0%}; W {_ms(cost.core_wait_s)}"]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms" if seconds < 0.01 else f"{seconds * 1e3:.1f} ms"
