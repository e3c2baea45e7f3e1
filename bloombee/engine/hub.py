"""Files of a hub checkpoint, fetched one by one: a worker downloads the shards of its span and no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import tqdm

from bloombee.errors import ConfigError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_UNREACHABLE = (OSError, ValueError, HfHubHTTPError.__bases__[0])
"""With the base of all errors of the HTTP library that the hub's client uses, whichever it is."""
SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
"""Config, index, tokenizer, chat template: everything about a model but its weights."""


def is_id(name: str) -> bool:
    """Whether ``name`` could be a hub id at all (``owner/name``, or one of the few without owner)."""
    return _ID.fullmatch(name) is not None and not name.endswith((".json", ".safetensors", ".gguf"))


@dataclass(frozen=True, slots=True)
class Repo:
    """One revision of a hub repository; ``directory`` is its snapshot in the hub's cache.

    Args:
        on_bytes: called from the hub's own threads whenever some of a file have come.
    """

    id: str
    directory: Path
    on_bytes: Callable[[], None] | None = field(default=None, compare=False)

    def fetch(self, name: str) -> Path:
        """The local path of file ``name``, downloaded if the cache lacks it.

        Raises:
            ConfigError: the hub cannot be reached (or HF_HUB_OFFLINE is set) and the cache lacks it.
        """
        try:
            bar = None if self.on_bytes is None else _bar(self.on_bytes)
            return Path(huggingface_hub.hf_hub_download(self.id, name, revision=self.directory.name, tqdm_class=bar))
        except (OSError, HfHubHTTPError, LocalEntryNotFoundError, ValueError) as error:
            raise ConfigError(f"{self.id}: cannot fetch {name}: {_first_line(error)}", model=self.id, path=name) from error

    def has(self, name: str) -> bool:
        """Whether this revision has file ``name``. Without an answer from the hub or its cache: no."""
        revision = self.directory.name
        known = huggingface_hub.try_to_load_from_cache(self.id, name, revision=revision)
        if known is not None:
            return isinstance(known, str)
        try:
            return bool(huggingface_hub.file_exists(self.id, name, revision=revision))
        except _UNREACHABLE:
            return False


def _bar(on_bytes: Callable[[], None]) -> type[tqdm[Any]]:
    """The hub tells of bytes through a progress bar alone: one that tells on, also where bars are switched off."""

    class Bar(tqdm):  # type: ignore[misc]
        def update(self, n: float | None = 1) -> bool | None:
            on_bytes()
            return super().update(n)  # type: ignore[no-any-return]

    return Bar


def open_repo(repo_id: str, on_bytes: Callable[[], None] | None = None) -> Repo:
    """The newest revision of ``repo_id`` with its small files present, from the hub or from its cache.

    Raises:
        ConfigError: no such repository, no access to it, or no network and not in the cache.
    """
    try:
        return Repo(repo_id, Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=SMALL_FILES)), on_bytes)
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, ValueError) as error:
        raise ConfigError(
            f"no model {repo_id!r}: there is no such directory, and the hub (or its cache here) gave none: {_first_line(error)}",
            model=repo_id,
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
