"""The answer to Profile: how fast this worker's device runs a model, told before anything of it is loaded.

It is measured on a thread of its own, for nothing may be slow on the event loop, and only while the worker holds no layers: what
serves is not to be disturbed, and would disturb. An order to load ends it, between two passes, and has its turn then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from functools import partial

from bloombee.errors import BloomBeeError, DeviceError, LinkDown, QueueFull, to_wire
from bloombee.models.card import ModelCard
from bloombee.models.standin import default_pace, is_standin, standin_card
from bloombee.pace import Pace
from bloombee.pipeline.profiles import paced, to_message
from bloombee.plan.profile import Hardware, Profile
from bloombee.plan.topology import RowTime
from bloombee.roles.loading import Loader, Stopped, freeze, same_model, say
from bloombee.roles.work_thread import WorkThread
from bloombee.types import Dtype, Span
from bloombee.wire import messages as m

log = logging.getLogger(__name__)
_Asked = tuple[bytes, str]
"""The model's digest and the dtype."""


class Measuring:
    """Of one worker. Belongs to the event loop that runs when it is made.

    Args:
        loader: what knows this worker's models and device.
        offers: what the machine offers, by torch's name of the device; called on the thread that measures.
        tell: the head.
    """

    def __init__(self, loader: Loader, offers: Callable[[str], Hardware], tell: Callable[[m.AnyMessage], object]) -> None:
        self._loader = loader
        self._offers = offers
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._thread: WorkThread | None = None
        self._known: dict[_Asked, m.Profiled] = {}
        self._at: _Asked | None = None
        """What is being found out."""
        self._stopped = threading.Event()

    def asked(self, asked: m.Profile, *, is_serving: bool) -> None:
        """Answer now, or once it is known. What was being measured for another question is given up.

        Args:
            is_serving: layers are held or being loaded: then only what is known already is told.
        """
        key = (asked.config_digest, asked.dtype)
        if key in self._known:
            self._say(self._known[key])
        elif self._at != key:
            self.give_up()
            self._at, self._stopped = key, threading.Event()
            self._thread = self._thread or WorkThread(self._loop, "bloombee-profile")
            find = partial(self._find, asked, self._stopped, is_serving=is_serving)
            self._thread.ask(find, partial(self._found, key, self._stopped), partial(self._failed, self._stopped))

    def give_up(self) -> None:
        """Measure no further; does not wait. Whoever asks again is answered anew."""
        self._stopped.set()
        self._at = None

    def close(self) -> None:
        """As :meth:`give_up`, for good."""
        self.give_up()
        if self._thread is not None:
            self._thread.stop()

    def _found(self, key: _Asked, stopped: threading.Event, found: Profile | None) -> None:
        if stopped.is_set():
            return
        self._at = None
        if found is not None:
            self._known[key] = to_message(found)
            self._say(self._known[key])

    def _failed(self, stopped: threading.Event, error: BloomBeeError) -> None:
        if stopped.is_set():
            return
        self._at = None
        log.warning("no profile for the head: %s", error.message)
        code, fields = to_wire(error)
        self._say(m.Refused(code, {**fields, "refused": "Profile"}))

    def _say(self, message: m.AnyMessage) -> None:
        with contextlib.suppress(LinkDown, QueueFull):  # the head asks again
            self._tell(message)

    # -- on the thread that measures -------------------------------------------------------

    def _find(self, asked: m.Profile, stopped: threading.Event, *, is_serving: bool) -> Profile | None:
        """None: nobody waits for it any more, or it must not be measured now."""

        def alive() -> None:
            if stopped.is_set():
                raise Stopped

        try:
            with self._loader.turn:
                alive()
                if is_standin(asked.model):
                    return self._standin(asked)
                return self._known_or_measured(asked, alive, is_serving=is_serving)
        except Stopped:
            log.debug("stopped while measuring for %s", asked.model)
            return None
        except BloomBeeError:
            raise
        except Exception as error:
            log.debug("measuring failed", exc_info=True)
            raise DeviceError(f"measuring {asked.model} failed: {say(error)}") from error

    def _standin(self, asked: m.Profile) -> Profile:
        card = standin_card(asked.model)
        same_model(bytes.fromhex(card.config_digest), asked.config_digest, asked.model)
        pace, output = (self._loader.pace, RowTime()) if self._loader.pace is not None else _default_times(card)
        return self._paced(pace, asked, output)

    def _paced(self, pace: Pace, asked: m.Profile, output: RowTime) -> Profile:
        hardware = Hardware(self._offers("cpu").memory_bytes, disk_bytes_per_s=self._loader.load_bytes_per_s)
        return paced(pace, asked.config_digest.hex(), asked.dtype, hardware, output)

    def _known_or_measured(self, asked: m.Profile, alive: Callable[[], None], *, is_serving: bool) -> Profile | None:
        checkpoint = self._loader.checkpoint(asked.model, asked.config_digest, alive)
        if self._loader.pace is not None:
            return self._paced(self._loader.pace, asked, RowTime())
        from bloombee.engine.model import pick_device, set_threads
        from bloombee.engine.profiling import full

        freeze()
        set_threads(self._loader.threads)
        device, dtype = pick_device(self._loader.device), Dtype(asked.dtype)
        offers = self._offers(device)
        found = full.known(checkpoint, device, dtype, offers)
        if is_serving:
            return found
        if found is not None:
            return self._loader.with_disk(found)
        log.info("measuring how fast layers like those of %s are here; it takes some seconds", asked.model)
        found = full.find(checkpoint, device, dtype, offers, alive=alive)
        layer = found.fit.layer
        log.info(
            "a layer takes %.3g ms for a row, %.3g ms for 32 of a prompt", 1e3 * layer.decode_s(1), 1e3 * layer.prefill_s(32)
        )
        return self._loader.with_disk(found)


def _default_times(card: ModelCard) -> tuple[Pace, RowTime]:
    """Of a stand-in's layer, and of what comes after them, as its default pace has them."""
    layer = default_pace(card, Span(0, 1))  # without the embedding, which is no work
    last = default_pace(card, Span(card.num_layers - 1, card.num_layers))
    output = RowTime(
        max(0.0, last.fixed_s - layer.fixed_s),
        max(0.0, last.decode_row_s - layer.decode_row_s),
        max(0.0, last.prefill_row_s - layer.prefill_row_s),
    )
    return Pace(layer.fixed_s, layer.decode_row_s, layer.prefill_row_s, 1), output
