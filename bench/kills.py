"""Kills of real workers while requests run, one after the other, and what became of each: plain data, and its table."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.fault_cells import CELLS, TYPED_S, Cell, Moment, Way, Who
from bench.profiles import Profile
from bench.same import Comparison, Request
from bloombee.wire.messages import Sampling

MODEL = "demo"
REQUESTS, PROMPT = 16, 160
LEAST_TOKENS, MOST_TOKENS = 48, 1800
"""Of an answer. The demo model has 2,048 positions."""
KILLED = tuple(cell for cell in CELLS if cell.who is not Who.HEAD)
"""The head's are done apart (bench/heads.py)."""
PARTS = ("detect_s", "load_s", "wire_s", "first_token_s")


@dataclass
class Kill:
    """One kill and what came of it.

    Args:
        who, moment, way: its cell.
        at: how far everything was when it happened, as a share of the prompts' time or of the tokens.
        detect_s, load_s, wire_s, first_token_s: one after the other; None: it did not happen, or that is not asked of the cell.
        typed_s: until the last request had its error, where nobody could take the place.
        lost: requests that ended with an error, or not at all, and should not have; or the other way round.
        reasons: the errors.
        load: of the machine, as it began.
        failed: why nothing came of it, if nothing did.
    """

    number: int
    who: str
    moment: str
    way: str
    at: float
    detect_s: float | None = None
    load_s: float | None = None
    wire_s: float | None = None
    first_token_s: float | None = None
    typed_s: float | None = None
    lost: int = 0
    reasons: list[str] = field(default_factory=list)
    same: Comparison = field(default_factory=Comparison)
    load: float = 0.0
    failed: str = ""

    @property
    def cell(self) -> Cell:
        return Cell(Who(self.who), Moment(self.moment), Way(self.way))

    @property
    def cost(self) -> int:
        """Workers that it takes."""
        return self.cell.num_killed + self.cell.has_a_loss_before

    @property
    def is_good(self) -> bool:
        """Nothing that a machine which does other things could be blamed for is part of it."""
        return not (self.failed or self.lost or self.same.num_wrong)

    @property
    def is_late(self) -> bool:
        """Errors came later than they may."""
        return self.typed_s is not None and self.typed_s > TYPED_S


@dataclass(frozen=True, slots=True)
class Series:
    """What makes kills comparable. ``new``: tokens of each answer."""

    seed: int
    count: int
    new: int
    profile: Profile
    device: str

    def kills(self) -> list[Kill]:
        """Each cell in turn, in an order of chance."""
        rng = random.Random(self.seed)
        rounds = [rng.sample(KILLED, len(KILLED)) for _ in range(-(-self.count // len(KILLED)))]
        chosen = list(itertools.chain.from_iterable(rounds))[: self.count]
        return [Kill(number, one.who, one.moment, one.way, rng.uniform(0.1, 0.8)) for number, one in enumerate(chosen)]

    def requests(self) -> list[Request]:
        """A third greedy, a third sampled, a third sampled with a filter and a penalty."""
        rng = random.Random(self.seed + 1)
        return [Request([rng.randrange(1, 4096) for _ in range(PROMPT)], _sampling(number)) for number in range(REQUESTS)]

    def to_json(self) -> dict[str, Any]:
        return {"seed": self.seed, "kills": self.count, "tokens": self.new, "links": self.profile.name, "device": self.device}


def _sampling(number: int) -> Sampling:
    kind = number % 3
    return Sampling(
        temperature=(0.0, 0.8, 0.7)[kind],
        top_k=0,
        top_p=0.95 if kind == 2 else 1.0,
        min_p=0.0,
        repetition_penalty=1.1 if kind == 2 else 1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        seed=number,
        logprobs=-1,
    )


def tokens_for(count: int, wanted: int) -> int:
    """Of each answer, so that ``count`` kills compare ``wanted`` tokens, as far as the model has positions."""
    return max(LEAST_TOKENS, min(MOST_TOKENS, -(-wanted // (max(1, count) * REQUESTS))))


class KillLog:
    """Kills that are done, a line of JSON each, so that a series can be run in pieces.

    Args:
        path: None: they are kept nowhere.
        facts: of the machine and the code; kills of others are not gone on with.
    """

    def __init__(self, path: Path | None, series: Series, facts: dict[str, str]) -> None:
        self.path = path
        self._asked = {**facts, **series.to_json()}
        self.done = {kill.number: kill for kill in self._read()}

    def add(self, kill: Kill) -> None:
        """On disk before this returns.

        Raises:
            OSError: it cannot be written.
        """
        self.done[kill.number] = kill
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"mode": "kill", "asked": self._asked, "kill": asdict(kill)}) + "\n")

    def _read(self) -> list[Kill]:
        """A line that an interruption cut short is none. What failed is tried again."""
        kills = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path and self.path.is_file() else []:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if row.get("mode") == "kill" and row["asked"] == self._asked and not row["kill"]["failed"]:
                kills.append(Kill(**{**row["kill"], "same": Comparison(**row["kill"]["same"])}))
        return kills


def kills_table(kills: Sequence[Kill]) -> Table:
    table = Table(title="kills of real workers; milliseconds, one after the other, medians; typed: until all errors had come")
    for column in ("who", "when", "goes on by", "kills", "lost", "wrong", "flips", "detect", "load", "wire", "token", "typed"):
        table.add_column(column, justify="left" if column in ("who", "when", "goes on by") else "right", no_wrap=True)
    for cell in KILLED:
        own = [kill for kill in kills if kill.cell == cell]
        if own:
            counts = (len(own), *(sum(one) for one in zip(*map(_counts, own), strict=True)))
            times = (_median_ms([getattr(kill, name) for kill in own]) for name in (*PARTS, "typed_s"))
            table.add_row(cell.who, cell.moment, cell.way, *map(str, counts), *times)
    return table


def _counts(kill: Kill) -> tuple[int, int, int]:
    return kill.lost, kill.same.num_wrong, kill.same.num_flips


def _median_ms(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{1e3 * statistics.median(known):.0f}" if known else "-"
