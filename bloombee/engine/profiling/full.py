"""The profile of a model on this machine: from the cache, or measured now (``layers.py``) and kept."""

from __future__ import annotations

import sys
from dataclasses import replace

from bloombee.engine.checkpoint import Checkpoint, resolve
from bloombee.engine.memory import free_bytes
from bloombee.engine.model import pick_device, set_threads
from bloombee.engine.profiling.hardware import hardware
from bloombee.engine.profiling.kept import cache_path, keep, look_up, turn
from bloombee.engine.profiling.layers import Alive, measure
from bloombee.errors import BloomBeeError
from bloombee.plan.profile import Hardware, Profile
from bloombee.types import Dtype


def profile(model: str, *, device: str = "cpu", dtype: str = "auto", threads: int | None = None, fresh: bool = False) -> Profile:
    """The profile of ``model`` on ``device``, with all of the memory that is free.

    Args:
        threads: of torch in this process from now on; None: leaves them.
        fresh: measure even if the cache has one.

    Raises:
        ConfigError, ModelUnsupported, DeviceError: as for serving the model.

    Time: some seconds.
    """
    device = pick_device(device)
    if threads is not None:
        set_threads(threads)
    checkpoint = resolve(model)
    kind = checkpoint.dtype if dtype == "auto" else Dtype(dtype)
    return find(checkpoint, device, kind, hardware(device, memory_bytes=free_bytes(device)), fresh=fresh)


def known(checkpoint: Checkpoint, device: str, dtype: Dtype, offers: Hardware) -> Profile | None:
    """What the cache has.

    Args:
        device: of torch. offers: what the machine offers now, without what was measured of it.
    """
    found = look_up(cache_path(checkpoint.config_digest.hex(), device, dtype))
    if found is None:
        return None
    measured = ("to_device_bytes_per_s", "from_device_bytes_per_s", "disk_bytes_per_s", "frames_per_s")
    return replace(found, hardware=replace(offers, **{name: getattr(found.hardware, name) for name in measured}))


def find(
    checkpoint: Checkpoint,
    device: str,
    dtype: Dtype,
    offers: Hardware,
    *,
    fresh: bool = False,
    alive: Alive = lambda: None,
) -> Profile:
    """As :func:`profile`, of a checkpoint. Processes of one machine measure one after the other, and the first of those that want
    the same does it for all.

    Args:
        alive: called again and again meanwhile; it may raise to give up, which leaves nothing.
    """
    if not fresh and (found := known(checkpoint, device, dtype, offers)) is not None:
        return found
    with turn(alive):
        if not fresh and (found := known(checkpoint, device, dtype, offers)) is not None:
            return found
        found = measure(checkpoint, device=device, dtype=dtype, hardware=offers, alive=alive)
    keep(found, cache_path(found.model_digest, device, dtype))
    return found


def main() -> int:
    """``python -m bloombee.engine.profiling.full MODEL DEVICE DTYPE THREADS``: the profile as JSON, or what is wrong."""
    model, device, dtype, threads = sys.argv[1:]
    said, code = "", 0
    try:
        said = profile(model, device=device, dtype=dtype, threads=int(threads)).to_json()
    except BloomBeeError as error:
        said, code = error.message, 1
    sys.stdout.buffer.write(f"{said}\n".encode())  # UTF-8 whatever the locale says, for whoever started this
    return code


if __name__ == "__main__":
    sys.exit(main())
