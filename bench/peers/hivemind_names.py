"""Names that Petals 2.2 imports from ``hivemind`` itself. hivemind 1.1.12 has them in its modules only; older ones do not
build here and now. Nothing else of either is changed."""

from __future__ import annotations

import importlib

MODULES = {
    "hivemind.p2p": ("P2P", "P2PContext", "PeerID"),
    "hivemind.compression.serialization": (
        "deserialize_tensor_stream",
        "deserialize_torch_tensor",
        "serialize_torch_tensor",
    ),
    "hivemind.moe.server.runtime": ("Runtime",),
    "hivemind.utils.asyncio": ("anext", "enter_asynchronously"),
    "hivemind.utils.logging": ("get_logger",),
    "hivemind.utils.nested": ("nested_compare", "nested_flatten", "nested_pack"),
    "hivemind.utils.serializer": ("MSGPackSerializer",),
    "hivemind.utils.tensor_descr": ("BatchTensorDescriptor", "TensorDescriptor"),
    "hivemind.utils.timed_storage": ("MAX_DHT_TIME_DISCREPANCY_SECONDS", "TimedStorage", "get_dht_time"),
}


def restore_names() -> None:
    """To be called before petals is imported."""
    hivemind = importlib.import_module("hivemind")
    for module, names in MODULES.items():
        found = importlib.import_module(module)
        for name in names:
            setattr(hivemind, name, getattr(found, name))
