"""How a step's rows go through a span: transformers' own forwards, with our cache, our attention and what arrived."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch

from bloombee.engine.attention import ATTENDER, Attender
from bloombee.engine.skeleton import Skeleton


@dataclass(frozen=True, slots=True)
class Inputs:
    """Of one forward.

    Args:
        cache: what transformers calls one, of the step. attend: the attention of its layers.
        positions: [t] int64, absolute.
        tokens: [t] int64, on the first stage. hidden: [t, d], on all others.
        lengths: one a row, as :func:`~bloombee.engine.rotary.lengths_of` has them; None: all are short.
    """

    cache: Any
    attend: Attender
    positions: torch.Tensor
    tokens: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    lengths: Sequence[int] | None = None


class SpanForward:
    """Of one span; one thread at a time.

    Args:
        skeleton: spliced to the span, with weights.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton
        self._arrived: torch.Tensor | None = None

    def take_in_first_layer(self) -> None:
        """The span's first layer is handed what arrived, whatever the base model made of it: some scale their input embeddings or
        add positions to them, which the first stage has done already."""
        layers = getattr(self._skeleton.base, self._skeleton.layers)
        layers[0] = _twin(layers[0])
        layers[0].register_forward_pre_hook(self._substitute, with_kwargs=True)

    def hidden(self, inputs: Inputs) -> torch.Tensor:
        """[t, d] after the span's last layer."""
        with self._under_way(inputs) as arguments:
            rows: torch.Tensor = self._skeleton.base(**arguments).last_hidden_state[0]
            return rows

    def logits(self, inputs: Inputs, keep: torch.Tensor | int) -> torch.Tensor:
        """[n, v] float32.

        Args:
            keep: [n] the rows that get logits; 0: all.
        """
        with self._under_way(inputs) as arguments:
            return self._logits(arguments, keep)

    def logits_by_parts(self, inputs: Inputs, parts: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """:meth:`logits` of each of ``parts``, after one forward."""
        with self._under_way(inputs) as arguments, self._replaced_base(_Given(self._skeleton.base(**arguments))):
            for keep in parts:
                yield self._logits(arguments, keep)

    def _logits(self, arguments: dict[str, Any], keep: torch.Tensor | int) -> torch.Tensor:
        logits: torch.Tensor = self._skeleton.model(**arguments, logits_to_keep=keep).logits[0]
        return logits.float().contiguous()

    @contextmanager
    def _under_way(self, inputs: Inputs) -> Iterator[dict[str, Any]]:
        """Meanwhile layers attend and take in what ``inputs`` says; gives what the model is called with."""
        arguments = {"position_ids": inputs.positions[None], self._skeleton.cache_argument: inputs.cache, "use_cache": True}
        if inputs.tokens is not None:
            arguments["input_ids"] = inputs.tokens[None]
        else:
            assert inputs.hidden is not None
            arguments["inputs_embeds"] = self._arrived = inputs.hidden[None]
        for rotary in self._skeleton.rotaries:
            rotary.lengths = inputs.lengths
        token = ATTENDER.set(inputs.attend)
        try:
            yield arguments
        finally:
            ATTENDER.reset(token)
            self._arrived = None

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

    def _substitute(
        self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        assert self._arrived is not None
        if args:
            return (self._arrived, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._arrived}


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
