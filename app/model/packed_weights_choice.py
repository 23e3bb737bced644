"""choose_packed_weights: which linear layers are faster on packed weights, by measuring this model on this machine.

oneDNN picks its kernels by shape, and now and then picks one that is several times slower than the plain product.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from statistics import median

import torch
from torch import nn

from app.model.packed_weights import NUM_BUCKETS, PackedLinear, PackedWeights, packable_layers

MEASUREMENT_S = 0.012
"""Time for one shape of weight and one number of rows: the choice takes a second for a model, little for a tiny one."""
MIN_CALLS, MAX_CALLS = 3, 20
SLOW_CALL_S = 0.05
"""Once a product takes this long, more rows are not measured: they do as these did."""
MAX_SHARE_OF_MEMORY = 0.25
MAX_RELATIVE_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.02}

Shape = tuple[int, int, bool]
Product = Callable[[torch.Tensor], torch.Tensor]


def choose_packed_weights(model: nn.Module) -> tuple[PackedWeights, str]:
    """Packed copies of the layers that are faster with them, maybe of none; and why, for the log."""
    layers = packable_layers(model)
    if not layers:
        return PackedWeights(), "none: oneDNN cannot pack these layers on this device, in this dtype or with this torch"
    num_bytes = sum(layer.weight.nbytes for layer in layers)
    if num_bytes > _memory_bytes() * MAX_SHARE_OF_MEMORY:
        return PackedWeights(), f"none: a second copy of {num_bytes / 2**20:.0f} MiB is over a quarter of the memory"
    began = time.perf_counter()
    chosen: list[PackedLinear] = []
    for same_shape in _by_shape(layers).values():
        packed = [PackedLinear(layer) for layer in same_shape]
        is_faster = _measure(packed)
        for layer in packed:
            layer.is_faster = is_faster
        if any(is_faster):
            chosen += packed
    took_s = time.perf_counter() - began
    if not chosen:
        return PackedWeights(), f"none: plain ones are as fast, measured in {took_s:.1f} s"
    weights = PackedWeights(chosen)
    return weights, (
        f"{len(chosen)} of {len(layers)} layers by oneDNN, where that is faster; a second copy of "
        f"{weights.num_bytes / 2**20:.0f} MiB, measured in {took_s:.1f} s"
    )


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _by_shape(layers: Sequence[nn.Linear]) -> dict[Shape, list[nn.Linear]]:
    groups: dict[Shape, list[nn.Linear]] = {}
    for layer in layers:
        groups.setdefault((layer.out_features, layer.in_features, layer.bias is not None), []).append(layer)
    return groups


@torch.inference_mode()
def _measure(layers: Sequence[PackedLinear]) -> tuple[bool, ...]:
    """Bucket by bucket, whether layers of one shape are faster packed; a bucket is measured at its largest number."""
    weight = layers[0].linear.weight
    generator = torch.Generator().manual_seed(0)
    is_faster: list[bool] = []
    for i in range(NUM_BUCKETS):
        inputs = torch.randn(1, 2**i, weight.shape[1], generator=generator).to(weight.dtype)
        if not _is_equal(layers[0], inputs):
            is_faster.append(False)
            continue
        plain_s, packed_s = _time(layers, inputs)
        is_faster.append(packed_s < plain_s)
        if min(plain_s, packed_s) > SLOW_CALL_S:
            break
    return (*is_faster, *[is_faster[-1]] * (NUM_BUCKETS - len(is_faster)))


def _is_equal(layer: PackedLinear, inputs: torch.Tensor) -> bool:
    """Whether both products agree; it also pays for what first calls cost."""
    plain, packed = layer.multiply_plainly(inputs).float(), layer.multiply(inputs).float()
    error = float((plain - packed).norm() / plain.norm().clamp(min=1e-6))
    return error <= MAX_RELATIVE_ERROR[inputs.dtype]


def _time(layers: Sequence[PackedLinear], inputs: torch.Tensor) -> tuple[float, float]:
    """Median seconds of a plain and of a packed product, in turns, layer after layer as in a forward."""
    plain_s, packed_s = [], []
    began = time.perf_counter()
    for layer in islice(cycle(layers), MAX_CALLS):
        plain_s.append(_seconds(layer.multiply_plainly, inputs))
        packed_s.append(_seconds(layer.multiply, inputs))
        if len(plain_s) >= MIN_CALLS and time.perf_counter() - began > MEASUREMENT_S:
            break
    return median(plain_s), median(packed_s)


def _seconds(multiply: Product, inputs: torch.Tensor) -> float:
    began = time.perf_counter()
    multiply(inputs)
    return time.perf_counter() - began
