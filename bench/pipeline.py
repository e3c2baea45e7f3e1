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
from bench.preflight import find_card  # noqa: E402
from bench.program import machine, program  # noqa: E402
from bench.runner import ModelRunner  # noqa: E402
from bench.screen import Screen, table  # noqa: E402
from tools.wan_native import build  # noqa: E402


@program("pipeline", interrupted="interrupted; the same command goes on from here")
def main(arguments: Sequence[str] | None = None) -> int:
    """Whatever the options name, model by model. 1: a row failed; the others are there."""
    options = parse(arguments)
    runners = _prepare(options)
    if options.peers and (hint := missing(options.peers)):
        print(f"pipeline: {hint}", file=sys.stderr)
    for runner in runners:
        _measure(runner, options)
    return int(any(runner.has_failed for runner in runners))


def _prepare(options: BenchOptions) -> list[ModelRunner]:
    """Everything that can be refused is refused here, for all models, before anything is started.

    Raises:
        OptionError, ConfigError: a model that is not there, a row that cannot be run, a file that cannot be written.
        WanError: the link emulator cannot be built.
    """
    if options.plots is not None:
        make_folder(options.plots)
        check_file(options.plots / ".probe")
    facts = machine()
    logs = [RunLog(_file(model, options), _asked(model, options, facts)) for model in options.models]
    cards = [asyncio.run(find_card(model, options.workers)) for model in options.models]
    runners = [ModelRunner(card, options, log, facts) for card, log in zip(cards, logs, strict=True)]
    if options.workers > 1:
        build()
    return runners


def _file(model: str, options: BenchOptions) -> Path:
    slug = model.replace("/", "_").replace(":", "-")
    file = options.json or ROOT / "runs" / f"pipeline-{slug}.jsonl"
    return file.with_name(f"{file.stem}-{slug}{file.suffix}") if options.json and len(options.models) > 1 else file


def _measure(runner: ModelRunner, options: BenchOptions) -> None:
    file = runner.log.path
    with Screen() as screen:
        lines = asyncio.run(runner.run(screen.show))
    measured = [line for line in lines if "failed" not in line]
    for line in lines:
        if "failed" in line:
            where = f"{line['profile']} {line['technique']} B={line['batch']}"
            print(f"pipeline: {runner.model} {where} failed: {line['failed']}", file=sys.stderr)
    if not runner.has_failed:
        runner.log.finish()
    if measured:
        screen.console.print(table(measured))
    if runner.log.resumed:
        screen.console.print(f"{runner.log.resumed} runs are of an earlier start")
    screen.console.print(f"{file}\n{_plot(measured, options, file) if measured else 'no plots: no row'}", soft_wrap=True)


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


def _asked(model: str, options: BenchOptions, facts: dict[str, str]) -> dict[str, Any]:
    """What makes two runs comparable: the code's state among it, the files and the number of repeats not."""
    asked = asdict(options)
    for name in ("json", "plots", "models", "repeats", "budget_s", "simulate", "port"):
        del asked[name]
    return {"model": model, **facts, **asked}


if __name__ == "__main__":
    sys.exit(main())
