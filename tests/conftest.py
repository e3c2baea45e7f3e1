"""Options of the tests, and what files of several folders use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("any clock", deadline=None)
settings.load_profile("any clock")  # how long an example takes is the machine's affair


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots", metavar="DIR", help="write pictures of the page into this folder (docs), as the docs show it"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of real processes and clocks share two cores with others: one that fails is run once more, and the report says so."""
    for item in items:
        if item.path.parent.name in ("integration", "hostile"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes with one thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
