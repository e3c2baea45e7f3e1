"""A span by itself: how long a fresh worker takes to load it, and to run prompts through it, with nothing beside.

    python -m bench.alone MODEL DTYPE START STOP THREADS SEQUENCES LENGTH REPEATS

One JSON line: ``load_s`` and ``prefill_s``, an entry a repeat. Each repeat is a process forked off one that has imported what
workers import, as workers are. With ``python -m bench.alone --write DIRECTORY MODEL DTYPE`` a random model is written to disk.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

from bench.arguments import Parser, whole
from bench.program import BenchError, program
from bloombee.pipeline.work import Pages, Segment, Work
from bloombee.types import Dtype, PageGroup, Phase, Span

PAGE = 16
MOST_ROWS = 512
"""Of a forward, as ``RuntimeConfig.max_microbatch_rows`` has it."""


def _once(options: argparse.Namespace) -> dict[str, float]:
    """Load the span and run everything through it, in this process."""
    import torch

    from bloombee.engine.buffers import TORCH_DTYPES
    from bloombee.engine.checkpoint import resolve
    from bloombee.engine.model import SpanModel, set_threads

    began = time.monotonic()
    set_threads(options.threads)
    span, dtype = Span(options.start, options.stop), Dtype(options.dtype)
    pages = options.sequences * -(-options.length // PAGE)
    checkpoint = resolve(options.model)
    model = SpanModel.load(checkpoint, span, dtype=dtype, groups=[PageGroup(0, pages)], page_size=PAGE)
    loaded = time.monotonic()
    hidden = torch.randn(MOST_ROWS, model.hidden_size).to(TORCH_DTYPES[dtype])
    works = list(_works(options.sequences, options.length))
    started = time.monotonic()
    for work in works:
        model.run(work, hidden[: work.num_rows] if options.start else None)
    return {"load_s": loaded - began, "prefill_s": time.monotonic() - started}


def _works(sequences: int, length: int) -> list[Work]:
    """Everything at most :data:`MOST_ROWS` at once, sequence by sequence."""
    each = -(-length // PAGE)
    works: list[Work] = []
    for sequence in range(sequences):
        pages = Pages(tuple(range(each * sequence, each * (sequence + 1))))
        for start in range(0, length, MOST_ROWS):
            tokens = b"\1\0\0\0" * (min(length, start + MOST_ROWS) - start)
            segment = Segment(sequence, 0, start, tokens, 0, (pages,))
            works.append(Work(0, 0, len(works), len(works), Phase.PREFILL, (segment,)))
    return works


def _forked(options: argparse.Namespace) -> dict[str, float]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            os.write(writer, json.dumps(_once(options)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        found = answer.read()
    os.waitpid(child, 0)
    if not found:
        raise BenchError(f"layers {options.start} to {options.stop} of {options.model} could not be loaded alone")
    measured: dict[str, float] = json.loads(found)
    return measured


def _measure(words: list[str]) -> dict[str, Any]:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dtype", choices=[dtype.value for dtype in Dtype])
    for name in ("start", "stop", "threads", "sequences", "length", "repeats"):
        parser.add_argument(name, type=whole(0, 10**6))
    options = parser.parse_args(words)
    import bloombee.engine.model  # forked processes have it already

    assert bloombee.engine.model
    runs = [_forked(options) for _ in range(options.repeats)]
    return {name: [run[name] for run in runs] for name in ("load_s", "prefill_s")}


@program("alone")
def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["--write"]:
        from bench.exact import load

        _, directory, model, dtype = words
        load(model, Dtype(dtype)).save_pretrained(directory)
        return
    print(json.dumps(_measure(words)))


if __name__ == "__main__":
    sys.exit(main())
