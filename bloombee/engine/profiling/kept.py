"""Profiles on disk, by all that they depend on; and whose turn it is to measure on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers

from bloombee.config import cache_dir, write_cache
from bloombee.errors import ConfigError
from bloombee.plan.profile import FORMAT, Profile
from bloombee.types import VERSION, Dtype

TURN_S = 20.0
"""After so long whoever measures is not waited for any more: it may hang."""
LOOK_EVERY_S = 0.05


def cache_path(digest: str, device: str, dtype: Dtype) -> Path:
    """Of what a profile depends on: the model's digest in hex, device, dtype, torch's threads in this process, the software."""
    software = (VERSION, FORMAT, torch.__version__, transformers.__version__)
    facts = (digest, device_name(device), str(dtype), torch.get_num_threads(), *software)
    return cache_dir() / "profiles" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json"


def look_up(path: Path) -> Profile | None:
    """None: there is none, or what is there is broken."""
    with contextlib.suppress(OSError, UnicodeDecodeError, ConfigError):
        return Profile.from_json(path.read_text(encoding="utf-8"))
    return None


def keep(found: Profile, path: Path) -> None:
    """In the cache."""
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the next start some seconds
        write_cache(path, found.to_json())


@contextlib.contextmanager
def turn(alive: Callable[[], None]) -> Iterator[None]:
    """For the length of the block nobody else on this machine measures, of those who keep profiles in the same place: they would
    measure each other. Where nothing can be kept there are no turns.

    Args:
        alive: called while one waits; it may raise to give up.
    """
    path = cache_dir() / "profiles" / "turn"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("a"))
            deadline = time.monotonic() + TURN_S
            while not _takes(file.fileno()) and time.monotonic() < deadline:
                alive()
                time.sleep(LOOK_EVERY_S)
        yield


def _takes(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def device_name(device: str) -> str:
    """As profiles name it."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"cpu {platform.machine()} {_cpu()}".strip()


def _cpu() -> str:
    """The processor's own name, where the system tells it."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
