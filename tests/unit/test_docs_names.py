"""Files and folders that the documentation names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "bench/README.md", *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").glob("*.md")))]
FOLDERS = ["", "bloombee", "bench", "tools", "tests", "csrc", "docs"]
FOLDERS += [str(folder.relative_to(ROOT)) for folder in sorted((ROOT / "bloombee").iterdir()) if folder.is_dir()]
"""What a page may name a file from."""


def _is_there(name: str, page: Path) -> bool:
    return any((ROOT / folder / name).exists() for folder in FOLDERS) or (page.parent / name).exists()


@pytest.mark.parametrize("page", PAGES)
def test_a_file_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]*(?:\.py|\.cpp|\.h|\.toml)?)`", text))
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    missing = sorted(name for name in named | links if name and not _is_there(name, ROOT / page))
    assert not missing
