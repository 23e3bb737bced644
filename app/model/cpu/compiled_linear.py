"""compile_linears: a model's linear layers computed in C (`multiply.c`).

Weights are used where they lie, so there is no second copy, and tuning differentiates through the same ones; those of a
`QuantizedLinear` are read as the integers they are. A row's result does not depend on the other rows to the last bit,
which the products of torch's libraries do not promise.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from app.model.cpu.compiler import C_FOLDER, CompilationError, find_team, load_library
from app.model.kernels import Forward
from app.model.loading.quantized_linear import QuantizedLinear

SOURCE = C_FOLDER / "multiply.c"
DTYPE_TO_MACROS: dict[torch.dtype, dict[str, int]] = {torch.float32: {}, torch.bfloat16: {"BFLOAT16": 1}}
DTYPE_TO_MAX_ERROR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Relative to the sum of what is added up."""

Linear = nn.Linear | QuantizedLinear
Multiply = Callable[..., Forward]


class Weights(ctypes.Structure):
    """Field for field `struct weights` in multiply.h."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("weight", "scale", "bias"))

    @classmethod
    def of(cls, layer: Linear) -> Weights:
        """The addresses of a layer's; they must stay valid."""
        if isinstance(layer, QuantizedLinear):
            assert layer.panels.is_contiguous()
            assert layer.scale.dtype == torch.float32
            return cls(address(layer.panels), address(layer.scale), address(layer.bias))
        assert layer.weight.is_contiguous()
        return cls(address(layer.weight), None, address(layer.bias))


class MultiplyJob(ctypes.Structure):
    """Field for field `struct multiply_job` in multiply.h."""

    _fields_ = (
        ("input", ctypes.c_void_p),
        ("linear", Weights),
        ("gate", Weights),
        *((name, ctypes.c_void_p) for name in ("addend", "output", "wide_output")),
        *((name, ctypes.c_int64) for name in ("num_rows", "num_columns", "depth")),
        *((name, ctypes.c_int64) for name in ("input_stride", "output_stride", "next_item")),
    )

    @classmethod
    def of(cls, layer: Linear) -> MultiplyJob:
        """A job that knows the layer's weights."""
        return cls(
            linear=Weights.of(layer),
            num_columns=layer.out_features,
            depth=layer.in_features,
            input_stride=layer.in_features,
            output_stride=layer.out_features,
        )


def address(tensor: torch.Tensor | None) -> int | None:
    """The address of its first number; None for none."""
    return None if tensor is None else tensor.data_ptr()


def macros_for(dtype: torch.dtype, *, is_quantized: bool = False) -> dict[str, int]:
    """What C sources are compiled with to read numbers of this type, or weights of 8 bits. Raises: CompilationError."""
    if dtype not in DTYPE_TO_MACROS:
        raise CompilationError(f"the C code does not read {dtype}")
    return {**DTYPE_TO_MACROS[dtype], **({"INT8": 1} if is_quantized else {})}


def is_linear(module: nn.Module) -> TypeGuard[Linear]:
    """Whether it is one the C code can compute: none of a class with something of its own."""
    return type(module) in (nn.Linear, QuantizedLinear)


def dtype_of(layer: Linear) -> torch.dtype:
    """Of what comes in and goes out."""
    return layer.dtype if isinstance(layer, QuantizedLinear) else layer.weight.dtype


def compile_linears(model: PreTrainedModel) -> dict[nn.Module, Forward]:
    """A forward in C for each linear layer of a model on a CPU; layers of other classes, such as GPT-2's, have none.

    Logits come out in float32, as they were added up.

    Raises: CompilationError.
    """
    if model.device.type != "cpu":
        raise CompilationError("the model is not on a CPU")
    last = model.get_output_embeddings()
    return {layer: compile_layer(layer, is_wide=layer is last) for layer in filter(is_linear, model.modules())}


def compile_layer(layer: Linear, *, is_wide: bool = False) -> Forward:
    """Its forward in C; with `is_wide` the output is float32. Raises: CompilationError."""
    multiply = compile_multiply(dtype_of(layer), is_quantized=isinstance(layer, QuantizedLinear))
    return multiply(layer, is_wide=is_wide)


@cache
def compile_multiply(dtype: torch.dtype, *, is_quantized: bool = False) -> Multiply:
    """What makes a layer's `forward` in C, compiled and held against torch's.

    Args: dtype: of what comes in and goes out, of a bias, and of weights that are not quantized.

    Raises: CompilationError.
    """
    library = load_library([SOURCE], macros_for(dtype, is_quantized=is_quantized))
    work = ctypes.cast(library.multiply, ctypes.c_void_p)
    run_in_team = find_team()

    def multiply(layer: Linear, *, is_wide: bool = False) -> Forward:
        parameters = list(layer.parameters())  # their addresses are in the job
        num_columns, depth = layer.out_features, layer.in_features
        job = MultiplyJob.of(layer)
        job_pointer, output_dtype = ctypes.byref(job), torch.float32 if is_wide else dtype

        def forward(input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's own name for it
            assert parameters
            assert input.dtype == dtype
            rows = input.contiguous()
            output = rows.new_empty((*input.shape[:-1], num_columns), dtype=output_dtype)
            job.input = rows.data_ptr()
            job.output, job.wide_output = (None, output.data_ptr()) if is_wide else (output.data_ptr(), None)
            job.num_rows, job.next_item = rows.numel() // depth, 0
            run_in_team(work, job_pointer, torch.get_num_threads(), 0)
            return output

        return forward

    _check(multiply, dtype, is_quantized=is_quantized)
    return multiply


def _check(multiply: Multiply, dtype: torch.dtype, *, is_quantized: bool) -> None:
    """Hold it against torch's product, and rows alone against rows together: no test has seen this compiler."""
    generator = torch.Generator().manual_seed(0)
    for num_rows, depth, num_columns in ((1, 16, 4), (7, 1101, 37), (65, 2080, 66)):
        linear = nn.Linear(depth, num_columns, dtype=dtype).requires_grad_(False)
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator))
        linear.bias.copy_(torch.randn(linear.bias.shape, generator=generator))
        layer = QuantizedLinear(linear) if is_quantized else linear
        weight = (layer.dequantized() if isinstance(layer, QuantizedLinear) else layer.weight).double()
        rows = torch.randn(num_rows, depth, generator=generator).to(dtype)
        wanted = F.linear(rows.double(), weight, linear.bias.double())
        size = F.linear(rows.double().abs(), weight.abs(), linear.bias.double().abs())
        found = multiply(layer)(rows)
        error = float(((found.double() - wanted).abs() / size).max())
        if not error <= DTYPE_TO_MAX_ERROR[dtype]:
            raise CompilationError(f"the compiled code computes something else (error {error:.1e})")
        if not torch.equal(torch.cat([multiply(layer)(row[None]) for row in rows]), found):
            raise CompilationError("the compiled code's last bits depend on the number of rows")
