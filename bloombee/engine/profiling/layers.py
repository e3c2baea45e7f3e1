"""Measures layers of a model's shape on this device, with the code that serves it and without its weights.

Random weights take as long as any. A few neighbouring layers are made, such that each kind is among them; of small ones, which
a cache might hold, three of each. Of a large model that is one layer of each kind, taken twice in a pass to tell what a
layer takes from what a pass takes besides. The vocabulary is cut short while layers are measured; norm, LM head and sampler are
measured with as much of it as there is room for, and reckoned up.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from bloombee.engine.checkpoint import Checkpoint
from bloombee.engine.memory import free_bytes
from bloombee.engine.model import SpanModel
from bloombee.engine.profiling.hardware import codec_speeds, measure_hardware
from bloombee.engine.profiling.kept import device_name
from bloombee.engine.profiling.passes import hidden_rows, make_work, num_slots, pass_s
from bloombee.engine.skeleton import build
from bloombee.engine.stored import probe
from bloombee.models.shape import LayerKind
from bloombee.pipeline.work import Work
from bloombee.plan.cost import seen_tokens
from bloombee.plan.profile import Hardware, KindTime, Point, Profile, fit, fit_kinds, fit_output
from bloombee.plan.topology import RowTime
from bloombee.types import Dtype, PageGroup, Phase, Span

PAGE_SIZE = 16
GRID = (
    (Phase.DECODE, 1, 32), (Phase.PREFILL, 32, 0), (Phase.DECODE, 4, 128), (Phase.DECODE, 16, 64), (Phase.DECODE, 1, 512),
    (Phase.DECODE, 8, 512), (Phase.PREFILL, 128, 0), (Phase.PREFILL, 64, 448),
)  # fmt: skip
"""(phase, rows, context); the first two are always measured."""
PICKS = (1, 8)
REPEATS = 7
LAYERS_S, OUTPUT_S = 2.0, 0.5
"""That passes may take in all; the two that are always measured may take longer."""
LONG_S = 0.25
"""Larger points of a phase are left out once a pass takes so long."""
SMALL_BYTES = 256 << 20
"""Of three layers of each kind, up to which so many are made, if the model has as many."""
SHARE = 0.25
"""Of the memory that is free, that is taken for measuring."""
SHORT_VOCABULARY = 256

Alive = Callable[[], None]
"""Called between passes and while weights are made; it may raise to give up."""


@dataclass(frozen=True, slots=True)
class Kinds:
    """Which layers of a model are alike, by the rule of ``ModelCard.shape``.

    Args:
        of: the kind of each layer, in ``kinds``, which stand in the order in which they first come.
    """

    of: tuple[int, ...]
    kinds: tuple[LayerKind, ...]

    @classmethod
    def find(cls, checkpoint: Checkpoint, dtype: Dtype) -> Kinds:
        """Raises as :func:`~bloombee.engine.skeleton.build`."""
        skeleton, width = build(checkpoint, dtype), dtype.num_bytes
        counts = skeleton.parameter_counts()
        layers = []
        for layer in range(skeleton.num_layers):
            stored = probe(skeleton, checkpoint.ref, Span(layer, layer + 1))
            elements = sum(entry.elements for entry in stored)
            layers.append(LayerKind(counts[layer] * width, elements * width, stored[0].window))
        kinds = tuple(dict.fromkeys(layers))
        return cls(tuple(kinds.index(layer) for layer in layers), kinds)

    def in_span(self, span: Span) -> tuple[int, ...]:
        """The kind of each layer of ``span``."""
        return self.of[span.start : span.stop]

    def groups(self, span: Span, num_slots: int) -> list[PageGroup]:
        """Pools of so many slots for the layers of ``span``."""
        windows = {self.kinds[kind].window for kind in self.in_span(span)}
        return [PageGroup(window, -(-num_slots // PAGE_SIZE)) for window in sorted(windows)]

    def mean(self, of: Callable[[LayerKind], int]) -> int:
        """Of a size of each layer of the model."""
        return sum(of(self.kinds[kind]) for kind in self.of) // len(self.of)

    def counts(self) -> list[int]:
        """Layers of each kind."""
        return [self.of.count(kind) for kind in range(len(self.kinds))]

    def told(self, times: Sequence[RowTime]) -> tuple[KindTime, ...]:
        """With what each takes; nothing where all layers are alike."""
        if len(self.kinds) == 1:
            return ()
        firsts = [self.of.index(kind) for kind in range(len(self.kinds))]
        return tuple(
            KindTime(first, time, kind.layer_bytes, kind.kv_token_bytes)
            for first, time, kind in zip(firsts, times, self.kinds, strict=True)
        )

    def spans(self, most_bytes: int) -> list[Span]:
        """The fewest neighbouring layers that have every kind among them, of small ones three of each; where these would be too
        many bytes, a layer of each kind by itself."""
        most = 3 if 3 * sum(kind.layer_bytes for kind in self.kinds) <= SMALL_BYTES else 1
        least = [min(most, count) for count in self.counts()]
        total = len(self.of)
        for length in range(min(total, sum(least)), total + 1):
            for start in range(total - length + 1):
                found = self.of[start : start + length]
                if all(found.count(kind) >= count for kind, count in enumerate(least)):
                    if sum(self.kinds[kind].layer_bytes for kind in found) <= most_bytes:
                        return [Span(start, start + length)]
                    firsts = [self.of.index(kind) for kind in range(len(self.kinds))]
                    return [Span(first, first + 1) for first in firsts]
        raise AssertionError("all layers together have every kind")


@dataclass(frozen=True, slots=True)
class _Pass:
    """A point to be measured: the places of its layers in the span, and what they are handed."""

    point: Point
    places: Sequence[int]
    work: Work
    hidden: torch.Tensor | None

    def seconds(self, model: SpanModel) -> float:
        with model.of_layers(self.places):
            return pass_s(model, self.work, self.hidden)


@dataclass(frozen=True, slots=True)
class Bench:
    """A span of random weights on the device.

    Args:
        kinds: of its layers, by place.
    """

    model: SpanModel
    kinds: tuple[int, ...]
    alive: Alive

    @classmethod
    def load(cls, checkpoint: Checkpoint, span: Span, kinds: Kinds, device: str, dtype: Dtype, alive: Alive) -> Bench:
        slots = max(num_slots(PAGE_SIZE, *shape) for shape in GRID)
        model = SpanModel.load(
            checkpoint,
            span,
            dtype=dtype,
            device=device,
            groups=kinds.groups(span, slots),
            page_size=PAGE_SIZE,
            progress=lambda *_: alive(),
        )
        model.settle()
        model.kv.clear(slots)  # what is read must be numbers
        return cls(model, kinds.in_span(span), alive)

    def layers(self, kind: int, window: int, most_s: float) -> list[Point]:
        """Passes of layers of one kind: of one, and of two or three, of which as many are different as the span has."""
        places = [place for place, other in enumerate(self.kinds) if other == kind]
        takes = [list(itertools.islice(itertools.cycle(places), count)) for count in (1, min(3, max(2, len(places))))]
        grid = [
            (Point(phase, len(taken), rows, seen_tokens(window, context), 0.0, kind=kind), context, taken)
            for phase, rows, context in GRID
            for taken in takes
        ]
        return self._measure(grid, 2 * len(takes), most_s)

    def output(self, most_s: float) -> list[Point]:
        """Passes of a last layer with what comes after it, and without."""
        shapes = [(rows, picks) for rows in PICKS for picks in (0, rows)]
        grid = [(Point(Phase.DECODE, 1, rows, 16, 0.0, picks), 16, [0]) for rows, picks in shapes]
        return self._measure(grid, len(grid), most_s)

    def _measure(self, grid: Sequence[tuple[Point, int, Sequence[int]]], always: int, most_s: float) -> list[Point]:
        """By turns, each once without counting and then until it has its repeats or all together have taken so long.

        Args:
            grid: points without their times, each with the context that is cached and the places of its layers.
            always: so many of the first are measured, whatever they take.
        """
        deadline = time.perf_counter() + most_s
        latest: dict[Phase, float] = {}
        passes: list[_Pass] = []
        for number, (point, context, places) in enumerate(grid):
            if number >= always and (latest[point.phase] > LONG_S or time.perf_counter() > deadline):
                continue
            work = make_work(self.model, point.phase, point.rows, context, point.picks)
            passes.append(_Pass(point, places, work, hidden_rows(self.model, point.rows)))
            latest[point.phase] = self._seconds(passes[-1])
        seconds = [[self._second(one)] for one in passes]
        for _ in range(REPEATS - 1):
            for one, found in zip(passes, seconds, strict=True):
                if time.perf_counter() < deadline:
                    found.append(self._second(one))
        return [replace(one.point, seconds=quicker(found)) for one, found in zip(passes, seconds, strict=True)]

    def _second(self, one: _Pass) -> float:
        """Of two passes, one after the other: what ran before has left other things in the processor's cache than in a stage,
        where the same goes on and on."""
        self._seconds(one)
        return self._seconds(one)

    def _seconds(self, one: _Pass) -> float:
        self.alive()
        return one.seconds(self.model)


def measure(
    checkpoint: Checkpoint, *, device: str, dtype: Dtype, hardware: Hardware | None = None, alive: Alive = lambda: None
) -> Profile:
    """How fast the model's layers, its output and the machine are. Nothing of its weights is read.

    Args:
        device: of torch. hardware: what is known of it without measuring.

    Raises:
        ConfigError, ModelUnsupported, DeviceError: as for serving the model; and what ``alive`` raises.

    Time: some seconds: two of passes, and what making the layers takes. Memory: a quarter of what is free at most, which must be
    enough for a layer.
    """
    kinds = Kinds.find(checkpoint, dtype)
    short = _cut(checkpoint, SHORT_VOCABULARY)
    points: list[Point] = []
    most_bytes = int(SHARE * free_bytes(device))
    for span in kinds.spans(most_bytes):
        bench = Bench.load(short, span, kinds, device, dtype, alive)
        for kind in sorted(set(bench.kinds)):
            points += bench.layers(kind, kinds.kinds[kind].window, LAYERS_S / len(kinds.kinds))
        bench.model.close()
    layers, times = fit_kinds(points, kinds.counts())
    outputs, output = _output(checkpoint, kinds, device, dtype, alive)
    encode, decode = codec_speeds(checkpoint.config.get_text_config().hidden_size, dtype)
    return Profile(
        model_digest=checkpoint.config_digest.hex(),
        device=device_name(device),
        dtype=str(dtype),
        threads=torch.get_num_threads(),
        fit=layers,
        output=output,
        layer_bytes=kinds.mean(lambda kind: kind.layer_bytes),
        kv_token_bytes=kinds.mean(lambda kind: kind.kv_token_bytes),
        hardware=measure_hardware(hardware or Hardware(), device, checkpoint, alive),
        encode_bytes_per_s=encode,
        decode_bytes_per_s=decode,
        kinds=kinds.told(times),
        points=(*points, *outputs),
    )


def quicker(seconds: Sequence[float]) -> float:
    """The mean of the quicker half: of those that something else held up there are few in it."""
    return statistics.fmean(sorted(seconds)[: -(-len(seconds) // 2)])


def _output(checkpoint: Checkpoint, kinds: Kinds, device: str, dtype: Dtype, alive: Alive) -> tuple[list[Point], RowTime]:
    """Passes with as much of the vocabulary as there is room for, and what follows for all of it."""
    config = checkpoint.config.get_text_config()
    vocabulary, most_bytes = config.vocab_size, SHARE * free_bytes(device)
    while vocabulary > SHORT_VOCABULARY and 2 * vocabulary * config.hidden_size * dtype.num_bytes > most_bytes:
        vocabulary //= 2
    last = len(kinds.of) - 1
    bench = Bench.load(_cut(checkpoint, vocabulary), Span(last, last + 1), kinds, device, dtype, alive)
    points = bench.output(OUTPUT_S)
    bench.model.close()
    layer = fit([point for point in points if not point.picks])
    outputs = [point for point in points if point.picks]
    return outputs, fit_output(outputs, layer).scaled(config.vocab_size / vocabulary)


def _cut(checkpoint: Checkpoint, vocabulary: int) -> Checkpoint:
    """The same model with random weights and a vocabulary of so many tokens at most."""
    config = checkpoint.new_config()
    text = config.get_text_config()
    text.vocab_size = min(text.vocab_size, vocabulary)
    text.pad_token_id = None  # it may lie beyond
    return Checkpoint(checkpoint.ref, config, checkpoint.raw_config)
