"""Network profiles: what each link of a ring looks like, by name.

A name is one of

- ``BANDWIDTH-RTT``: ``100M-60ms``, ``1G-512ms``, ``1.5M-300ms``; bits per second in each direction, round trip;
- a table of ``bench/profiles.toml``: ``lan``, ``three-regions``, ``home``, ``drift``, the ladder;
- ``scaled:NAME``: the profile NAME with its bandwidth times d / 6656, so that a model with a small hidden size d
  puts the same seconds on a wire as a 30B one (LLaMA-30B has d = 6656).

Everything here is plain data; ``tools/wan.py`` makes links of it, ``bench/schedules.py`` reads schedules.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from bench.arguments import OptionError
from bench.schedules import Schedule, ScheduleError, parse_schedule
from bench.shapes import UNSHAPED, Shape, ShapeError, parse_bandwidth, parse_duration

SCALED_HIDDEN = 6656
"""Hidden size of LLaMA-30B: the model that bandwidths are quoted for."""

PROFILES_FILE = Path(__file__).with_name("profiles.toml")


class ProfileError(OptionError):
    """A profile that does not exist or cannot be; the message says what is allowed."""


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """One link: ``forward`` is the ring's direction (activations), ``backward`` the answers (acks)."""

    forward: Shape
    backward: Shape
    schedule: Schedule | None = None

    def swapped(self) -> LinkProfile:
        """For a link whose receiver dials the sender: the relay's forward direction carries the answers."""
        schedule = None if self.schedule is None else self.schedule.swapped()
        return LinkProfile(forward=self.backward, backward=self.forward, schedule=schedule)

    @property
    def lasts_s(self) -> float:
        """Until the last change of its schedule, of one that repeats a round; 0: nothing changes."""
        return 0.0 if self.schedule is None else self.schedule.period_s or self.schedule.changes[-1].at_s

    def scaled(self, factor: float) -> LinkProfile:
        """Bandwidths times ``factor``, absolute ones in the schedule included; delays stay."""
        schedule = None if self.schedule is None else self.schedule.scaled(factor)
        return LinkProfile(self.forward.scaled(factor), self.backward.scaled(factor), schedule)


@dataclass(frozen=True, slots=True)
class Profile:
    """Links in ring order; a ring of more links goes round the list again."""

    name: str
    links: tuple[LinkProfile, ...]

    def link(self, index: int) -> LinkProfile:
        return self.links[index % len(self.links)]

    @property
    def lasts_s(self) -> float:
        """Until the last change of any link; 0: nothing changes."""
        return max(link.lasts_s for link in self.links)

    @property
    def is_unshaped(self) -> bool:
        """No link needs an emulator."""
        return all(link.forward == link.backward == UNSHAPED and link.schedule is None for link in self.links)


def profile_names() -> list[str]:
    """Names of the profiles file, in its order."""
    return list(_named())


def load_profile(name: str, *, hidden: int | None = None) -> Profile:
    """The profile called ``name``; see the module's docstring for names.

    Args:
        hidden: hidden size d of the model; only ``scaled:`` needs it.

    Raises:
        ProfileError: no such profile, a ``scaled:`` one without ``hidden``, or a table that cannot be.
    """
    inner = name.removeprefix("scaled:")
    if inner != name:
        if hidden is None or hidden < 1:
            raise ProfileError(f"profile {name!r} needs the hidden size of the model, not {hidden!r}")
        try:
            return Profile(name, tuple(link.scaled(hidden / SCALED_HIDDEN) for link in load_profile(inner).links))
        except ShapeError as error:
            raise ProfileError(f"profile {name!r} for hidden size {hidden}: {error}") from error
    if (table := _named().get(name)) is not None:
        return _from_table(name, table)
    if re.fullmatch(r"[^-]*\d[^-]*-.*\d.*", name):
        try:
            shape = parse_pair(name)
        except ShapeError as error:
            raise ProfileError(f"profile {name!r}: {error}") from error
        return Profile(name, (LinkProfile(shape, shape),))
    raise ProfileError(
        f"unknown profile {name!r}: a name of the form BANDWIDTH-RTT (100M-60ms), scaled:NAME, or one of {', '.join(_named())}"
    )


def parse_pair(text: str) -> Shape:
    """``BANDWIDTH-RTT`` as the shape of each direction: half the round trip one way.

    Raises:
        ShapeError: not of that form, or out of range.
    """
    bandwidth, dash, round_trip = text.partition("-")
    if not dash:
        raise ShapeError(f"{text!r} is not of the form BANDWIDTH-RTT, such as 100M-60ms")
    return Shape(bandwidth_bits_per_s=parse_bandwidth(bandwidth), delay_s=parse_duration(round_trip) / 2)


@cache
def _named() -> dict[str, dict[str, Any]]:
    with PROFILES_FILE.open("rb") as file:
        return tomllib.load(file)


def _from_table(name: str, table: dict[str, Any]) -> Profile:
    try:
        _only(table, {"about", "links"})
        return Profile(name, tuple(_link(entry) for entry in table["links"]))
    except (KeyError, TypeError, AttributeError, ShapeError, ScheduleError) as error:
        raise ProfileError(f"profile {name!r} in {PROFILES_FILE}: {error}") from error


def _link(entry: dict[str, Any]) -> LinkProfile:
    _only(entry, {"rtt", "forward", "backward", "jitter", "loss", "stall", "schedule"})
    common = Shape(
        delay_s=parse_duration(entry.get("rtt", "0s")) / 2,
        jitter_s=parse_duration(entry.get("jitter", "0s")),
        loss=float(entry.get("loss", 0)),
        stall_s=parse_duration(entry["stall"]) if "stall" in entry else None,
    )
    forward = replace(common, bandwidth_bits_per_s=parse_bandwidth(entry["forward"]) if "forward" in entry else None)
    backward = replace(forward, bandwidth_bits_per_s=parse_bandwidth(entry["backward"])) if "backward" in entry else forward
    schedule = parse_schedule("\n".join(entry["schedule"])) if "schedule" in entry else None
    if schedule is not None:
        schedule.steps(forward, "forward")  # both raise if it cannot be followed
        schedule.steps(backward, "backward")
    return LinkProfile(forward, backward, schedule)


def _only(table: dict[str, Any], allowed: set[str]) -> None:
    if unknown := table.keys() - allowed:
        raise ShapeError(f"unknown field {', '.join(sorted(unknown))}; allowed: {', '.join(sorted(allowed))}")
