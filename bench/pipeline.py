"""The benchmark's front door: real workers behind emulated links, row by row.

    python bench/pipeline.py --help

Rows are techniques (``plain``: one microbatch, even split, no compression, no speculation, no offload). Prefill and decode
are measured apart, decode in the stretch in which every sequence decodes. An interrupted run goes on when it is started
again with the same arguments. docs: bench/README.md.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __package__ in (None, ""):  # run as a program: the repository's root is where the imports below live
    sys.path[0] = str(ROOT)

from bench.arguments import check_file, make_folder, reason  # noqa: E402
from bench.cells import LogError, RunLog  # noqa: E402
from bench.options import BenchOptions, parse  # noqa: E402
from bench.peers.kinds import missing  # noqa: E402
from bench.program import commit, machine, program  # noqa: E402
from bench.runner import ModelRunner  # noqa: E402
from bench.screen import Screen, table  # noqa: E402


@program("pipeline", interrupted="interrupted; the same command goes on from here")
def main(arguments: Sequence[str] | None = None) -> None:
    """Whatever the options name, model by model."""
    options = parse(arguments)
    if options.peers and (hint := missing(options.peers)):
        print(f"pipeline: {hint}", file=sys.stderr)
    for model in options.models:
        _measure(model, options)


def _measure(model: str, options: BenchOptions) -> None:
    slug = model.replace("/", "_").replace(":", "-")
    file = options.json or ROOT / "runs" / f"pipeline-{slug}.jsonl"
    if options.json and len(options.models) > 1:
        file = file.with_name(f"{file.stem}-{slug}{file.suffix}")
    if options.plots is not None:
        make_folder(options.plots)
        check_file(options.plots / ".probe")
    log = RunLog(file, _asked(model, options))
    with Screen() as screen:
        runner = ModelRunner(model, options, log, screen.show)
        lines = asyncio.run(runner.run())
    facts = machine()
    log.finish([{**line, **facts} for line in lines])
    screen.console.print(table(lines))
    if log.resumed:
        screen.console.print(f"{log.resumed} runs are of an earlier start")
    screen.console.print(f"{file}\n{_plot(lines, options, file)}", soft_wrap=True)


def _plot(lines: list[dict[str, Any]], options: BenchOptions, file: Path) -> str:
    try:
        from bench.plots import draw_each, draw_overview
    except ImportError:
        return "no plots: matplotlib is not installed (pip install 'bloombee[bench]')"
    try:
        if options.plots is None:
            draw_overview(lines, file.with_suffix(".png"))
            return str(file.with_suffix(".png"))
        folder = options.plots if len(options.models) == 1 else options.plots / file.stem
        return "\n".join(map(str, draw_each(lines, folder)))
    except OSError as error:
        raise LogError(f"cannot draw the plots of {file}: {reason(error)}") from error


def _asked(model: str, options: BenchOptions) -> dict[str, Any]:
    """What makes two runs comparable: the code's state among it, the files and the number of repeats not."""
    asked = asdict(options)
    for name in ("json", "plots", "models", "repeats", "budget_s", "simulate", "port"):
        del asked[name]
    return {"model": model, "commit": commit(), "machine": machine()["machine"], **asked}


if __name__ == "__main__":
    sys.exit(main())
