"""The command line: subcommands, their options, exit codes.

Exit 0 when it worked, 2 for bad input (:class:`~bloombee.errors.ConfigError`, a bad option), 1 for any other failure,
130 and 143 for Ctrl-C and SIGTERM. An error is one sentence on stderr; ``--debug`` adds the traceback. Nothing heavy is
imported before a command needs it: ``--help`` must be quick.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import functools
import io
import os
import signal
import sys
import traceback
from collections.abc import Coroutine, Sequence
from json import loads
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from bloombee import __version__
from bloombee.config import (
    SERVED_NEW_TOKENS,
    Config,
    Environment,
    RuntimeConfig,
    ServeConfig,
    WorkerConfig,
    load_config,
    merge,
    parse_disk,
)
from bloombee.errors import BloomBeeError, CapacityError, ConfigError, Infeasible
from bloombee.grammar import Grammar
from bloombee.options import Given, Options, command, whole_number
from bloombee.quote import printable, quoted
from bloombee.types import SamplingParams
from bloombee.utf8 import read_file, surrogate_at

if TYPE_CHECKING:
    from bloombee.lines import Line
    from bloombee.runtime import Runtime

SWARM = (
    "workers",
    "spares",
    "share_out",
    "shadow",
    "wait_for_worker_s",
    "split",
    "objective",
    "replan",
    "scheduler",
    "dtype",
    "device",
    "device_memory",
    "host_memory",
    "disk",
    "offload",
    "kv_tokens",
    "prefix_cache",
    "microbatches",
    "target_s",
    "codec",
    "draft",
    "max_microbatch_rows",
    "threads",
    "restarts",
    "pace",
    "curve",
    "trace",
    "decisions",
    "control_socket",
)
HEAD_ONLY = (
    "listen",
    "advertise",
    "state",
    "page_size",
    "max_waiting",
    "heartbeat_s",
    "silence_s",
    "step_deadline_s",
    "load_deadline_s",
)
SAMPLING = Options(
    SamplingParams,
    "Sampling",
    tuple(f.name for f in dataclasses.fields(SamplingParams)),
    {
        "max_new_tokens": "Most tokens to generate; by default the checkpoint's number, else 128.",
        "seed": "Of the noise that a temperature adds, an unsigned 64-bit integer; by default another one each time.",
        "logprobs": "With --json: how many most likely tokens to report per position besides the picked one (0: the picked one"
        " only), at most 20. Of the model's own distribution: before penalties and filters.",
        "stop": "A string that ends the text and is no part of it; may be repeated. By default the checkpoint's, if any.",
    },
)

Json = Annotated[bool, Parameter(negative=(), show_default=False, help="Print one line of JSON on stdout and nothing else.")]
Chat = Annotated[
    bool, Parameter(negative=(), show_default=False, help="Wrap the prompt as a user's turn in the model's chat template.")
]
JsonSchema = Annotated[
    str | None, Parameter(show_default=False, help="A file with a JSON schema: the text is JSON that it allows, and no more.")
]
Regex = Annotated[
    str | None,
    Parameter(
        allow_leading_hyphen=True,
        show_default=False,
        help="What the text is to match, from end to end, in the syntax of Rust's regex crate.",
    ),
]
ConfigFile = Annotated[str | None, Parameter(help="A TOML file with the tables [runtime], [worker] and [serve].")]

app = App(
    name="bloombee",
    help="Run one large language model over several ordinary machines joined by the internet.",
    version=__version__,
    help_format="plaintext",
    help_epilogue="--debug adds the traceback to an error. BLOOMBEE_CONFIG, BLOOMBEE_JOIN and BLOOMBEE_DEBUG stand for"
    " --config, --join and --debug.",
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)


@command(app, [Options(RuntimeConfig, "Swarm", ("workers", "split", "threads"))])
def demo(given: Given, *, json: Json = False) -> int:
    """Stream text from the packaged model, cut over three worker processes.

    Examples:
      bloombee demo
      bloombee demo --split 2,4,2 --json
    """
    from bloombee import demo as demo_command

    return _run(demo_command.run(merge(demo_command.DEFAULTS, given), json=json))


@command(app, [Options(RuntimeConfig, "Swarm", ("model", *SWARM)), SAMPLING])
def generate(
    swarm: Given,
    sampling: Given,
    *,
    prompt: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="The text to go on from, taken as it is; - reads all of stdin, UTF-8.")
    ],
    chat: Chat = False,
    json: Json = False,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    config: ConfigFile = None,
) -> int:
    """Answer one prompt with a model cut over worker processes of this machine.

    Text goes to stdout as it comes, everything else to stderr.

    Examples:
      bloombee generate --prompt 'import os'
      bloombee generate --model ./Qwen3-0.6B --workers 2 --chat \\
          --prompt 'Why is the sky blue?' --temperature 0.7 --seed 1
      cat file.py | bloombee generate --prompt - --max-new-tokens 64 --json
      bloombee generate --prompt 'version = ' --regex '[a-z]{3}-[0-9]+'
    """
    runtime = merge(_config(config).runtime, swarm)
    params, text, grammar = _sampling(sampling), _prompt(prompt), _grammar(json_schema, regex)
    return _run(_answer_once(runtime, _conversation(text, chat), params, grammar, json=json))


@command(app, [Options(RuntimeConfig, "Model", ("model", "dtype", "disk"))])
def pack(given: Given, *, json: Json = False) -> int:
    """Write a model's layers compressed, without loss, for workers of this machine that stream them from disk.

    They are read where that is quicker than plain files, which is found out when a worker loads. A worker finds them that has the
    same --disk.

    Examples:
      bloombee pack --model ./Qwen3-0.6B --disk /var/tmp/bloombee:50GiB
    """
    from bloombee.packing import pack as packed

    config = merge(RuntimeConfig(), given)
    return packed(config.model, config.dtype, parse_disk(config.disk), json=json)


@command(app, [Options(WorkerConfig, "Worker", tuple(f.name for f in dataclasses.fields(WorkerConfig)))])
def worker(given: Given, *, config: ConfigFile = None) -> int:
    """Serve a span of layers to the head that printed the token. Ends when the head does; SIGTERM has it hand over first.

    The token may also stand in the environment as BLOOMBEE_JOIN, where the process list does not show it.

    Examples:
      bloombee worker --join TOKEN
      bloombee worker --join TOKEN --memory 8GiB \\
          --listen 'tcp://*:7701' --advertise tcp://203.0.113.5:7701
    """
    base = _config(config).worker
    settings = merge(base, {"join": given.get("join") or Environment.read().join or base.join, **given})
    if not settings.join:
        raise ConfigError(
            "join is empty: give the token that 'bloombee head' printed, with --join or in BLOOMBEE_JOIN", field="join"
        )
    from bloombee.roles.worker import run
    from bloombee.transport.descriptors import require_descriptors

    require_descriptors()
    run(settings)
    return 0


@command(
    app,
    [
        Options(
            RuntimeConfig,
            "Swarm",
            (
                "model",
                *(
                    name
                    for name in SWARM
                    if name not in ("device", "device_memory", "host_memory", "disk", "threads", "restarts")
                ),
                *HEAD_ONLY,
            ),
            {"workers": "How many workers on other machines to wait for; a stage for each that pays, or as --split says."},
        ),
        SAMPLING,
    ],
)
def head(swarm: Given, sampling: Given, *, chat: Chat = False, json: Json = False, config: ConfigFile = None) -> int:
    """Wait for workers to join from other machines, then answer each line of stdin.

    Prints the command that joins a worker. To be reached from other machines it must listen on an address that they
    reach: docs/network.md.

    Examples:
      bloombee head --workers 2 --listen 'tcp://*:7700'
      bloombee head --workers 2 --listen 'tcp://*:7700' \\
          --advertise tcp://203.0.113.5:7700
      bloombee head --model ./Qwen3-0.6B --workers 3 --chat < questions.txt
      bloombee head --workers 2 --spares 1 --listen 'tcp://*:7700'
    """
    runtime = _awaiting(_config(config).runtime, swarm)
    return _run(_answer_lines(runtime, _sampling(sampling), chat=chat, json=json))


@command(
    app,
    [
        Options(
            RuntimeConfig,
            "Swarm",
            ("model", *SWARM, *HEAD_ONLY, "answer_tokens"),
            {
                "workers": "How many worker processes to start on this machine; with --listen: to wait for from others.",
                "listen": "Where the head listens for workers of other machines, which are then waited for: tcp://*:PORT: on all"
                " addresses. Without it the workers are started here.",
            },
        ),
        Options(ServeConfig, "HTTP", tuple(f.name for f in dataclasses.fields(ServeConfig))),
    ],
)
def serve(swarm: Given, http: Given, *, config: ConfigFile = None) -> int:
    """Serve a model by OpenAI's HTTP API, over worker processes of this machine or, with --listen, of others.

    Ctrl-C takes no more requests and lets those that run end; once more ends them.

    Examples:
      bloombee serve
      bloombee serve --model ./Qwen3-0.6B --workers 2 --http 127.0.0.1:8080
      bloombee serve --model Qwen/Qwen3-8B --workers 3 --listen 'tcp://*:7700' \\
          --http '*:8000' --api-key-file keys.txt
    """
    base = _config(config)
    awaits = "listen" in swarm or base.runtime.remote_workers > 0
    runtime = _awaiting(base.runtime, swarm) if awaits else merge(base.runtime, swarm)
    if runtime.answer_tokens is None:
        runtime = merge(runtime, {"answer_tokens": SERVED_NEW_TOKENS})
    from bloombee.serve import command as serving

    return serving.run(runtime, merge(base.serve, http))


def _awaiting(base: RuntimeConfig, given: Given) -> RuntimeConfig:
    """A swarm of workers that join from elsewhere; raises ConfigError."""
    wanted = given.pop("workers", len(given.get("split", ())) or base.num_stages)
    if wanted < 1:
        raise ConfigError(f"workers = {wanted}: must be a whole number from 1", field="workers", value=wanted)
    return merge(base, {**given, "remote_workers": wanted})


@command(app)
def doctor(
    *,
    json: Json = False,
    profile: Annotated[
        str | None, Parameter(help="Measure the layers of this model on this machine instead; kept for the next time.")
    ] = None,
    device: Annotated[str, Parameter(help="With --profile: auto, cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int | None, Parameter(help="With --profile: compute threads.", converter=whole_number)] = None,
) -> int:
    """Say what was found on this machine and what to do about what was not.

    Examples:
      bloombee doctor
      bloombee doctor --profile demo --threads 1
    """
    from bloombee.doctor import examine, healthy, profile_table, table

    WorkerConfig(device=device, threads=threads)  # refuses what no worker could be given
    if profile is not None:
        from bloombee.engine.profiling.full import profile as measured

        found = measured(profile, device=device, threads=threads)
        print(found.to_json() if json else profile_table(found))
        return 0
    findings = examine()
    if json:
        from bloombee.terminal import write_line_of_json

        write_line_of_json(findings)
    else:
        print(table(findings))
    return 0 if healthy(findings) else 1


@app.command(
    help_epilogue="Examples:\n  bloombee generate --prompt 'import os' --trace traces\n"
    "  bloombee trace traces --perfetto trace.json"
)
def trace(
    *files: Annotated[str, Parameter(help="The files of one run, the head's and every worker's, or a directory of them.")],
    perfetto: Annotated[str | None, Parameter(help="Also write a file for ui.perfetto.dev: every microbatch on its way.")] = None,
) -> int:
    """Merge the traces of a run's processes and say where the time of a token goes, per hop and in all."""
    from bloombee import timeline

    if not files:
        raise ConfigError("no files: name the directory that --trace wrote to", field="files")
    merged = timeline.load(files)
    timeline.show(merged.breakdown())
    if perfetto is not None:
        from bloombee.perfetto import write

        write(merged, perfetto)
        print(perfetto)
    return 0


app.command(
    "bloombee.planning:plan",
    name="plan",
    help="Say who should run which layers, in which order, and how far from the best that is.",
    help_epilogue="""Examples:
  bloombee plan topology.json
  bloombee plan topology.json --objective target:0.2 --pipelines 2 --json
  bloombee plan topology.json --what-if -office \\
      --what-if 'flat->office bandwidth=0.1x'
  bloombee plan --objective latency --explain --picture plan.svg
  bloombee plan --replay decisions.jsonl""",
)


HEAD_EXAMPLES = "  bloombee {0}\n  bloombee {0} --head 4711    # of several heads, by its process"
app.command(
    "bloombee.operating:status",
    name="status",
    help="Show the workers, links, plan and requests of a head that runs.",
    help_epilogue=f"""Examples:
{HEAD_EXAMPLES.format("status")}
  bloombee status --watch
  bloombee status --json | jq '.workers[] | select(.state == "spare").name'""",
)
app.command(
    "bloombee.operating:token",
    name="token",
    help="Print the command that joins one more worker to a head that runs.",
    help_epilogue=f"Examples:\n{HEAD_EXAMPLES.format('token')}",
)
app.command(
    "bloombee.operating:drain",
    name="drain",
    help="Have a worker of a head that runs hand over what it serves, and end. No request loses a token.",
    help_epilogue=f"Examples:\n{HEAD_EXAMPLES.format('drain kitchen')}",
)


@command(app)
def keygen(*, out: Annotated[str, Parameter(help="The file to write, readable by you alone; must not exist.")]) -> int:
    """Make a CURVE key pair for a worker that should keep its identity from run to run.

    Examples:
      bloombee keygen --out worker.key
    """
    from bloombee.transport import keys

    if not out.strip():
        raise ConfigError("out: give the name of the file to write", field="out")
    keys.save(out, keys.generate())
    print(out)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn whatever happened into an exit code. Without ``arguments``, those of this process."""
    _open_standard_files()
    code = _outcome(list(sys.argv[1:] if arguments is None else arguments))
    try:
        sys.stdout.flush()
    except OSError as error:
        # The reader of stdout went away, or its disk is full. Python flushes once more at exit: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or _fail(error, 1, debug=False)
    if arguments is None and "torch" in sys.modules:
        # A thread that computes cannot be ended, and when it comes back to an interpreter that ends, C++ aborts the process.
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)
    return code


def _outcome(words: list[str]) -> int:
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        debug = debug or Environment.read().debug
        result = app(words, exit_on_error=False, print_error=False)
        return result if isinstance(result, int) else 0
    except (CycloptsError, ConfigError) as error:
        return _fail(error, 2, debug)
    except KeyboardInterrupt:
        return 130
    except asyncio.CancelledError:
        return 143
    except Exception as error:  # the last door: whatever it was, a person gets a sentence and not a traceback
        return _fail(error, 1, debug)


def _open_standard_files() -> None:
    """Make stdin, stdout and stderr such that nothing that is written ends the program.

    Where the caller closed one, the next file or socket would take its number. What the encoding of stdout lacks is escaped, as
    Python itself does on stderr.
    """
    from bloombee.roles.event_loop import hold_standard_files

    hold_standard_files()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _fail(error: Exception, code: int, debug: bool) -> int:
    if isinstance(error, BrokenPipeError):
        return code  # whoever read has had enough
    if debug:
        traceback.print_exception(error)
    if isinstance(error, BloomBeeError):
        text = error.message
    elif isinstance(error, CycloptsError):
        text = f"{_complaint(error)} (see {' '.join(('bloombee', *(error.command_chain or ())))} --help)"
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        text = f"stdout cannot be written: {error.strerror}"
    else:
        text = f"{type(error).__name__}: {error}" + ("" if debug else " (--debug shows where)")
    with contextlib.suppress(OSError):
        print(f"bloombee: {printable(text)}", file=sys.stderr, flush=True)
    return code


def _complaint(error: CycloptsError) -> str:
    if isinstance(error, UnusedCliTokensError):
        return f"nothing takes {' '.join(map(quoted, error.unused_tokens or ()))}"
    return " ".join(str(error).split())


def _run(work: Coroutine[Any, Any, None]) -> int:
    """Run ``work`` to its end; SIGTERM cancels it as Ctrl-C does, so that workers are ended in order."""

    async def until_done() -> None:
        task = asyncio.current_task()
        if task is not None and sys.platform != "win32":
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await work

    asyncio.run(until_done())
    return 0


def _config(path: str | None) -> Config:
    return load_config(path or Environment.read().config)


def _sampling(given: Given) -> SamplingParams:
    try:
        return SamplingParams(**given)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _prompt(text: str) -> str:
    if text == "-":
        text = _decoded(sys.stdin.buffer.read(), "the prompt")
    if not text:
        raise ConfigError("prompt is empty: give at least one character", field="prompt")
    if surrogate_at(text) is not None:
        raise ConfigError("prompt is not UTF-8 text", field="prompt")
    return text


def _grammar(json_schema: str | None, regex: str | None) -> Grammar | None:
    """What is wrong with it is found before anything starts. Raises ConfigError."""
    grammar = _read_grammar(json_schema, regex)
    if grammar is not None:
        from bloombee.roles.grammars import Compiler

        with contextlib.closing(Compiler()) as compiler:
            compiler.check(grammar.to_wire())
    return grammar


def _read_grammar(json_schema: str | None, regex: str | None) -> Grammar | None:
    if json_schema is not None and regex is not None:
        raise ConfigError("json-schema and regex are both given: a text obeys one of them", field="json_schema")
    if regex is not None:
        return Grammar.regex(regex)
    if json_schema is None:
        return None
    try:
        text = read_file(json_schema)
        loads(text)  # where it is no JSON at all, the file is named
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {printable(json_schema)}: {error}", field="json_schema", path=json_schema) from error
    return Grammar.json_schema(text)


def _decoded(data: bytes, what: str) -> str:
    """Of stdin, which is UTF-8 whatever the locale says. Raises ConfigError."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        said = f"{what} on stdin is not UTF-8 text: {error.reason} at byte {error.start}"
        raise ConfigError(said, field="prompt") from error


def _conversation(text: str, chat: bool) -> Any:
    return [{"role": "user", "content": text}] if chat else text


async def _answer_once(
    config: RuntimeConfig, prompt: Any, params: SamplingParams, grammar: Grammar | None, *, json: bool
) -> None:
    from bloombee.terminal import open_runtime

    async with open_runtime(config) as runtime:
        await _answer(runtime, prompt, params, json=json, grammar=grammar)


async def _answer(
    runtime: Runtime,
    prompt: Any,
    params: SamplingParams,
    *,
    json: bool,
    line: Line | None = None,
    grammar: Grammar | None = None,
) -> None:
    """From the first token on, also where the request of ``line`` goes on from a head before this one."""
    from bloombee.terminal import say, stream, write, write_json

    client = "" if line is None else line.name
    goes_on = None if line is None else line.request
    if json:
        if goes_on is None:
            answer = await runtime.generate(prompt, params, client=client, grammar=grammar)
        else:
            answer = await runtime.rest(goes_on, params)
        write_json(answer, runtime.plan.summary(), line)
        return
    tokens = runtime.stream(prompt, params, client=client, grammar=grammar) if goes_on is None else runtime.resume(goes_on)
    tally = await stream(tokens)
    write("\n")
    say(str(tally))


async def _answer_lines(config: RuntimeConfig, params: SamplingParams, *, chat: bool, json: bool) -> None:
    from bloombee.terminal import open_runtime, say_how_to_join, tell_of_losses

    async with open_runtime(config, announce=functools.partial(say_how_to_join, config)) as runtime:
        answering = asyncio.ensure_future(_answer_each(runtime, params, chat=chat, json=json))
        telling = asyncio.ensure_future(tell_of_losses(runtime))
        try:
            await asyncio.wait([answering, telling], return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                await telling
            await answering
        finally:
            answering.cancel()
            telling.cancel()
            await asyncio.gather(answering, telling, return_exceptions=True)


async def _answer_each(runtime: Runtime, params: SamplingParams, *, chat: bool, json: bool) -> None:
    """Every line of stdin, until that ends; before them those that a head before this one had read."""
    from bloombee.lines import Lines
    from bloombee.terminal import say

    lines, keeps = Lines(runtime), runtime.config.state is not None
    async for line in lines:
        try:
            prompt = _conversation(_decoded(line.text, "a line"), chat)
            await _answer(runtime, prompt, params, json=json, line=line if keeps else None)
        except (ConfigError, Infeasible, CapacityError) as error:  # of this line alone: the next may be better
            say(f"bloombee: {error.message}")
        lines.answered(line)
