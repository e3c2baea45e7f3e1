"""Rows of the benchmark: how the project may run, by name."""

from __future__ import annotations

from dataclasses import dataclass

from bench.arguments import OptionError


class TechniqueError(OptionError):
    """No such technique."""


@dataclass(frozen=True, slots=True)
class Technique:
    """One way to run.

    Args:
        microbatches: None: as the runtime tunes them.
        codec: of activations: ``off``, or ``auto`` (on a link where it pays).
        draft: what drafts tokens ahead (``off``; ``auto``: as the runtime does by itself).
        is_planned: the planner says who stands where with how many layers; else the ring is as it comes, the cut even.
        offload: layers that do not fit the memory that workers are given (--device-memory) stream; else that bounds nobody.
    """

    name: str
    about: str
    microbatches: int | None
    codec: str
    is_planned: bool = False
    offload: bool = False
    draft: str = "off"

    @property
    def way(self) -> tuple[int | None, str, bool, bool, str]:
        """What a ring must be started with; techniques of one way share it, unless their cuts differ."""
        return self.microbatches, self.codec, self.is_planned, self.offload, self.draft


TECHNIQUES = {
    technique.name: technique
    for technique in (
        Technique("plain", "one microbatch, even split, no compression", 1, "off"),
        Technique("microbatch", "microbatches under way as the runtime tunes them", None, "off"),
        Technique("codec", "activations compressed where it pays", 1, "auto"),
        Technique("microbatch+codec", "both", None, "auto"),
        Technique("draft", "microbatches as tuned, and tokens drafted ahead where that pays", None, "off", draft="auto"),
        Technique("plan", "both, and order and layers as the planner chooses", None, "auto", is_planned=True),
        Technique(
            "offload", "microbatch+codec, within --device-memory: layers that do not fit stream", None, "auto", offload=True
        ),
        Technique("all", "everything the project has", None, "auto", is_planned=True, offload=True, draft="auto"),
    )
}


def find_technique(name: str) -> Technique:
    """Raises TechniqueError if there is none of this name."""
    if name not in TECHNIQUES:
        raise TechniqueError(f"unknown technique {name!r}: one of {', '.join(TECHNIQUES)}")
    return TECHNIQUES[name]
