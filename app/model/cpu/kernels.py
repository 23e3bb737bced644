"""CpuKernels: the choice among what is compiled for this machine's CPU, by measuring both ways at the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from app.model.attention import Attend, AttentionBatch, attend_sdpa
from app.model.cpu.compiled_attention import compile_attention
from app.model.cpu.compiled_layer import CompiledLayer, compile_layers
from app.model.cpu.compiled_linear import compile_linears, dtype_of, is_linear
from app.model.cpu.compiler import CompilationError
from app.model.kernels import Forward, Kernels, Replacements
from app.model.kv_cache import KVShape
from app.model.loading.exactness import BLOCK_SIZE
from app.model.threads import Work, best_seconds

NUM_ROWS = (1, 8, 64)
"""Tokens in a step when it is measured: one sequence, some, many."""


class CpuKernels(Kernels):
    """Attention and whole layers in C, where a compiler is there and C is measured to be faster."""

    def choose_attend(self, dtype: torch.dtype, head_dim: int) -> tuple[Attend, str]:
        try:
            return compile_attention(dtype, head_dim), "compiled for this CPU"
        except CompilationError as error:
            return attend_sdpa, str(error)

    def choose_replacements(self, model: PreTrainedModel, shape: KVShape, attend: Attend) -> tuple[Replacements, str]:
        """One way for all layers and numbers of rows, so that no result depends on how many rows there are.

        Whole decoder layers bring the C code's attention along: with another one, only linear layers are replaced.
        """
        try:
            linears = compile_linears(model)
            layers = compile_layers(model, shape) if attend.__name__ == "attend_compiled" else []
        except CompilationError as error:
            return Replacements(), f"torch's own ({error})"
        if not linears:
            return Replacements(), "torch's own (the model's layers are of a class of its own)"
        ratio = _measure_layer(layers[0]) if layers else _measure_linears(linears)
        reason = f"{ratio:.2f} times as fast as torch's own"
        if ratio <= 1:
            return Replacements(), f"torch's own (C is {reason})"
        inside = {module for compiled in layers for module in compiled.layer.modules()}
        others = {linear: forward for linear, forward in linears.items() if linear not in inside}
        forwards = {compiled.layer: compiled.forward for compiled in layers} | others
        return Replacements(forwards), f"{len(layers)} decoder and {len(others)} linear layers compiled ({reason})"


@torch.inference_mode()
def _measure_layer(compiled: CompiledLayer) -> float:
    """How many times as fast as the layer's own forward the compiled one is."""
    calls = [_decode_call(compiled, num_rows) for num_rows in NUM_ROWS]
    return _ratio([(partial(compiled.layer, *a, **k), partial(compiled.forward, *a, **k)) for a, k in calls])


def _decode_call(compiled: CompiledLayer, num_rows: int) -> tuple[tuple[torch.Tensor], dict[str, Any]]:
    """What the layer is called with if that many sequences, all alike, add a token each."""
    (rows,), keywords = compiled.arguments, compiled.keywords
    kv_cache = keywords["batch"].kv_cache
    keys = kv_cache.layers[0][0]
    batch = AttentionBatch(
        kv_cache=kv_cache,
        attend=compile_attention(keys.dtype, keys.shape[-1]),
        slots=torch.full((num_rows,), BLOCK_SIZE),
        query_lens=[1] * num_rows,
        kv_lens=[1] * num_rows,
        block_tables=torch.ones(num_rows, 1, dtype=torch.int32),
    )

    def first_token_of(value: Any) -> Any:
        """Of whatever has a value for each token."""
        if isinstance(value, tuple | list):
            return type(value)(first_token_of(each) for each in value)
        if isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[1] == rows.shape[1]:
            return value[:, :1].repeat_interleave(num_rows, dim=1)
        return value

    others = {name: first_token_of(value) for name, value in keywords.items()}
    return first_token_of(compiled.arguments), {**others, "batch": batch}


@torch.inference_mode()
def _measure_linears(linears: Mapping[nn.Module, Forward]) -> float:
    """How many times as fast as their own forward the replacements are, over one layer of each shape."""
    shape_to_layer = {(layer.in_features, layer.out_features): layer for layer in filter(is_linear, linears)}
    inputs = [
        (layer, torch.ones(num_rows, layer.in_features, dtype=dtype_of(layer)))
        for layer in shape_to_layer.values()
        for num_rows in NUM_ROWS
    ]
    return _ratio([(partial(layer, rows), partial(linears[layer], rows)) for layer, rows in inputs])


def _ratio(pairs: Sequence[tuple[Work, Work]]) -> float:
    """Seconds of the first ones over those of the second ones."""
    pairs_s = [best_seconds(pair) for pair in pairs]
    return sum(first_s for first_s, _ in pairs_s) / sum(second_s for _, second_s in pairs_s)
