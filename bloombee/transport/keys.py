"""CURVE key pairs and the files that hold them.

A key file is three lines of text: ``bloombee-key-1``, the public key, the secret key (both Z85, as
ZeroMQ writes them). Its mode is 0600; a file that others can read is refused, because a secret that was
readable once is no secret.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from bloombee.errors import ConfigError

_FIRST_LINE = "bloombee-key-1"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair; 32 bytes each. The secret is left out of ``repr``."""

    public: bytes
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.public) != 32 or len(self.secret) != 32:
            raise ConfigError(f"a key pair of {len(self.public)} + {len(self.secret)} bytes: must be 32 + 32")


def generate() -> KeyPair:
    """A new key pair from the operating system's randomness."""
    public, secret = zmq.curve_keypair()
    return KeyPair(z85.decode(public), z85.decode(secret))


def save(path: str | os.PathLike[str], keys: KeyPair, *, overwrite: bool = False) -> None:
    """Write a key file, atomically and with mode 0600.

    Raises:
        ConfigError: the file exists and ``overwrite`` is not asked, or it cannot be written.
    """
    target = Path(path)
    text = "\n".join((_FIRST_LINE, _text(keys.public), _text(keys.secret), ""))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if overwrite:
                os.replace(temporary, target)
            else:
                os.link(temporary, target)  # unlike a rename, fails if the name is taken
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    except FileExistsError:
        raise ConfigError(f"{target} exists: a key file is not overwritten", path=str(target)) from None
    except OSError as error:
        raise ConfigError(f"cannot write the key file {target}: {error.strerror}", path=str(target)) from error


def load(path: str | os.PathLike[str]) -> KeyPair:
    """Read a key file.

    Raises:
        ConfigError: missing, readable or writable by others, not a key file, or the two keys do not belong together.
    """
    target = Path(path)
    try:
        with open(target, encoding="ascii", errors="replace") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ConfigError(
                    f"{target} has mode {mode:04o}, others can use it: make a new key (bloombee keygen), or if nobody "
                    f"read it: chmod 600 {target}",
                    path=str(target),
                )
            lines = file.read(1024).splitlines()
    except OSError as error:
        raise ConfigError(
            f"cannot read the key file {target}: {error.strerror}; bloombee keygen makes one", path=str(target)
        ) from error
    damaged = ConfigError(f"{target} is not a key file or is damaged: bloombee keygen makes a new one", path=str(target))
    if len(lines) != 3 or lines[0] != _FIRST_LINE:
        raise damaged
    try:
        keys = KeyPair(z85.decode(lines[1].encode("ascii")), z85.decode(lines[2].encode("ascii")))
        belongs = zmq.curve_public(lines[2].encode("ascii")).decode("ascii") == lines[1]
    except (ValueError, KeyError, struct.error, zmq.ZMQError, ConfigError):
        raise damaged from None
    if not belongs:
        raise damaged
    return keys


def _text(key: bytes) -> str:
    return z85.encode(key).decode("ascii")
