"""Builds the extension modules with CMake; everything else about the package is in pyproject.toml.

Environment: BLOOMBEE_CUDA=on|off|auto (default auto) says whether ``bloombee._native_cuda`` is built, and
BLOOMBEE_CUDA_ARCHITECTURES for which GPUs, as CMake names them (80-real;90, native).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_nvcc() -> str | None:
    """The CUDA compiler: CUDACXX, CUDA_HOME, PATH, or the toolkit's usual place."""
    for place in (os.environ.get("CUDACXX"), "nvcc", os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin/nvcc"):
        found = shutil.which(place) if place else None
        if found:
            return found
    return None


def choose_cuda() -> str | None:
    """Path of the nvcc to build with, or None for a build without CUDA."""
    wanted = os.environ.get("BLOOMBEE_CUDA", "auto").lower()
    if wanted not in ("on", "off", "auto"):
        sys.exit(f"error: BLOOMBEE_CUDA={wanted}: must be on, off or auto")
    if wanted == "off":
        return None
    nvcc = find_nvcc()
    if nvcc is None and wanted == "on":
        sys.exit(
            "error: BLOOMBEE_CUDA=on, but there is no nvcc: install the CUDA toolkit, put nvcc on PATH "
            "(or set CUDACXX or CUDA_HOME), or build with BLOOMBEE_CUDA=off"
        )
    if nvcc is None:
        print("BLOOMBEE_CUDA=auto: no nvcc found, building without CUDA", file=sys.stderr)
    return nvcc


class CMakeBuild(build_ext):
    """One CMake build tree (build/native-*, kept between builds) that makes every extension."""

    def build_extensions(self) -> None:
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        self.cmake_dir = ROOT / "build" / f"native-{tag}"
        self.cmake_dir.mkdir(parents=True, exist_ok=True)
        self.run_cmake("--log-level=NOTICE", "-S", str(ROOT), "-B", str(self.cmake_dir), "-G", "Ninja", *self.options())
        targets = [extension.name.rpartition(".")[2] for extension in self.extensions]
        jobs = str(self.parallel or os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or min(os.cpu_count() or 1, 8))
        self.run_cmake("--build", str(self.cmake_dir), "--parallel", jobs, "--target", *targets)
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        shutil.copy2(self.cmake_dir / f"{ext.name.rpartition('.')[2]}{suffix}", target)

    def options(self) -> list[str]:
        # All paths are given anew each time: under build isolation they live in a folder that is gone afterwards.
        import pybind11

        options = [
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DBLOOMBEE_CUDA={'on' if NVCC else 'off'}",
        ]
        if NVCC:
            options.append(f"-DCMAKE_CUDA_COMPILER={NVCC}")
        if architectures := os.environ.get("BLOOMBEE_CUDA_ARCHITECTURES"):
            options.append(f"-DBLOOMBEE_CUDA_ARCHITECTURES={architectures}")
        return options

    def run_cmake(self, *arguments: str) -> None:
        try:
            subprocess.run([tool("cmake"), *arguments], check=True)
        except subprocess.CalledProcessError as error:
            sys.exit(f"error: the native build failed (cmake exit {error.returncode}); its output is above")


def tool(name: str) -> str:
    """``name`` from this Python's environment, else from PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        sys.exit(f"error: {name} is needed to build the native extension: pip install {name}")
    return found


NVCC = choose_cuda()

setup(
    ext_modules=[Extension("bloombee._native", sources=[])] + ([Extension("bloombee._native_cuda", sources=[])] if NVCC else []),
    cmdclass={"build_ext": CMakeBuild},
)
