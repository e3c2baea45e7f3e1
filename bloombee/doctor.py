"""``bloombee doctor``: what was found on this machine, and what to do about what was not.

Each check is a function that returns a :class:`Finding`; none raises, and none needs another to have passed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
import resource
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from bloombee.errors import CapacityError
from bloombee.transport.descriptors import require_descriptors

if TYPE_CHECKING:
    from bloombee.plan.profile import Hardware, Profile

State = Literal["ok", "optional", "missing"]
"""``optional``: not there, and the program works without it. ``missing``: it does not."""

REQUIREMENT = re.compile(r"([\w.-]+)>=([\d.]+)")
"""Of every installation on every system: one with a marker is not."""
REINSTALL = "reinstall the package with a C++20 compiler on the path: pip install --force-reinstall --no-deps ."


@dataclass(frozen=True, slots=True)
class Finding:
    """One row: what was looked for, what was found, what to do (empty when nothing is)."""

    name: str
    state: State
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Every check, in the order in which their advice is best followed."""
    return [check() for check in CHECKS]


def healthy(findings: Sequence[Finding]) -> bool:
    """Nothing that is needed is missing."""
    return all(finding.state != "missing" for finding in findings)


def check_machine() -> Finding:
    machine = _module("bloombee.machine")
    if isinstance(machine, str):
        return Finding("machine", "optional", machine, "pip install psutil")
    cores = machine.cores()
    found = f"{platform.system()} {platform.machine()}, {cores.amount} cores{_held(cores)}, Python {platform.python_version()}"
    return Finding("machine", "ok", found)


def check_memory() -> Finding:
    psutil, machine = _module("psutil"), _module("bloombee.machine")
    if isinstance(psutil, str) or isinstance(machine, str):
        return Finding("memory", "missing", str(psutil), "pip install 'psutil>=6'")
    free = machine.free_memory()
    found = f"{free.amount / 2**30:.1f} GiB free of {psutil.virtual_memory().total / 2**30:.1f}{_held(free)}"
    if free.amount < 1 << 30:
        return Finding(
            "memory", "optional", found, "three workers of the demo take about half a GiB; use fewer workers or end something"
        )
    return Finding("memory", "ok", found)


def check_extension() -> Finding:
    native = _module("bloombee._native")
    if isinstance(native, str):
        return Finding("native extension", "missing", native, REINSTALL)
    return Finding(
        "native extension", "ok", f"SIMD level {native.current_isa()}; this CPU has {', '.join(native.available_isas())}"
    )


def check_cuda_extension() -> Finding:
    cuda = _module("bloombee._native_cuda")
    if isinstance(cuda, str):
        return Finding(
            "CUDA extension", "optional", cuda, "only of use with an NVIDIA GPU: install again where nvcc is on the path"
        )
    if not cuda.device_count():
        return Finding("CUDA extension", "ok", "built; no device to use it on")
    return Finding("CUDA extension", "ok", "built; a step is one launch, save of models of which a worker's log says why not")


def check_torch() -> Finding:
    torch = _module("torch")
    if isinstance(torch, str):
        return Finding("torch", "missing", torch, "pip install 'torch>=2.8'")
    return Finding("torch", "ok", f"{torch.__version__}; {_devices(torch)}")


def check_packages() -> Finding:
    """What the package itself says that it needs, in the versions that it needs."""
    try:
        needed = [match for line in importlib.metadata.requires("bloombee") or () if (match := REQUIREMENT.fullmatch(line))]
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", "optional", "bloombee is not installed, so nothing says what it needs", "pip install .")
    unmet = {f"{name}>={least}": found for name, least in map(re.Match.groups, needed) if (found := _unmet(name, least))}
    if not unmet:
        return Finding("packages", "ok", f"all {len(needed)} that are needed, transformers {_version('transformers')} among them")
    wanted = " ".join(f"'{requirement}'" for requirement in unmet)
    return Finding("packages", "missing", ", ".join(unmet.values()), f"pip install {wanted}")


def check_descriptors() -> Finding:
    """Of a head with three workers; theirs have the same limit."""
    try:
        require_descriptors(workers=3)
    except CapacityError as error:
        return Finding("file descriptors", "missing", f"limit {error.fields['limit']}", f"ulimit -n {error.fields['needed']}")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Finding("file descriptors", "ok", f"limit {soft}")


def check_zmq() -> Finding:
    zmq = _module("zmq")
    if isinstance(zmq, str):
        return Finding("pyzmq", "missing", zmq, "pip install 'pyzmq>=27'")
    found = f"{zmq.__version__}, libzmq {zmq.zmq_version()}"
    if not zmq.has("curve"):
        return Finding(
            "pyzmq", "missing", f"{found}, without CURVE", "install pyzmq from a wheel: its libzmq can encrypt; yours cannot"
        )
    return Finding("pyzmq", "ok", f"{found}, with CURVE")


def check_uvloop() -> Finding:
    uvloop = _module("uvloop")
    if isinstance(uvloop, str):
        return Finding("uvloop", "optional", uvloop, "pip install uvloop; without it the event loop is slower")
    return Finding("uvloop", "ok", str(uvloop.__version__))


def check_loopback() -> Finding:
    """Listen, dial and be answered, as the head and its workers do."""
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=2) as client,
        ):
            server.settimeout(2)
            accepted, _ = server.accept()
            accepted.close()
            return Finding("loopback TCP", "ok", f"listened and connected on 127.0.0.1:{client.getpeername()[1]}")
    except OSError as error:
        return Finding(
            "loopback TCP",
            "missing",
            str(error),
            "let processes of this machine connect to 127.0.0.1: look at the firewall or sandbox",
        )


def check_demo_model(folder: Path | None = None) -> Finding:
    folder = folder or Path(__file__).parent / "demo_model" / "target"
    absent = [name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (folder / name).is_file()]
    if absent:
        return Finding(
            "demo model",
            "missing",
            f"{folder} lacks {', '.join(absent)}",
            "reinstall the package; make another with tools/train_demo_model.py",
        )
    return Finding("demo model", "ok", f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB in {folder}")


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_machine,
    check_memory,
    check_extension,
    check_cuda_extension,
    check_packages,
    check_torch,
    check_zmq,
    check_uvloop,
    check_descriptors,
    check_loopback,
    check_demo_model,
)


def table(findings: Sequence[Finding]) -> str:
    """For people: a row each, the advice under its row."""
    width = max(len(finding.name) for finding in findings)
    rows = []
    for finding in findings:
        rows.append(f"{finding.state:<8}  {finding.name:<{width}}  {finding.found}")
        if finding.advice:
            rows.append(f"{'':<8}  {'':<{width}}  -> {finding.advice}")
    return "\n".join(rows)


def profile_table(profile: Profile) -> str:
    """For people: the points, what the linear model says of them, and the figures themselves."""
    rows = [f"{profile.device}, {profile.threads} thread(s), {profile.dtype}; milliseconds of a pass"]
    rows.append(f"{'':<8}{'layers':>7}{'rows':>6}{'context':>9}{'measured':>10}{'fitted':>9}{'off by':>8}")
    for point in (point for point in profile.points if not point.picks):
        fitted = profile.seconds(point)
        rows.append(
            f"{point.phase.name.lower():<8}{point.layers:>7}{point.rows:>6}{point.context:>9}"
            f"{1e3 * point.seconds:>10.3f}{1e3 * fitted:>9.3f}{100 * (fitted / point.seconds - 1):>7.0f}%"
        )
    for name, layer in [("a layer", profile.fit.layer), *((f"layers like {one.layer}", one.time) for one in profile.kinds)]:
        rows.append(
            f"{name}: {1e3 * layer.fixed_s:.3f} + {1e3 * layer.decode_row_s:.3f} a decode row or"
            f" {1e3 * layer.prefill_row_s:.3f} a prefill row + for a row and 1000 cached tokens"
            f" {1e3 * (layer.decode_s(1, 1000) - layer.decode_s(1)):.3f} or {1e6 * layer.context_s:.3f}"
        )
    rows.append(f"a stage: {1e3 * profile.fit.stage.fixed_s:.3f} besides; output {1e3 * profile.output.fixed_s:.3f}")
    rows.append(f"errors of the fit: median {100 * profile.fit.median_error:.0f} %, worst {100 * profile.fit.worst_error:.0f} %")
    rows.append(f"{profile.layer_bytes / 1e6:.2f} MB a layer, {profile.kv_token_bytes} bytes of KV a token and layer")
    if profile.encode_bytes_per_s and profile.decode_bytes_per_s:
        rows.append(f"codec: {profile.encode_bytes_per_s / 1e9:.2f} GB/s in, {profile.decode_bytes_per_s / 1e9:.2f} GB/s out")
    rows += list(_hardware_rows(profile.hardware))
    return "\n".join(rows)


def _hardware_rows(hardware: Hardware) -> Iterator[str]:
    sizes = (("device", hardware.memory_bytes), ("machine", hardware.host_bytes), ("disk", hardware.disk_bytes))
    yield "memory: " + ", ".join(f"{size / 1e9:.1f} GB of the {name}" for name, size in sizes if size)
    speeds = (
        ("to the device", hardware.to_device_bytes_per_s),
        ("from the device", hardware.from_device_bytes_per_s),
        ("from the disk", hardware.disk_bytes_per_s),
    )
    if any(speed for _, speed in speeds):
        yield "bandwidth: " + ", ".join(f"{speed / 1e9:.2f} GB/s {name}" for name, speed in speeds if speed)
    if hardware.frames_per_s:
        yield f"a thread: {hardware.frames_per_s:.0f} frames/s written and read; {hardware.cores} cores"


def _module(name: str) -> ModuleType | Any | str:
    """The module, or why it cannot be had. A broken installation may raise anything."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__


def _held(share: Any) -> str:
    return f" (held to that by {share.bound_by})" if share.bound_by else ""


def _unmet(name: str, least: str) -> str | None:
    """What is wrong with the installed version of a package, if anything is."""
    found = _version(name)
    if found is None:
        return f"{name} is not installed"
    return f"{name} {found} is too old" if _numbers(found) < _numbers(least) else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Of a release: 2.8.0+cpu is 2, 8, 0."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[^0-9.]", version, maxsplit=1)[0])))


def _devices(torch: Any) -> str:
    if not torch.cuda.is_available():
        return "no CUDA device: workers run on the CPU"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"CUDA {torch.version.cuda}: {', '.join(names)}"
