"""What every benchmark's ``main`` has in common: how it ends, and what it says of the machine."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from bench.arguments import OptionError
from bench.usage import num_cores
from bloombee.errors import AddressInUse, BloomBeeError, ConfigError
from tools.wan_native import WanError

ROOT = Path(__file__).resolve().parents[1]
P = ParamSpec("P")


class BenchError(RuntimeError):
    """Something could not be measured, or not be written down; the message says what and why."""


def program(name: str, interrupted: str = "interrupted") -> Callable[[Callable[P, int | None]], Callable[P, int]]:
    """A ``main`` whose failures are one sentence on stderr after ``name``.

    Its status: its own, or 0; 2: bad input; 1: any other failure that was foreseen, or nobody reads stdout; 130: interrupted.
    """

    def named(main: Callable[P, int | None]) -> Callable[P, int]:
        @functools.wraps(main)
        def run(*words: P.args, **options: P.kwargs) -> int:
            try:
                try:
                    return main(*words, **options) or 0
                finally:
                    sys.stdout.flush()
            except (OptionError, ConfigError, AddressInUse) as error:
                status, text = 2, str(error)
            except BrokenPipeError:
                # Python flushes stdout once more at exit: give it somewhere to go.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 1
            except (BenchError, WanError, BloomBeeError, OSError) as error:
                status, text = 1, str(error)
            except KeyboardInterrupt:
                status, text = 130, interrupted
            print(f"{name}: {text}", file=sys.stderr)
            return status

        return run

    return named


def headline() -> str:
    """The machine and how busy it is, for the first line of a table."""
    return f"{platform.machine()}, {num_cores()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"


def machine() -> dict[str, str]:
    """What a line of JSON says of where and of what it was measured."""
    return {"machine": f"{num_cores()} cores {processor()}, {platform.system()} {platform.release()}", "commit": commit()}


def processor() -> str:
    """The processor's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """Of the working tree; followed by a hash of what differs from it, if anything does."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    try:
        changes = git("diff", "HEAD", "--", "bloombee", "csrc", "bench", "tools")
        head = git("rev-parse", "--short", "HEAD").strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + (f"+{hashlib.blake2b(changes.encode(), digest_size=3).hexdigest()}" if changes else "")
