"""Rows of the benchmark: how the project may run, by name."""

from __future__ import annotations

from dataclasses import dataclass


class TechniqueError(ValueError):
    """No such technique, or not available yet."""


@dataclass(frozen=True, slots=True)
class Technique:
    """One way to run. ``microbatches`` None: the runtime's own choice."""

    name: str
    about: str
    microbatches: int | None


PLAIN = Technique("plain", "one microbatch, even split, no compression", microbatches=1)
MICROBATCH = Technique("microbatch", "microbatches under way as the runtime tunes them", microbatches=None)
ALL = Technique("all", "everything the project has: microbatches under way as the runtime tunes them", microbatches=None)
TECHNIQUES = {technique.name: technique for technique in (PLAIN, MICROBATCH, ALL)}
RESERVED = ("codec", "microbatch+codec")
"""Rows of the compression of activations, which the pipeline does not use yet."""


def find_technique(name: str) -> Technique:
    """Raises TechniqueError unless the project can run ``name`` now."""
    if name in TECHNIQUES:
        return TECHNIQUES[name]
    if name in RESERVED:
        raise TechniqueError(f"technique {name!r}: not available yet; the pipeline sends activations uncompressed")
    raise TechniqueError(f"unknown technique {name!r}: one of {', '.join((*TECHNIQUES, *RESERVED))}")
