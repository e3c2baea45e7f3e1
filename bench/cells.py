"""Cells of a benchmark run, and the log that lets an interrupted run go on where it stopped.

A cell is one row of the table; each is run several times, the repeats interleaved. Finished runs are appended to
``FILE.part``, whose first line says what was asked for; ``FILE`` gets the line of each cell when all of its runs are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.arguments import check_file, make_folder, reason
from bench.program import BenchError


class LogError(BenchError):
    """A finished run could not be written down."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """``batch`` 0: to be chosen when the model is up (``auto``)."""

    profile: str
    technique: str
    batch: int


def make_cells(profiles: Sequence[str], techniques: Sequence[str], batches: Sequence[int]) -> list[Cell]:
    """In the order of the table."""
    return [Cell(profile, technique, batch) for profile in profiles for batch in batches for technique in techniques]


def interleave(cells: Sequence[Cell], repeats: int) -> Iterator[tuple[int, Cell]]:
    """(repeat, cell): whole rounds, every second one backwards, so that a slow minute of the machine favours no row."""
    for repeat in range(repeats):
        yield from ((repeat, cell) for cell in (cells if repeat % 2 == 0 else reversed(cells)))


class RunLog:
    """Runs that are done.

    Args:
        path: of the final file; the log lies beside it.
        asked: everything that makes two runs comparable. A log of anything else is set aside and begun anew.

    Raises:
        OptionError: ``path`` or the log beside it cannot be written. Later, LogError.
    """

    def __init__(self, path: Path, asked: dict[str, Any]) -> None:
        self.path = path
        self.part = path.with_name(path.name + ".part")
        make_folder(path.parent)
        check_file(path)
        check_file(self.part)
        self._asked = json.loads(json.dumps(asked))
        self._runs: dict[tuple[Cell, int], dict[str, Any]] = {}
        self.resumed = self._read()
        """How many runs were found."""
        if not self.resumed:
            self.part.write_text(json.dumps({"asked": self._asked}) + "\n", encoding="utf-8")

    def has(self, cell: Cell, repeat: int) -> bool:
        return (cell, repeat) in self._runs

    def add(self, cell: Cell, repeat: int, run: dict[str, Any]) -> None:
        """Keep a finished run, on disk before this returns."""
        self._runs[cell, repeat] = run
        try:
            with self.part.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"cell": asdict(cell), "repeat": repeat, "run": run}) + "\n")
        except OSError as error:
            raise LogError(f"cannot write {self.part}: {reason(error)}") from error

    def runs(self, cell: Cell) -> list[dict[str, Any]]:
        """Of ``cell``, by repeat."""
        mine = {repeat: run for (one, repeat), run in self._runs.items() if one == cell}
        return [mine[repeat] for repeat in sorted(mine)]

    def keep(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write the lines of the cells that are done so far."""
        try:
            self.path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        except OSError as error:
            raise LogError(f"cannot write {self.path}: {reason(error)}; the runs are in {self.part}") from error

    def finish(self) -> None:
        """All is done: drop the log."""
        try:
            self.part.unlink(missing_ok=True)
        except OSError as error:
            raise LogError(f"cannot remove {self.part}: {reason(error)}") from error

    def _read(self) -> int:
        try:
            lines = self.part.read_text(encoding="utf-8").splitlines()
            if not lines or json.loads(lines[0]).get("asked") != self._asked:
                return 0
        except (OSError, ValueError):
            return 0
        for number, line in enumerate(lines[1:], start=1):
            try:
                entry = json.loads(line)
            except ValueError:  # the run was interrupted while it was written down
                self.part.write_text("".join(one + "\n" for one in lines[:number]), encoding="utf-8")
                break
            self._runs[Cell(**entry["cell"]), entry["repeat"]] = entry["run"]
        return len(self._runs)
