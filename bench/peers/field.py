"""All peers of a run: up together, each behind links of its own, resting while another is measured."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from bench.peers.checkpoint import write_checkpoint
from bench.peers.kinds import BY_TECHNIQUE, PeerEnv
from bench.peers.peer import Peer
from bench.peers.star import Star
from bench.profiles import Profile
from bloombee.types import Dtype


class Field:
    """``peers`` by technique, from entry to exit.

    Args:
        layers: of each worker, as the project splits the model.
    """

    def __init__(self, envs: Sequence[PeerEnv], profile: Profile, model: str, dtype: Dtype, layers: Sequence[int]) -> None:
        self._envs, self._profile = envs, profile
        self._model, self._dtype, self._layers = model, dtype, layers
        self._stack = contextlib.ExitStack()
        self.peers: dict[str, Peer] = {}

    def __enter__(self) -> Self:
        """Start all.

        Raises:
            RunError, WanError: one does not start; none is left behind.
        """
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
            if any(BY_TECHNIQUE[env.technique].is_split for env in self._envs):
                write_checkpoint(self._model, self._dtype, folder)
            for env in self._envs:
                layers = self._layers if BY_TECHNIQUE[env.technique].is_split else [sum(self._layers)]
                star = stack.enter_context(Star(len(layers), self._profile))
                peer = Peer(env, star, model=self._model, directory=folder, dtype=str(self._dtype), layers=layers)
                self.peers[env.technique] = stack.enter_context(peer)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
