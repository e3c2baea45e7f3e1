"""Whoever is lost, and whenever: no token is lost, doubled or changed, or, with nobody to go on, each request ends typed."""

from __future__ import annotations

import pytest

from bench.fault_cells import CELLS, Cell, Who
from bench.fault_sim import simulate_cell

DEEP = [cell for cell in CELLS if cell.who in (Who.ADJACENT, Who.SUCCESSOR)]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_what_a_cell_promises_comes_of_it(cell: Cell) -> None:
    assert simulate_cell(cell, CELLS.index(cell)).wrong == ""


@pytest.mark.parametrize("cell", DEEP, ids=str)
@pytest.mark.parametrize("seed", range(1000, 1006))
def test_two_neighbours_or_the_new_one_of_a_hand_over_with_more_seeds(cell: Cell, seed: int) -> None:
    assert simulate_cell(cell, seed).wrong == ""
