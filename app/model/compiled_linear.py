"""compile_linears: a model's linear layers computed in C (`multiply.c`).

Weights are used where they lie, so there is no second copy, and tuning differentiates through the same ones. A row's
result does not depend on the other rows to the last bit, which the products of torch's libraries do not promise.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from app.model.compiler import C_FOLDER, CompilationError, load_library
from app.model.replacements import Forward
from app.model.team import find_team

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SOURCE = C_FOLDER / "multiply.c"
DTYPE_TO_MACROS: dict[torch.dtype, dict[str, int]] = {torch.float32: {}, torch.bfloat16: {"BFLOAT16": 1}}
DTYPE_TO_MAX_ERROR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Relative to the sum of what is added up."""

Multiply = Callable[..., Forward]


class MultiplyJob(ctypes.Structure):
    """Field for field `struct multiply_job` in multiply.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input", "weight", "bias", "gate", "gate_bias", "addend")),
        *((name, ctypes.c_void_p) for name in ("output", "wide_output")),
        *((name, ctypes.c_int64) for name in ("num_rows", "num_columns", "depth")),
        *((name, ctypes.c_int64) for name in ("input_stride", "output_stride", "next_item")),
    )

    @classmethod
    def of(cls, layer: nn.Linear) -> MultiplyJob:
        """A job that knows the layer's weights, which must stay where they are."""
        assert layer.weight.is_contiguous()
        num_columns, depth = layer.weight.shape
        return cls(
            weight=address(layer.weight),
            bias=address(layer.bias),
            num_columns=num_columns,
            depth=depth,
            input_stride=depth,
            output_stride=num_columns,
        )


def address(tensor: torch.Tensor | None) -> int | None:
    """Where its first number lies; None for none."""
    return None if tensor is None else tensor.data_ptr()


def compile_linears(model: PreTrainedModel) -> dict[nn.Module, Forward]:
    """A forward in C for each linear layer of a model on a CPU; layers of other classes, such as GPT-2's, have none.

    Logits come out in float32, as they were added up.

    Raises: CompilationError.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    if len({layer.weight.device.type for layer in layers} | {"cpu"}) > 1:
        raise CompilationError("the model is not on a CPU")
    last = model.get_output_embeddings()
    return {layer: compile_multiply(layer.weight.dtype)(layer, is_wide=layer is last) for layer in layers}


@cache
def compile_multiply(dtype: torch.dtype) -> Multiply:
    """What makes a layer's `forward` in C, compiled and held against torch's; with `is_wide` its output is float32.

    Raises: CompilationError.
    """
    if dtype not in DTYPE_TO_MACROS:
        raise CompilationError(f"the C code does not read {dtype}")
    library = load_library([SOURCE], DTYPE_TO_MACROS[dtype])
    work = ctypes.cast(library.multiply, ctypes.c_void_p)
    run_in_team = find_team()

    def multiply(layer: nn.Linear, *, is_wide: bool = False) -> Forward:
        weight, bias = layer.weight, layer.bias
        assert weight.dtype == dtype
        num_columns, depth = weight.shape
        job = MultiplyJob.of(layer)
        job_pointer, output_dtype = ctypes.byref(job), torch.float32 if is_wide else dtype

        def forward(input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's own name for it
            assert input.dtype == weight.dtype  # and keeps the weight, whose address the job holds
            assert bias is layer.bias
            rows = input.contiguous()
            output = rows.new_empty((*input.shape[:-1], num_columns), dtype=output_dtype)
            job.input = rows.data_ptr()
            job.output, job.wide_output = (None, output.data_ptr()) if is_wide else (output.data_ptr(), None)
            job.num_rows, job.next_item = rows.numel() // depth, 0
            run_in_team(work, job_pointer, torch.get_num_threads(), 0)
            return output

        return forward

    _check(multiply, dtype)
    return multiply


def _check(multiply: Multiply, dtype: torch.dtype) -> None:
    """Hold it against torch's product, and rows alone against rows together: no test has seen this compiler."""
    generator = torch.Generator().manual_seed(0)
    for num_rows, depth, num_columns in ((1, 16, 4), (7, 1101, 37), (65, 2080, 66)):
        layer = nn.Linear(depth, num_columns, dtype=dtype).requires_grad_(False)
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
        rows = torch.randn(num_rows, depth, generator=generator).to(dtype)
        wanted = F.linear(rows.double(), layer.weight.double(), layer.bias.double())
        size = F.linear(rows.double().abs(), layer.weight.double().abs(), layer.bias.double().abs())
        found = multiply(layer)(rows)
        error = float(((found.double() - wanted).abs() / size).max())
        if not error <= DTYPE_TO_MAX_ERROR[dtype]:
            raise CompilationError(f"the compiled code computes something else (error {error:.1e})")
        if not torch.equal(torch.cat([multiply(layer)(row[None]) for row in rows]), found):
            raise CompilationError("the compiled code's last bits depend on the number of rows")
