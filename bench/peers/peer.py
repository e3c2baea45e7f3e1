"""A peer's program from our side: started, asked, measured, ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from bench.load import RunError
from bench.peers.kinds import BY_TECHNIQUE, PeerEnv
from bench.peers.star import Star
from bench.usage import measure_cpu

FOLDER = Path(__file__).resolve().parent
LOG_SHOWN = 1500


class Peer:
    """One peer, ready to run. Blocking; not thread-safe.

    Args:
        model: as the project names it; ``directory`` has it as a plain checkpoint.
        layers: of each machine.
    """

    def __init__(self, env: PeerEnv, star: Star, *, model: str, directory: Path, dtype: str, layers: Sequence[int]) -> None:
        self.star = star
        self._env = env
        self._folder = tempfile.TemporaryDirectory(prefix="peer-")
        self._configuration = {
            "model": model, "directory": str(directory), "folder": self._folder.name, "dtype": dtype, "layers": list(layers),
            "ports": star.ports, "relays": star.relays,
        }  # fmt: skip
        self._process: subprocess.Popen[str]
        self.version = ""

    def __enter__(self) -> Self:
        """Start it, and send something round.

        Raises:
            RunError: its program ended; with the end of what it printed.
        """
        self._log = (Path(self._folder.name) / "log").open("w+", encoding="utf-8", errors="replace")
        program = FOLDER / BY_TECHNIQUE[self._env.technique].program
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [self._env.python, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            start_new_session=True, env={**os.environ, **threads}, cwd=FOLDER.parents[1],
        )  # fmt: skip
        try:
            self.version = self._ask(self._configuration)["version"]
            self.prefill([[1, 2, 3, 4] * 4] * 2, room=4)
            self.decode(4)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # a leader that has not been waited for: the number is still its own
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._log.close()
        self._folder.cleanup()

    def prefill(self, prompts: list[list[int]], *, room: int) -> dict[str, Any]:
        """The first token of each, after which ``room`` more may be decoded; the answer as :mod:`bench.peers.protocol` has it."""
        return self._ask({"prefill": prompts, "room": room})

    def decode(self, tokens: int, *, again: bool = False) -> dict[str, Any]:
        """So many tokens more of each; ``again``: from the end of the prompts (llama.cpp alone)."""
        return self._ask({"decode": tokens, "again": again})

    def measure(self, prompts: list[list[int]], tokens: int) -> tuple[dict[str, Any], list[list[int]]]:
        """One run: what :class:`bench.load.Run` says of it, as far as it applies, and the emitted ids of each sequence.

        Raises:
            RunError: as on entry.
        """
        first = self.prefill(prompts, room=tokens)
        links, cpu = self.star.link_bytes(), measure_cpu(self.star.relay_pid)
        rest = self.decode(tokens)
        own, others = (after := measure_cpu(self.star.relay_pid)).share_since(cpu)
        emitted = len(prompts) * tokens
        run = {
            "prefill_tokens_per_s": sum(map(len, prompts)) / first["first_s"],
            "time_to_first_token_s": first["first_s"],
            "decode_tokens_per_s": emitted / sum(rest["steps_s"]),
            "gaps_s": rest["steps_s"],
            "window_s": sum(rest["steps_s"]),
            "link_bytes_per_token": [(b - a) / emitted for a, b in zip(links, self.star.link_bytes(), strict=True)],
            "cpu_share": own,
            "others_cpu_share": others,
            "cpu_s_per_token": (after.own_s - cpu.own_s) / emitted,
            "version": self.version,
        }
        return run, [[token, *more] for token, more in zip(first["tokens"], rest["tokens"], strict=True)]

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._log.seek(0)
            raise RunError(f"{self._env.technique} ended; it said:\n{self._log.read()[-LOG_SHOWN:]}")
        found: dict[str, Any] = json.loads(answer)
        return found
