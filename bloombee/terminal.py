"""What a person sees: loading progress on stderr, text on stdout as it comes, plain wherever nobody looks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import msgspec

from bloombee.address import read_dialled
from bloombee.config import RuntimeConfig
from bloombee.errors import BloomBeeError
from bloombee.types import Generation, LoadProgress, SwarmEventKind, Token
from bloombee.wire.token import decode_token

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from bloombee.lines import Line
    from bloombee.runtime import Runtime

_CONTROLS = {code: "\ufffd" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


def say(text: str) -> None:
    """One line to stderr."""
    with contextlib.suppress(OSError, ValueError):  # nobody reads stderr: the work goes on
        print(text, file=sys.stderr, flush=True)


def write(text: str) -> None:
    """Generated text to stdout at once. A terminal gets no control characters: a model must not move its cursor."""
    sys.stdout.write(text.translate(_CONTROLS) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def write_dim(text: str) -> None:
    """As :func:`write`, set back where a terminal can show it."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).out(text.translate(_CONTROLS), style="dim", end="")
    else:
        write(text)


def write_line_of_json(value: Any) -> None:
    """``value`` as one line on stdout, in whatever encoding that has: what it lacks is escaped as JSON does."""
    line = msgspec.json.encode(value).decode()
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        line = re.sub(r"[^\x00-\x7f]", lambda character: json.dumps(character[0])[1:-1], line)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def write_json(answer: Generation, plan: dict[str, object], line: Line | None = None) -> None:
    """One line: the answer and the plan that gave it. Numbers that JSON lacks (a log-probability of -inf) are null.

    Args:
        line: that it answers, where lines may be answered by another head than the one that has read them.
    """
    fields: dict[str, Any] = {
        **({} if line is None else {"id": line.id, "position": line.position}),
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "prompt_token_ids": list(answer.prompt_token_ids),
        "finish_reason": answer.finish_reason,
        "time_to_first_token_s": answer.time_to_first_token_s,
        "tokens_per_s": answer.tokens_per_s,
        "plan": plan,
    }
    if answer.logprobs is not None:
        fields["logprobs"] = answer.logprobs
    if answer.top_logprobs is not None:
        fields["top_logprobs"] = answer.top_logprobs
    write_line_of_json(fields)


def joining_command(token: str) -> str:
    """What a person types on the machine of a worker that is to join."""
    return f"bloombee worker --join {token}"


def where_to_join(token: str) -> str:
    """On which machines that is of use, as a head's token says."""
    endpoints = decode_token(token).endpoints
    if all(read_dialled(endpoint).is_loopback for endpoint in endpoints):
        return "on this machine (--listen 'tcp://*:7700' lets others in)"
    return f"on any machine that reaches {' or '.join(endpoints)}"


def say_how_to_join(config: RuntimeConfig, tokens: Sequence[str]) -> None:
    """What is to be run on other machines before anything can start."""
    joins = "\n".join(f"    {joining_command(token)}" for token in tokens)
    others = f" (and {config.spares} to spare)" if config.spares else ""
    waiting = f"waiting for {count(config.num_stages, 'worker')}{others}"
    say(f"{waiting}; run each of these once, {where_to_join(tokens[0])}:\n\n{joins}\n")


async def tell_of_losses(runtime: Runtime) -> None:
    """After each of them a spare is missing: how another worker joins. The log has who was lost, and why.

    Raises:
        BloomBeeError: nothing runs any more, whether somebody asks or not.
    """
    is_up = False
    async for event in runtime.events():
        if event.kind is SwarmEventKind.DOWN:
            raise BloomBeeError(event.reason)
        has_recovered = event.kind is SwarmEventKind.UP and event.epoch > 1
        is_missed = event.stage is None or runtime.config.wait_for_worker_s > 0
        if has_recovered or (is_up and event.kind is SwarmEventKind.LOST and is_missed):
            say(f"another worker may join as a spare:\n\n    {joining_command(await runtime.issue_token())}\n")
        is_up = is_up or event.kind is SwarmEventKind.UP


def plain(text: str) -> str:
    """What another machine has said, without what would move a terminal's cursor."""
    return text.translate(_CONTROLS)


@dataclass(slots=True)
class Tally:
    """What one stream came to, timed where its reader sits."""

    num_tokens: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    finish_reason: str = ""

    @property
    def tokens_per_s(self) -> float:
        """After the first token; 0 when there is no second."""
        return (self.num_tokens - 1) / (self.last_s - self.first_s) if self.last_s > self.first_s else 0.0

    def __str__(self) -> str:
        return (
            f"{self.num_tokens} tokens, the first after {self.first_s:.2f} s, then {self.tokens_per_s:.0f} tokens/s;"
            f" ended by {self.finish_reason}"
        )


async def stream(tokens: AsyncIterator[Token]) -> Tally:
    """Write tokens as they come. Cancelled or failing in the middle, what was written stays, as a line."""
    tally, start = Tally(), time.perf_counter()
    try:
        async for token in tokens:
            tally.last_s = time.perf_counter() - start
            tally.first_s = tally.first_s or tally.last_s
            tally.num_tokens += 1
            tally.finish_reason = str(token.finish_reason or "")
            if token.text:
                write(token.text)
    except (Exception, asyncio.CancelledError):
        if tally.num_tokens:  # else what is said next would stand behind the text
            with contextlib.suppress(OSError):
                write("\n")
        raise
    return tally


@asynccontextmanager
async def open_runtime(
    config: RuntimeConfig,
    *,
    announce: Callable[[Sequence[str]], None] | None = None,
    prepared: Callable[[Runtime], None] = lambda runtime: None,
) -> AsyncIterator[Runtime]:
    """A Runtime whose loading is shown; however the block ends, it leaves no worker behind.

    Args:
        announce: called with the join tokens, one a worker, before any worker is waited for.
        prepared: called once its model is known, before any worker is waited for.
    """
    from bloombee.runtime import Runtime

    say(f"starting with {config.model}")
    loading = Loading()
    runtime = Runtime(config=config, on_progress=loading)
    try:
        await runtime.prepare(announce=announce)
        prepared(runtime)
        await runtime.ready()
        loading.close()
        if runtime.plan.prediction is not None:
            say(f"planned for {runtime.plan.prediction}")
        for stage in runtime.plan.stages:
            if stage.streamed:
                say(f"{stage.name}: {len(stage.streamed)} of {len(stage.span)} layers stream from its disk, for want of memory")
        yield runtime
    finally:
        loading.close()
        await runtime.close()


class Loading:
    """Progress of every worker on stderr: bars on a terminal, else a line whenever a worker's phase changes, or half of its
    links are known.

    It is the ``on_progress`` of a Runtime and may be called from any thread. :meth:`close` wipes the bars.
    """

    def __init__(self, out: IO[str] | None = None) -> None:
        self._out = out or sys.stderr
        self._bars: Progress | None = None
        self._tasks: dict[int, TaskID] = {}
        self._said: dict[int, tuple[str, bool]] = {}

    def close(self) -> None:
        """Idempotent."""
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, progress: LoadProgress) -> None:
        if self._out.isatty():
            self._bars = self._bars or _bars(self._out)
            self._draw(self._bars, progress)
        elif self._said.get(progress.worker) != (news := _news(progress)):
            self._said[progress.worker] = news
            what = "in memory" if progress.phase == "ready" else "to read"
            waits = f"; waiting for {count(progress.num_missing, 'worker')}" if progress.num_missing else ""
            size = f", {progress.total_bytes / 1e6:.1f} MB {what}" if progress.total_bytes else ""
            links = f", {progress.num_known_links} of {count(progress.num_links, 'link')} known" if progress.num_links else ""
            with contextlib.suppress(OSError, ValueError):
                print(f"{_label(progress)}: {progress.phase}{size}{links}{waits}", file=self._out, flush=True)

    def _draw(self, bars: Progress, progress: LoadProgress) -> None:
        if progress.phase == "left":
            if progress.worker in self._tasks:
                bars.remove_task(self._tasks.pop(progress.worker))
            bars.console.print(
                f"{_label(progress)} left; waiting for {count(progress.num_missing, 'worker')}", markup=False, highlight=False
            )
            return
        if progress.worker not in self._tasks:
            self._tasks[progress.worker] = bars.add_task(_label(progress), total=None, phase="", amount="")
        done, total, amount = progress.loaded_bytes, progress.total_bytes, _megabytes(progress)
        if progress.num_links:
            done, total = progress.num_known_links, progress.num_links
            amount = f"{done}/{count(total, 'link')}"
        bars.update(
            self._tasks[progress.worker],
            description=_label(progress),
            completed=done,
            total=total or None,
            phase=progress.phase,
            amount=amount,
        )


def _bars(out: IO[str]) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = ("{task.description:<28}", "{task.fields[amount]:>16}", "{task.fields[phase]}")
    name, amount, phase = (TextColumn(column, markup=False) for column in columns)
    bars = Progress(name, BarColumn(), amount, phase, console=Console(file=out), transient=True)
    bars.start()
    return bars


def _news(progress: LoadProgress) -> tuple[str, bool]:
    """What is worth another line."""
    return progress.phase, 2 * progress.num_known_links > progress.num_links


def _megabytes(progress: LoadProgress) -> str:
    return f"{progress.loaded_bytes / 1e6:.1f}/{progress.total_bytes / 1e6:.1f} MB" if progress.total_bytes else ""


def count(number: int, noun: str) -> str:
    """As ``1 worker``, ``2 workers``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _label(progress: LoadProgress) -> str:
    return f"{progress.name} (stage {progress.stage})" if progress.stage >= 0 else progress.name
