"""Compiled C: source files of this package, built on first use with the machine's own compiler and loaded by ctypes.

Their functions are run by the threads torch computes with (`find_team`).

torch has a loader of its own (`torch.utils.cpp_extension.load`), but it compiles torch's C++ headers along: 20-40 s,
while a plain C file takes a fifth of a second.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

C_FOLDER = Path(__file__).with_name("csrc")
COMPILERS = ("cc", "gcc", "clang")
# as fast as loops get while infinities and NaN keep their meaning, which -ffast-math would take from them
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd")
MACHINES = ("x86_64", "AMD64")
INSTRUCTIONS = {"AVX2": "__AVX2__", "FMA": "__FMA__"}
LIBRARY_FLAGS = ("-shared", "-fPIC")
TIMEOUT_S = 60


class CompilationError(Exception):
    """No compiled code can be had; says why. Whoever asks has something slower to fall back on."""


def load_library(sources: Sequence[Path], macros: Mapping[str, int]) -> ctypes.CDLL:
    """Compile C files with these macros defined, unless that was done before, and load them as one library.

    Libraries are kept in `$XDG_CACHE_HOME/softswap` (`~/.cache/softswap`) under a hash of all that shapes them: the
    sources and headers next to them, the flags, and what the compiler says of itself and of this machine's CPU. They
    appear there complete or not at all, so any number of processes may ask at once.

    Raises: CompilationError.
    """
    try:
        command = [_find_compiler(), *FLAGS, *(f"-D{name}={value}" for name, value in macros.items())]
        predefined = _predefined(command)
        library = _cache_folder() / f"{sources[0].stem}-{_hash(command, predefined, sources)}.so"
        if not library.exists():
            _build(command, sources, library)
        return ctypes.CDLL(str(library))
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        raise CompilationError(f"the compiled library cannot be kept or loaded: {error}") from error


@cache
def find_team() -> Any:
    """`GOMP_parallel(function, argument, num_threads, flags)` of the OpenMP runtime torch computes with.

    Compiled libraries link none and hold no OpenMP code: a second runtime's threads would spin against the first's.
    GCC's and LLVM's runtimes both have this entry, and importing torch makes its symbols global.

    Raises: CompilationError.
    """
    try:
        run_in_team = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, TypeError) as error:
        raise CompilationError("torch's OpenMP runtime was not found") from error
    run_in_team.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    run_in_team.restype = None
    return run_in_team


def _find_compiler() -> str:
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        raise CompilationError(f"no C compiler was found ({', '.join(COMPILERS)})")
    return found


def _cache_folder() -> Path:
    """The folder, made if need be. No other user may write there: what it holds is run."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softswap"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()  # a link could be turned elsewhere between this look and the loading
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise CompilationError(f"others can write to {folder}")
    return folder


def _predefined(command: Sequence[str]) -> str:
    """The compiler's own macros, which name its version and, under -march=native, what the CPU can do.

    Raises CompilationError: the C code is not written, and not tested, for this CPU.
    """
    if (machine := platform.machine()) not in MACHINES:
        raise CompilationError(f"the C code is for x86 CPUs with AVX2, and this one is {machine}")
    predefined = _run([*command, "-dM", "-E", "-x", "c", os.devnull])
    if missing := [name for name, macro in INSTRUCTIONS.items() if f"#define {macro} " not in predefined]:
        raise CompilationError(f"the C code is for x86 CPUs with AVX2, and this one has no {' and no '.join(missing)}")
    return predefined


def _hash(command: Sequence[str], predefined: str, sources: Sequence[Path]) -> str:
    headers = sorted(header for folder in {source.parent for source in sources} for header in folder.glob("*.h"))
    parts = (*command, predefined, *(file.read_text(encoding="utf-8") for file in (*sources, *headers)))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _build(command: Sequence[str], sources: Sequence[Path], library: Path) -> None:
    with TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        _run([*command, *LIBRARY_FLAGS, "-o", str(built), *map(str, sources)])
        with built.open("rb") as file:
            os.fsync(file.fileno())
        built.replace(library)


def _run(command: Sequence[str]) -> str:
    try:
        # nothing of this comes from a request: the compiler is found in PATH, source and flags are the package's own
        finished = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)  # noqa: S603
    except subprocess.CalledProcessError as error:
        raise CompilationError(f"{command[0]} failed: {_first_error(error.stderr)}") from error
    except subprocess.TimeoutExpired as error:
        raise CompilationError(f"{command[0]} took longer than {TIMEOUT_S} s") from error
    return finished.stdout


def _first_error(output: str) -> str:
    lines = output.strip().splitlines() or ["it did not say why"]
    return next((line for line in lines if "error" in line), lines[0])
