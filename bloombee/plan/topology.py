"""What exists and how fast it is: devices, links, and which worker reaches which. Pure data.

Times are seconds, sizes bytes. A figure is what a plan may count on; whoever measures decides how careful
it is (docs: a lower confidence bound, not the mean).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bloombee.errors import ConfigError, PlanError
from bloombee.pace import Pace
from bloombee.types import HEAD, WorkerId


def _check(owner: object, name: str, ok: bool, allowed: str) -> None:
    if not ok:
        value = getattr(owner, name)
        raise ConfigError(f"{type(owner).__name__}.{name} = {value!r}: must be {allowed}", field=name)


@dataclass(frozen=True, slots=True)
class RowTime:
    """Seconds of one pass of something over a microbatch, linear in its rows.

    Args:
        fixed_s: whatever the rows (reading the weights, launching kernels).
        decode_row_s: each row of a decode microbatch.
        prefill_row_s: each row of a prefill chunk.
        context_s: each pair of a row and a cached token that it attends to.
        decode_context_s: the same in decode, where every sequence's cache is read for one row; None: as ``context_s``.

    Raises:
        ConfigError: a figure that is negative or not finite.
    """

    fixed_s: float = 0.0
    decode_row_s: float = 0.0
    prefill_row_s: float = 0.0
    context_s: float = 0.0
    decode_context_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("fixed_s", "decode_row_s", "prefill_row_s", "context_s", "decode_context_s"):
            value = getattr(self, name)
            _check(self, name, value is None or (math.isfinite(value) and value >= 0), "seconds >= 0")

    @classmethod
    def paced(cls, pace: Pace) -> tuple[RowTime, RowTime]:
        """(of each pass, of each layer of the pass) of an emulated device: one of the two is nothing."""
        own = pace.for_layers(1)
        time = cls(own.fixed_s, own.decode_row_s, own.prefill_row_s)
        return (time, cls()) if pace.layers is None else (cls(), time)

    def scaled(self, factor: float) -> RowTime:
        """The same of something that takes ``factor`` times as long."""
        pair_s = None if self.decode_context_s is None else self.decode_context_s * factor
        return RowTime(
            self.fixed_s * factor, self.decode_row_s * factor, self.prefill_row_s * factor, self.context_s * factor, pair_s
        )

    def decode_s(self, rows: float, context: float = 0.0) -> float:
        """``rows`` rows, each over ``context`` cached tokens."""
        context_s = self.context_s if self.decode_context_s is None else self.decode_context_s
        return self.fixed_s + rows * (self.decode_row_s + context * context_s)

    def prefill_s(self, rows: float, context: float = 0.0) -> float:
        """A chunk of ``rows`` rows after ``context`` cached tokens; a row also attends to those before it in the chunk."""
        return self.fixed_s + rows * (self.prefill_row_s + (context + rows / 2) * self.context_s)


@dataclass(frozen=True, slots=True)
class Device:
    """How fast one worker is.

    Args:
        memory_bytes: what a span (weights, KV) may use; None: no limit known.
        stage: of each pass, whatever the number of layers.
        layer: of each layer of the pass, where all are alike.
        kinds: of each layer by its kind (``ModelShape.kinds``), where they differ; empty: all take ``layer``.
        output: of the last stage besides: final norm, LM head, sampler.
        encode_bytes_per_s, decode_bytes_per_s: codec, in raw bytes.
        stream_bytes_per_s: at which weights that are not on the device come to it; None: it cannot stream.
    """

    name: str
    memory_bytes: int | None = None
    stage: RowTime = RowTime()
    layer: RowTime = RowTime()
    output: RowTime = RowTime()
    encode_bytes_per_s: float = math.inf
    decode_bytes_per_s: float = math.inf
    stream_bytes_per_s: float | None = None
    kinds: tuple[RowTime, ...] = ()

    def __post_init__(self) -> None:
        _check(self, "memory_bytes", self.memory_bytes is None or self.memory_bytes >= 0, "bytes >= 0, or None")
        for name in ("encode_bytes_per_s", "decode_bytes_per_s"):
            _check(self, name, getattr(self, name) > 0, "bytes per second > 0")
        _check(self, "stream_bytes_per_s", self.stream_bytes_per_s is None or self.stream_bytes_per_s > 0, "> 0, or None")

    @property
    def is_known(self) -> bool:
        """Something is known of how fast it is."""
        return any(time != RowTime() for time in (self.stage, self.layer, self.output, *self.kinds))

    def scaled(self, factor: float) -> Device:
        """The same if its passes take ``factor`` times as long."""
        return replace(
            self,
            stage=self.stage.scaled(factor),
            layer=self.layer.scaled(factor),
            output=self.output.scaled(factor),
            kinds=tuple(time.scaled(factor) for time in self.kinds),
        )

    def layer_of(self, kind: int) -> RowTime:
        """Time of a layer of that kind. Raises ConfigError if it is not known."""
        if not self.kinds:
            return self.layer
        if kind >= len(self.kinds):
            raise ConfigError(f"worker {self.name!r} knows {len(self.kinds)} kinds of layers, not {kind + 1}", worker=self.name)
        return self.kinds[kind]

    @classmethod
    def paced(cls, name: str, pace: Pace, memory_bytes: int | None = None) -> Device:
        """An emulated device (``--pace``): it takes as long as it says a stage, or a layer."""
        stage, layer = RowTime.paced(pace)
        return cls(name, memory_bytes, stage=stage, layer=layer)


@dataclass(frozen=True, slots=True)
class Link:
    """One directed way between two workers: how wide and how long. Two separate facts."""

    bandwidth_bytes_per_s: float
    """inf: no limit."""
    latency_s: float
    """One way."""

    def __post_init__(self) -> None:
        _check(self, "bandwidth_bytes_per_s", self.bandwidth_bytes_per_s > 0, "bytes per second > 0")
        _check(self, "latency_s", math.isfinite(self.latency_s) and self.latency_s >= 0, "seconds >= 0")

    def wire_s(self, num_bytes: float) -> float:
        """How long ``num_bytes`` keep the link busy."""
        return num_bytes / self.bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True)
class Cores:
    """CPU cores that all workers of a ring and its head take turns on, where they are one machine's.

    Args:
        hop_s: of a hop's latency, what passes besides the link: hand-overs between threads, sockets, encryption.
        hop_cpu_s: CPU time of a hop; what exceeds ``hop_s`` holds nothing up but takes a core nevertheless.
        is_computing: whether what the devices do takes a core; not of accelerators, nor of paced devices, which sleep.
    """

    count: int
    hop_s: float = 0.0
    hop_cpu_s: float = 0.0
    is_computing: bool = True

    def __post_init__(self) -> None:
        _check(self, "count", self.count >= 1, ">= 1")
        for name in ("hop_s", "hop_cpu_s"):
            _check(self, name, math.isfinite(getattr(self, name)) and getattr(self, name) >= 0, "seconds >= 0")


@dataclass(frozen=True, slots=True)
class Site:
    """An access line: what all workers behind it send (up) and receive (down) shares it; nothing lies between them.

    Raises:
        ConfigError: no bandwidth.
    """

    name: str
    up_bytes_per_s: float = math.inf
    down_bytes_per_s: float = math.inf

    def __post_init__(self) -> None:
        for name in ("up_bytes_per_s", "down_bytes_per_s"):
            _check(self, name, getattr(self, name) > 0, "bytes per second > 0")


LOCAL = Link(bandwidth_bytes_per_s=math.inf, latency_s=0.0)
"""Inside one machine, where a link costs nothing that a plan would weigh."""


@dataclass(frozen=True, slots=True)
class Topology:
    """Devices by worker and links by (from, to); :data:`~bloombee.types.HEAD` is the head, with which the scheduler may be."""

    devices: Mapping[WorkerId, Device]
    links: Mapping[tuple[WorkerId, WorkerId], Link] = field(default_factory=dict)
    cores: Cores | None = None
    """Shared by all devices; None: each is a machine."""
    sites: Mapping[WorkerId, Site] = field(default_factory=dict)
    """Of workers (and the head) behind an access line; a worker that is not there has its links for itself."""

    @classmethod
    def ring(
        cls, devices: Sequence[Device], links: Sequence[Link], cores: Cores | None = None, *, first: Link = LOCAL
    ) -> Topology:
        """Workers 1..N in the order of ``devices``.

        Args:
            links: ``links[i]`` leaves the worker of ``devices[i]`` for the next, the last one for the head.
            first: from the head to the first of them; unless given it is beside it.

        Raises:
            ConfigError: not one link a device.
        """
        if not devices or len(devices) != len(links):
            raise ConfigError(
                f"a ring has one link a device, not {len(links)} for {len(devices)}", links=len(links), devices=len(devices)
            )
        workers = range(1, len(devices) + 1)
        hops = {
            (worker, worker + 1 if worker < len(devices) else HEAD): link for worker, link in zip(workers, links, strict=True)
        }
        return cls(dict(zip(workers, devices, strict=True)), {(HEAD, 1): first, **hops}, cores)

    def name(self, party: WorkerId) -> str:
        """What people call a worker, or the head."""
        if party == HEAD:
            return "head"
        device = self.devices.get(party)
        return device.name if device is not None and device.name else f"worker {party}"

    def device(self, worker: WorkerId) -> Device:
        """Raises PlanError if there is no such worker."""
        try:
            return self.devices[worker]
        except KeyError:
            names = ", ".join(map(self.name, list(self.devices)[:20]))
            raise PlanError(f"no worker {worker}; there are {names}", worker=worker) from None

    def link(self, source: WorkerId, target: WorkerId) -> Link:
        """Raises PlanError if ``source`` cannot reach ``target``. A worker reaches itself for nothing."""
        if source == target:
            return LOCAL
        try:
            return self.links[source, target]
        except KeyError:
            said = f"no link from {self.name(source)!r} to {self.name(target)!r}"
            raise PlanError(said, source=source, target=target) from None

    def lines(self, source: WorkerId, target: WorkerId) -> tuple[tuple[str, float], ...]:
        """(name, bytes per second) of the access lines between the two, out of one and into the other."""
        out, into = self.sites.get(source), self.sites.get(target)
        if out is not None and into is not None and out.name == into.name:
            return ()
        up = () if out is None else ((f"{out.name} up", out.up_bytes_per_s),)
        return up if into is None else (*up, (f"{into.name} down", into.down_bytes_per_s))

    def with_link(self, source: WorkerId, target: WorkerId, link: Link) -> Topology:
        """The same with one link replaced or added."""
        return replace(self, links={**self.links, (source, target): link})
