"""Command-line arguments read strictly: what is not allowed is refused in one sentence, before anything is started."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

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


def seconds(least: float, most: float) -> Callable[[str], float]:
    """An argparse type: seconds in a range."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{shown(text)}: must be seconds from {least:g} to {most:g}")
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
