"""A small model that drafts: trees by path probability, for several sequences at once.

It keeps its keys and values from one question to the next: a question tells the tokens that are new, rows of drafted ones that
were right stay where they are, and nothing is read twice. A tree grows in waves, each one forward for the nodes of all sequences
that may still have a child among the best.

Where the target draws its tokens with noise, that is a function of seed, position and token alone (docs/adr/0002), so a drafter
that knows the seed draws with the same, and agrees with the target far more often than two draws would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from bloombee.engine.buffers import TORCH_DTYPES
from bloombee.engine.checkpoint import resolve
from bloombee.engine.draft_memory import DraftStep, Part, SequenceMemory
from bloombee.engine.forward import Inputs
from bloombee.engine.model import SpanModel
from bloombee.engine.noise import gumbel
from bloombee.engine.skeleton import build
from bloombee.errors import ModelUnsupported
from bloombee.spec.drafter import MODEL, SAMPLED
from bloombee.spec.tree import EMPTY, Draft
from bloombee.types import Dtype, PageGroup, Span

WIDTH = 8
"""Most children of a node."""
CANDIDATES = 64
"""Tokens that noise is drawn for."""
CHUNK = 512
"""Rows of a sequence in one forward."""
MOST_WAVES = 48
KEPT_ROWS = 1 << 17
"""Of all sequences, that stay in memory; whoever was asked about longest ago is read again after that."""
GROWTH = 0.5
"""How likely a wave's nodes are guessed to have a right child, to tell whether it is worth its time."""


@dataclass(frozen=True, slots=True)
class Question:
    """What may follow a sequence?

    Args:
        first: tokens before are known. tokens: from there on, all that are confirmed.
        budget: most nodes. least: paths that are less likely are worth nothing.
        rate: tokens per second that the sequence makes: what time is worth.
        temperature, seed: of its sampling; temperature 0: the likeliest.
    """

    sequence: int
    first: int
    tokens: tuple[int, ...]
    budget: int
    least: float
    rate: float
    temperature: float = 0.0
    seed: int = 0


@dataclass(slots=True)
class _Node:
    token: int
    parent: int
    score: float
    depth: int
    row: int | None = None
    """In the memory, once it was run."""


@dataclass(slots=True)
class _Known:
    """Of a sequence."""

    memory: SequenceMemory
    tokens: list[int] = field(default_factory=list)
    nodes: list[_Node] = field(default_factory=list)
    """The last tree; [0] is its root."""
    read: int = 0
    """Confirmed tokens whose rows the memory has."""

    def take(self, tokens: Sequence[int]) -> None:
        """Confirm ``tokens``; rows of the tree's nodes that they go along stay. The last token's row is always to be run again:
        what follows it is asked for."""
        rows, node = [], 0
        for token in tokens:
            node = next((n for n, one in enumerate(self.nodes) if one.parent == node and one.token == token and n), 0)
            row = self.nodes[node].row if node else None
            if row is None:
                break
            rows.append(row)
        self.tokens += tokens
        self.nodes = []
        if self.read + len(rows) >= len(self.tokens):
            rows = rows[: max(0, len(self.tokens) - 1 - self.read)]
        self.memory.keep(min(self.read, len(self.tokens) - 1), rows)
        self.read = self.memory.length


class DraftModel:
    """Weights and memory of one draft model. One thread at a time.

    Raises:
        ConfigError, ModelUnsupported, DeviceError: as :meth:`SpanModel.load <bloombee.engine.model.SpanModel.load>`.
    """

    def __init__(self, model: str, *, device: str = "cpu", now: Callable[[], float] = time.perf_counter) -> None:
        checkpoint = resolve(model)
        dtype = Dtype.FLOAT32 if device == "cpu" else checkpoint.dtype
        span = Span(0, build(checkpoint, dtype).num_layers)
        self._model = SpanModel.load(checkpoint, span, dtype=dtype, device=device, groups=(PageGroup(0, 1),), page_size=1)
        self._layers = tuple(self._model.kv.layers.values())
        if any(one.latent for one in self._layers):
            raise ModelUnsupported(f"{model}: keys and values are latent, which a draft model's may not be", unsupported="latent")
        self._dtype = TORCH_DTYPES[dtype]
        self._positions = int(getattr(checkpoint.config, "max_position_embeddings", 1 << 30))
        self._now = now
        self._wave_s = 0.0
        self._known: dict[int, _Known] = {}
        """Least lately asked about first."""

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    def answer(self, questions: Sequence[Question]) -> list[Draft]:
        """A draft for each, in order; an empty one for a sequence of which it does not know the tokens before, or which is too
        long.

        Time: one forward for what is new, and one a wave.
        """
        with torch.inference_mode():
            return self._answer(questions)

    def _answer(self, questions: Sequence[Question]) -> list[Draft]:
        growths = [self._begin(question) for question in questions]
        growing = [growth for growth in growths if growth is not None]
        self._read(growing)
        for _ in range(MOST_WAVES):
            waves = [(growth, growth.wave()) for growth in growing]
            promise = sum(growth.nodes[node].score for growth, wave in waves for node in wave)
            if GROWTH * promise <= self._wave_s * sum(growth.question.rate for growth, wave in waves if wave):
                break
            started = self._now()
            self._run([(growth, wave) for growth, wave in waves if wave])
            took = self._now() - started
            self._wave_s = took if not self._wave_s else 0.8 * self._wave_s + 0.2 * took
        self._forget()
        return [EMPTY if growth is None else growth.draft() for growth in growths]

    def closed(self, sequence: int) -> None:
        self._known.pop(sequence, None)

    def _begin(self, question: Question) -> _Growth | None:
        known = self._known.pop(question.sequence, None)
        if known is None:
            known = _Known(SequenceMemory(self._layers, self._dtype, self._model.device))
        self._known[question.sequence] = known
        if question.first != len(known.tokens):
            return None
        known.take(question.tokens)
        if not known.tokens or len(known.tokens) + MOST_WAVES >= self._positions:
            return None
        return _Growth(question, known)

    def _read(self, growths: Sequence[_Growth]) -> None:
        """Run the confirmed rows that are new, and have the roots' children of the last of them."""
        while waiting := [growth for growth in growths if growth.known.read < len(growth.known.tokens)]:
            parts = []
            for growth in waiting:
                known = growth.known
                stop = min(len(known.tokens), known.read + CHUNK)
                parts.append(Part(known.memory, known.tokens[known.read : stop], range(known.read, stop)))
            logits = self._forward(parts, last_only=True)
            for growth, part, row in zip(waiting, parts, logits, strict=True):
                growth.known.read += len(part.tokens)
                if growth.known.read == len(growth.known.tokens):
                    growth.add_children(0, row)

    def _run(self, waves: Sequence[tuple[_Growth, list[int]]]) -> None:
        """Run the nodes of a wave, and have their children."""
        logits = self._forward([growth.part(wave) for growth, wave in waves], last_only=False)
        number = 0
        for growth, wave in waves:
            for node in wave:
                growth.add_children(node, logits[number])
                number += 1

    def _forward(self, parts: Sequence[Part], *, last_only: bool) -> torch.Tensor:
        """[n, v] float32 of every row, or of each part's last; the rows are in the memories from now on."""
        step = DraftStep(parts)
        tokens = torch.tensor([token for part in parts for token in part.tokens], device=self._model.device)
        positions = torch.tensor([position for part in parts for position in part.positions], device=self._model.device)
        keep = torch.tensor(np.cumsum([len(part.tokens) for part in parts]) - 1, device=self._model.device) if last_only else 0
        found = self._model.steps.forward.logits(Inputs(step, step.attend, positions, tokens), keep)
        for part in parts:
            part.memory.length += len(part.tokens)
        return found

    def _forget(self) -> None:
        """Memory of whoever was asked about longest ago, where all together have too much."""
        total = sum(known.memory.capacity for known in self._known.values())
        for known in self._known.values():
            if total <= KEPT_ROWS:
                return
            total -= known.memory.capacity
            known.memory = SequenceMemory(self._layers, self._dtype, self._model.device)
            known.read, known.nodes = 0, []


class _Growth:
    """A tree while it grows."""

    def __init__(self, question: Question, known: _Known) -> None:
        self.question = question
        self.known = known
        self.nodes = known.nodes = [_Node(known.tokens[-1], -1, 1.0, 0)]
        self._ran: set[int] = {0}

    def wave(self) -> list[int]:
        """Nodes of the best that may have a child among the best."""
        best = self._best()
        lowest = self.nodes[best[-1]].score if len(best) == self.question.budget else 0.0
        floor = max(lowest, self.question.least)
        return sorted(node for node in best if node not in self._ran and self.nodes[node].score > floor)

    def part(self, wave: Sequence[int]) -> Part:
        """``wave`` as rows of a forward: each sees what is confirmed, the nodes above it, and itself."""
        memory, confirmed = self.known.memory, len(self.known.tokens)
        allowed = torch.zeros(len(wave), memory.length + len(wave), dtype=torch.bool)
        allowed[:, :confirmed] = True
        for number, node in enumerate(wave):
            self.nodes[node].row = memory.length + number
            allowed[number, self._rows(node)] = True
        self._ran.update(wave)
        tokens = [self.nodes[node].token for node in wave]
        positions = [confirmed - 1 + self.nodes[node].depth for node in wave]
        return Part(memory, tokens, positions, allowed.to(memory.positions.device))

    def add_children(self, node: int, logits: torch.Tensor) -> None:
        """The likeliest tokens behind ``node``."""
        above = self.nodes[node]
        for token, chance in zip(*self._likeliest(logits, len(self.known.tokens) + above.depth), strict=True):
            if above.score * chance < self.question.least:
                break
            self.nodes.append(_Node(token, node, above.score * chance, above.depth + 1))

    def draft(self) -> Draft:
        best = sorted(self._best())
        number = {0: 0} | {node: new for new, node in enumerate(best, start=1)}
        nodes = [self.nodes[node] for node in best]
        source = SAMPLED if self.question.temperature else MODEL
        return Draft(
            tuple(one.token for one in nodes),
            tuple(number[one.parent] for one in nodes),
            tuple(one.score for one in nodes),
            (source,) * len(nodes),
        )

    def _likeliest(self, logits: torch.Tensor, position: int) -> tuple[list[int], list[float]]:
        """(tokens, how likely each is to be picked at ``position``), likeliest first."""
        temperature = self.question.temperature
        if not temperature:
            chances, tokens = torch.softmax(logits, -1).topk(min(WIDTH, len(logits)))
            return tokens.tolist(), chances.tolist()
        found, tokens = logits.topk(min(CANDIDATES, len(logits)))
        ids = tokens.cpu().numpy()
        noisy = found.cpu().double().numpy() / temperature + gumbel(self.question.seed, position, ids)
        order = np.argsort(-noisy)[:WIDTH]
        chances = np.exp(noisy - noisy.max())
        return ids[order].tolist(), (chances / chances.sum())[order].tolist()

    def _best(self) -> list[int]:
        """The likeliest nodes, the root aside, as many as are asked for. Parents are among them: they are no less likely, and
        older."""
        order = sorted(range(1, len(self.nodes)), key=lambda node: (-self.nodes[node].score, node))
        return order[: self.question.budget]

    def _rows(self, node: int) -> list[int]:
        """In the memory, of ``node`` and the nodes above it."""
        rows = []
        while node:
            row = self.nodes[node].row
            assert row is not None
            rows.append(row)
            node = self.nodes[node].parent
        return rows
