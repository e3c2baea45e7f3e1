"""What a span's device is asked for: steps, from the segments of a work to activations or picks.

There are three ways, and a span takes the first that it can: a recording (``graphs.py``), a forward whose attention is by our
own kernels (``paged.py``), a forward whose attention is torch's (``attention.py``), as it is with trees of drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import numpy as np
import torch

from bloombee.engine import paged
from bloombee.engine.attention import attend, kernels
from bloombee.engine.buffers import TORCH_DTYPES, to_device
from bloombee.engine.cache import SlotCache, Step
from bloombee.engine.forward import Inputs, SpanForward
from bloombee.engine.grammar import Grammars
from bloombee.engine.graphs import GraphRunner, Recorder
from bloombee.engine.pending import Outlet, Pending
from bloombee.engine.picks import Picked, pick, picked_rows
from bloombee.engine.processors import Processors
from bloombee.engine.rotary import lengths_of
from bloombee.engine.skeleton import Skeleton
from bloombee.engine.trial import try_out
from bloombee.errors import DeviceError, RemoteProtocolError
from bloombee.pipeline.work import Segment
from bloombee.plan.scratch import LOGIT_BYTES, LOGITS
from bloombee.types import Dtype, Span
from bloombee.wire.messages import Pick


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Meanwhile this thread's GPU, which our own kernels go to, is ``device``."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class Steps:
    """Of one span; one thread at a time.

    Attributes:
        forward: how rows go through its layers. processors: of the checkpoint's rules for logits, on a last stage.
        grammars: of its sequences, likewise; None: of a model without a tokenizer.
        tables: of forwards whose attention is by our own kernels; None: it is torch's.
        graphs: the recordings; None: there are none.
        cache, dtype, is_first, is_last, hidden_size, vocab_size: of the span.
        batched: whether torch's attention takes all sequences of one row together; see :class:`~bloombee.engine.cache.Step`.
    """

    def __init__(self, skeleton: Skeleton, span: Span, dtype: Dtype, kv: SlotCache) -> None:
        self.forward = SpanForward(skeleton)
        self.processors: Processors | None = None
        self.grammars: Grammars | None = None
        self.tables: paged.StepTables | None = None
        self.graphs: GraphRunner | None = None
        self.batched = kv.device.type != "cpu"
        self._skeleton = skeleton
        self.cache, self._device, self.dtype = kv, kv.device, dtype
        self.is_first, self.is_last = span.start == 0, span.stop == skeleton.num_layers
        self.hidden_size: int = skeleton.base.config.hidden_size
        self.vocab_size: int = skeleton.model.get_input_embeddings().weight.shape[0]
        self._num_layers = len(span)
        self._places: tuple[int, ...] | None = None
        """Of the layers that stand in for the span's; None: its own."""
        self._outlet = Outlet(kv.device)

    def use_kernels(self, recorder: Recorder) -> None:
        """Attend by our own kernels from now on, and record steps of a few rows a sequence, where they can do what the span
        asks for, and do it as torch does (``trial.py``).

        Raises:
            DeviceError: the device failed.
        """
        if not paged.covers(self.cache):
            return
        self.tables = paged.StepTables(self.cache)
        if not self._skeleton.rotaries:  # those look on the host at how long a row's sequence is
            self.graphs = self._recordings(recorder)
        try_out(self)

    def _recordings(self, recorder: Recorder) -> GraphRunner:
        most_rows = LOGITS * LOGIT_BYTES // (self.vocab_size * (4 + 2 * self.dtype.num_bytes)) if self.is_last else 1 << 30
        hidden_size = None if self.is_first else self.hidden_size
        return GraphRunner(self.cache, hidden_size, self._recorded, recorder, most_rows=most_rows)

    def run(self, segments: Sequence[Segment], hidden: torch.Tensor | None) -> torch.Tensor | list[Pick]:
        """As :meth:`SpanModel.run <bloombee.engine.model.SpanModel.run>`."""
        return self.launch(segments, hidden).result() if self.is_last else self.rows(segments, hidden, [])

    def rows(self, segments: Sequence[Segment], hidden: torch.Tensor | None, picked: Sequence[Picked]) -> torch.Tensor:
        """[t, d] activations on the device; or [picked, v] logits. Raises as :meth:`run`."""
        with self._asked():
            return self._rows(segments, hidden, picked)

    def launch(
        self, segments: Sequence[Segment], hidden: torch.Tensor | None, stay: bool = False
    ) -> Pending[torch.Tensor] | Pending[list[Pick]]:
        """As :meth:`SpanModel.launch <bloombee.engine.model.SpanModel.launch>`."""
        with self._asked():
            if not self.is_last:
                rows = self._rows(segments, hidden, [])
                return self._outlet.leave(rows) if stay else self._outlet.take(rows, lambda rows: rows)
            picked = picked_rows(segments)
            if self.grammars is not None:
                self.grammars.begin(segments)
            if len(picked) > self._most_picked and not self._can_replay(segments):
                picks = self._pick_by_parts(segments, hidden, picked)
                return Pending(torch.empty(0), lambda _: picks)
            rows = self._rows(segments, hidden, picked)
            if not picked:
                return self._outlet.take(rows[:0], lambda _: [])  # done when they are
            return self._outlet.take(rows, lambda logits: pick(logits, picked, self.processors, self.grammars))

    def warm_up(self) -> list[Callable[[], None]]:
        """As :meth:`SpanModel.warm_up <bloombee.engine.model.SpanModel.warm_up>`."""
        return [] if self.graphs is None else [partial(self._prepare, size) for size in reversed(self.graphs.sizes)]

    @contextmanager
    def of(self, places: Sequence[int]) -> Iterator[None]:
        """Meanwhile the model's layers are those at ``places`` of the span."""
        self._places = None if tuple(places) == tuple(range(self._num_layers)) else tuple(places)
        try:
            yield
        finally:
            self._places = None

    def close(self) -> None:
        """Let go of what is on the device; it cannot be run any more."""
        self.graphs = self.tables = None

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """What torch says of the device in the block is a DeviceError."""
        try:
            with on_device(self._device), torch.inference_mode():
                yield
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
            raise DeviceError(f"{self._device}: {error}", device=str(self._device)) from error

    @property
    def _most_picked(self) -> int:
        return max(1, LOGITS // self.vocab_size)

    def _rows(self, segments: Sequence[Segment], hidden: torch.Tensor | None, picked: Sequence[Picked]) -> torch.Tensor:
        self._check(segments, hidden)
        self.cache.copy_shared(segments)
        if self.graphs is not None and self._can_replay(segments):
            rows = self.graphs.run(segments, hidden, self._places)
            if rows is not None:
                return _chosen(rows, picked)
        with kernels(self._device):
            inputs = self._inputs(segments, hidden)
            return self.forward.logits(inputs, self._keep(picked)) if picked else self.forward.hidden(inputs)

    def _pick_by_parts(self, segments: Sequence[Segment], hidden: torch.Tensor | None, picked: list[Picked]) -> list[Pick]:
        """Where the logits of all would be too many."""
        self._check(segments, hidden)
        self.cache.copy_shared(segments)
        parts = [picked[start : start + self._most_picked] for start in range(0, len(picked), self._most_picked)]
        with kernels(self._device):
            logits = self.forward.logits_by_parts(self._inputs(segments, hidden), [self._keep(part) for part in parts])
            return [
                one
                for part, some in zip(parts, logits, strict=True)
                for one in pick(some.cpu(), part, self.processors, self.grammars)
            ]

    def _keep(self, picked: Sequence[Picked]) -> torch.Tensor:
        return to_device(torch.tensor([one.row for one in picked]), self._device)

    def _check(self, segments: Sequence[Segment], hidden: torch.Tensor | None) -> None:
        """
        Raises:
            RemoteProtocolError: what came is nothing that this stage takes.
        """
        if self.is_first:
            largest = int(np.frombuffer(b"".join(segment.tokens for segment in segments), dtype="<u4").max())
            if largest >= self.vocab_size:
                raise RemoteProtocolError(f"token id {largest} in a vocabulary of {self.vocab_size}", token=largest)
            return
        expected = (sum(segment.num_rows for segment in segments), self.hidden_size)
        if hidden is None or tuple(hidden.shape) != expected or hidden.dtype != TORCH_DTYPES[self.dtype]:
            got = "none" if hidden is None else f"{list(hidden.shape)} {hidden.dtype}"
            raise RemoteProtocolError(f"activations are {got}; this stage takes {list(expected)} {self.dtype.value}")

    def _inputs(self, segments: Sequence[Segment], hidden: torch.Tensor | None) -> Inputs:
        lengths = lengths_of(segments) if self._skeleton.rotaries else None
        if hidden is not None:
            hidden = None if self.is_first else to_device(hidden, self._device)
        if self.tables is not None and not has_tree(segments):
            self.tables.fill(segments)
            return self._inputs_of(self.tables, hidden, lengths)
        step = Step(self.cache, segments, batched=self.batched)
        tokens = None
        if self.is_first:
            ids = np.frombuffer(b"".join(segment.tokens for segment in segments), dtype="<u4").astype(np.int64)
            tokens = to_device(torch.from_numpy(ids), self._device)
        return Inputs(step, partial(attend, step), step.position_ids[0], tokens, hidden, lengths)

    def _inputs_of(self, tables: paged.StepTables, hidden: torch.Tensor | None, lengths: Sequence[int] | None = None) -> Inputs:
        step = paged.PagedStep(tables)
        return Inputs(step, step.attend, tables.positions, tables.tokens if self.is_first else None, hidden, lengths)

    def _recorded(self, tables: paged.StepTables, hidden: torch.Tensor | None) -> torch.Tensor:
        inputs = self._inputs_of(tables, hidden)
        return self.forward.logits(inputs, 0) if self.is_last else self.forward.hidden(inputs)

    def _can_replay(self, segments: Sequence[Segment]) -> bool:
        has_graphs = self.graphs is not None and self.tables is not None and self.graphs.can_run(segments)
        return has_graphs and not has_tree(segments)

    def _prepare(self, size: int) -> None:
        if self.graphs is not None:
            with on_device(self._device), torch.inference_mode():
                self.graphs.prepare(size)


def has_tree(segments: Sequence[Segment]) -> bool:
    """Then it is torch's attention that masks what a row does not see."""
    return any(segment.tree is not None for segment in segments)


def _chosen(rows: torch.Tensor, picked: Sequence[Picked]) -> torch.Tensor:
    """A copy of those of ``rows`` that were picked; of all if none was asked for."""
    if not picked or len(picked) == len(rows):
        return rows.clone()
    return rows[to_device(torch.tensor([one.row for one in picked]), rows.device)]
