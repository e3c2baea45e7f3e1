"""Petals' servers and client, in Petals' own environment; protocol.py has the protocol, README.md the package list.

Machine 0: the client and the first server, joined without a relay. The other machines: one server each. All servers announce
their relay, so what passes between machines passes one.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

from bench.peers.hivemind_names import restore_names  # noqa: E402
from bench.peers.protocol import Server, ends_its_group, wait_for  # noqa: E402

PREFIX = "bench"
PATIENCE_S = 240.0


def start_servers(asked: dict[str, Any]) -> str:
    """Start a server a machine; returns the address at which the client meets the first one."""
    from hivemind.p2p import P2P, PeerID

    first = ""
    start = 0
    for machine, layers in enumerate(asked["layers"]):
        identity = Path(asked["folder"]) / f"identity{machine}"
        P2P.generate_identity(str(identity))
        host, _, port = asked["relays"][machine].partition(":")
        command = [sys.executable, __file__, "server", asked["directory"], "--dht_prefix", PREFIX]
        command += ["--block_indices", f"{start}:{start + layers}", "--identity_path", str(identity)]
        command += ["--host_maddrs", f"/ip4/127.0.0.1/tcp/{asked['ports'][machine]}"]
        command += ["--announce_maddrs", f"/ip4/{host}/tcp/{port}", "--torch_dtype", asked["dtype"]]
        command += ["--device", "cpu", "--quant_type", "none", "--throughput", "100", "--num_handlers", "1"]
        command += ["--no_auto_relay", "--skip_reachability_check"]
        if machine == 0:
            peer = PeerID.from_identity(identity.read_bytes()).to_base58()
            first = f"/ip4/127.0.0.1/tcp/{asked['ports'][0]}/p2p/{peer}"
            command += ["--new_swarm"]
            subprocess.Popen(command, stdin=subprocess.DEVNULL)
            wait_for(asked["ports"][0])
        else:
            host, _, port = asked["relays"][0].partition(":")
            command += ["--initial_peers", f"/ip4/{host}/tcp/{port}/p2p/{peer}"]
            subprocess.Popen(command, stdin=subprocess.DEVNULL)
        start += layers
    return first


class Greedy:
    """A session of all sequences; embedding, output layer and sampling are the client's, as Petals has it."""

    def __init__(self, directory: str, dtype: str, first_server: str, num_layers: int) -> None:
        import hivemind
        import petals
        import torch

        self._torch = torch
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        self.version = f"petals {petals.__version__}, hivemind {hivemind.__version__}"
        self._model = petals.AutoDistributedModelForCausalLM.from_pretrained(
            directory, dht_prefix=PREFIX, initial_peers=[first_server], torch_dtype=getattr(torch, dtype), show_route=False
        )
        self._opened = contextlib.ExitStack()
        self._session: Any = None
        self._wait_until_served(num_layers)

    def _wait_until_served(self, num_layers: int) -> None:
        from petals.client.routing.sequence_manager import MissingBlocksError

        manager = self._model.transformer.h.sequence_manager
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                manager.make_sequence(0, num_layers, mode="min_latency")
                return
            except MissingBlocksError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not all layers were served after {PATIENCE_S:.0f} s") from None
            time.sleep(1.0)
            manager.update(wait=True)

    def prepare(self, batch: int, length: int) -> None:
        self._opened.close()
        self._session = self._opened.enter_context(self._model.transformer.h.inference_session(max_length=length))

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        return self._forward(prompts)

    def step(self, tokens: list[int]) -> list[int]:
        return self._forward([[token] for token in tokens])

    def _forward(self, rows: list[list[int]]) -> list[int]:
        model = self._model.transformer
        with self._torch.inference_mode():
            hidden = self._session.step(model.embed_tokens(self._torch.tensor(rows)))
            logits = self._model.lm_head(model.norm(hidden[:, -1]))
            picked: list[int] = logits.argmax(dim=-1).tolist()
        return picked


def main() -> None:
    server = Server()
    asked = server.configuration()
    first = start_servers(asked)
    server.serve(Greedy(asked["directory"], asked["dtype"], first, sum(asked["layers"])))


if __name__ == "__main__":
    restore_names()
    if sys.argv[1:2] == ["server"]:
        del sys.argv[1]
        from petals.cli import run_server

        run_server.validate_version = lambda: None  # would ask a registry for the newest version
        run_server.main()
    else:
        with ends_its_group():
            main()
