"""compile_layers: whole decoder layers computed in C (`layer.c`), if a model's are like Llama's.

A layer is recognized by the modules it holds, and then by what it computes: the model runs once, at its first and its
last positions, and the C code must give what the layer gave. So no list of architectures is needed (Llama's, Mistral's
and Qwen's are such layers), and a model that scales, clips or shares something of its own keeps its own code.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.model.attention import AttentionBatch, attend_reference
from app.model.cpu.compiled_attention import MAX_WINDOW, RUN_LENGTH
from app.model.cpu.compiled_linear import MultiplyJob, Weights, address, dtype_of, is_linear, macros_for
from app.model.cpu.compiler import C_FOLDER, find_team, load_library
from app.model.kernels import Forward
from app.model.kv_cache import KVCache, KVShape
from app.model.loading.exactness import BLOCK_SIZE, CUTS, TrialTexts, compute_packed
from app.model.loading.quantized_linear import QuantizedLinear

SOURCES = [C_FOLDER / name for name in ("layer.c", "attend.c", "multiply.c")]
DTYPE_TO_MAX_ERROR = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Of the norm of what a layer adds to a token, or asks with."""

PADDING_BYTES = 64
"""PADDING in layer.h."""

LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
ATTENTIONS = (PROJECTIONS, PROJECTIONS | {"q_norm", "k_norm"})
FEED_FORWARD = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class _Layer(ctypes.Structure):
    """Field for field `struct layer` in layer.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input_norm", "output_norm", "query_norm", "key_norm")),
        *((name, MultiplyJob) for name in ("query", "key", "value", "output", "up", "down")),
        *((name, ctypes.c_int64) for name in ("num_heads", "num_kv_heads", "hidden_size", "window")),
        *((name, ctypes.c_float) for name in ("input_epsilon", "output_epsilon", "query_epsilon", "key_epsilon")),
        ("scale", ctypes.c_float),
    )


class _Step(ctypes.Structure):
    """Field for field `struct step` in layer.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("cosines", "sines", "slots", "sources", "targets")),
        *((name, ctypes.c_void_p) for name in ("normal", "query", "key", "value", "attended", "gated")),
        *((name, ctypes.c_void_p) for name in ("block_tables", "runs")),
        *((name, ctypes.c_int64) for name in ("num_tokens", "num_copies", "num_runs", "block_size", "table_width")),
        ("run_in_team", ctypes.c_void_p),
        ("num_threads", ctypes.c_int64),
    )


_Sizes = tuple[int, int, int, int]
"""What a layer's room to work in depends on: num_heads, num_kv_heads, hidden_size, intermediate_size."""


@dataclass(frozen=True)
class _Call:
    """What a layer was called with, what it called attention with, and what came out.

    Attributes: query: (num_tokens, num_heads, head_dim).
    """

    layer: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any
    query: Tensor
    scale: float
    window: int | None


@dataclass(frozen=True)
class CompiledLayer(_Call):
    """A decoder layer, what it was called with when it was compared with C, and its forward in C."""

    forward: Forward


def compile_layers(model: PreTrainedModel, shape: KVShape) -> list[CompiledLayer]:
    """Those decoder layers of a model on a CPU that are like Llama's.

    Raises: CompilationError.
    """
    layers = [module for module in model.modules() if _is_like_llama(module, shape)]
    if not layers or shape.head_dim % 2:
        return []
    is_quantized = any(isinstance(module, QuantizedLinear) for module in layers[0].modules())
    compute = compile_layer(model.dtype, shape.head_dim, is_quantized=is_quantized)
    kv_cache = KVCache(shape, num_blocks=3, block_size=BLOCK_SIZE, dtype=model.dtype, device=model.device)
    before = torch.randn(kv_cache.blocks.shape, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    kv_cache.blocks.copy_(before)
    calls = _watch(model, layers, kv_cache)
    after = kv_cache.blocks.clone()
    compiled = []
    for call in calls:
        forward = _forward(compute, call, shape.head_dim)
        kv_cache.blocks.copy_(before)
        if _gives_the_same(forward, call, kv_cache, after):
            compiled.append(CompiledLayer(**vars(call), forward=forward))
    return compiled


@cache
def compile_layer(dtype: torch.dtype, head_dim: int, *, is_quantized: bool) -> Callable[..., None]:
    library = load_library(SOURCES, {"HEAD_DIM": head_dim, **macros_for(dtype, is_quantized=is_quantized)})
    library.compute_layer.argtypes = (ctypes.c_void_p,) * 6
    library.compute_layer.restype = None
    return library.compute_layer


def _is_like_llama(module: nn.Module, shape: KVShape) -> bool:
    if _names(module) != LAYER:
        return False
    layer: Any = module
    attention, feed_forward = layer.self_attn, layer.mlp
    if _names(attention) not in ATTENTIONS or _names(feed_forward) != FEED_FORWARD:
        return False
    linears = [getattr(attention, name) for name in PROJECTIONS]
    linears += [feed_forward.gate_proj, feed_forward.up_proj, feed_forward.down_proj]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    head_norms = [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    return (
        all(is_linear(linear) for linear in linears)
        and all(_epsilon(norm) is not None for norm in norms + head_norms)
        and all(norm.weight.shape == (shape.head_dim,) for norm in head_norms)
        and isinstance(getattr(attention, "layer_idx", None), int)
        and attention.k_proj.out_features == attention.v_proj.out_features == shape.num_kv_heads * shape.head_dim
        and len({*map(dtype_of, linears), *(norm.weight.dtype for norm in norms + head_norms)}) == 1
    )


def _names(module: Any) -> set[str]:
    return {name for name, _ in module.named_children()} if isinstance(module, nn.Module) else set()


def _epsilon(norm: Any) -> float | None:
    """Of a module with nothing but a weight; they do not agree on the name."""
    if [name for name, _ in norm.named_parameters()] != ["weight"]:
        return None
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def _watch(model: PreTrainedModel, layers: list[nn.Module], kv_cache: KVCache) -> list[_Call]:
    """The model's own forward over two texts: one adds a token near the first positions, one three near the last."""
    attended: list[tuple[Tensor, float, int | None]] = []
    calls: list[_Call] = []

    def attend(*arguments: Any) -> Tensor:
        attended.append((arguments[0], *arguments[-2:]))
        return attend_reference(*arguments)

    def note(module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        calls.append(_Call(module, arguments, keywords, output, *attended[-1]))

    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    try:
        compute_packed(model, kv_cache, TrialTexts.of(model), *CUTS[1:3], attend)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _forward(compute: Callable[..., None], call: _Call, head_dim: int) -> Forward:
    module: Any = call.layer
    layer, layer_index = _describe(call, head_dim), module.self_attn.layer_idx
    sizes = (layer.num_heads, layer.num_kv_heads, layer.hidden_size, module.mlp.gate_proj.out_features)
    dtype = dtype_of(module.mlp.gate_proj)
    weights = list(module.parameters())  # their addresses are in `layer`
    layer_pointer = ctypes.byref(layer)

    def forward(
        hidden_states: Tensor,
        *_: Any,
        position_embeddings: tuple[Tensor, Tensor],
        batch: AttentionBatch,
        **__: Any,
    ) -> Tensor:
        assert weights
        assert hidden_states.dtype == dtype
        rows = hidden_states.contiguous()
        output = torch.empty_like(rows)
        keys, values = batch.kv_cache.layers[layer_index]
        step = _step(batch, position_embeddings, sizes)
        compute(layer_pointer, step, rows.data_ptr(), output.data_ptr(), keys.data_ptr(), values.data_ptr())
        return output

    return forward


def _describe(call: _Call, head_dim: int) -> _Layer:
    module: Any = call.layer
    attention, feed_forward = module.self_attn, module.mlp
    up = MultiplyJob.of(feed_forward.up_proj)
    up.gate = Weights.of(feed_forward.gate_proj)
    layer = _Layer(
        query=MultiplyJob.of(attention.q_proj),
        key=MultiplyJob.of(attention.k_proj),
        value=MultiplyJob.of(attention.v_proj),
        output=MultiplyJob.of(attention.o_proj),
        up=up,
        down=MultiplyJob.of(feed_forward.down_proj),
        num_heads=attention.q_proj.out_features // head_dim,
        num_kv_heads=attention.k_proj.out_features // head_dim,
        hidden_size=module.input_layernorm.weight.numel(),
        window=MAX_WINDOW if call.window is None else call.window,
        scale=call.scale,
    )
    norms = {"input": module.input_layernorm, "output": module.post_attention_layernorm}
    norms |= {"query": getattr(attention, "q_norm", None), "key": getattr(attention, "k_norm", None)}
    for name, norm in norms.items():
        if norm is not None:
            setattr(layer, f"{name}_norm", address(norm.weight))
            setattr(layer, f"{name}_epsilon", _epsilon(norm))
    return layer


def _step(batch: AttentionBatch, position_embeddings: tuple[Tensor, Tensor], sizes: _Sizes) -> Any:
    """What all layers of these sizes are given for a batch, made in the first of them."""
    cosines, sines = position_embeddings
    key = (sizes, cosines.data_ptr())
    if key not in batch.memo:
        tensors = _tensors(batch, cosines, sines, sizes)
        assert all(tensor.is_contiguous() for tensor in tensors.values())
        step = _Step(
            **{name: tensor.data_ptr() for name, tensor in tensors.items()},
            num_tokens=len(batch.slots),
            num_copies=len(tensors["sources"]),
            num_runs=len(tensors["runs"]),
            block_size=batch.kv_cache.block_size,
            table_width=batch.block_tables.shape[1],
            run_in_team=ctypes.cast(find_team(), ctypes.c_void_p).value,
            num_threads=torch.get_num_threads(),
        )
        batch.memo[key] = (ctypes.byref(step), tensors)
    return batch.memo[key][0]


def _tensors(batch: AttentionBatch, cosines: Tensor, sines: Tensor, sizes: _Sizes) -> dict[str, Tensor]:
    """By their names in `_Step`."""
    num_heads, num_kv_heads, hidden_size, intermediate_size = sizes
    num_tokens, dtype, head_dim = len(batch.slots), batch.kv_cache.blocks.dtype, batch.kv_cache.blocks.shape[-1]
    assert cosines.shape == sines.shape == (1, num_tokens, head_dim)
    assert cosines.dtype == sines.dtype == dtype
    nothing, padding = batch.slots[:0], PADDING_BYTES // dtype.itemsize
    return {
        "cosines": cosines,
        "sines": sines,
        "slots": batch.slots,
        "sources": torch.cat([source for source, _ in batch.copies]) if batch.copies else nothing,
        "targets": torch.cat([target for _, target in batch.copies]) if batch.copies else nothing,
        "normal": torch.empty(num_tokens, hidden_size + padding, dtype=dtype),
        "query": torch.empty(num_tokens, num_heads, head_dim),
        "key": torch.empty(num_tokens, num_kv_heads, head_dim),
        "value": torch.empty(num_tokens, num_kv_heads, head_dim),
        "attended": torch.empty(num_tokens, num_heads * head_dim + padding, dtype=dtype),
        "gated": torch.empty(num_tokens, intermediate_size + padding, dtype=dtype),
        "block_tables": batch.block_tables,
        "runs": batch.runs(RUN_LENGTH),
    }


def _gives_the_same(forward: Forward, call: _Call, kv_cache: KVCache, after: Tensor) -> bool:
    """Whether the C code gives the layer's own output to every token, and leaves the same keys and values.

    Its queries are compared by what they are, too: what attention makes of them hides a difference of some percent.
    """
    layer: Any = call.layer
    if len(call.arguments) != 1 or not isinstance(call.output, Tensor):
        return False
    (rows,), index = call.arguments, layer.self_attn.layer_idx
    try:
        output = forward(rows, **call.keywords)
        query = _query_like_llamas(call)
    except (AssertionError, KeyError, RuntimeError, TypeError):  # the layer is called with something else
        return False
    return (
        _is_close(output, call.output, call.output - rows)
        and _is_close(kv_cache.blocks[index], after[index], after[index])
        and _is_close(query, call.query, call.query)
    )


def _is_close(ours: Tensor, its: Tensor, added: Tensor) -> bool:
    """Row by row, so that one token's difference is not lost among the others; by what a layer added to the row.

    What comes in may be so large that the sum is rounded by more than that.
    """
    error, size, sums = (each.float().norm(dim=-1) for each in (ours - its, added, its))
    limit = DTYPE_TO_MAX_ERROR[its.dtype] * size + torch.finfo(its.dtype).eps * sums
    return bool((error <= limit).all())


def _query_like_llamas(call: _Call) -> Tensor:
    """What the C code asks attention with, computed by the layer's own modules: normalized, projected, rotated."""
    layer: Any = call.layer
    attention, (rows,) = layer.self_attn, call.arguments
    cosines, sines = (each[0, :, None] for each in call.keywords["position_embeddings"])
    query = attention.q_proj(layer.input_layernorm(rows))[0].view(rows.shape[1], -1, cosines.shape[-1])
    query = attention.q_norm(query) if hasattr(attention, "q_norm") else query
    first, second = query.chunk(2, dim=-1)
    return query * cosines + torch.cat([-second, first], dim=-1) * sines
