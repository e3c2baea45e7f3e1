"""Whether two models speak of the same tokens: a digest of which text has which number."""

from __future__ import annotations

import hashlib
import json

from tokenizers import Tokenizer


def vocabulary_digest(tokenizer_json: str) -> str:
    """64 hex digits. How text is cut into tokens plays no part: a drafter never sees text.

    Raises:
        Exception: whatever the ``tokenizers`` library raises for what is no tokenizer of it.
    """
    tokens = Tokenizer.from_str(tokenizer_json).get_vocab(with_added_tokens=True)
    return hashlib.sha256(json.dumps(sorted(tokens.items(), key=lambda one: (one[1], one[0]))).encode()).hexdigest()
