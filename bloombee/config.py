"""What can be set, its default, and what is allowed: one frozen tree of dataclasses.

A value comes from, weakest first: the default here, a TOML file (tables ``[runtime]``, ``[worker]``, ``[serve]``), the
command line or the caller's keyword arguments. :func:`load_config` reads the file, :func:`merge` lays values over a
config; both refuse unknown names. The command line's options are generated from these fields.

This is the only module that reads the environment, and it reads three names (:class:`Environment`)::

    BLOOMBEE_CONFIG   a TOML file to start from                 (as --config)
    BLOOMBEE_JOIN     the join token of ``bloombee worker``     (as --join; keeps it out of the process list)
    BLOOMBEE_DEBUG    1: errors with their traceback            (as --debug)

and two that say where programs keep what they can make again and what lasts as long as they run: XDG_CACHE_HOME
(:func:`cache_dir`) and XDG_RUNTIME_DIR (:func:`socket_folders`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bloombee.address import LISTEN_RULE, TOLD_RULE, Address, read_dialled, read_listen, read_told
from bloombee.errors import ConfigError
from bloombee.objective import RULE as OBJECTIVE_RULE
from bloombee.objective import Objective
from bloombee.pace import RULE as PACE_RULE
from bloombee.pace import parse_pace
from bloombee.quote import quoted
from bloombee.types import Dtype, SchedulerPlace
from bloombee.utf8 import read_file, surrogate_at

HTTP_RULE = "HOST:PORT (port 0: any free one)"
DEFAULT_NEW_TOKENS, SERVED_NEW_TOKENS = 128, 1024
"""Of an answer, where neither caller nor checkpoint names a number; and over HTTP, where programs expect whole answers."""
SILENCE_S, ENDING_SILENCE_S = 0.675, 1.6
"""Of a link, where another worker would take over, and where every request would end."""
DISK_HELP = (
    "A directory on a local disk for layers that stream and for kept rows of prompts and answers, which stay there for the next"
    " run, and how much it may hold, as DIR or DIR:50GiB; default: the cache directory for layers, with what the disk has free,"
    " and no rows."
)
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")
HOST_MEMORY_HELP = (
    "Memory of the machine, beside the device's, where KV pages wait that somebody will or may need again, as 8GiB; default: an"
    " eighth of what the worker offers for weights and KV; 0: none."
)
SIZE_FIELDS = ("memory_bytes", "device_memory", "host_memory", "log_memory_bytes", "log_disk_bytes")
"""Which may be written as people do: :func:`parse_size`."""
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_NUM_LAYERS = re.compile(r"[0-9]{1,9}")
_DTYPES = ("auto", *(str(dtype) for dtype in Dtype))
_CODEC_MODES = ("auto", "on", "off")
_DRAFTS = ("auto", "ngrams", "off")
DRAFT_RULE = f"{', '.join(_DRAFTS)}, or a small model of the same tokenizer: its directory or hub id"
_SCHEDULER_PLACES = ("auto", *(str(place) for place in SchedulerPlace))
_LOG_LEVELS = ("debug", "info", "warning", "error")


def option(default: Any, help: str, *names: str) -> Any:
    """A config field with its help text; ``names`` are its options on the command line if not the field's own."""
    return dataclasses.field(default=default, metadata={"help": help, "names": names})


@dataclass(frozen=True, slots=True)
class Disk:
    """A directory for what has no place in memory, and how much of it may be used: None, as much as there is."""

    directory: Path = dataclasses.field(default_factory=lambda: cache_dir())
    num_bytes: int | None = None

    @property
    def layers(self) -> Path:
        """The folder for those that stream."""
        return self.directory / "layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """Of one head and its swarm.

    Raises:
        ConfigError: a value outside its range; the message names the field, the value and what is allowed.
    """

    model: str = option("demo", "A checkpoint's directory or hub id; 'demo' is the packaged one.")
    workers: int = option(3, "How many worker processes to start on this machine; one stage each.")
    split: tuple[int, ...] | None = option(None, "Layers of each stage, as 3,3,2; default: as even as can be.")
    objective: str | None = option(
        None,
        "What the planner is to be best at: latency, throughput, balance (most throughput, nearly, and then least latency) or"
        " target:SECONDS a token. Workers and links are measured before the plan. Default: balance, where workers join from"
        " elsewhere and no split is given; else none are measured, and every worker gets a stage.",
    )
    dtype: str = option("auto", "auto (the checkpoint's own), bfloat16, float16 or float32.")
    spares: int = option(0, "How many more workers to have: they take the place of any that is lost.")
    share_out: bool = option(
        False,
        "Where no spare can take the place of a lost worker, share its layers out over those that are left, if memory allows.",
    )
    shadow: bool = option(
        False,
        "Have spares follow stages, as many as their memory holds and first those whose loss would cost most: they load the same"
        " layers, get the same rows when nothing else waits, and take the place of a lost worker with little left to compute.",
    )
    wait_for_worker_s: float = option(
        0.0,
        "Where nobody can take the layers of a lost worker, have requests wait so many seconds for another one to join.",
        "wait-for-worker",
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N; of the workers started here.")
    device_memory: int | None = option(
        None, "Memory that each worker started here has for weights and KV, as 4GiB; default: its share of what is free."
    )
    host_memory: int | None = option(None, f"Of each worker started here: {HOST_MEMORY_HELP[0].lower()}{HOST_MEMORY_HELP[1:]}")
    disk: str | None = option(None, f"Of the workers started here: {DISK_HELP[0].lower()}{DISK_HELP[1:]}")
    offload: bool = option(
        True, "Layers that do not fit the memory of the worker that is to have them stream from its disk on every pass."
    )
    listen: str = option("tcp://127.0.0.1:0", "Where the head listens for workers; tcp://*:PORT: on all addresses.")
    advertise: str | None = option(None, "How workers reach that address; default: itself, or every own one for *.")
    remote_workers: int = option(
        0, "Wait for this many workers to join from elsewhere instead of starting any; a stage for each of them that pays."
    )
    microbatches: int | None = option(None, "Microbatches under way at once; default: tuned live, by measured costs.")
    target_s: float | None = option(None, "Seconds a token to keep, with fewer requests at once; default: most throughput.")
    scheduler: str = option(
        "auto",
        "Where steps are made up: head, or stage0: beside the first stage, for a head that is far from the workers; auto: where a"
        " step is quicker, as far as links are known before the plan.",
    )
    draft: str = option(
        "off",
        "Draft tokens ahead, to get several of them each time round, where that pays: auto (from what was said before; for demo"
        " also with its draft model), ngrams (that alone), off, or a small model of the same tokenizer, which gets a process of"
        " its own: its directory or hub id. The text stays the same, in bfloat16 but for near ties.",
    )
    codec: str = option("auto", "Lossless compression of activations: auto (on a link where it pays), on or off.")
    max_microbatch_rows: int = option(512, "Most tokens in one microbatch; longer prompts go in chunks.")
    page_size: int = option(16, "Tokens in a page of KV memory.")
    kv_tokens: int | None = option(None, "KV memory of layers that see all, in tokens; default: as memory allows, at most 32768.")
    answer_tokens: int | None = option(
        None,
        "Most tokens of an answer where neither request nor checkpoint says; fewer where there is no room for so many; default:"
        f" {DEFAULT_NEW_TOKENS}, or {SERVED_NEW_TOKENS} of bloombee serve.",
    )
    prefix_cache: bool = option(
        True, "Compute what prompts have in common once: KV memory that nobody needs keeps it for later requests."
    )
    max_waiting: int = option(
        1024, "Most requests that may be open or waiting at once; one more is refused, unless its client has none."
    )
    heartbeat_s: float = option(0.1, "Seconds between heartbeats, on every link.")
    silence_s: float | None = option(
        None,
        "Seconds that a link may be silent before its peer counts as gone; longer where round trips are long, this machine is"
        f" late or much is on its way; default: {SILENCE_S:g}, or {ENDING_SILENCE_S:g} where nobody could take over.",
    )
    step_deadline_s: float = option(
        600.0, "Seconds without a sign of life that a step may take, until steps have shown how long they take."
    )
    load_deadline_s: float = option(600.0, "Seconds without progress after which a worker that loads counts as stuck.")
    replan: bool = option(
        True,
        "Where the planner decides: take another plan over while requests run, once links or devices have changed for long enough"
        " to make it worth that.",
    )
    curve: bool = option(True, "Encrypt and authenticate every connection.")
    threads: int | None = option(None, "Compute threads of each worker started here; default: the cores shared out.")
    restarts: int = option(3, "How often in ten minutes a worker started here that dies is started again; 0: never.")
    pace: str | None = option(
        None,
        "Emulated devices: a forward takes F + R a decode row + P a prefill row milliseconds, as F,R,P; F,R,P/20: of 20 layers,"
        " and as much less as a stage has fewer; default: real ones.",
    )
    profile: bool = option(False, "Measure this machine's device before the start (some seconds; kept for the next time).")
    trace: str | None = option(None, "A directory for traces of every step, one file a process; see bloombee trace.")
    decisions: str | None = option(None, "A file for what was chosen while it ran, why and from which figures; lines of JSON.")
    state: str | None = option(
        None,
        "A directory for what a head must know to go on where one before it has ended: its key and address, join tokens, the"
        " plan, requests and their tokens so far. One head at a time; default: nothing is kept.",
    )
    control_socket: bool = option(True, "Answer this user's other programs, as bloombee plan, on a Unix socket.")

    def __post_init__(self) -> None:
        if isinstance(self.split, list):
            object.__setattr__(self, "split", tuple(self.split))
        for size in ("device_memory", "host_memory"):
            if isinstance(getattr(self, size), str):
                object.__setattr__(self, size, parse_size(getattr(self, size), size))
        _check(self, "model", _text(self.model) and len(self.model) <= 1024, "a directory or a hub id, at most 1024 characters")
        _check(self, "workers", _whole(self.workers, 1, 1000), "a whole number from 1 to 1000")
        _check_objective(self)
        _check(self, "dtype", _is_one_of(self.dtype, _DTYPES), _one_of(_DTYPES))
        _check(self, "device", _text(self.device) and bool(_DEVICE.fullmatch(self.device)), "auto, cpu, cuda or cuda:N")
        _check(self, "listen", self.listen is not None, LISTEN_RULE)
        _check_endpoint(self, "listen", read_listen, LISTEN_RULE)
        _check_endpoint(self, "advertise", read_told, TOLD_RULE)
        _check(self, "spares", _whole(self.spares, 0, 1000), "a whole number from 0 to 1000")
        _check(self, "remote_workers", _whole(self.remote_workers, 0, 1000), "a whole number from 0 to 1000")
        _check(
            self, "microbatches", self.microbatches is None or _whole(self.microbatches, 1, 256), "a whole number from 1 to 256"
        )
        _check(self, "target_s", self.target_s is None or _seconds(self.target_s), "seconds > 0")
        _check(self, "scheduler", _is_one_of(self.scheduler, _SCHEDULER_PLACES), _one_of(_SCHEDULER_PLACES))
        _check(self, "draft", _is_draft(self.draft), DRAFT_RULE)
        _check(self, "codec", _is_one_of(self.codec, _CODEC_MODES), _one_of(_CODEC_MODES))
        _check(self, "max_microbatch_rows", _whole(self.max_microbatch_rows, 1, 2**16), "a whole number from 1 to 65536")
        _check(self, "page_size", _whole(self.page_size, 1, 1024), "a whole number from 1 to 1024")
        _check(
            self,
            "kv_tokens",
            self.kv_tokens is None or _whole(self.kv_tokens, self.page_size, 2**31),
            f"a whole number from {self.page_size} (one page)",
        )
        _check(
            self, "answer_tokens", self.answer_tokens is None or _whole(self.answer_tokens, 1, 2**31 - 1), "a whole number from 1"
        )
        _check(self, "max_waiting", _whole(self.max_waiting, 1, 10**6), "a whole number from 1 to 1000000")
        _check(self, "heartbeat_s", _seconds(self.heartbeat_s), "seconds > 0")
        _check(
            self,
            "silence_s",
            _seconds(self.longest_silence_s) and self.longest_silence_s >= 2 * self.heartbeat_s,
            f"seconds, at least two heartbeats ({2 * self.heartbeat_s:g})",
        )
        _check(self, "step_deadline_s", _seconds(self.step_deadline_s), "seconds > 0")
        _check(self, "load_deadline_s", _seconds(self.load_deadline_s), "seconds > 0")
        _check(self, "curve", isinstance(self.curve, bool), "true or false")
        _check_memory(self, "device_memory")
        _check_host_memory(self)
        _check_disk(self)
        _check(self, "offload", isinstance(self.offload, bool), "true or false")
        _check(self, "replan", isinstance(self.replan, bool), "true or false")
        _check(self, "prefix_cache", isinstance(self.prefix_cache, bool), "true or false")
        _check(self, "share_out", isinstance(self.share_out, bool), "true or false")
        _check(self, "shadow", isinstance(self.shadow, bool), "true or false")
        _check(self, "wait_for_worker_s", self.wait_for_worker_s == 0 or _seconds(self.wait_for_worker_s), "seconds, 0 for none")
        _check(self, "control_socket", isinstance(self.control_socket, bool), "true or false")
        _check(self, "threads", self.threads is None or _whole(self.threads, 1, 4096), "a whole number from 1 to 4096")
        _check(self, "restarts", _whole(self.restarts, 0, 1000), "a whole number from 0 to 1000")
        _check_pace(self)
        _check(self, "profile", isinstance(self.profile, bool), "true or false")
        _check(self, "trace", self.trace is None or _text(self.trace), "a directory")
        _check(self, "state", self.state is None or _text(self.state), "a directory")
        _check(self, "decisions", self.decisions is None or _text(self.decisions), "a file name")
        _check(
            self,
            "split",
            self.split is None
            or (
                isinstance(self.split, tuple)
                and len(self.split) == self.num_stages
                and all(_whole(n, 1, 2**16) for n in self.split)
            ),
            f"{self.num_stages} whole numbers >= 1, one a worker, as 3,3,2",
        )

    @property
    def goal(self) -> Objective | None:
        """What the planner is to be best at; None: there is nothing to plan, layers are cut as asked for.

        It decides about workers from elsewhere, of which nobody else knows how fast they are, unless a split does.
        """
        if self.objective is not None:
            return Objective.parse(self.objective)
        return Objective() if self.remote_workers and self.split is None else None

    @property
    def kept_s(self) -> float | None:
        """Seconds a token to keep: ``target_s``, or the objective's."""
        return self.goal.target_s if self.target_s is None and self.goal is not None else self.target_s

    @property
    def longest_silence_s(self) -> float:
        """``silence_s`` or its default: where a loss would end every request, a worker that is merely slow gets longer."""
        if self.silence_s is not None:
            return self.silence_s
        return SILENCE_S if self.spares or self.share_out else ENDING_SILENCE_S

    @property
    def num_stages(self) -> int:
        """Of the workers that are there before there is a plan, wherever they are: a stage for each, or fewer if it is chosen."""
        return self.remote_workers or self.workers

    @property
    def num_workers(self) -> int:
        """Those with a stage, and the spares."""
        return self.num_stages + self.spares


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Of one worker process.

    Raises:
        ConfigError: as :class:`RuntimeConfig`.
    """

    join: str = option("", "The token that the head printed.")
    listen: str | None = option(
        None, "Where other workers reach this one; default: loopback if the head is there, else all interfaces."
    )
    advertise: str | None = option(None, "How other machines reach that address, if it differs (NAT, containers).")
    name: str = option("", "What to call this worker in plans and progress; default: the host's name and the process's number.")
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    memory_bytes: int | None = option(
        None,
        "Memory of the device for weights and KV, as 8GiB; default: most of what is free. Layers that do not fit it stream from"
        " disk on every pass, unless the head says otherwise.",
        "memory",
        "device-memory",
    )
    host_memory: int | None = option(None, HOST_MEMORY_HELP)
    disk: str | None = option(None, DISK_HELP)
    model: str | None = option(None, "Where the checkpoint is on this machine, if not where the head says.")
    threads: int | None = option(None, "Compute threads; default: one a core.")
    join_deadline_s: float = option(60.0, "Seconds in which the head must be reached, and then answer.")
    head_wait_s: float = option(
        60.0,
        "Seconds to keep what is loaded while the head cannot be reached, or one that keeps its state has ended, until it or"
        " another in its place lets this worker in again; 0: none.",
        "head-wait",
    )
    pace: str | None = option(
        None, "An emulated device: milliseconds F,R,P of a forward, or F,R,P/LAYERS of so many layers; default: the real one."
    )
    load_bytes_per_s: float | None = option(None, "An emulated disk: weights load no faster; default: as fast as they can.")
    log_memory_bytes: int | None = option(
        None,
        "Memory for activations that have left this worker, which are said again to whoever takes the next one's place; default:"
        " 256MiB, or an eighth of what it offers if that is less.",
        "log-memory",
    )
    log_disk_bytes: int = option(
        1 << 30, "Room on disk for those that memory has none for, as 1GiB; 0: none. Beyond it the oldest go.", "log-disk"
    )
    log_dir: str | None = option(None, "The directory for them, on a disk; default: where this system has temporary files.")
    source: str | None = option(None, "The own IP address to dial others from; default: what the system takes.")
    key: str | None = option(None, "A key file made by 'bloombee keygen'; default: a new key for this run.")
    trace: str = option(".", "The directory for this worker's trace, should the head ask for one.")
    log_level: str = option("info", "debug, info, warning or error; to stderr.")

    def __post_init__(self) -> None:
        _check(self, "join", isinstance(self.join, str), "the token that the head printed")
        _check_endpoint(self, "listen", read_listen, LISTEN_RULE)
        _check_endpoint(self, "advertise", read_told, TOLD_RULE)
        _check(
            self,
            "name",
            _is_one_of(self.name, ("",)) or (_text(self.name) and len(self.name) <= 256 and self.name.isprintable()),
            "at most 256 printable characters",
        )
        _check(self, "device", _text(self.device) and bool(_DEVICE.fullmatch(self.device)), "auto, cpu, cuda or cuda:N")
        _check_memory(self)
        _check_host_memory(self)
        _check_disk(self)
        _check_log(self)
        _check(self, "log_dir", self.log_dir is None or _text(self.log_dir), "a directory")
        _check(self, "model", self.model is None or _text(self.model), "a directory or a hub id")
        _check(self, "threads", self.threads is None or _whole(self.threads, 1, 4096), "a whole number from 1 to 4096")
        _check(self, "join_deadline_s", _seconds(self.join_deadline_s), "seconds > 0")
        _check(self, "head_wait_s", self.head_wait_s == 0 or _seconds(self.head_wait_s), "seconds, 0 for none")
        _check_pace(self)
        _check_rate(self, "load_bytes_per_s")
        _check_source(self)
        _check(self, "key", self.key is None or _text(self.key), "a file name")
        _check(self, "trace", _text(self.trace), "a directory")
        _check(self, "log_level", _is_one_of(self.log_level, _LOG_LEVELS), _one_of(_LOG_LEVELS))


@dataclass(frozen=True, slots=True)
class LocalWorker:
    """What is particular to a worker that the Runtime starts; stages in their order.

    Where it stands in the network, if not plainly on loopback (emulated links, namespaces), and what its machine is like, if not
    like the others'.

    Args:
        listen, advertise, source: as in :class:`WorkerConfig`.
        head_endpoint: how this worker reaches the head; None: the head's own address.
        pace: of this worker; None: the Runtime's.
        memory_bytes: that it offers for weights and KV; None: its share of this machine's, of a stand-in an accelerator's.
        load_bytes_per_s: how fast it loads weights, at most.
        host_memory: for KV pages beyond those; None: as the Runtime says.
        disk: where it keeps layers that stream, and how much of that it may use; None: as the Runtime says.
        log_memory_bytes, log_disk_bytes: room for activations that have left it.

    Raises:
        ConfigError: no endpoint of the form tcp://HOST:PORT, no IP address, or as :class:`WorkerConfig`.
    """

    listen: str | None = None
    advertise: str | None = None
    head_endpoint: str | None = None
    source: str | None = None
    pace: str | None = None
    memory_bytes: int | None = None
    load_bytes_per_s: float | None = None
    log_memory_bytes: int | None = None
    log_disk_bytes: int = 1 << 30
    host_memory: int | None = None
    disk: str | None = None

    def __post_init__(self) -> None:
        _check_endpoint(self, "listen", read_listen, LISTEN_RULE)
        _check_endpoint(self, "advertise", read_told, TOLD_RULE)
        _check_endpoint(self, "head_endpoint", read_dialled, TOLD_RULE)
        _check_source(self)
        _check_pace(self)
        _check_memory(self)
        _check_host_memory(self)
        _check_disk(self)
        _check_log(self)
        _check_rate(self, "load_bytes_per_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Of the HTTP server beside a head.

    Raises:
        ConfigError: as :class:`RuntimeConfig`; or an address that others reach, and no file of keys.
    """

    http: str = option("127.0.0.1:8000", "Where programs reach the API, as HOST:PORT; *:PORT: on all addresses.")
    api_key_file: str | None = option(
        None,
        "A file of keys, one a line, a name before it if wanted; programs must then give one. Needed where others reach --http.",
    )
    model_name: str | None = option(None, "What programs call the model; default: its hub id, or its directory's name.")
    drain_s: float = option(
        30.0, "Seconds that requests which run may take to end, once the server is asked to stop; 0: none.", "drain"
    )

    def __post_init__(self) -> None:
        _check(self, "http", isinstance(self.http, str), HTTP_RULE)
        try:
            address = self.address
        except ValueError as error:
            _check(self, "http", False, f"{HTTP_RULE}; {str(error).replace('tcp://', '')}")
        _check(self, "api_key_file", self.api_key_file is None or _text(self.api_key_file), "a file name")
        _check(
            self, "model_name", self.model_name is None or (_text(self.model_name) and self.model_name.isprintable()), "a name"
        )
        _check(self, "drain_s", self.drain_s == 0 or _seconds(self.drain_s), "seconds, 0 for none")
        if self.api_key_file is None and not address.is_loopback:
            raise ConfigError(
                f"http = {quoted(self.http)}: other machines reach it, so it needs keys: name a file of them with api_key_file",
                field="api_key_file",
            )

    @property
    def address(self) -> Address:
        """Raises ValueError."""
        return read_listen(f"tcp://{self.http}")


@dataclass(frozen=True, slots=True)
class Config:
    """The whole tree, as a file holds it."""

    runtime: RuntimeConfig = dataclasses.field(default_factory=RuntimeConfig)
    worker: WorkerConfig = dataclasses.field(default_factory=WorkerConfig)
    serve: ServeConfig = dataclasses.field(default_factory=ServeConfig)


@dataclass(frozen=True, slots=True)
class Environment:
    """What the environment says; every name of ours that is read, and nothing else is."""

    config: str | None = None
    join: str | None = None
    debug: bool = False

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> Environment:
        """From ``variables``; empty is unset.

        Raises:
            ConfigError: BLOOMBEE_DEBUG is neither 0 nor 1.
        """
        debug = variables.get("BLOOMBEE_DEBUG") or "0"
        if debug not in ("0", "1"):
            raise ConfigError(f"BLOOMBEE_DEBUG = {debug!r}: must be 0 or 1", field="BLOOMBEE_DEBUG")
        return cls(variables.get("BLOOMBEE_CONFIG") or None, variables.get("BLOOMBEE_JOIN") or None, debug == "1")


def cache_dir(variables: Mapping[str, str] = os.environ) -> Path:
    """Where to keep what can be made again; may not exist yet. Source: XDG Base Directory Specification."""
    base = variables.get("XDG_CACHE_HOME") or ""
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "bloombee"


def write_cache(path: Path, text: str) -> None:
    """Have a file hold ``text``: whoever reads it meanwhile, and whoever is ended meanwhile, finds what was there before.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    draft = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def socket_folders(variables: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Where heads may answer other programs of their user, the best first; may not exist yet. Source: as above."""
    base = variables.get("XDG_RUNTIME_DIR") or ""
    folders = [Path(base) / "bloombee"] if os.path.isabs(base) else []
    with contextlib.suppress(RuntimeError):  # a user without a home
        folders.append(cache_dir(variables) / "heads")
    return tuple(folders)


C = TypeVar("C", RuntimeConfig, WorkerConfig, ServeConfig)


def merge(config: C, values: Mapping[str, Any]) -> C:
    """``config`` with ``values`` laid over it by field name.

    A ``split`` without a number of workers says how many there are.

    Raises:
        ConfigError: an unknown name (with the nearest known one) or a value that is not allowed.
    """
    known = [f.name for f in dataclasses.fields(config)]
    for name in values:
        if name not in known:
            raise ConfigError(f"{name}: no such setting{_nearest(name, known)}", field=name)
    given = dict(values)
    split = given.get("split")
    if (
        isinstance(config, RuntimeConfig)
        and isinstance(split, (list, tuple))
        and split
        and not {"workers", "remote_workers"} & given.keys()
    ):
        given["remote_workers" if config.remote_workers else "workers"] = len(split)
    return dataclasses.replace(config, **given)


def load_config(path: str | os.PathLike[str] | None) -> Config:
    """The defaults, or what the TOML file at ``path`` lays over them.

    Raises:
        ConfigError: no such file, not TOML, an unknown table or name, or a value that is not allowed;
            the message starts with the file's name.
    """
    if path is None:
        return Config()
    try:
        text = read_file(path)
    except ValueError as error:
        raise ConfigError(f"{path}: cannot read this config file: {error}", path=str(path)) from error
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not a TOML file: {error}", path=str(path)) from error
    for name, table in tables.items():
        if name not in ("runtime", "worker", "serve") or not isinstance(table, dict):
            said = f"{path}: {name}: settings stand in the tables [runtime], [worker] and [serve]"
            raise ConfigError(said, path=str(path), field=name)
    try:
        worker = dict(tables.get("worker", {}))
        for name in SIZE_FIELDS:
            if isinstance(worker.get(name), str):
                worker[name] = parse_size(worker[name], name)
        return Config(
            merge(RuntimeConfig(), tables.get("runtime", {})),
            merge(WorkerConfig(), worker),
            merge(ServeConfig(), tables.get("serve", {})),
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", **{**error.fields, "path": str(path)}) from error


def size_text(size: int) -> str:
    """The shortest that :func:`parse_size` reads as ``size``."""
    power = next(power for power in (4, 3, 2, 1, 0) if size % 1024**power == 0)
    return f"{size // 1024**power}{('', 'KiB', 'MiB', 'GiB', 'TiB')[power]}" if size else "0"


def parse_size(text: str, field: str) -> int:
    """Bytes in ``text``: 1048576, 512MB (powers of 1000), 8GiB (powers of 1024).

    Args:
        field: whose text it is.

    Raises:
        ConfigError: it is none of these.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        said = f"{field} = {quoted(text)}: must be a size, as 8GiB, 512MB or a number of bytes"
        raise ConfigError(said, field=field, value=quoted(text))
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " "))


def parse_disk(text: str | None) -> Disk:
    """What ``DIR`` or ``DIR:SIZE`` says; None: the default.

    Raises:
        ConfigError: a size that is none.
    """
    if text is None:
        return Disk()
    directory, colon, size = text.rpartition(":")
    if not colon or "/" in size:
        return Disk(Path(text).expanduser())
    return Disk(Path(directory).expanduser(), parse_size(size, "disk"))


def parse_split(text: str) -> tuple[int, ...]:
    """Layers of each stage from ``3,3,2``.

    Raises:
        ConfigError: not whole numbers with commas between them.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(_NUM_LAYERS.fullmatch(part) for part in parts):
        said = f"split = {quoted(text)}: must be whole numbers with commas between them, as 3,3,2"
        raise ConfigError(said, field="split", value=quoted(text))
    return tuple(int(part) for part in parts)


def _check(config: object, field: str, ok: bool, allowed: str) -> None:
    if not ok:
        value = quoted(getattr(config, field))
        raise ConfigError(f"{field} = {value}: must be {allowed}", field=field, value=value, allowed=allowed)


def _check_objective(config: RuntimeConfig) -> None:
    """Two that say the same differently cannot both be obeyed."""
    if config.objective is None:
        return
    _check(config, "objective", isinstance(config.objective, str), OBJECTIVE_RULE)
    given, objective = f"objective = {quoted(config.objective)}", Objective.parse(config.objective)
    if config.split is not None:
        text = f"{given} with split = {','.join(map(str, config.split))}: a split says who runs what, so there is nothing to plan"
        raise ConfigError(f"{text}; leave out one of the two", field="objective")
    if config.target_s is not None and objective.target_s not in (None, config.target_s):
        text = f"{given} with target_s = {config.target_s:g}: two times to keep"
        raise ConfigError(f"{text}; leave out one of the two", field="objective")


def _check_pace(config: RuntimeConfig | WorkerConfig | LocalWorker) -> None:
    _check(config, "pace", config.pace is None or isinstance(config.pace, str), PACE_RULE)
    if config.pace is not None:
        parse_pace(config.pace)


def _check_memory(config: RuntimeConfig | WorkerConfig | LocalWorker, field: str = "memory_bytes") -> None:
    memory_bytes = getattr(config, field)
    allowed = "at least 1 MiB, as 8GiB or a number of bytes"
    _check(config, field, memory_bytes is None or _whole(memory_bytes, 2**20, 2**60), allowed)


def _check_host_memory(config: RuntimeConfig | WorkerConfig | LocalWorker) -> None:
    allowed = "bytes up to 1 EiB, as 8GiB or a number of bytes"
    _check(config, "host_memory", config.host_memory is None or _whole(config.host_memory, 0, 2**60), allowed)


def _check_disk(config: RuntimeConfig | WorkerConfig | LocalWorker) -> None:
    _check(config, "disk", config.disk is None or _text(config.disk), "a directory, or DIR:SIZE as /var/tmp/bloombee:50GiB")
    parse_disk(config.disk)


def _check_log(config: WorkerConfig | LocalWorker) -> None:
    allowed = "bytes up to 1 EiB, as 256MiB or a number of bytes"
    memory_bytes = config.log_memory_bytes
    _check(config, "log_memory_bytes", memory_bytes is None or _whole(memory_bytes, 0, 2**60), allowed)
    _check(config, "log_disk_bytes", _whole(config.log_disk_bytes, 0, 2**60), allowed)


def _check_rate(config: object, field: str) -> None:
    value = getattr(config, field)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    _check(config, field, value is None or (is_number and 1 <= value <= 1e15), "bytes per second from 1 to 1e15")


def _check_source(config: WorkerConfig | LocalWorker) -> None:
    _check(config, "source", config.source is None or _is_ip(config.source), "an IP address of this machine, as 192.0.2.7")


def _is_ip(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(ipaddress.ip_address(value))
    except ValueError:
        return False


def _text(value: object) -> bool:
    """Not blank, and such as file names and messages can hold."""
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value and surrogate_at(value) is None


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e9


def _check_endpoint(config: object, field: str, read: Callable[[str], object], rule: str) -> None:
    """None means: as the field's help says."""
    value = getattr(config, field)
    if value is None:
        return
    reason = "it is no text"
    if isinstance(value, str):
        try:
            read(value)
            return
        except ValueError as error:
            reason = str(error)
    _check(config, field, False, f"{rule}; {reason}")


def _is_one_of(value: object, names: tuple[str, ...]) -> bool:
    return isinstance(value, str) and value in names


def _is_draft(value: object) -> bool:
    """A word, a model, or ``module:NAME:ARGUMENT...`` of a program that drafts (roles/drafter.py)."""
    return isinstance(value, str) and (value in _DRAFTS or value.startswith("module:") or is_draft_model(value))


def is_draft_model(draft: str) -> bool:
    """Whether the option ``draft`` names a model."""
    return draft == "demo:draft" or (("/" in draft or draft.startswith(".")) and not draft.startswith("module:"))


def _one_of(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
