"""attend_compiled: attention over KV blocks in C (`attend.c`), the fastest way on a CPU."""

from __future__ import annotations

import ctypes
from functools import cache

import torch

from app.model.attention import Attend, AttentionBatch, attend_reference
from app.model.cpu.compiled_linear import macros_for
from app.model.cpu.compiler import C_FOLDER, CompilationError, load_library
from app.model.cpu.team import find_team
from app.model.kv_cache import KVCache, KVShape

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
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: AttentionBatch,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """The same as `attend_reference` in C, to the last bit the same for a token in every batch."""
        assert keys.dtype == values.dtype == dtype, "the C code was compiled for another type"
        assert keys.shape[3] == head_dim
        assert batch.block_tables.dtype == torch.int32
        wide_query = query.float().contiguous()
        output = torch.empty_like(wide_query, dtype=dtype)
        job = _job(wide_query, keys, values, batch, output, scale, window)
        run_in_team(work, ctypes.byref(job), torch.get_num_threads(), 0)
        return output.to(query.dtype)

    _check(attend_compiled, dtype, head_dim)
    return attend_compiled


def runs_of(batch: AttentionBatch) -> torch.Tensor:
    """(num_runs, 4) int32: `struct run` in attend.h; made once for a batch."""
    if "runs" not in batch.memo:
        batch.memo["runs"] = _make_runs(batch)
    return batch.memo["runs"]


def _make_runs(batch: AttentionBatch) -> torch.Tensor:
    runs = [
        (token, i, kv_len - end + token + 1, min(RUN_LENGTH, end - token))
        for i, ((start, end), kv_len) in enumerate(zip(batch.spans, batch.kv_lens_tensor.tolist(), strict=True))
        for token in range(start, end, RUN_LENGTH)
    ]
    return torch.tensor(runs, dtype=torch.int32)


def _job(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    batch: AttentionBatch,
    output: torch.Tensor,
    scale: float,
    window: int | None,
) -> _Job:
    """Addresses and sizes; the tensors must outlive it."""
    runs, tables = runs_of(batch), batch.block_tables
    assert all(tensor.is_contiguous() for tensor in (query, keys, values, tables))
    return _Job(
        query=query.data_ptr(),
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
        output_stride=query.shape[1] * query.shape[2],
        scale=scale,
    )


def _check(attend: Attend, dtype: torch.dtype, head_dim: int) -> None:
    """Hold it against the reference on a small batch, since no test has seen this machine's compiler."""
    generator, device = torch.Generator().manual_seed(0), torch.device("cpu")
    cache = KVCache(KVShape(1, 2, head_dim), num_blocks=20, block_size=4, dtype=dtype, device=device)
    cache.blocks.copy_(torch.randn(cache.blocks.shape, generator=generator))
    tables = torch.arange(1, 20, dtype=torch.int32).repeat(2, 1)
    batch = AttentionBatch(cache, attend, torch.empty(0), [1, 3], [70, 9], tables, [])
    query = torch.randn(4, 6, head_dim, generator=generator).to(dtype)
    arguments = (query, *cache.layers[0], batch, head_dim**-0.5, 50)
    error = float((attend(*arguments) - attend_reference(*arguments)).abs().max())
    if not error <= DTYPE_TO_MAX_ERROR[dtype]:
        raise CompilationError(f"the compiled code computes something else (error {error:.1e})")
