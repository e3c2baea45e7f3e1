"""One stage's model: a transformers model with only a span's layers, run on packed rows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch

from bloombee.engine import fused
from bloombee.engine.buffers import TORCH_DTYPES
from bloombee.engine.cache import SlotCache
from bloombee.engine.checkpoint import Checkpoint
from bloombee.engine.digest import require_same_weights
from bloombee.engine.generation import read_generation
from bloombee.engine.grammar import Grammars
from bloombee.engine.graphs import CudaRecorder, Recorder, Repeater
from bloombee.engine.layer_files import LayerFiles
from bloombee.engine.offload import LayerMaker, bytes_of, continued, stream_layers
from bloombee.engine.packed import Watch, back_by_huge_pages, empty, pack_linears
from bloombee.engine.pending import Pending
from bloombee.engine.processors import Processors
from bloombee.engine.rotary import RotaryByLength
from bloombee.engine.skeleton import Skeleton, build, rearranged, splice
from bloombee.engine.spans import ModelKey, SpanStore, trim
from bloombee.engine.steps import Steps, on_device
from bloombee.engine.stored import probe
from bloombee.engine.streams import LayerStream
from bloombee.engine.synthetic import fill_random
from bloombee.engine.tokenizer import tokenizer_json
from bloombee.engine.waves import Waves, together
from bloombee.engine.weights import Loading, LoadProgress, everything, fill, materialize, plan_loading
from bloombee.errors import BloomBeeError, ConfigError, DeviceError
from bloombee.machine import cores
from bloombee.pipeline.work import Work
from bloombee.plan.placement import streamed_memory
from bloombee.types import Dtype, PageGroup, Span
from bloombee.wire.messages import Pick, Rules


def pick_device(name: str) -> str:
    """torch's name of the device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` means here.

    Raises:
        ConfigError: a CUDA device, and torch sees none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device = {name!r}: torch sees no CUDA device here; use --device cpu", device=name)
    return name


def has_kernels(device: torch.device) -> bool:
    """Whether spans on ``device`` run by our own kernels: on a GPU, where the extension was built for it, and nobody set
    ``BLOOMBEE_KERNELS=torch``."""
    return device.type == "cuda" and os.environ.get("BLOOMBEE_KERNELS") != "torch" and fused.cuda_kernels() is not None


def recorder_of(device: torch.device) -> Recorder:
    return CudaRecorder(device) if device.type == "cuda" else Repeater()


def set_threads(count: int | None) -> None:
    """How many cores torch may use in this process; None: those it chose, but no more than this process may use.

    For worker processes; never called at import.
    """
    torch.set_num_threads(count or min(torch.get_num_threads(), cores().amount))


class SpanModel:
    """A stage's weights and KV memory. Use :meth:`load`; one thread at a time may :meth:`run`.

    Attributes:
        span, num_layers, dtype, device, hidden_size, vocab_size: of what was loaded. ``dtype`` is that of weights
            and activations alike.
        steps: what its device does of them. weight_bytes: resident, in ``dtype``, slots of what streams included. layer_bytes: of
            one layer that stays, their mean. stream: of its layers that come from disk; None: there are none.
        disk_bytes, requested_bytes: the tensors that were read, in the checkpoint, and what was asked of its files for them.
    """

    def __init__(self, skeleton: Skeleton, span: Span, dtype: Dtype, kv: SlotCache, store: SpanStore, key: ModelKey) -> None:
        config = skeleton.base.config
        self.span = span
        self.num_layers = skeleton.num_layers
        self.dtype = dtype
        self.kv = kv
        self.device = kv.device
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = skeleton.model.get_input_embeddings().weight.shape[0]
        self.weight_bytes = self.layer_bytes = self.disk_bytes = self.requested_bytes = 0
        self.stream: LayerStream | None = None
        self._waves: Waves | None = None
        self._skeleton = skeleton
        self._store, self._key = store, key
        self._reservation = self._streaming_bytes = 0
        self._kept: dict[int, int] = {}
        """Layers that the store counts this span as a user of, and their bytes."""
        self.steps = Steps(skeleton, span, dtype, kv)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        span: Span,
        *,
        num_layers: int | None = None,
        dtype: Dtype | None = None,
        device: str = "cpu",
        groups: Sequence[PageGroup],
        page_size: int,
        weight_digests: Sequence[bytes] = (),
        progress: LoadProgress | None = None,
        rules: Rules | None = None,
        store: SpanStore | None = None,
        streamed: Sequence[int] = (),
        files: LayerFiles | None = None,
    ) -> SpanModel:
        """Build the stage of ``span`` and read its weights, and no others. What ``progress`` raises ends it, and leaves nothing.

        Args:
            num_layers: what the plan believes the model has; None skips the check.
            dtype: of the run; None: the checkpoint's.
            groups, page_size: of the KV memory; see :class:`~bloombee.engine.cache.SlotCache`.
            progress: called with (loaded bytes, total bytes) while weights are read, and then packed.
            weight_digests: what the span's tensors must be: see :func:`~bloombee.engine.digest.require_same_weights`.
            rules: of the checkpoint for logits, which a last stage obeys.
            store: where the device's weights are: layers that are there are not read again. None: one of its own.
            streamed: layers of the span that are not to stay on the device, but to come from disk on every pass, where ``files``
                are; one that is on the device already stays.

        Raises:
            Infeasible: weights and KV are more than the store has room for.
            ModelUnsupported: the family cannot be split.
            ConfigError: the span, the plan and the checkpoint disagree, files are missing or corrupt, or the weights are
                not those of ``weight_digests``.
            DeviceError: the device lacks the memory.

        Memory: the span's weights once, in ``dtype``; KV memory as slots are used.
        """
        dtype = dtype or checkpoint.dtype
        skeleton = build(checkpoint, dtype)
        if span.stop > skeleton.num_layers or (num_layers is not None and num_layers != skeleton.num_layers):
            raise ConfigError(
                f"{checkpoint.ref} has {skeleton.num_layers} layers; the plan has {num_layers} and this stage {span}",
                model=checkpoint.ref,
            )
        with Watch(skeleton.model) as watch:
            layers = probe(skeleton, checkpoint.ref, span)
        key = (checkpoint.config_digest.hex(), str(checkpoint.directory or checkpoint.ref), str(dtype), device)
        try:
            kv = SlotCache(layers, groups, page_size, TORCH_DTYPES[dtype], torch.device(device))
            model = cls(skeleton, span, dtype, kv, store or SpanStore(), key)
            model.steps.processors = Processors(rules, model.vocab_size) if rules is not None and model.is_last else None
            model._load(checkpoint, weight_digests, progress or (lambda *_: None), watch.groups, streamed, files)
            model._know_words(checkpoint)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise DeviceError(f"no memory on {device} for {span} of {checkpoint.ref}", device=device) from error
        return model

    def settle(self, on_part: Callable[[], None] = lambda: None) -> None:
        """Make what is loaded faster to read, once, on any thread and beside :meth:`run`. What ``on_part`` raises ends it."""
        back_by_huge_pages(self._skeleton.model, on_part)

    def close(self) -> None:
        """Give back its KV memory, and the weights that no other span uses, at once. It cannot be run any more."""
        self.steps.close()
        if self.stream is not None:
            self.stream.close()
        for layer in list(self.kv.group_of):
            self.kv.drop(layer)
        base, name = self._skeleton.base, self._skeleton.layers
        layers = getattr(base, name)
        setattr(base, name, torch.nn.ModuleList())
        unkept = [layer for number, layer in enumerate(layers, self.span.start) if number not in self._kept]
        for module in (self._skeleton.model, *unkept, *self._store.give(self._key, self._kept)):
            empty(module)
        self._kept = {}
        self._store.release(self._reservation)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        trim()

    def run(self, work: Work, hidden: torch.Tensor | None) -> torch.Tensor | list[Pick]:
        """One microbatch through the span; its rows' keys and values are stored in their slots.

        Args:
            hidden: [rows, d] in this model's dtype, the rows of ``work.segments`` in order; None on the first stage.

        Returns:
            [rows, d] activations for the next stage, on this model's device; or, from the last, a pick for each
            of the last ``num_picks`` rows of each segment, in order.

        Raises:
            RemoteProtocolError: token ids outside the vocabulary, or activations of another shape or dtype.
            LocalProtocolError: pages that do not hold the rows, or no sampling parameters for a row to be sampled.
            DeviceError: the device failed; KV of the rows may be partly written, which a repeat overwrites.
        """
        rows: torch.Tensor | list[Pick] = self.steps.run(work.segments, hidden)
        return rows

    def run_together(self, works: Sequence[tuple[Work, torch.Tensor | None]]) -> list[Any]:
        """As :meth:`run` of each of ``works`` in turn, exceptions among the results; as far as may be side by side, so that each
        layer that streams is read once. Only where some do."""
        assert self._waves is not None
        results: list[Any] = []
        while len(results) < len(works):
            rest = works[len(results) :]
            count = together([work for work, _ in rest])
            results += self._waves.run([partial(self.run, *one) for one in rest[:count]])
        return results

    def launch(
        self, work: Work, hidden: torch.Tensor | None, *, stay: bool = False
    ) -> Pending[torch.Tensor] | Pending[list[Pick]]:
        """As :meth:`run`, without waiting for the device: what comes of it is taken off it meanwhile, activations too (if they
        are not to ``stay``), and the next microbatch may be launched at once."""
        return self.steps.launch(work.segments, hidden, stay)

    def warm_up(self) -> list[Callable[[], None]]:
        """What makes first steps as quick as later ones, in parts; each on the thread that runs it, in between if need be. None
        raises."""
        return self.steps.warm_up()

    @contextmanager
    def of_layers(self, places: Sequence[int]) -> Iterator[None]:
        """Meanwhile its layers are those at ``places`` of the span; one may come more than once. For measuring."""
        with rearranged(self._skeleton, places), self.steps.of(places):
            yield

    @property
    def kv_bytes(self) -> int:
        """Of the whole KV pool. On the CPU it is reserved, and resident only as far as slots have been used."""
        return self.kv.num_bytes

    @property
    def module(self) -> Any:
        """transformers' model, of which the span's layers are real; for whoever measures its parts."""
        return self._skeleton.model

    @property
    def is_first(self) -> bool:
        return self.span.start == 0

    @property
    def is_last(self) -> bool:
        return self.span.stop == self.num_layers

    # -- loading -------------------------------------------------------------------------------

    def _load(
        self,
        checkpoint: Checkpoint,
        weight_digests: Sequence[bytes],
        progress: LoadProgress,
        together: Sequence[tuple[torch.nn.Linear, ...]],
        streamed: Sequence[int],
        files: LayerFiles | None,
    ) -> None:
        """``together``: linear layers that are handed one input."""
        can_share = self._can_share()
        held = self._store.take(self._key, self.span) if can_share else {}
        self._kept = {number: num_bytes for number, (_, num_bytes) in held.items()}
        away = sorted(set(streamed).difference(held))
        try:
            loading = self._choose(checkpoint, weight_digests)
            staying = loading.without({name for name in loading.stored if self._skeleton.home(name) in away})
            whole = cache(lambda: build(checkpoint, self.dtype).model)
            maker = LayerMaker(checkpoint, self._skeleton, self.span, loading, self.dtype, self.device, together, whole)
            self._reserve(staying, maker, away)
            if not can_share:
                self._key += (str(self._reservation),)
            groups = together if has_kernels(self.device) else ()
            rest = sum(map(maker.num_bytes, away))
            layers = {number: layer for number, (layer, _) in held.items()}
            fresh = self._fill(maker, staying, layers, groups, continued(progress, 0, rest))
            if self.device.type == "cpu":
                pack_linears(self._skeleton.model, together, lambda: progress(self.disk_bytes, self.disk_bytes + rest))
            if away:
                self._stream_layers(maker, away, can_share, files, continued(progress, self.disk_bytes, 0))
            if has_kernels(self.device):
                with on_device(self.device):
                    fused.install(self._skeleton.model, self.device)
                    self.steps.use_kernels(recorder_of(self.device))
            self._store.keep(self._key, fresh, self._reservation)
            self._kept |= {number: num_bytes for number, (_, num_bytes) in fresh.items()}
        except BaseException:
            self.close()
            raise
        self.layer_bytes = sum(self._kept.values()) // max(1, len(self._kept))

    def _reserve(self, staying: Loading, maker: LayerMaker, away: Sequence[int]) -> None:
        """Raises Infeasible: weights, slots and KV do not fit."""
        weight_bytes = sum(bytes_of(self._skeleton.meta[name], self.dtype) for name in set(staying.stored.values()))
        self._streaming_bytes = streamed_memory(max(map(maker.num_bytes, away), default=0), len(away))
        self._reservation = self._store.reserve(self.span, weight_bytes + self._streaming_bytes, self.kv.num_bytes)

    def _stream_layers(
        self, maker: LayerMaker, away: Sequence[int], can_share: bool, files: LayerFiles | None, progress: LoadProgress
    ) -> None:
        """Have layers ``away`` come from disk."""
        if files is None or not can_share:
            reason = "this worker has no directory for them" if files is None else "its layers share their weights"
            raise ConfigError(f"{maker.checkpoint.ref}: layers cannot stream: {reason}", model=maker.checkpoint.ref)
        self.stream, read, asked = stream_layers(maker, away, files, progress)
        layers = getattr(self._skeleton.base, self._skeleton.layers)
        self._waves = Waves(layers, self.stream)  # whose hooks come before the stream's
        self.stream.attach(layers)
        self.disk_bytes, self.requested_bytes = self.disk_bytes + read, self.requested_bytes + asked
        self.weight_bytes += self._streaming_bytes

    def _know_words(self, checkpoint: Checkpoint) -> None:
        """For grammars, on a last stage."""
        if not self.is_last or checkpoint.is_random:
            return
        self.steps.grammars = Grammars(partial(tokenizer_json, checkpoint), self.vocab_size)
        with contextlib.suppress(BloomBeeError):  # the head's files count; these say, most likely, what its requests will
            if end_tokens := read_generation(checkpoint, self.vocab_size).end_tokens:
                self.steps.grammars.prepare(end_tokens)

    def _can_share(self) -> bool:
        """Whether a layer is its own: in some models one tensor is several layers', or layers are told of each forward."""
        skeleton = self._skeleton
        tied = any(0 <= skeleton.home(name) < skeleton.num_layers for pair in skeleton.tied().items() for name in pair)
        modules = getattr(skeleton.base, skeleton.layers).modules()
        return not tied and not any(isinstance(vars(module).get("forward"), RotaryByLength) for module in modules)

    def _choose(self, checkpoint: Checkpoint, weight_digests: Sequence[bytes]) -> Loading:
        """What is to be loaded, once it is known to be the head's; layers that the store has are left out."""
        skeleton = self._skeleton
        if checkpoint.is_random:
            loading = everything(skeleton, self.span)
        else:
            loading = plan_loading(skeleton, checkpoint, self.span)
            require_same_weights(checkpoint, skeleton, loading, self.span, weight_digests)
        return loading.without({name for name in loading.stored if skeleton.home(name) in self._kept})

    def _fill(
        self,
        maker: LayerMaker,
        loading: Loading,
        held: dict[int, torch.nn.Module],
        together: Sequence[tuple[torch.nn.Linear, ...]],
        progress: LoadProgress,
    ) -> dict[int, tuple[torch.nn.Module, int]]:
        """The layers that were loaded, and their bytes, beside those that were ``held``; those that ``loading`` lacks have no
        memory."""
        skeleton, checkpoint = self._skeleton, maker.checkpoint
        splice(skeleton, self.span)
        memory = materialize(skeleton, loading.stored, self.dtype, self.device, together)
        layers = getattr(skeleton.base, skeleton.layers)
        for number, layer in held.items():
            layers[number - self.span.start] = layer
        if checkpoint.is_random:
            self.disk_bytes = fill_random(memory, progress)
        else:
            self.disk_bytes, self.requested_bytes = fill(checkpoint, loading, memory, maker.whole, progress)
        self.weight_bytes = sum(t.numel() * t.element_size() for t in memory.values()) + sum(self._kept.values())
        skeleton.model.eval().requires_grad_(False)
        filled = {skeleton.home(name) for name in loading.stored}
        fresh = {
            number: (layer, sum(t.numel() * t.element_size() for t in layer.parameters()))
            for number, layer in enumerate(layers, self.span.start)
            if number in filled and number not in held
        }
        if not self.is_first:
            self.steps.forward.take_in_first_layer()
        return fresh
