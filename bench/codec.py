"""The activation codec against entropy and against public codecs, on tensors of a safetensors file.

    python bench/codec.py [--input FILE.safetensors ...] [--peers] [--isa best|all] [--device cuda] [--larger 1MiB,128MiB]
        [--json PATH]

Every tensor is taken as [rows, d]. The table is fitted to the first half of its rows; what is scored is the second
half: whole, and cut into messages of whole rows of about 512 B, 8 KB and 16 KB. ``ratio`` = bytes of the second half /
(all messages + the table, sent once). GB/s are raw bytes over the fastest run of one thread, through Python; times of
messages are medians. ``--larger`` repeats rows up to messages that fill a GPU.
``--device cuda`` times the kernels by events in their stream, from the call on and ("queued") without what the call takes, and
("ring") the whole way from values on the device to a message here and back, by the device's codec and by the processor's.
``--peers`` adds those of zstandard, blosc2, zipnn, lz4 and pcodec that can be imported.
Tensors come from tools/dump_activations.py; without --input they are those of the demo model that stand-ins send.

Exits 1 if any of them comes back as anything but what it was.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.arguments import OptionError, Parser, seconds, writable
from bench.program import program
from bloombee import _native
from bloombee.codec import api
from bloombee.codec.fit import SPAN, context_counts, exponents_of, fit, fit_rows
from bloombee.codec.table import Table
from bloombee.config import parse_size
from bloombee.errors import ConfigError
from bloombee.types import Dtype

BANK = Path(__file__).parents[1] / "bloombee" / "engine" / "bank.safetensors"
MESSAGE_BYTES = (512, 8 << 10, 16 << 10)
MOST_BYTES = 128 << 20
MAX_MESSAGES = 512
"""Of one size and tensor that are timed; all are counted in the ratio."""
WORDS = {Dtype.BFLOAT16: np.uint16, Dtype.FLOAT16: np.uint16, Dtype.FLOAT32: np.uint32}


@dataclass(frozen=True)
class Row:
    """One line of the output."""

    tensor: str
    dtype: str
    shape: tuple[int, int]
    message_bytes: int
    """As asked; a message has whole rows, so it may be longer (``cut_bytes``)."""
    cut_bytes: int
    codec: str
    isa: str
    ratio: float
    encode_gb_per_s: float
    decode_gb_per_s: float
    encode_us: float
    decode_us: float
    encode_us_p90: float
    decode_us_p90: float
    exact: bool
    entropy_order0_bits: float
    entropy_context_bits: float
    table_bytes: int


def wall_s(run: Callable[[], Any]) -> float:
    """Seconds of a run that is over when it returns."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Codec:
    """``encode`` gives an encoded message, ``decode`` gives something with the bytes of the matrix."""

    name: str
    isa: str
    encode: Callable[[np.ndarray], Any]
    decode: Callable[[Any, np.ndarray], Any]
    table_bytes: int = 0
    spent: Callable[[Callable[[], Any]], float] = wall_s
    """Seconds of one run, of whatever does the work."""


# -- entropies ---------------------------------------------------------------------------------


def entropy(counts: np.ndarray) -> float:
    """Bits that ``counts`` occurrences take together, each coded with its own share."""
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def raw_bits(x: np.ndarray, dtype: Dtype) -> float:
    """Bits a value outside the exponent: taken as noise, but for fp32's low bytes that are 0 everywhere."""
    if dtype is not Dtype.FLOAT32:
        return 8.0 if dtype is Dtype.BFLOAT16 else 11.0
    return 8.0 + 8 * bool((x & 0xFF).any()) + 8 * bool((x >> 8 & 0xFF).any())


def entropies(train: np.ndarray, test: np.ndarray, dtype: Dtype) -> tuple[float, float]:
    """(order-0, context) bits a value of ``test``.

    The context is the codec's own kind (channel groups of 64, 4 clusters, 4 phases), with the rows' offsets or without,
    whichever is less; the offsets are free here and the probabilities are those of ``test`` itself, unrounded.
    """
    e_train, e_test = exponents_of(train, dtype), exponents_of(test, dtype)
    rest = raw_bits(test, dtype)
    order0 = entropy(np.bincount(e_test.ravel(), minlength=256)) / test.size
    context = order0
    for row_bits in (0, 8):
        counts = context_counts(e_test, fit_rows(e_train, dtype, row_bits)[1])
        assert counts.shape[1] == SPAN + 2
        context = min(context, sum(entropy(c) for c in counts) / test.size)
    return rest + order0, rest + context


# -- codecs ------------------------------------------------------------------------------------


def ours(table: Table, dtype: Dtype, longest: int, isa: str) -> Codec:
    """On the CPU. Buffers are the caller's in real use, so they are made once here."""
    out = bytearray(api.bound(longest, dtype))
    view = memoryview(out)
    tables = {table.key: table}

    def encode(x: np.ndarray) -> memoryview:
        return view[: api.encode(x, shape=x.shape, dtype=dtype, table=table, out=out)]

    def decode(message: Any, into: np.ndarray) -> np.ndarray:
        api.decode(message, into, shape=into.shape, dtype=dtype, tables=tables)
        return into

    return Codec("bloombee", isa, encode, decode, len(table.to_bytes()))


def peer_codecs(dtype: Dtype) -> Iterator[Codec]:
    """Those public codecs that are installed, in the settings that suit this data best."""
    word = np.dtype(WORDS[dtype])
    for module, make in (
        ("zstandard", _zstandard), ("blosc2", _blosc2), ("zipnn", _zipnn), ("lz4.frame", _lz4), ("pcodec", _pcodec),
    ):  # fmt: skip
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            print(f"peer {module}: {error}", file=sys.stderr)
            continue
        yield from make(found, dtype, word)


def _apply(function: Callable[[Any], Any], data: Any, *_: Any) -> Any:
    return function(data.data if isinstance(data, np.ndarray) else data)


def _zstandard(zstandard: Any, dtype: Dtype, word: np.dtype) -> Iterator[Codec]:
    for level in (-1, 3):
        c, d = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
        yield Codec(f"zstd {level}", "", partial(_apply, c.compress), partial(_apply, d.decompress))


def _blosc2(blosc2: Any, dtype: Dtype, word: np.dtype) -> Iterator[Codec]:
    blosc2.set_nthreads(1)

    def encode(x: np.ndarray) -> Any:
        return blosc2.compress2(
            x, codec=blosc2.Codec.ZSTD, clevel=1, typesize=word.itemsize, filters=[blosc2.Filter.SHUFFLE], nthreads=1
        )

    yield Codec("blosc2 shuffle+zstd1", "", encode, lambda m, _: blosc2.decompress2(m, nthreads=1))


def _zipnn(zipnn: Any, dtype: Dtype, word: np.dtype) -> Iterator[Codec]:
    kind = {Dtype.BFLOAT16: "bfloat16", Dtype.FLOAT16: "float16", Dtype.FLOAT32: "float32"}[dtype]
    z = zipnn.ZipNN(input_format="byte", bytearray_dtype=kind, threads=1)
    yield Codec("zipnn", "", lambda x: z.compress(x.tobytes()), lambda m, _: z.decompress(m))


def _lz4(lz4: Any, dtype: Dtype, word: np.dtype) -> Iterator[Codec]:
    yield Codec("lz4", "", lambda x: lz4.compress(x.tobytes()), lambda m, _: lz4.decompress(m))


def _pcodec(pcodec: Any, dtype: Dtype, word: np.dtype) -> Iterator[Codec]:
    config = pcodec.ChunkConfig()
    simple = pcodec.standalone
    yield Codec(
        "pcodec",
        "",
        lambda x: simple.simple_compress(np.ascontiguousarray(x).ravel(), config),
        lambda m, _: simple.simple_decompress(m),
    )


def on_device(data: bytes) -> Any:
    """The same bytes on the GPU."""
    import torch

    return torch.frombuffer(bytearray(data), dtype=torch.uint8).cuda()


class Uploaded:
    """What was last put on the GPU, by the identity of what it was here."""

    def __init__(self) -> None:
        self._held: tuple[Any, Any] = (None, None)

    def __call__(self, x: Any) -> Any:
        if self._held[0] is not x:
            self._held = (x, on_device(as_bytes(x)))
        return self._held[1]


def device_codecs(table: Table, dtype: Dtype, longest: int, channels: int) -> Iterator[Codec]:
    """On the GPU, values and messages both there; timed by events in its stream, from the call and as part of a full queue."""
    import torch

    from bloombee.codec import cuda as device
    from bloombee.engine.device_clock import clock_of, seconds_of

    device.native()
    shape = (longest // channels, channels)
    stream = torch.cuda.current_stream().cuda_stream
    image = on_device(table.native.device_image())
    work = torch.zeros(device.workspace_bytes(shape, dtype, table), dtype=torch.uint8, device="cuda")
    out = torch.empty(api.bound(longest, dtype), dtype=torch.uint8, device="cuda")
    values = torch.empty(longest * dtype.num_bytes, dtype=torch.uint8, device="cuda")
    uploaded = Uploaded()

    def result() -> device.Result:
        return device.read_result(work[: device.RESULT_BYTES].cpu().numpy().tobytes())

    def encode(x: np.ndarray) -> LazyMessage:
        device.encode(
            uploaded(x).data_ptr(), shape=x.shape, dtype=dtype, table=table, image=image.data_ptr(), out=out.data_ptr(),
            workspace=work.data_ptr(), stream=stream,
        )  # fmt: skip
        return LazyMessage(lambda: out[: result().size].cpu().numpy().tobytes())

    def decode(message: Any, into: np.ndarray) -> Any:
        source = uploaded(message)
        device.decode(
            message[:12], source.data_ptr(), len(message), out=values.data_ptr(), shape=into.shape, dtype=dtype, table=table,
            image=image.data_ptr(), workspace=work.data_ptr(), stream=stream,
        )  # fmt: skip
        return LazyMessage(lambda: values[: into.nbytes].cpu().numpy().tobytes())

    def alone(run: Callable[[], Any]) -> float:
        return seconds_of(clock, run, lambda _: torch.cuda.synchronize())

    def queued(run: Callable[[], Any]) -> float:
        torch.cuda._sleep(200_000)  # some 0.1 ms, in which the call returns
        return alone(run)

    clock = clock_of(torch.device("cuda"))
    yield Codec("bloombee", "cuda", encode, decode, len(table.to_bytes()), alone)
    yield Codec("bloombee, queued", "cuda", encode, decode, len(table.to_bytes()), queued)


def ring_codecs(table: Table, dtype: Dtype, channels: int) -> Iterator[Codec]:
    """From values on the GPU to a message here and back, by either way that a worker has; copies included."""
    import torch

    from bloombee.engine.buffers import TORCH_DTYPES
    from bloombee.engine.device_codec import Coder, CudaCoder, ProcessorCoder

    uploaded = Uploaded()

    def encode(coder: Coder, x: np.ndarray) -> memoryview:
        return coder.encode(uploaded(x).view(TORCH_DTYPES[dtype]).view(x.shape), table)

    def decode(coder: Coder, message: Any, into: np.ndarray) -> LazyMessage:
        rows = coder.decode(memoryview(message), table, into.shape[0])
        return LazyMessage(lambda: rows.view(torch.uint8).cpu().numpy().tobytes())

    def spent(run: Callable[[], Any]) -> float:
        return wall_s(lambda: (run(), torch.cuda.synchronize()))

    for name, coder in (
        ("ring, device", CudaCoder(dtype, channels, torch.device("cuda"))),
        ("ring, processor", ProcessorCoder(dtype, channels, torch.device("cuda"))),
    ):
        yield Codec(name, "cuda", partial(encode, coder), partial(decode, coder), len(table.to_bytes()), spent)


class LazyMessage:
    """Bytes that stay on the device until something looks at them."""

    def __init__(self, fetch: Callable[[], bytes]) -> None:
        self.fetch = fetch

    def tobytes(self) -> bytes:
        return self.fetch()

    def __bytes__(self) -> bytes:
        return self.fetch()

    def __len__(self) -> int:
        return len(self.fetch())


# -- measuring ---------------------------------------------------------------------------------


def timed(codec: Codec, function: Callable[[], Any], seconds: float, most: int) -> list[float]:
    """Durations of repeated runs, for about ``seconds``; the first run is not counted."""
    function()
    durations: list[float] = []
    stop = time.perf_counter() + seconds
    while len(durations) < most and (len(durations) < 3 or time.perf_counter() < stop):
        durations.append(codec.spent(function))
    return durations


def as_bytes(x: Any) -> bytes:
    return x.tobytes() if hasattr(x, "tobytes") else bytes(x)


def measure(codec: Codec, messages: list[np.ndarray], seconds: float) -> dict[str, Any]:
    """Ratio and exactness over all messages; speed over some (one, if there is only one)."""
    total, exact = codec.table_bytes, True
    sample = messages[:: max(1, len(messages) // MAX_MESSAGES)]
    for x in messages:
        message = codec.encode(x)
        total += len(message)
        exact &= as_bytes(codec.decode(bytes(message), np.empty_like(x))) == x.tobytes()
    encode, decode = [], []
    for x in sample:
        message, into = bytes(codec.encode(x)), np.empty_like(x)
        few = 100000 if len(messages) == 1 else 20
        share = seconds / len(sample)
        encode.append(timed(codec, partial(codec.encode, x), share, few))
        decode.append(timed(codec, partial(codec.decode, message, into), share, few))
    size = sum(x.nbytes for x in messages)
    out: dict[str, Any] = {"ratio": size / total, "exact": exact, "table_bytes": codec.table_bytes}
    for name, runs in (("encode", encode), ("decode", decode)):
        fastest = sum(min(r) for r in runs)
        every = sorted(t for r in runs for t in r)
        out[f"{name}_gb_per_s"] = sum(x.nbytes for x in sample) / fastest / 1e9
        out[f"{name}_us"] = statistics.median(every) * 1e6
        out[f"{name}_us_p90"] = every[int(0.9 * (len(every) - 1))] * 1e6
    return out


def cut(x: np.ndarray, message_bytes: int) -> list[np.ndarray]:
    """Messages of whole rows, at least one, as near to ``message_bytes`` as rows allow."""
    rows = min(len(x), max(1, round(message_bytes / (x.shape[1] * x.itemsize))))
    return [x[i : i + rows] for i in range(0, len(x) - rows + 1, rows)]


def larger(x: np.ndarray, num_bytes: int) -> np.ndarray:
    """At least so many bytes of ``x``'s rows, drawn again and again: of the same channels, in no order."""
    rows = -(-num_bytes // (x.shape[1] * x.itemsize))
    drawn: np.ndarray = x[np.random.default_rng(rows).integers(len(x), size=rows)]
    return drawn


def rows_of(name: str, x: np.ndarray, dtype: Dtype, args: argparse.Namespace) -> Iterator[Row]:
    half = len(x) // 2
    train, test = x[:half], np.ascontiguousarray(x[half:])
    table = fit(train, dtype)
    order0, context = entropies(train, test, dtype)
    sizes = [(test.nbytes, [test])] + [(size, cut(test, size)) for size in MESSAGE_BYTES]
    sizes += [(size, [larger(test, size)]) for size in args.larger if size > test.nbytes]
    for message_bytes, messages in sizes:
        for codec in codecs_for(table, dtype, messages[0].size, test.shape[1], args):
            before = _native.set_isa(codec.isa) if codec.isa in _native.available_isas() else None
            found = measure(codec, messages, args.seconds)
            if before:
                _native.set_isa(before)
            yield Row(
                name, dtype.value, (x.shape[0], x.shape[1]), message_bytes, messages[0].nbytes, codec.name, codec.isa,
                entropy_order0_bits=order0, entropy_context_bits=context, **found,
            )  # fmt: skip


def codecs_for(table: Table, dtype: Dtype, longest: int, channels: int, args: argparse.Namespace) -> Iterator[Codec]:
    if args.device == "cuda":
        yield from device_codecs(table, dtype, longest, channels)
        yield from ring_codecs(table, dtype, channels)
        return
    isas = _native.available_isas()
    for isa in isas if args.isa == "all" else isas[-1:]:
        yield ours(table, dtype, longest, isa)
    if args.peers:
        yield from peer_codecs(dtype)


def tensors_of(path: Path) -> Iterator[tuple[str, np.ndarray, Dtype]]:
    """(name, [rows, d] bit patterns, dtype) of the floating-point tensors in a file that have two rows."""
    import torch
    from safetensors import SafetensorError, safe_open

    kinds = {torch.bfloat16: Dtype.BFLOAT16, torch.float16: Dtype.FLOAT16, torch.float32: Dtype.FLOAT32}
    try:
        opened = safe_open(path, "pt")
    except SafetensorError as error:
        raise OptionError(f"--input {path}: {error}") from error
    with opened as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            tensor = file.get_tensor(name)
            dtype = kinds.get(tensor.dtype)
            if dtype is None or tensor.ndim < 1 or tensor.numel() < 2 * tensor.shape[-1]:
                print(f"{name}: {tensor.dtype} {list(tensor.shape)}: left out", file=sys.stderr)
                continue
            bits = tensor.reshape(-1, tensor.shape[-1]).contiguous().view(torch.uint32 if dtype.num_bytes == 4 else torch.uint16)
            yield name, bits.numpy(), dtype


def show(row: Row) -> None:
    limit = 8 * Dtype(row.dtype).num_bytes / row.entropy_context_bits
    print(
        f"{row.tensor:24} {row.message_bytes:>9} {row.codec:20} {row.isa:7} {row.ratio:7.4f} {row.ratio / limit:6.3f} "
        f"{row.encode_gb_per_s:8.3f} {row.decode_gb_per_s:8.3f} {row.encode_us:10.2f} {row.decode_us:10.2f}"
        f"{'' if row.exact else '  NOT EXACT'}",
        flush=True,
    )


def sizes(text: str) -> tuple[int, ...]:
    """Of messages, up to :data:`MOST_BYTES`."""
    found = tuple(parse_size(word, "--sizes") for word in text.split(","))
    if max(found) > MOST_BYTES:
        raise ConfigError(f"{text}: at most {MOST_BYTES >> 20} MiB")
    return found


@program("codec")
def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", default=[BANK], type=Path, help="default: activations of the demo model")
    parser.add_argument("--only", default="", help="tensors whose name contains this")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--isa", choices=["best", "all"], default="best")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=seconds(0.001, 3600), default=0.3, help="of timing for each direction of each row")
    parser.add_argument(
        "--larger", type=sizes, default=(), metavar="SIZE,..", help="messages of the same rows again, as 1MiB,128MiB"
    )
    parser.add_argument("--json", type=writable, help="write one JSON line a row")
    args = parser.parse_args()
    for path in args.input:
        if not path.is_file():
            raise OptionError(f"--input {path}: no such file")
    print(f"{platform.machine()} isa {_native.codec_isa()}; table fitted on the first half, scored on the second")
    print(f"{'tensor':24} {'message':>9} {'codec':20} {'isa':7} {'ratio':>7} {'/limit':>6}", end=" ")
    print(f"{'enc GB/s':>8} {'dec GB/s':>8} {'enc us':>10} {'dec us':>10}")
    rows = []
    for path in args.input:
        for name, x, dtype in tensors_of(path):
            for row in rows_of(name, x, dtype, args) if args.only in name else ():
                show(row)
                rows.append(row)
    if args.json:
        args.json.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    return 0 if rows and all(row.exact for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
