"""A helper process that has imported torch and transformers: describes models and forks workers.

The head's own process never imports either: they take seconds and hold the interpreter's lock for
hundreds of milliseconds, which the application's event loop would feel. Forking from here makes the second and
third worker free of that cost.

Protocol: JSON lines. In: ``{"id", "do", ...}``; out: ``{"id", "ok"}`` or ``{"id", "error": [code, fields]}``, and
``{"exited": pid, "status": wait status}`` on its own. Standard input is the lifeline: when it closes, or the parent is no
longer the parent, every worker is killed and the spawner ends. So nothing outlives a killed application.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, BinaryIO

from bloombee.errors import BloomBeeError, ConfigError, DeviceError, from_wire, to_wire
from bloombee.roles.child import start_child

LOOK_EVERY_S = 0.5
GRACE_S = 2.0
PR_SET_PDEATHSIG = 1


class Spawner:
    """The loop of the process."""

    def __init__(self, orders: BinaryIO, answers: BinaryIO) -> None:
        self._orders = orders
        self._answers = answers
        self._parent = os.getppid()
        self._workers: dict[int, int] = {}
        """pid -> write end of its lifeline."""

    def run(self) -> None:
        """Obey until standard input closes or the parent is gone."""
        wake, signalled = socket.socketpair()
        wake.setblocking(False)
        signalled.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(signalled.fileno(), warn_on_full_buffer=False)
        with wake, signalled:
            try:
                self._loop(wake)
            finally:
                signal.set_wakeup_fd(-1)

    def _loop(self, wake: socket.socket) -> None:
        os.set_blocking(self._orders.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._orders, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            pending = b""
            while os.getppid() == self._parent:
                for key, _ in selector.select(timeout=LOOK_EVERY_S):
                    if key.fileobj is wake:
                        wake.recv(4096)
                        continue
                    chunk = self._orders.read()
                    if chunk == b"":
                        return
                    pending += chunk or b""
                    *lines, pending = pending.split(b"\n")
                    for line in lines:
                        self._obey(json.loads(line))
                self._reap()

    def end(self) -> None:
        """Kill whatever still runs: asked first, then not asked."""
        for pid, lifeline in self._workers.items():
            os.close(lifeline)
            _signal(pid, signal.SIGTERM)
            _signal(pid, signal.SIGCONT)
        deadline = time.monotonic() + GRACE_S
        while self._workers and time.monotonic() < deadline:
            self._reap(tell=False)
            time.sleep(0.01)
        for pid in self._workers:
            _signal(pid, signal.SIGKILL)

    def _reap(self, *, tell: bool = True) -> None:
        for pid in list(self._workers):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                lifeline = self._workers.pop(pid)
                if tell:
                    os.close(lifeline)
                    self._say({"exited": pid, "status": status})

    def _say(self, answer: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # nobody reads any more: the lifeline ends this process
            self._answers.write(json.dumps(answer).encode() + b"\n")
            self._answers.flush()

    def _obey(self, order: dict[str, Any]) -> None:
        try:
            answer = getattr(self, "_do_" + order["do"])(**order.get("with", {}))
            self._say({"id": order["id"], "ok": answer})
        except BloomBeeError as error:
            self._say({"id": order["id"], "error": to_wire(error)})
        except Exception as error:
            logging.getLogger(__name__).debug("order failed", exc_info=True)
            failure = DeviceError(f"{order['do']} failed: {type(error).__name__}: {error}")
            self._say({"id": order["id"], "error": to_wire(failure)})

    # -- orders ----------------------------------------------------------------------------

    def _do_warm(self) -> None:
        """Import what every worker needs, so that forks share it."""
        import bloombee.engine.describe
        import bloombee.engine.model
        import bloombee.roles.worker  # noqa: F401

        gc.collect()
        gc.freeze()  # what is shared stays shared

    def _do_describe(self, model: str) -> dict[str, Any]:
        from bloombee.engine.describe import describe

        return describe(model).to_json()

    def _do_profile(self, model: str, device: str, dtype: str, threads: int) -> str:
        """In a process of its own: this one is to be forked, and torch's threads do not outlive a fork."""
        words = (model, device, dtype, str(threads))
        how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "encoding": "utf-8", "preexec_fn": _killed_with_parent}
        with start_child("bloombee.engine.profiling.full", *words, **how) as process:
            said: str = process.communicate()[0]
        if process.returncode:
            raise DeviceError(f"the profile of {model!r} could not be measured: {said.strip() or 'see stderr'}")
        return said

    def _do_memory(self, device: str, workers: int, log_bytes: int | None = None) -> int:
        """Bytes that each of ``workers`` on ``device`` may use for a model. In a process of its own: once one has asked a GPU, no
        fork of it can use that."""
        readable, writable = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            with contextlib.suppress(BaseException), os.fdopen(writable, "wb") as answer:
                answer.write(json.dumps(_offer(device, workers, log_bytes)).encode())
            os._exit(0)
        os.close(writable)
        with os.fdopen(readable, "rb") as answer:
            text = answer.read()
        os.waitpid(pid, 0)
        if not text:
            raise DeviceError(f"the memory of {device} could not be asked for: see stderr", device=device)
        offered, error = json.loads(text)
        if error is not None:
            raise from_wire(*error)
        return int(offered)

    def _do_spawn(self, config: dict[str, Any], keys: list[str]) -> int:
        readable, writable = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(writable)
                for lifeline in self._workers.values():
                    os.close(lifeline)
                os.close(self._orders.fileno())
                os.close(self._answers.fileno())
                _die_with_parent(readable)
                code = _worker_main(config, keys)
            except BaseException:
                logging.getLogger(__name__).exception("worker failed to start")
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(readable)
        self._workers[pid] = writable
        return pid


def _worker_main(config: dict[str, Any], keys: list[str]) -> int:
    from bloombee.config import WorkerConfig
    from bloombee.roles.worker import run
    from bloombee.transport.keys import KeyPair

    try:
        run(WorkerConfig(**config), KeyPair(*map(bytes.fromhex, keys)))
    except KeyboardInterrupt:
        return 130
    except asyncio.CancelledError:
        return 143
    except (ConfigError, DeviceError):
        return 1  # of its stage: the head has been told and says it
    except BloomBeeError as error:
        print(f"bloombee worker {config.get('name', '')}: {error}", file=sys.stderr)
        return 1
    return 0


def _offer(device: str, workers: int, log_bytes: int | None) -> tuple[int, tuple[str, dict[str, Any]] | None]:
    """(bytes, None), or what is wrong."""
    from bloombee.engine.memory import offered_bytes
    from bloombee.engine.model import pick_device

    try:
        return offered_bytes(pick_device(device), workers, log_bytes=log_bytes), None
    except BloomBeeError as error:
        return 0, to_wire(error)
    except RuntimeError as error:
        return 0, to_wire(DeviceError(f"{device}: {error}", device=device))


def _killed_with_parent() -> None:
    """On Linux the kernel ends this process with its parent, even while it is stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _die_with_parent(lifeline: int) -> None:
    """End this process when the spawner does, however that happens; stopped processes included on Linux."""
    _killed_with_parent()

    def watch() -> None:
        while os.read(lifeline, 1):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="bloombee-lifeline", daemon=True).start()


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def main() -> None:
    _killed_with_parent()
    # OpenBLAS, in numpy and scipy, starts threads as soon as it is loaded. What has threads should not be forked, and Python says
    # so to whoever started this; nothing here or in a worker computes with it. torch's own follows torch's number of threads.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    orders = os.fdopen(os.dup(0), "rb", buffering=0)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints by accident goes to stderr, not into the protocol
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spawner = Spawner(orders, answers)
    try:
        spawner.run()
    finally:
        spawner.end()


if __name__ == "__main__":
    main()
