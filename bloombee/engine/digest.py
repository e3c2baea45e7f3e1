"""Telling one model's weights from another's of the same shape, by a few bytes of each tensor.

Two fine-tunes of one base have the same config and the same tensor names. A tensor's digest covers its name, element type,
shape and some blocks of its bytes, at places that follow from these; never the file it lies in, so a checkpoint in one file and
the same in shards have the same. Digests are kept by **home**: the embedding, each layer, what comes after the layers. So
a worker compares what its span loads and nothing else, and a head that lacks a shard knows nothing of the homes in it and
all of the others (docs/adr/0040).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack

from bloombee.engine.checkpoint import SINGLE_FILE, Checkpoint
from bloombee.engine.reader import Entry, ShardReader
from bloombee.engine.skeleton import Skeleton
from bloombee.engine.weights import Loading, plan_loading
from bloombee.errors import ConfigError
from bloombee.types import Span
from bloombee.wire.messages import WEIGHT_DIGEST_BYTES

BLOCKS, BLOCK_BYTES = 3, 256
"""Of a tensor, at most so many bytes are looked at; all of a smaller one."""
TIED = "(tied)"
"""Stands for the names of a head and an embedding that are one: some files hold either, some both."""


def weight_digests(checkpoint: Checkpoint, skeleton: Skeleton) -> tuple[bytes, ...]:
    """Digests of all homes: [embedding, layer 0, ..., after the layers].

    Args:
        skeleton: whole, of that checkpoint.

    Returns:
        For each home the digests of its tensors, one after the other; b"" where not all of its files are on this machine.
        Empty for random weights, which follow from the model's name.

    Raises:
        ConfigError: a file that is here is no sound safetensors file, or lacks a tensor that the index places there.

    Time: reads the headers and 768 bytes a tensor; nothing is fetched.
    """
    if checkpoint.is_random or (checkpoint.index is None and not _is_here(checkpoint, SINGLE_FILE)):
        return ()
    try:
        loading = plan_loading(skeleton, checkpoint, Span(0, skeleton.num_layers))
    except ConfigError:  # the weights are not the config's: who loads them says so
        return ()
    homes = _labels(skeleton, loading)
    missing = {name for name, file in checkpoint.files.items() if not _is_here(checkpoint, file)}
    known = {home: names for home, names in homes.items() if not missing & names.keys()}
    found = _digests(checkpoint, {name: label for names in known.values() for name, label in names.items()})
    return tuple(b"".join(found[name] for name in sorted(known.get(home, ()))) for home in range(-1, skeleton.num_layers + 1))


def require_same_weights(
    checkpoint: Checkpoint, skeleton: Skeleton, loading: Loading, span: Span, expected: Sequence[bytes]
) -> None:
    """Compare what the stage of ``span`` is about to load with what the head has.

    Args:
        expected: the head's digests of the span's homes, in order: the embedding's on the first stage, each layer's, and on the
            last stage those after the layers; b"" of a home it knows nothing of. Empty: it knows nothing at all.

    Raises:
        ConfigError: a tensor is not among the head's; names it, and the directory. Or a file is unsound.
    """
    homes = homes_of(span, skeleton.num_layers)
    theirs = {home: known for home, known in zip(homes, expected, strict=bool(expected)) if known}
    labels = _labels(skeleton, loading)
    wanted = {name: label for home in theirs for name, label in labels.get(home, {}).items()}
    own = _digests(checkpoint, wanted)
    other = [
        name for home, known in theirs.items() for name in sorted(labels.get(home, ())) if own[name] not in set(_split(known))
    ]
    if other:
        differing = f"{other[0]} and {len(other) - 1} more differ" if other[1:] else f"{other[0]} differs"
        raise ConfigError(
            f"the weights in {checkpoint.directory} are not those of the head's model: {differing};"
            " copy the head's files there, or name a directory that has them with worker --model",
            path=str(checkpoint.directory),
            tensor=other[0],
        )


def homes_of(span: Span, num_layers: int) -> range:
    """The homes that the stage of ``span`` loads, numbered as by :meth:`~bloombee.engine.skeleton.Skeleton.home`."""
    return range(span.start - (span.start == 0), span.stop + (span.stop == num_layers))


def _labels(skeleton: Skeleton, loading: Loading) -> dict[int, dict[str, str]]:
    """Home -> name on disk -> what the digest calls it: that name, unless the tensor is tied to one of another name."""
    unit_of = {target: unit for unit in loading.units for target in unit.targets}
    tied = {name for pair in skeleton.tied().items() for name in pair}
    homes: dict[int, dict[str, str]] = {}
    for parameter, stored in loading.stored.items():
        names = homes.setdefault(skeleton.home(parameter), {})
        for name in unit_of[stored].names():
            names[name] = TIED if stored in tied else name
    return homes


def _digests(checkpoint: Checkpoint, labels: Mapping[str, str]) -> dict[str, bytes]:
    """Name on disk -> digest. Opens each file once."""
    with ExitStack() as stack:
        files = {checkpoint.files[name] for name in labels}
        shards = {file: stack.enter_context(ShardReader(checkpoint.shard(file))) for file in sorted(files)}
        return {name: _digest(*shards[checkpoint.files[name]].locate(name), label) for name, label in labels.items()}


def _digest(shard: ShardReader, entry: Entry, label: str) -> bytes:
    """Source: docs/wire.md section 4."""
    identity = json.dumps([label, entry.dtype, entry.shape], separators=(",", ":"))
    digest = hashlib.blake2b(identity.encode(), digest_size=32)
    for start in _places(entry.num_bytes, digest.digest()):
        digest.update(shard.peek(entry, start, BLOCK_BYTES))
    return digest.digest()[:WEIGHT_DIGEST_BYTES]


def _places(num_bytes: int, seed: bytes) -> Iterable[int]:
    """Where the blocks begin: one in each part of the tensor, at a place in it that ``seed`` says."""
    if num_bytes <= BLOCKS * BLOCK_BYTES:
        return range(0, num_bytes, BLOCK_BYTES)
    part = num_bytes // BLOCKS
    room = part - BLOCK_BYTES
    return [block * part + int.from_bytes(seed[8 * block : 8 * block + 8], "little") % (room + 1) for block in range(BLOCKS)]


def _split(digests: bytes) -> Iterator[bytes]:
    return (digests[at : at + WEIGHT_DIGEST_BYTES] for at in range(0, len(digests), WEIGHT_DIGEST_BYTES))


def _is_here(checkpoint: Checkpoint, file: str) -> bool:
    return checkpoint.directory is not None and (checkpoint.directory / file).is_file()
