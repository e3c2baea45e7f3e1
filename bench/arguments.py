"""Command-line arguments read strictly: what is not allowed is refused in one sentence, before anything is started."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from bloombee.config import parse_size
from bloombee.errors import ConfigError

SHOWN = 60
"""Characters of a bad argument that are repeated to whoever gave it."""


class OptionError(ValueError):
    """A value that is not allowed; the message says what is."""


class Parser(argparse.ArgumentParser):
    """Raises :class:`OptionError` where argparse prints its usage and ends the process."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(message)


def shown(text: str) -> str:
    """``text`` quoted for a message, cut if it is long."""
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def parse_whole(text: str, least: int, most: int) -> int | None:
    """ASCII digits as a number, at most 18 of them; None if they are none or out of range.

    Neither ``str.isdecimal`` (digits of every script) nor ``int`` (raises beyond 4,300 digits) will do.
    """
    if re.fullmatch(r"[0-9]{1,18}", text) is None or not least <= int(text) <= most:
        return None
    return int(text)


def whole(least: int, most: int) -> Callable[[str], int]:
    """An argparse type: whole numbers in a range."""

    def parse(text: str) -> int:
        number = parse_whole(text, least, most)
        if number is None:
            raise argparse.ArgumentTypeError(f"{shown(text)}: must be a whole number from {least} to {most}")
        return number

    return parse


def seconds(least: float, most: float, unit: str = "seconds") -> Callable[[str], float]:
    """An argparse type: a time in a range, in ``unit``."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{shown(text)}: must be {unit} from {least:g} to {most:g}")
        return number

    return parse


def check_file(path: Path) -> None:
    """That ``path`` can be written, in a folder that exists; what is there stays.

    Raises:
        OptionError: it cannot.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            return  # a pipe or a device: opening it might wait
        is_new = not path.exists()
        path.open("a").close()
        if is_new:
            path.unlink()
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot write {shown(str(path))}: {reason(error)}") from error


def make_folder(path: Path) -> None:
    """``path`` and what lies above it.

    Raises:
        OptionError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot make the folder {shown(str(path))}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Of a failure to open or write, without the path."""
    return getattr(error, "strerror", None) or str(error)


def size(text: str) -> int:
    """An argparse type: bytes, as 2GiB."""
    try:
        return parse_size(text, "size")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def wholes(least: int, most: int) -> Callable[[str], tuple[int, ...]]:
    """An argparse type: whole numbers in a range, with commas or as ``A-B``, each once."""
    one = whole(least, most)

    def parse(text: str) -> tuple[int, ...]:
        numbers: list[int] = []
        for part in text.split(","):
            first, dash, last = part.partition("-")
            numbers += range(one(first), one(last) + 1) if dash else [one(first)]
        if not numbers:
            raise argparse.ArgumentTypeError(f"{shown(text)}: must be such as 1,2,4 or 1-32")
        return tuple(dict.fromkeys(numbers))

    return parse


def names(*allowed: str) -> Callable[[str], tuple[str, ...]]:
    """An argparse type: names with commas, each once; any if none is ``allowed`` in particular."""

    def parse(text: str) -> tuple[str, ...]:
        found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        if unknown := [name for name in found if allowed and name not in allowed]:
            raise argparse.ArgumentTypeError(f"{shown(unknown[0])}: there are {', '.join(allowed)}")
        if not found:
            raise argparse.ArgumentTypeError(f"{shown(text)}: at least one name is needed")
        return found

    return parse


def writable(text: str) -> Path:
    """An argparse type: a file that can be written, in a folder that exists."""
    path = out_file(text)
    try:
        check_file(path)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def out_path(text: str) -> Path:
    """An argparse type: the path of a folder, not empty."""
    if not text:
        raise argparse.ArgumentTypeError("a path is needed, not ''")
    return Path(text)


def out_file(text: str) -> Path:
    """An argparse type: a path with a file's name at its end."""
    if not Path(text).name:
        raise argparse.ArgumentTypeError(f"a file's path is needed, not {shown(text)}")
    return Path(text)
