from __future__ import annotations

from pathlib import Path
from shutil import copytree

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from app.model.cpu import compiled_linear
from app.model.cpu.compiled_linear import compile_multiply
from app.model.cpu.compiler import C_FOLDER, CompilationError
from tests.support.compiled import needs_compiler

DTYPES = [torch.float32, torch.bfloat16]


def layer_of(depth: int, num_columns: int, dtype: torch.dtype, *, has_bias: bool = True) -> nn.Linear:
    torch.manual_seed(depth + num_columns)
    return nn.Linear(depth, num_columns, bias=has_bias, dtype=dtype).requires_grad_(False)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("depth", "num_columns"), [(576, 192), (48, 259), (7, 3), (1, 1), (2500, 33), (4100, 40)])
def test_a_product_is_that_of_torch(depth: int, num_columns: int, dtype: torch.dtype, *, has_bias: bool) -> None:
    layer = layer_of(depth, num_columns, dtype, has_bias=has_bias)
    forward = compile_multiply(dtype)(layer)
    for num_rows in (0, *range(1, 16), 67, 252, 300):
        rows = torch.randn(1, num_rows, depth).to(dtype)
        wanted = F.linear(rows.float(), layer.weight.float(), None if layer.bias is None else layer.bias.float())
        tolerance = 2e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(forward(rows).float(), wanted, atol=tolerance, rtol=tolerance)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_to_the_last_bit_among_any_others(dtype: torch.dtype) -> None:
    forward = compile_multiply(dtype)(layer_of(1500, 70, dtype))
    rows = torch.randn(150, 1500).to(dtype)
    alone = torch.cat([forward(row[None]) for row in rows])
    for num_rows in (2, 7, 64, 150):
        assert torch.equal(forward(rows[-num_rows:]), alone[-num_rows:])


@needs_compiler
def test_rows_that_do_not_lie_in_order_are_read_right() -> None:
    layer = layer_of(20, 8, torch.float32)
    rows = torch.randn(20, 6).T
    torch.testing.assert_close(compile_multiply(torch.float32)(layer)(rows), layer(rows))


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_stays_so_in_its_own_row(dtype: torch.dtype) -> None:
    forward = compile_multiply(dtype)(layer_of(33, 9, dtype))
    rows = torch.ones(8, 33, dtype=dtype)
    rows[3, 32] = torch.nan
    assert forward(rows).isnan().any(1).tolist() == [i == 3 for i in range(8)]


@needs_compiler
@pytest.mark.parametrize("is_quantized", [False, True])
def test_code_that_computes_something_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_quantized: bool
) -> None:
    wrong = copytree(C_FOLDER, tmp_path / C_FOLDER.name) / "multiply.c"
    wrong.write_text(wrong.read_text().replace("widen_one(weights->bias[column + c])", "widen_one(weights->bias[c])"))
    monkeypatch.setattr(compiled_linear, "SOURCE", wrong)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(CompilationError, match="computes something else"):
        compile_multiply.__wrapped__(torch.float32, is_quantized=is_quantized)


def test_other_types_are_refused() -> None:
    with pytest.raises(CompilationError, match="does not read"):
        compile_multiply(torch.float16)
