"""``bloombee pack``: files of a model's layers in fewer bytes, for workers of this machine whose layers stream."""

from __future__ import annotations

from bloombee.config import Disk
from bloombee.terminal import write, write_line_of_json
from bloombee.types import Dtype


def pack(model: str, dtype: str, disk: Disk, *, json: bool) -> int:
    """Write them, and say what that saves.

    Raises:
        ConfigError, ModelUnsupported: there is no such model, or it cannot be served. Infeasible, DeviceError: no room.
    """
    from bloombee.engine.checkpoint import resolve
    from bloombee.engine.layer_files import LayerFiles
    from bloombee.engine.offload import pack_layers

    checkpoint = resolve(model)
    chosen = checkpoint.dtype if dtype == "auto" else Dtype(dtype)
    num_bytes, stored_bytes = pack_layers(checkpoint, chosen, LayerFiles(disk.layers, disk.num_bytes))
    if json:
        record = {"directory": str(disk.layers), "dtype": str(chosen), "bytes": num_bytes, "stored_bytes": stored_bytes}
        write_line_of_json(record)
    else:
        said = f"{num_bytes / 1e6:.0f} MB of layers in {stored_bytes / 1e6:.0f} MB, {num_bytes / stored_bytes:.2f}x fewer bytes"
        write(f"{said}, in {disk.layers}\n")
    return 0
