"""The relay process behind ``tools/wan.py``: built on demand from ``csrc/wan``, driven by lines on its standard input."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc" / "wan"
CACHE = ROOT / "build" / "wan"
FLAGS = ("-O2", "-std=c++20", "-Wall", "-Wextra")


class WanError(RuntimeError):
    """The emulator cannot do what was asked; the message says what, where and why."""


class PortInUse(WanError):
    """Something else listens where a link should."""


def build(name: str = "bloombee-wan", extra: tuple[Path, ...] = (), without: tuple[str, ...] = ()) -> Path:
    """Compile ``csrc/wan`` unless a binary of exactly these sources is there, about 5 s once.

    Args:
        name: of the program.
        extra: further sources; ``without``: file names of the folder to leave out (a test has its own ``main``).

    Raises:
        WanError: not Linux, no compiler (``$CXX``, else ``c++``), or the compiler's own words.
    """
    if not sys.platform.startswith("linux"):
        raise WanError(f"the link emulator needs Linux (epoll, timerfd), this is {sys.platform}")
    sources = sorted(path for path in SOURCES.glob("*.cpp") if path.name not in without) + list(extra)
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise WanError(f"no C++ compiler: {os.environ.get('CXX', 'c++')!r} is not on the PATH (Debian: apt install g++)")
    digest = hashlib.sha256(" ".join((compiler, *FLAGS)).encode())
    for path in [*sources, *sorted(SOURCES.glob("*.hpp"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    binary = CACHE / f"{name}-{digest.hexdigest()[:16]}"
    if binary.exists():
        return binary
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        made = Path(folder) / name
        command = [compiler, *FLAGS, f"-I{SOURCES}", "-o", str(made), *map(str, sources)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise WanError(f"building the link emulator failed:\n{' '.join(command)}\n{result.stderr}")
        os.replace(made, binary)  # two builds at once: the last one wins, both are whole
    return binary


class Relay:
    """One running ``bloombee-wan``. Thread-safe; one command at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([build()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, *words: object) -> dict[str, Any]:
        """The answer to one command.

        Raises:
            WanError: the relay refuses, or has ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with self._lock:
            try:
                stdin.write(" ".join(map(str, words)) + "\n")
                stdin.flush()
                line = stdout.readline()
            except (OSError, ValueError) as error:
                raise WanError(f"the link emulator has ended: {error}") from error
        if not line:
            raise WanError(f"the link emulator has ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise _Refused(answer["error"], answer.get("errno", 0))
        return answer

    def close(self) -> None:
        """Ends the process; may be called twice."""
        with self._lock:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process.wait()


class _Refused(WanError):
    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno
