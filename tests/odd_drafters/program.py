"""A drafter that behaves as its first argument says; the second is the digest of the vocabulary, the third its size."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def _say(said: Any) -> None:
    print(json.dumps(said), flush=True)


def _answer(ask: dict[str, Any], **fields: Any) -> dict[str, Any]:
    length = ask["first"] + len(ask["tokens"])
    whole = {"tokens": [7, 8], "parents": [0, 1], "scores": [0.9, 0.8], "sources": [2, 2]}
    return {"sequence": ask["sequence"], "length": length, **whole, **fields}


ANSWERS: dict[str, Any] = {
    "sound": _answer,
    "cycle": lambda ask: _answer(ask, parents=[2, 1]),
    "surer_than_its_parent": lambda ask: _answer(ask, scores=[0.5, 0.8]),
    "foreign_token": lambda ask: _answer(ask, tokens=[7, 1 << 30]),
    "too_many": lambda ask: _answer(
        ask, tokens=list(range(65536)), parents=[0] * 65536, scores=[1e-6] * 65536, sources=[2] * 65536
    ),
    "of_nobody": lambda ask: _answer(ask, sequence=99),
    "no_numbers": lambda ask: _answer(ask, tokens=["a", None]),
    "no_fields": lambda ask: {"what": "?"},
    "no_object": lambda ask: [1, 2],
}


def main() -> None:
    kind, digest, tokens = sys.argv[1], sys.argv[2] or None, int(sys.argv[3])
    if kind == "mute":
        time.sleep(600)
    if kind == "unable":
        _say({"error": ["ConfigError", {"message": "no such model"}]})
        return
    _say({"ready": {"vocabulary": "0" * 64 if kind == "other_vocabulary" else digest, "tokens": tokens}})
    for line in sys.stdin:
        said = json.loads(line)
        if "ask" not in said:
            continue
        if kind == "crashing":
            os._exit(1)
        if kind == "noise":
            print("no JSON at all", flush=True)
        elif kind != "hanging":
            _say(ANSWERS[kind](said["ask"]))


if __name__ == "__main__":
    main()
