"""Prompts of real, distinct text: the Python standard library's own sources."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from bench.arguments import OptionError

MIN_FILE_BYTES = 4000
MAX_PROMPT_TOKENS = 1024
"""Of one prompt: with the demo model's tokenizer 815 parts of files are that long, and 1,081 hold 768 tokens."""


class TextError(OptionError):
    """More, or longer, prompts than there is text for."""


def most_prompts(tokens: int) -> int:
    """So many prompts of ``tokens`` there are with any tokenizer as good as the demo model's."""
    return 1024 if tokens <= 768 else 512


def prompts(count: int, tokens: int, tokenizer_json: str | None) -> list[list[int]]:
    """``count`` prompts of exactly ``tokens`` token ids, each from another place.

    Args:
        tokenizer_json: of the ``tokenizers`` library; None takes the text's bytes as ids.

    Raises:
        TextError: there are not so many.
    """
    tokenizer = Tokenizer.from_str(tokenizer_json) if tokenizer_json is not None else None
    found: dict[tuple[int, ...], None] = {}
    for text in _texts():
        ids = list(text.encode()) if tokenizer is None else list(tokenizer.encode(text, add_special_tokens=False).ids)
        if len(ids) >= tokens:
            found[tuple(ids[:tokens])] = None
        if len(found) == count:
            return [list(one) for one in found]
    raise TextError(f"the standard library's sources hold {len(found)} prompts of {tokens} tokens, not {count}")


def _texts() -> Iterator[str]:
    """Parts of files in a fixed order, one of each file before the second of any."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in root.glob("*.py") if path.stat().st_size > MIN_FILE_BYTES)
    for start in range(0, 100_000, MIN_FILE_BYTES):
        for path in files:
            if part := path.read_text("utf-8", errors="replace")[start : start + MIN_FILE_BYTES]:
                yield part
