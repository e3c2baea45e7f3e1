"""The options of bench/pipeline.py, checked before anything is started."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.arguments import OptionError, Parser, names, out_file, out_path, parse_whole, seconds, shown, size, whole
from bench.peers.kinds import KINDS, PeerEnv, parse_envs
from bench.profiles import SCALED_HIDDEN, load_profile, profile_names
from bench.techniques import TECHNIQUES, Technique, find_technique
from bench.texts import MAX_PROMPT_TOKENS, most_prompts
from bloombee.config import RuntimeConfig
from bloombee.models.standin import is_standin, standin_card
from bloombee.pace import parse_pace

LADDER = ("500M-10ms", "125M-60ms", "20M-100ms")
DEFAULT_BUDGET_S = 95.0
"""Of a run without arguments: leaves room in two minutes for starting workers and judging their tokens."""
AUTO = 0
MAX_BATCH = 1024

EXAMPLES = """
examples:
  python bench/pipeline.py                                             # at most two minutes: one table, one plot
  python bench/pipeline.py --quick
  python bench/pipeline.py --profiles three-regions,home --batches 1,32,auto --simulate
  python bench/pipeline.py --models llama:1024x6 --batches 1,8 --peers --peer-env llama.cpp=DIR --peer-env petals=DIR
  python bench/pipeline.py --models standin:llama-30b --pace 13,0.05,0.5 --profiles 20M-100ms --batches 32 --simulate
"""


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What was asked for. ``batches``: :data:`AUTO` is chosen for each profile."""

    models: tuple[str, ...]
    profiles: tuple[str, ...]
    techniques: tuple[Technique, ...]
    batches: tuple[int, ...]
    workers: int
    tokens: int
    prompt_tokens: int
    repeats: int
    budget_s: float | None
    dtype: str
    pace: str | None
    simulate: bool
    json: Path | None
    plots: Path | None
    port: int
    peers: tuple[PeerEnv, ...] = ()
    device_memory: int | None = None
    """Bytes of each worker, in rows that offload; None: what is free."""


def parse(arguments: Sequence[str] | None = None) -> BenchOptions:
    """From the command line.

    Raises:
        OptionError, ConfigError, and what profiles and techniques raise: a value that is not allowed.
        SystemExit: ``--help``.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    bare = not given
    for name in options.profiles:
        load_profile(name, hidden=SCALED_HIDDEN)
    if options.pace is not None:
        parse_pace(options.pace)
    for model in options.models:
        _check_model(model)
    batches = tuple(_batch(text) for text in options.batches)
    if max(batches) > (most := most_prompts(options.prompt_tokens)):
        raise OptionError(f"--prompt-tokens {options.prompt_tokens}: there is text for {most} of them, not for {max(batches)}")
    RuntimeConfig(workers=options.workers, dtype=options.dtype, device_memory=options.device_memory)
    _check_peers(options, options.models, batches)
    return BenchOptions(
        models=options.models,
        profiles=options.profiles,
        techniques=tuple(find_technique(name) for name in options.techniques),
        batches=batches,
        workers=options.workers,
        tokens=options.tokens or (16 if bare else 32),
        prompt_tokens=options.prompt_tokens,
        repeats=options.repeats,
        budget_s=DEFAULT_BUDGET_S if bare else options.budget,
        dtype=options.dtype,
        pace=options.pace,
        simulate=options.simulate,
        json=options.json,
        plots=options.plots,
        port=options.port,
        device_memory=options.device_memory,
        peers=parse_envs(options.peer_env) if options.peers else (),
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="pipeline.py",
        description="Real workers behind emulated links, one thread each, the head beside stage 0: N workers, N links.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="the demo model, plain and all, B = 1 and 32, three profiles: the defaults")
    add(
        "--models",
        type=names(),
        default="demo",
        help="with commas: directories, demo, llama:HIDDENxLAYERS, standin:llama-30b; default demo",
    )
    add(
        "--profiles",
        type=names(),
        default=",".join(LADDER),
        help=f"with commas: BANDWIDTH-RTT, scaled:NAME, {', '.join(profile_names())}; default {','.join(LADDER)}",
    )
    add("--techniques", type=names(), default="plain,all", help=f"with commas: {', '.join(TECHNIQUES)}; default plain,all")
    add("--batches", type=names(), default="1,32", help="sequences, with commas; auto: 1.25 x what fills the links; default 1,32")
    add("--workers", type=whole(1, 64), default=3, help="stages; default 3")
    add("--tokens", type=whole(2, 4096), help="that each sequence decodes while all do; default 32 (without arguments 16)")
    add("--prompt-tokens", type=whole(1, MAX_PROMPT_TOKENS), default=64, help="of each sequence; default 64")
    add("--repeats", type=whole(1, 1000), default=3, help="runs of each cell, interleaved; default 3")
    add("--budget", type=seconds(0, 1e7), metavar="SECONDS", help="start no repeat but the first after this long")
    add("--dtype", default="auto", help="auto (the checkpoint's), bfloat16, float16 or float32")
    add("--pace", metavar="F,R,P", help="emulated devices: ms fixed, a decode row, a prefill row; F,R,P/20: of 20 layers")
    add("--device-memory", type=size, metavar="SIZE", help="of each worker, as 2GiB; of rows that offload; default: what is free")
    add("--simulate", action="store_true", help="cost model, simulated cluster and measurement side by side")
    add("--json", type=out_file, metavar="FILE", help="one line a cell; default runs/pipeline-MODEL.jsonl")
    add("--plots", type=out_path, metavar="DIR", help="three plots there; default: one, beside the JSON file")
    add("--peers", action="store_true", help="rows of transformers in one process too, and of what --peer-env names")
    add("--peer-env", action="append", default=[], metavar="NAME=DIR", help="a virtual environment with petals or llama.cpp")
    add("--port", type=whole(0, 65535), default=0, help="of the head, behind the last link; default: any free one")
    return parser


def _batch(text: str) -> int:
    if text == "auto":
        return AUTO
    number = parse_whole(text, 1, MAX_BATCH)
    if number is None:
        raise OptionError(f"--batches {shown(text)}: whole numbers from 1 to {MAX_BATCH}, or auto")
    return number


def _check_peers(options: argparse.Namespace, models: Sequence[str], batches: Sequence[int]) -> None:
    """What peers cannot do is refused before an environment is looked at."""
    if not options.peers:
        if options.peer_env:
            raise OptionError("--peer-env is for --peers, which is not given")
        return
    if options.pace is not None:
        raise OptionError("--peers and --pace: peers' devices cannot be paced, so their rows would be of other machines")
    if AUTO in batches:
        raise OptionError("--peers needs --batches as numbers: the same for all rows, while auto is chosen for each")
    for model in models:
        if is_standin(model):
            raise OptionError(f"--peers: {model} computes nothing, peers compute")
        if options.peer_env and not model.startswith("llama:"):
            raise OptionError(f"--peer-env: {shown(model)}: the shapes that all peers run are llama:HIDDENxLAYERS")
    if options.dtype != "auto":
        for env in options.peer_env:
            kind = KINDS.get(env.partition("=")[0])
            if kind is not None and options.dtype not in kind.dtypes:
                raise OptionError(f"--dtype {options.dtype}: {kind.technique} has {', '.join(kind.dtypes)} on a CPU")


def _check_model(model: str) -> None:
    """What can be said of a model by its name; a directory is looked at when it is used."""
    if is_standin(model):
        standin_card(model)
    if model.startswith("llama:") and re.fullmatch(r"llama:[1-9][0-9]{0,5}x[1-9][0-9]{0,3}", model) is None:
        raise OptionError(f"--models {shown(model)}: llama:HIDDENxLAYERS, hidden size to 999999, layers to 9999")
