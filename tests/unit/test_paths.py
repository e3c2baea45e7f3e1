"""Where code may come from: not from the current folder, whichever way it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from bloombee.paths import code_paths


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_current_folder_gives_no_code_under_any_name(here: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(here)
    names = ["", ".", str(here), f"{here}/", str(tmp_path / "link"), "src", "../checkpoint", tmp_path]
    assert code_paths([*names, "/lib", "/site"], "/site") == ["/lib", "/site"]


def test_a_program_that_lies_in_the_current_folder_still_finds_what_lies_beside_it(here: Path) -> None:
    assert code_paths([str(here), "/lib"], str(here)) == ["/lib", str(here)]


def test_what_an_application_has_inserted_stays_first() -> None:
    assert code_paths(["/app/vendored", "/lib", "/site"], "/app/vendored") == ["/app/vendored", "/lib", "/site"]


def test_a_current_folder_that_was_deleted_gives_no_code(here: Path) -> None:
    here.rmdir()
    assert code_paths(["", "/lib"], "/lib") == ["/lib"]
