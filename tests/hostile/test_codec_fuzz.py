"""A short run of the codec's fuzzer under AddressSanitizer and UBSan (fuzz_codec.cpp says how to run it for long)."""

from __future__ import annotations

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = [
    *sorted((ROOT / "csrc/codec").glob("rans_*.cpp")),
    *sorted((ROOT / "csrc/codec").glob("checksum*.cpp")),
    ROOT / "csrc/core/isa.cpp",
    ROOT / "tests/hostile/fuzz_codec.cpp",
]
X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX2 = ["-mavx2", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt", "-msse4.2", "-mpclmul"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vbmi", "-mavx512vbmi2", "-mvpclmulqdq"]
LEVELS = {"_sse42": ["-msse4.2", "-mpclmul"], "_avx2": AVX2, "_vbmi": AVX512 + AVX2}
NUM_INPUTS = 20000


def compiler() -> tuple[str, list[str]]:
    """A C++20 compiler, and flags that make a program with a main function."""
    for name in ("g++", "clang++", "clang++-14", "c++"):
        if shutil.which(name):
            return name, ["-DSTANDALONE"]
    pytest.skip("no C++ compiler to build the fuzzer with")


def build(folder: Path) -> Path:
    name, extra = compiler()
    flags = ["-std=c++20", "-O1", "-g", f"-I{ROOT / 'csrc'}", f"-DBLOOMBEE_X86={int(X86)}", *extra]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]

    def compiled(source: Path) -> Path | None:
        level = next((level for level in LEVELS if source.stem.endswith(level)), None)
        if level and not X86:
            return None
        target = folder / f"{source.stem}.o"
        command = [name, *flags, *sanitize, *(LEVELS[level] if level else []), "-c", str(source), "-o", str(target)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = [o for o in pool.map(compiled, SOURCES) if o]
    subprocess.run([name, *sanitize, *map(str, objects), "-o", str(folder / "fuzz")], check=True, capture_output=True)
    return folder / "fuzz"


def test_random_inputs_break_nothing(tmp_path: Path) -> None:
    program = build(tmp_path)
    done = subprocess.run([program, str(NUM_INPUTS), "1"], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == f"{NUM_INPUTS} inputs\n"
