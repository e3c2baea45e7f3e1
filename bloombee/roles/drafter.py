"""A process that drafts with a small model: ``bloombee.roles.drafter MODEL DEVICE THREADS``.

Any program may take its place that speaks as it does, in JSON lines. It says what it is, once it can be asked::

    {"ready": {"vocabulary": digest or null, "tokens": how many}}      or    {"error": [code, fields]}

``vocabulary`` is that of roles/vocabulary.py. Then it is asked, of any number of sequences at a time, answers every question, in
any order, and may answer with no tokens at all; and is told of sequences that have ended::

    {"ask": {"sequence", "first", "tokens", "budget", "least", "rate", "temperature", "seed"}}
    {"sequence", "length", "tokens", "parents", "scores", "sources"}
    {"closed": sequence}

A question is ``Question`` of engine/drafting.py; an answer a ``Draft`` of spec/tree.py behind the sequence's first ``length``
tokens, which are ``first`` of the question and its ``tokens``.

Standard input is its lifeline: where that ends, it does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from bloombee.errors import BloomBeeError, to_wire


def main() -> None:
    orders = os.fdopen(os.dup(0), "rb", buffering=0)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever prints by accident goes to stderr, not into the protocol
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _serve(orders, answers, *sys.argv[1:4])
    except BrokenPipeError:
        return


def _serve(orders: BinaryIO, answers: BinaryIO, model: str, device: str, threads: str) -> None:
    from bloombee.engine.checkpoint import resolve
    from bloombee.engine.drafting import DraftModel, Question
    from bloombee.engine.model import pick_device, set_threads
    from bloombee.roles.vocabulary import vocabulary_digest

    try:
        set_threads(int(threads))
        drafter = DraftModel(model, device=pick_device(device))
        directory = resolve(model).directory
        tokenizer = directory / "tokenizer.json" if directory is not None else None
        digest = vocabulary_digest(tokenizer.read_text("utf-8")) if tokenizer is not None and tokenizer.is_file() else None
    except BloomBeeError as error:
        return _say(answers, {"error": to_wire(error)})
    _say(answers, {"ready": {"vocabulary": digest, "tokens": drafter.vocab_size}})
    for lines in waiting_lines(orders):
        questions = []
        for line in lines:
            if "closed" in line:
                drafter.closed(line["closed"])
            else:
                questions.append(Question(**{**line["ask"], "tokens": tuple(line["ask"]["tokens"])}))
        for question, draft in zip(questions, drafter.answer(questions), strict=True):
            length = question.first + len(question.tokens)
            said = {"tokens": draft.tokens, "parents": draft.parents, "scores": draft.scores, "sources": draft.sources}
            _say(answers, {"sequence": question.sequence, "length": length, **said})
    return None


def waiting_lines(orders: BinaryIO) -> Iterator[list[dict[str, Any]]]:
    """All whole lines that are there, whenever there are some, until the stream ends."""
    pending = b""
    while chunk := os.read(orders.fileno(), 1 << 16):
        pending += chunk
        while select.select([orders], [], [], 0)[0] and (chunk := os.read(orders.fileno(), 1 << 16)):
            pending += chunk
        *lines, pending = pending.split(b"\n")
        if lines:
            yield [json.loads(line) for line in lines]


def _say(answers: BinaryIO, said: dict[str, Any]) -> None:
    rest = memoryview(json.dumps(said).encode() + b"\n")
    while rest:
        rest = rest[os.write(answers.fileno(), rest) :]


if __name__ == "__main__":
    main()
