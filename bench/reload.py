"""What a worker's process holds once it has let spans go: resident memory after it has loaded several, each beside the one before
it, over that of a fresh process which has loaded the last of them alone.

Example:
  python -m bench.reload --model llama:1024x16 --spans 0:16,4:6
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.arguments import Parser, shown
from bench.program import BenchError, headline, program
from bloombee.codec.choice import CodecMode
from bloombee.pipeline.work import Outcome, Pages, Segment, Work
from bloombee.roles.executor import SpanExecutor
from bloombee.roles.loading import Loader
from bloombee.roles.work_thread import WorkThread
from bloombee.types import Phase, Span
from bloombee.wire.messages import Group, Load

PAGE_SIZE, ROWS = 16, 256
GOAL = 1.05


def read_spans(text: str) -> list[Span]:
    """From ``0:16,4:6``."""
    try:
        return [Span(*map(int, part.split(":"))) for part in text.split(",")]
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{shown(text)}: must be spans as 0:16,4:6") from None


def resident_bytes(model: str, spans: list[Span]) -> int:
    """Of a process of its own, after it has loaded ``spans``, each let go once the next is there; each runs a forward."""
    words = ["--model", model, "--spans", ",".join(f"{span.start}:{span.stop}" for span in spans), "--here"]
    run = subprocess.run([sys.executable, "-m", "bench.reload", *words], capture_output=True, text=True, check=False)
    if run.returncode:
        raise BenchError(run.stderr.strip())
    return int(json.loads(run.stdout)["resident_bytes"])


async def load_here(model: str, spans: list[Span]) -> int:
    """As :func:`resident_bytes`, of this process."""
    from bloombee.engine.describe import describe

    card = describe(model)
    queue, loader = WorkThread(asyncio.get_running_loop()), Loader(threads=1)
    executors: list[SpanExecutor] = []
    for span in spans:
        executor = SpanExecutor(queue, loader)
        await _loaded(
            executor,
            Load(
                number=1,
                pipeline=1,
                start=span.start,
                stop=span.stop,
                num_layers=card.num_layers,
                model=model,
                config_digest=bytes.fromhex(card.config_digest),
                weight_digests=(),
                dtype=str(card.dtype),
                groups=(Group(0, ROWS // PAGE_SIZE),),
                page_size=PAGE_SIZE,
                codec=CodecMode.OFF,
                rules=None,
                placement=(),
                budgets=(),
            ),
        )
        for before in executors:
            before.stop()
        executors = [executor]
        await _ran(executor, span)
    return int(psutil.Process().memory_info().rss)


async def _loaded(executor: SpanExecutor, load: Load) -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    executor.load(
        load,
        on_progress=lambda *_: None,
        on_done=lambda *_: done.set_result(None),
        on_error=done.set_exception,
        on_table=lambda _: None,
    )
    await done


async def _ran(executor: SpanExecutor, span: Span) -> None:
    """A prompt through the first layers: their KV memory is touched. Others are handed no rows: they would need some."""
    done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    pages = (Pages(tuple(range(ROWS // PAGE_SIZE))),)
    segments = (Segment(1, 0, 0, bytes(4 * ROWS), 0, pages),) if span.start == 0 else ()
    executor.run(Work(1, 1, 0, 0, Phase.PREFILL, segments), on_done=done.set_result, on_error=done.set_exception)
    await done


@program("reload")
def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama:1024x16", help="default llama:1024x16, made of random numbers")
    parser.add_argument("--spans", type=read_spans, default=read_spans("0:16,4:6"), help="default 0:16,4:6")
    parser.add_argument("--here", action="store_true", help="load them in this process, and print its resident memory as JSON")
    options = parser.parse_args()
    if options.here:
        print(json.dumps({"resident_bytes": asyncio.run(load_here(options.model, options.spans))}))
        return 0
    print(headline())
    fresh, after = resident_bytes(options.model, options.spans[-1:]), resident_bytes(options.model, options.spans)
    said = " then ".join(map(str, options.spans))
    print(f"layers {said}: {after / 1e6:.0f} MB resident; {options.spans[-1]} in a fresh process: {fresh / 1e6:.0f} MB;"
          f" ratio {after / fresh:.3f} (goal: at most {GOAL})")  # fmt: skip
    return int(after > GOAL * fresh)


if __name__ == "__main__":
    sys.exit(main())
