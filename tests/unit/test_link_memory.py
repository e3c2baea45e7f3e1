"""Figures of links in a file: read again as they were kept, and never in the way."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bloombee.pipeline.swarm import Figure, Figures
from bloombee.roles.link_memory import figures_path, keep_figures, read_figures


def test_what_is_kept_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = figures_path()
    assert len(read_figures(path)) == 0
    figures = Figures()
    figures.put("head", "a", Figure(0.1, 0.01, 1e6, 9e5))
    figures.put("a", "head", Figure(0.1, 0.0, None, None, is_estimated=True))
    keep_figures(path, figures)
    assert read_figures(path) == figures
    assert [one.name for one in path.parent.iterdir()] == ["links.json"]


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", b'{"format": 2, "links": []}'])
def test_a_file_that_is_none_of_ours_is_said_and_no_more(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "links.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="bloombee"):
        assert len(read_figures(path)) == 0
    assert str(path) in caplog.text


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, logger="bloombee"):
        keep_figures(tmp_path / "file" / "links.json", Figures())
    assert "measured anew" in caplog.text
