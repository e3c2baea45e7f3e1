"""One stage's model: a transformers model with only a span's layers, run on packed rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from bloombee.engine.attention import ATTENDER, attend, kernels
from bloombee.engine.buffers import TORCH_DTYPES
from bloombee.engine.cache import SlotCache, Step
from bloombee.engine.checkpoint import Checkpoint
from bloombee.engine.digest import require_same_weights
from bloombee.engine.packed import Watch, back_by_huge_pages, empty, pack_linears
from bloombee.engine.processors import Processors
from bloombee.engine.rotary import RotaryByLength, lengths_of
from bloombee.engine.sampler import SamplerRow, sample
from bloombee.engine.skeleton import Skeleton, build, rearranged, splice
from bloombee.engine.spans import ModelKey, SpanStore, trim
from bloombee.engine.stored import probe
from bloombee.engine.synthetic import fill_random
from bloombee.engine.weights import Loading, LoadProgress, fill, materialize, plan_loading
from bloombee.errors import ConfigError, DeviceError, LocalProtocolError, RemoteProtocolError
from bloombee.machine import cores
from bloombee.pipeline.work import Segment, Work
from bloombee.plan.scratch import LOGITS
from bloombee.types import Dtype, PageGroup, Span
from bloombee.wire.messages import NO_TOKEN, Pick, Rules


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
        weight_bytes: resident, in ``dtype``. layer_bytes: of one layer, their mean.
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
        self.batched_decode = kv.device.type != "cpu"
        self._skeleton = skeleton
        self._store, self._key = store, key
        self._reservation = 0
        self._kept: dict[int, int] = {}
        """Layers that the store counts this span as a user of, and their bytes."""
        self._processors: Processors | None = None
        self._arrived: torch.Tensor | None = None

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
            model._processors = Processors(rules, model.vocab_size) if rules is not None and model.is_last else None
            model._load(checkpoint, weight_digests, progress, watch.groups)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise DeviceError(f"no memory on {device} for {span} of {checkpoint.ref}", device=device) from error
        return model

    def settle(self, on_part: Callable[[], None] = lambda: None) -> None:
        """Make what is loaded faster to read, once, on any thread and beside :meth:`run`. What ``on_part`` raises ends it."""
        back_by_huge_pages(self._skeleton.model, on_part)

    def close(self) -> None:
        """Give back its KV memory, and the weights that no other span uses, at once. It cannot be run any more."""
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
        step = Step(self.kv, work.segments, batched=self.batched_decode)
        try:
            with torch.inference_mode(), kernels(self.device):
                self.kv.copy_shared(work.segments)
                return self._forward(step, work.segments, hidden)
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
            raise DeviceError(f"{self.device}: {error}", device=str(self.device)) from error

    @contextmanager
    def of_layers(self, places: Sequence[int]) -> Iterator[None]:
        """Meanwhile its layers are those at ``places`` of the span; one may come more than once. For measuring."""
        with rearranged(self._skeleton, places):
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
        progress: LoadProgress | None,
        together: Sequence[tuple[torch.nn.Linear, ...]],
    ) -> None:
        """
        Args:
            together: linear layers that are handed one input.
        """
        can_share = self._can_share()
        held = self._store.take(self._key, self.span) if can_share else {}
        self._kept = {number: num_bytes for number, (_, num_bytes) in held.items()}
        try:
            loading = self._choose(checkpoint, weight_digests)
            weight_bytes = sum(_bytes_of(self._skeleton.meta[name], self.dtype) for name in set(loading.stored.values()))
            self._reservation = self._store.reserve(self.span, weight_bytes, self.kv.num_bytes)
            if not can_share:
                self._key += (str(self._reservation),)
            fresh = self._fill(checkpoint, loading, {number: layer for number, (layer, _) in held.items()}, progress)
            if self.device.type == "cpu":
                total = self.disk_bytes
                pack_linears(self._skeleton.model, together, lambda: progress(total, total) if progress is not None else None)
            self._store.keep(self._key, fresh, self._reservation)
            self._kept |= {number: num_bytes for number, (_, num_bytes) in fresh.items()}
        except BaseException:
            self.close()
            raise
        self.layer_bytes = sum(self._kept.values()) // len(self.span)

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
            loading = Loading([], {name: name for name in skeleton.parameters if skeleton.is_in(name, self.span)})
        else:
            loading = plan_loading(skeleton, checkpoint, self.span)
            require_same_weights(checkpoint, skeleton, loading, self.span, weight_digests)
        return loading.without({name for name in loading.stored if skeleton.home(name) in self._kept})

    def _fill(
        self, checkpoint: Checkpoint, loading: Loading, held: dict[int, torch.nn.Module], progress: LoadProgress | None
    ) -> dict[int, tuple[torch.nn.Module, int]]:
        """The layers that were loaded, and their bytes, beside those that were ``held``."""
        skeleton = self._skeleton
        splice(skeleton, self.span)
        memory = materialize(skeleton, loading.stored, self.dtype, self.device)
        layers = getattr(skeleton.base, skeleton.layers)
        for number, layer in held.items():
            layers[number - self.span.start] = layer
        if checkpoint.is_random:
            self.disk_bytes = fill_random(memory, progress)
        else:
            self.disk_bytes, self.requested_bytes = fill(
                checkpoint, loading, memory, cache(lambda: build(checkpoint, self.dtype).model), progress
            )
        self.weight_bytes = sum(t.numel() * t.element_size() for t in memory.values()) + sum(self._kept.values())
        skeleton.model.eval().requires_grad_(False)
        fresh = {
            number: (layer, sum(t.numel() * t.element_size() for t in layer.parameters()))
            for number, layer in enumerate(layers, self.span.start)
            if number not in held
        }
        if not self.is_first:
            layers[0] = _twin(layers[0])
            layers[0].register_forward_pre_hook(self._substitute, with_kwargs=True)
        return fresh

    def _substitute(
        self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Hand the first layer what arrived, whatever the base model made of it: some scale their input embeddings
        or add positions to them, which the first stage has done already."""
        assert self._arrived is not None
        if args:
            return (self._arrived, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._arrived}

    # -- running -------------------------------------------------------------------------------

    def _forward(self, step: Step, segments: Sequence[Segment], hidden: torch.Tensor | None) -> torch.Tensor | list[Pick]:
        inputs = self._inputs(step, segments, hidden)
        picked = _picked_rows(step, segments) if self.is_last else []
        for rotary in self._skeleton.rotaries:
            rotary.lengths = lengths_of(segments)
        token = ATTENDER.set(partial(attend, step))
        try:
            if not picked:
                rows = self._skeleton.base(**inputs).last_hidden_state[0]
                return [] if self.is_last else rows
            size = max(1, LOGITS // self.vocab_size)
            if len(picked) <= size:
                return _sample(self._logits(inputs, picked), picked, self._processors)
            given = _Given(self._skeleton.base(**inputs))
            with self._replaced_base(given):
                parts = [picked[start : start + size] for start in range(0, len(picked), size)]
                return [pick for part in parts for pick in _sample(self._logits(inputs, part), part, self._processors)]
        finally:
            ATTENDER.reset(token)
            self._arrived = None

    def _logits(self, inputs: dict[str, Any], picked: list[_Picked]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """[picked, v]."""
        keep = torch.tensor([one.row for one in picked], device=self.device)
        logits = self._skeleton.model(**inputs, logits_to_keep=keep).logits[0]
        return np.ascontiguousarray(logits.float().cpu().numpy())

    @contextmanager
    def _replaced_base(self, other: torch.nn.Module) -> Iterator[None]:
        """Meanwhile the base model is ``other``: what a family does between its last layer and the logits stays its own."""
        owner, _, name = self._skeleton.prefix.removesuffix(".").rpartition(".")
        parent = self._skeleton.model.get_submodule(owner)
        try:
            setattr(parent, name, other)
            yield
        finally:
            setattr(parent, name, self._skeleton.base)

    def _inputs(self, step: Step, segments: Sequence[Segment], hidden: torch.Tensor | None) -> dict[str, Any]:
        inputs: dict[str, Any] = {"position_ids": step.position_ids, self._skeleton.cache_argument: step, "use_cache": True}
        if self.is_first:
            tokens = np.frombuffer(b"".join(segment.tokens for segment in segments), dtype="<u4")
            if int(tokens.max()) >= self.vocab_size:
                raise RemoteProtocolError(
                    f"token id {tokens.max()} in a vocabulary of {self.vocab_size}", token=int(tokens.max())
                )
            return inputs | {"input_ids": torch.from_numpy(tokens.astype(np.int64)).to(self.device, non_blocking=True)[None]}
        expected = (step.num_rows, self.hidden_size)
        if hidden is None or tuple(hidden.shape) != expected or hidden.dtype != TORCH_DTYPES[self.dtype]:
            got = "none" if hidden is None else f"{list(hidden.shape)} {hidden.dtype}"
            raise RemoteProtocolError(f"activations are {got}; this stage takes {list(expected)} {self.dtype.value}")
        self._arrived = hidden.to(self.device, non_blocking=True)[None]
        return inputs | {"inputs_embeds": self._arrived}


def _bytes_of(tensor: torch.Tensor, dtype: Dtype) -> int:
    """Of a parameter in a run of ``dtype``."""
    return int(tensor.numel()) * (dtype.num_bytes if tensor.is_floating_point() else int(tensor.element_size()))


def _twin(layer: torch.nn.Module) -> torch.nn.Module:
    """The same layer, with the same weights, and hooks of its own: others may have it in the middle of their span."""
    twin = copy(layer)
    twin._forward_pre_hooks, twin._forward_pre_hooks_with_kwargs = OrderedDict(), OrderedDict()
    return twin


class _Given(torch.nn.Module):  # type: ignore[misc]
    """A base model whose output is known."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output = output

    def forward(self, *_: Any, **__: Any) -> Any:
        return self._output


@dataclass(frozen=True, slots=True)
class _Picked:
    """A row that gets a token: row ``row`` of the batch, which takes absolute position ``position``."""

    segment: Segment
    row: int
    position: int


def _picked_rows(step: Step, segments: Sequence[Segment]) -> list[_Picked]:
    found = []
    for segment, rows in zip(segments, step.rows, strict=True):
        if segment.num_picks and segment.sampling is None:
            raise LocalProtocolError(
                f"sequence {segment.sequence}: rows to sample and no sampling parameters", sequence=segment.sequence
            )
        first = rows.stop - min(segment.num_picks, rows.num_rows)
        found += [_Picked(segment, row, segment.position + row - rows.start + 1) for row in range(first, rows.stop)]
    return found


def _sample(logits: np.ndarray[Any, np.dtype[np.float32]], picked: list[_Picked], processors: Processors | None) -> list[Pick]:
    rows = [
        SamplerRow(
            sampling=one.segment.sampling,
            position=one.position,
            history=np.frombuffer(one.segment.history, dtype="<u4")[: one.position],
            num_prompt_tokens=one.segment.num_prompt_tokens,
            max_new_tokens=one.segment.max_new_tokens,
            end_tokens=one.segment.end_tokens,
        )
        for one in picked
        if one.segment.sampling is not None
    ]
    return [
        Pick(one.segment.sequence, one.segment.generation, one.position, got.token, got.logprob, got.top)
        if got.is_finite
        else Pick(one.segment.sequence, one.segment.generation, one.position, NO_TOKEN, None, ())
        for one, got in zip(picked, sample(logits, rows, processors), strict=True)
    ]
