"""attend_compiled: attention over KV blocks in C (`attend.c`), the fastest way on a CPU."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from app.model.attention import Attend, AttentionBatch, largest_error
from app.model.cpu.compiled_linear import macros_for
from app.model.cpu.compiler import C_FOLDER, CompilationError, find_team, load_library

SOURCE = C_FOLDER / "attend.c"
RUN_LENGTH = 4
"""Tokens of a chunk that are computed together; 2 to 16 measured, this was the fastest on long texts."""
MAX_WINDOW = 2**62
DTYPE_TO_MAX_ERROR = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


class _Job(ctypes.Structure):
    """Field for field `struct attend_job` in attend.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "keys", "values", "block_tables", "runs", "output")),
        *((name, ctypes.c_int64) for name in ("num_runs", "num_heads", "num_kv_heads")),
        *((name, ctypes.c_int64) for name in ("block_size", "table_width", "window", "output_stride")),
        ("scale", ctypes.c_float),
        ("next_item", ctypes.c_int64),
    )


@cache
def compile_attention(dtype: torch.dtype, head_dim: int) -> Attend:
    """Attention over a cache of this type and heads of this size, compiled and held against `attend_reference`.

    Raises: CompilationError.
    """
    library = load_library([SOURCE], {"HEAD_DIM": head_dim, **macros_for(dtype)})
    work = ctypes.cast(library.attend, ctypes.c_void_p)
    run_in_team = find_team()

    def attend_compiled(
        query: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, scale: float, window: int | None
    ) -> Tensor:
        """The same as `attend_reference` in C, to the last bit the same for a token in every batch."""
        assert keys.dtype == values.dtype == dtype, "the C code was compiled for another type"
        assert keys.shape[3] == head_dim
        assert batch.block_tables.dtype == torch.int32
        wide_query, runs, tables = query.float().contiguous(), batch.runs(RUN_LENGTH), batch.block_tables
        output = torch.empty_like(wide_query, dtype=dtype)
        assert all(tensor.is_contiguous() for tensor in (keys, values, tables))
        job = _Job(
            query=wide_query.data_ptr(),
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            block_tables=tables.data_ptr(),
            runs=runs.data_ptr(),
            output=output.data_ptr(),
            num_runs=len(runs),
            num_heads=query.shape[1],
            num_kv_heads=keys.shape[2],
            block_size=keys.shape[1],
            table_width=tables.shape[1],
            window=MAX_WINDOW if window is None else window,
            output_stride=query.shape[1] * head_dim,
            scale=scale,
        )
        run_in_team(work, ctypes.byref(job), torch.get_num_threads(), 0)
        return output.to(query.dtype)

    error = largest_error(attend_compiled, torch.device("cpu"), dtype, head_dim)
    if not error <= DTYPE_TO_MAX_ERROR[dtype]:
        raise CompilationError(f"the compiled code computes something else (error {error:.1e})")
    return attend_compiled
