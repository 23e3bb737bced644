"""find_team: compiled functions run by the threads torch computes with."""

from __future__ import annotations

import ctypes
from typing import Any

from app.model.cpu.compiler import CompilationError


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
