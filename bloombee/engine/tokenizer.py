"""A checkpoint's tokenizer, as transformers reads it."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from bloombee.engine.checkpoint import Checkpoint
from bloombee.errors import ConfigError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json", "tekken.json")


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """transformers' tokenizer of the checkpoint; None if it has none."""
    directory = checkpoint.directory
    if directory is None or not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of whatever is in its files
        raise ConfigError(f"{checkpoint.ref}: its tokenizer cannot be loaded: {error}", model=checkpoint.ref) from error


def tokenizer_json(checkpoint: Checkpoint) -> str | None:
    """Of the tokenizers library; None: the checkpoint has none that this library can have. Raises as :func:`load_tokenizer`.

    As its file has it, if it has one: to read that costs much less than what transformers makes of it, and tokens that only a
    configuration adds are no text.
    """
    directory = checkpoint.directory
    if directory is not None and (directory / "tokenizer.json").is_file():
        return (directory / "tokenizer.json").read_text("utf-8")
    tokenizer = load_tokenizer(checkpoint)
    return None if tokenizer is None or not tokenizer.is_fast else tokenizer.backend_tokenizer.to_str()
