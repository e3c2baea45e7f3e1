"""What was measured of links, in a file of the head's cache: a swarm that is known starts sooner."""

from __future__ import annotations

import logging
from pathlib import Path

from bloombee.config import cache_dir, write_cache
from bloombee.errors import ConfigError
from bloombee.pipeline.swarm import Figures

log = logging.getLogger(__name__)


def figures_path() -> Path:
    """May not exist yet."""
    return cache_dir() / "links.json"


def read_figures(path: Path) -> Figures:
    """None at all, if there is no such file or none that can be read."""
    try:
        return Figures.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Figures()
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        log.warning("%s: %s; links are measured anew", path, error)
        return Figures()


def keep_figures(path: Path, figures: Figures) -> None:
    """Whoever writes last is remembered; what cannot be written is measured anew another time."""
    try:
        write_cache(path, figures.to_json())
    except OSError as error:
        log.warning("%s: %s; links will be measured anew", path, error)
