"""Runs the cells of one model: rings are started once a pass, repeats are interleaved, each run is logged when it is done."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from bench.apart import TOKENS as APART_TOKENS
from bench.apart import Parts, measure_apart, parts_at
from bench.cells import Cell, RunLog, interleave, make_cells
from bench.exact import Reference
from bench.load import Run, measure, most_tokens, settle, warm_up
from bench.options import AUTO, MAX_BATCH, BenchOptions
from bench.peers.field import Field
from bench.planned import Cut, cut
from bench.preflight import Ground, kv_tokens, tokens_each
from bench.profiles import Profile, load_profile
from bench.program import BenchError
from bench.ring import Ring, RingSpec
from bench.summary import Subject, cell_line, failed_line, peer_line
from bench.techniques import TECHNIQUES
from bench.texts import prompts
from bloombee.errors import AddressInUse, BloomBeeError, ConfigError
from bloombee.models.card import ModelCard
from bloombee.models.standin import default_layer_paces, default_pace, is_standin, standin_card
from bloombee.pace import Pace, parse_pace
from bloombee.plan.plan import split_layers
from bloombee.plan.topology import Device, RowTime
from bloombee.runtime import Runtime
from tools.wan_native import WanError

FAILURES = (BenchError, BloomBeeError, WanError, OSError)
"""Of one cell; the others go on."""
AUTO_MOST = 256
CALIBRATION_BATCH = 32
Say = Callable[[str], None]
RingKey = tuple[int | None, str, tuple[int, ...] | None, bool, str]
"""Microbatches, codec, split, offload and drafts that a ring is started with."""


class ModelRunner:
    """All cells of one model. Making one starts nothing, and finds out whether every cell can be run.

    Args:
        facts: of where and of what is measured, for every line.

    Raises:
        OptionError: a cell cannot be run; says what could.
    """

    def __init__(self, card: ModelCard, options: BenchOptions, log: RunLog, facts: dict[str, str]) -> None:
        self.model = card.model
        self.options = options
        self.log = log
        self.subject: Subject
        """Of the first ring."""
        self._facts = facts
        self._card = card
        self._cuts: dict[str, Cut] = {}
        """By profile."""
        self._subjects: dict[RingKey, Subject] = {}
        rows = [*(technique.name for technique in options.techniques), *(env.technique for env in options.peers)]
        self._cells = make_cells(options.profiles, rows, options.batches)
        self._links = {name: load_profile(name, hidden=card.hidden_size) for name in options.profiles}
        self._ground = _ground(card, options)
        self._limits = {
            (cell.profile, cell.batch): tokens_each(self._ground, self._links[cell.profile], _most_sequences(cell.batch))
            for cell in self._cells
        }
        """Tokens that each sequence may generate, by profile and batch as asked for."""
        self._settled: set[tuple[Ring, str, int]] = set()
        self._lines: dict[Cell, dict[str, Any]] = {}
        """Of the cells that are done."""
        self._num_done = 0

    @property
    def has_failed(self) -> bool:
        """Some cell has no measurement."""
        return any("failed" in line for line in self._lines.values())

    async def run(self, on_run: Callable[[int, int, str], None]) -> list[dict[str, Any]]:
        """The line of each cell, all in the log's file as soon as they are done; of one that failed it says why.

        Args:
            on_run: called with (runs done, runs in all, what is next).

        Interrupted: what was done stays in the log.

        Raises:
            ConfigError, AddressInUse: something cannot be run at all.
        """
        self._on_run = on_run
        self._started = time.monotonic()
        with contextlib.ExitStack() as stack:
            self._reference: Reference | None = None
            self._apart = await self._measure_apart()
            for names in self._passes():
                cells = [cell for cell in self._cells if cell.profile in names]
                try:
                    await self._start_pass(cells, stack)
                except (ConfigError, AddressInUse):
                    raise
                except FAILURES as error:
                    self._fail(cells, error)
        return self._kept()

    async def _start_pass(self, cells: Sequence[Cell], stack: contextlib.ExitStack) -> None:
        async with self._rings(cells) as rings:
            first = next(iter(rings.values()))
            if self._reference is None:
                self._reference = stack.enter_context(Reference(self.model, first.runtime.plan.dtype))
            async with self._peers(first):
                await self._run_pass(cells, rings)

    def _kept(self) -> list[dict[str, Any]]:
        return [self._lines[cell] for cell in self._cells if cell in self._lines]

    def _keep(self, cell: Cell) -> None:
        """``cell`` is done: its line goes to the file."""
        self._lines[cell] = {**self._line(cell), **self._facts}
        self.log.keep(self._kept())

    def _fail(self, cells: Sequence[Cell], error: Exception) -> None:
        """Those of ``cells`` that are not done never will be."""
        for cell in cells:
            self._lines.setdefault(cell, {**failed_line(cell, self.model, str(error)), **self._facts})
        self.log.keep(self._kept())

    async def _measure_apart(self) -> tuple[Parts, ...]:
        """Of a ring of its own, while nothing else runs; nothing of devices whose pace is known."""
        options = self.options
        if options.pace is not None or is_standin(self.model):
            return ()
        self._on_run(self._num_done, self._num_runs, f"measuring devices and hops of {self.model} by themselves")
        most = max(CALIBRATION_BATCH if one == AUTO else one for one in options.batches)
        spec = RingSpec(
            model=self.model,
            dtype=options.dtype,
            workers=options.workers,
            microbatches=1,
            codec="off",
            pace=None,
            kv_tokens=(most + 1) * (options.prompt_tokens + most_tokens(APART_TOKENS) + 16),
            profile=load_profile("lan"),
            port=options.port,
        )
        async with Ring(spec) as ring:
            return tuple(await measure_apart(ring, most, options.prompt_tokens))

    def _passes(self) -> list[list[str]]:
        """Profiles that one set of rings can serve: all steady ones, then each with a schedule by itself."""
        steady: list[str] = []
        others: list[str] = []
        for name, profile in self._links.items():
            (others if profile.lasts_s else steady).append(name)
        return [names for names in (steady, *([name] for name in others)) if names]

    def _cut(self, cell: Cell) -> Cut | None:
        """As the planner has it; None where the cut is even."""
        if cell.technique not in TECHNIQUES or not TECHNIQUES[cell.technique].is_planned:
            return None
        if cell.profile not in self._cuts:
            most = max(_most_sequences(batch) for batch in self.options.batches)
            devices = _devices(self._card, self.options, self._apart)
            self._cuts[cell.profile] = cut(self._links[cell.profile], devices, self._card.shape(), most)
        return self._cuts[cell.profile]

    def _profile(self, cell: Cell) -> Profile:
        """The links of its ring, in ring order."""
        found = self._cut(cell)
        return self._links[cell.profile] if found is None else found.profile

    def _key(self, cell: Cell) -> RingKey:
        technique, found = TECHNIQUES[cell.technique], self._cut(cell)
        split = None if found is None else found.split
        return technique.microbatches, technique.codec, split, technique.offload, technique.draft

    @contextlib.asynccontextmanager
    async def _rings(self, cells: Sequence[Cell]) -> AsyncIterator[dict[RingKey, Ring]]:
        options = self.options
        ours = [cell for cell in cells if cell.technique in TECHNIQUES]
        first = {self._key(cell): cell for cell in reversed(ours)}
        async with contextlib.AsyncExitStack() as stack:
            rings: dict[RingKey, Ring] = {}
            for number, key in enumerate(dict.fromkeys(map(self._key, ours))):
                self._on_run(self._num_done, self._num_runs, f"starting {options.workers} workers of {self.model}")
                microbatches, codec, split, offload, draft = key
                spec = RingSpec(
                    model=self.model,
                    dtype=options.dtype,
                    workers=options.workers,
                    microbatches=microbatches,
                    codec=codec,
                    pace=options.pace,
                    kv_tokens=max(kv_tokens(self._ground, _most_sequences(cell.batch), self._limit(cell)) for cell in cells),
                    profile=self._profile(first[key]),
                    port=options.port + number if options.port else 0,
                    split=split,
                    offload=offload,
                    device_memory=options.device_memory if offload else None,
                    draft=draft,
                )
                rings[key] = ring = await stack.enter_async_context(Ring(spec))
                self._subjects[key] = _subject(ring.runtime, options, self._apart)
                if len(rings) == 1:
                    self.subject = self._subjects[key]
                await warm_up(ring)
            yield rings

    @contextlib.asynccontextmanager
    async def _peers(self, ring: Ring) -> AsyncIterator[None]:
        """The peers that were asked for, up for the length of the block."""
        if not self.options.peers:
            yield
            return
        self._on_run(self._num_done, self._num_runs, "starting peers")
        field = Field(self.options.peers, ring.spec.profile, self.model, ring.runtime.plan.dtype, self.subject.layers)
        self._field = await asyncio.to_thread(field.__enter__)
        try:
            yield
        finally:
            await asyncio.to_thread(field.__exit__)

    @property
    def _num_runs(self) -> int:
        return len(self._cells) * self.options.repeats

    async def _run_pass(self, cells: Sequence[Cell], rings: dict[RingKey, Ring]) -> None:
        for repeat, cell in interleave(cells, self.options.repeats):
            if cell not in self._lines:
                try:
                    await self._run_repeat(repeat, cell, rings)
                except FAILURES as error:
                    self._fail([cell], error)
                else:
                    if repeat == self.options.repeats - 1:
                        self._keep(cell)
            self._num_done += 1
        self._on_run(self._num_done, self._num_runs, "")

    async def _run_repeat(self, repeat: int, cell: Cell, rings: dict[RingKey, Ring]) -> None:
        """One run of ``cell``, logged, unless it was logged before or is beyond the budget."""
        if self.log.has(cell, repeat) or (repeat and self._is_late):
            return
        if cell.technique not in TECHNIQUES:
            self._on_run(self._num_done, self._num_runs, f"{cell.profile} {cell.technique} B={cell.batch}")
            self.log.add(cell, repeat, {"batch": cell.batch, **await self._run_peer(cell, next(iter(rings.values())))})
            return
        ring = rings[self._key(cell)]
        batch = cell.batch or await self._auto_batch(cell, ring)
        self._on_run(self._num_done, self._num_runs, f"{cell.profile} {cell.technique} B={batch}")
        self.log.add(cell, repeat, {"batch": batch, **await self._run_cell(cell, ring, batch)})

    @property
    def _is_late(self) -> bool:
        budget = self.options.budget_s
        return budget is not None and time.monotonic() - self._started > budget

    async def _run_cell(self, cell: Cell, ring: Ring, batch: int) -> dict[str, Any]:
        ring.shape(self._profile(cell))
        texts = prompts(batch, self.options.prompt_tokens, ring.runtime.card.tokenizer_json)
        if (ring, cell.profile, batch) not in self._settled:
            self._settled.add((ring, cell.profile, batch))
            await settle(ring, texts, self.options.tokens, limit=self._limit(cell))
        run = await measure(ring, texts, self.options.tokens, limit=self._limit(cell))
        assert self._reference is not None
        verdict = await asyncio.to_thread(self._reference.judge, texts, run.tokens)
        return {**run.to_json(), "exact": verdict.exact, "flips": verdict.flips}

    async def _run_peer(self, cell: Cell, ring: Ring) -> dict[str, Any]:
        """The rings are idle meanwhile, as the peers are while a ring runs."""
        texts = prompts(cell.batch, self.options.prompt_tokens, ring.runtime.card.tokenizer_json)
        peer = self._field.peers[cell.technique]
        peer.star.shape(self._links[cell.profile])
        run, tokens = await asyncio.to_thread(peer.measure, texts, self.options.tokens)
        assert self._reference is not None
        verdict = await asyncio.to_thread(self._reference.judge, texts, tokens)
        return {**run, "exact": verdict.exact, "flips": verdict.flips}

    async def _auto_batch(self, cell: Cell, ring: Ring) -> int:
        """ceil(1.25 x delay-free tokens/s x L): enough sequences to fill the links, measured without delays."""
        known = self.log.runs(cell)
        if known:
            return int(known[0]["batch"])
        ring.shape(load_profile("lan"))
        texts = prompts(CALIBRATION_BATCH, self.options.prompt_tokens, ring.runtime.card.tokenizer_json)
        run: Run = await measure(ring, texts, 8)
        links = [self._profile(cell).link(hop) for hop in range(ring.num_links)]
        loop_s = sum(link.forward.delay_s for link in links) + sum(run.computes_s)
        return max(1, min(AUTO_MOST, MAX_BATCH, math.ceil(1.25 * run.decode_tokens_per_s * loop_s)))

    def _limit(self, cell: Cell) -> int:
        return self._limits[cell.profile, cell.batch]

    def _line(self, cell: Cell) -> dict[str, Any]:
        runs = self.log.runs(cell)
        if cell.technique not in TECHNIQUES:
            return peer_line(cell, runs, self.subject, simulated=self.options.simulate)
        profile = self._profile(cell)
        num_links = self.options.workers if self.options.workers > 1 else 0
        return cell_line(
            Cell(cell.profile, cell.technique, int(runs[0]["batch"])),
            runs,
            self._subjects[self._key(cell)],
            [profile.link(hop) for hop in range(num_links)],
            simulated=self.options.simulate,
        )


def _most_sequences(batch: int) -> int:
    return AUTO_MOST if batch == AUTO else batch


def _ground(card: ModelCard, options: BenchOptions) -> Ground:
    return Ground(
        card=card,
        dtype=options.dtype,
        workers=options.workers,
        prompt_tokens=options.prompt_tokens,
        tokens=options.tokens,
        pace=parse_pace(options.pace) if options.pace is not None else None,
        rings=len({technique.way for technique in options.techniques}),
    )


def _subject(runtime: Runtime, options: BenchOptions, apart: tuple[Parts, ...]) -> Subject:
    plan, card = runtime.plan, runtime.card
    layers = tuple(len(stage.span) for stage in plan.stages)
    return Subject(
        model=card.model,
        dtype=str(plan.dtype),
        workers=len(plan.stages),
        layers=layers,
        hidden=card.hidden_size,
        row_bytes=card.hidden_size * plan.dtype.num_bytes,
        pace=options.pace or ("data sheet" if is_standin(card.model) else None),
        paces=_paces(runtime, options),
        prompt_tokens=options.prompt_tokens,
        tokens=options.tokens,
        apart=apart,
    )


def _paces(runtime: Runtime, options: BenchOptions) -> tuple[Pace, ...] | None:
    """As asked, or as a stand-in's data sheet says; None of real devices."""
    if options.pace is not None:
        return tuple(parse_pace(options.pace).for_layers(len(stage.span)) for stage in runtime.plan.stages)
    if not is_standin(runtime.card.model):
        return None
    return tuple(default_pace(standin_card(runtime.card.model), stage.span) for stage in runtime.plan.stages)


def _devices(card: ModelCard, options: BenchOptions, apart: tuple[Parts, ...]) -> list[Device]:
    """As the planner sees the workers: all alike, by their pace or data sheet, or by what was measured apart."""
    if options.pace is not None:
        device = Device.paced("", parse_pace(options.pace))
    elif is_standin(card.model):
        layer, output = (RowTime.paced(pace)[0] for pace in default_layer_paces(card))
        device = Device("", layer=layer, output=output)
    else:
        spans = split_layers(card.num_layers, options.workers)
        one, many = (parts_at(apart, rows).computes_s for rows in (1, CALIBRATION_BATCH))
        each = [_line_of(few, more, len(span)) for few, more, span in zip(one, many, spans, strict=True)]
        device = Device("", layer=min(each, key=lambda time: time.decode_s(CALIBRATION_BATCH)))
    return [device] * options.workers


def _line_of(one_s: float, many_s: float, layers: int) -> RowTime:
    """Of each layer of a stage, from its forwards of one row and of CALIBRATION_BATCH."""
    row_s = max(0.0, many_s - one_s) / (CALIBRATION_BATCH - 1)
    return RowTime(max(0.0, one_s - row_s) / layers, row_s / layers)
