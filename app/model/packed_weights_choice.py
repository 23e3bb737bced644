"""choose_packed_weights: which linear layers are faster on packed weights, by measuring this model on this machine.

oneDNN picks its kernels by shape, and now and then picks one that is several times slower than the plain product.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice

import torch
from torch import nn

from app.model.packed_weights import NUM_BUCKETS, PackedGroup, PackedWeights, packable_layers
from app.model.shared_inputs import group_by_input

MEASUREMENT_S = 0.012
"""Time for one shape of weight and one number of rows, unless `MIN_CALLS` take longer."""
MIN_CALLS, MAX_CALLS = 5, 20
SLOW_CALL_S = 0.05
"""Once a product takes this long, more rows are not measured: they do as these did."""
MAX_SHARE_OF_MEMORY = 0.25
MAX_RELATIVE_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.02}

Shape = tuple[tuple[int, ...], int, bool, torch.dtype]
Product = Callable[[torch.Tensor], object]


def choose_packed_weights(model: nn.Module) -> tuple[PackedWeights, str]:
    """Packed copies of the layers that are faster with them, maybe of none; and why, for the log."""
    layers = packable_layers(model)
    if not layers:
        return PackedWeights(), "none: oneDNN cannot pack these layers on this device, in this dtype or with this torch"
    num_bytes = sum(layer.weight.nbytes for layer in layers)
    if num_bytes > _memory_bytes() * MAX_SHARE_OF_MEMORY:
        return PackedWeights(), f"none: a second copy of {num_bytes / 2**20:.0f} MiB is over a quarter of the memory"
    began = time.perf_counter()
    try:
        weights = _pack_what_is_faster(group_by_input(model, layers))
        if not _is_same_model(model, weights):  # it does something with products that views of one do not allow
            weights = _pack_what_is_faster([[layer] for layer in layers])
    except RuntimeError as error:  # oneDNN's own, of a build or a CPU that has less than it says
        return PackedWeights(), f"none: oneDNN failed ({str(error).partition(chr(10))[0]})"
    took_s = time.perf_counter() - began
    if not weights.groups:
        return weights, f"none: plain ones are as fast, measured in {took_s:.1f} s"
    return weights, (
        f"{weights.num_layers} of {len(layers)} layers in {len(weights.groups)} products by oneDNN, where that is "
        f"faster; a second copy of {weights.num_bytes / 2**20:.0f} MiB, measured in {took_s:.1f} s"
    )


def _pack_what_is_faster(groups: Sequence[Sequence[nn.Linear]]) -> PackedWeights:
    shape_to_groups: dict[Shape, list[Sequence[nn.Linear]]] = {}
    for layers in groups:
        shape_to_groups.setdefault(_shape(layers), []).append(layers)
    chosen: list[PackedGroup] = []
    for same_shape in shape_to_groups.values():
        packed = [PackedGroup(layers) for layers in same_shape]
        is_faster = _measure(packed)
        for group in packed:
            group.is_faster = is_faster
        if any(is_faster):
            chosen += packed
    return PackedWeights(chosen)


def _shape(layers: Sequence[nn.Linear]) -> Shape:
    first = layers[0]
    return tuple(layer.out_features for layer in layers), first.in_features, first.bias is not None, first.weight.dtype


@torch.inference_mode()
def _is_same_model(model: nn.Module, weights: PackedWeights) -> bool:
    """Whether the model computes the same with these weights, wherever they can be used."""
    ids = torch.zeros((1, 2), dtype=torch.int64)
    everywhere = [copy.copy(group) for group in weights.groups]
    for group in everywhere:
        group.is_faster = (True,) * NUM_BUCKETS
    plain = model(input_ids=ids, use_cache=False).logits
    try:
        with PackedWeights(everywhere).in_place():
            packed = model(input_ids=ids, use_cache=False).logits
    except RuntimeError:
        return False
    return _error(plain, packed) <= 10 * MAX_RELATIVE_ERROR[plain.dtype]


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@torch.inference_mode()
def _measure(groups: Sequence[PackedGroup]) -> tuple[bool, ...]:
    """Bucket by bucket, whether groups of one shape are faster packed; a bucket is measured at its largest number."""
    weight = groups[0].layers[0].weight
    generator = torch.Generator().manual_seed(0)
    is_faster: list[bool] = []
    for i in range(NUM_BUCKETS):
        inputs = torch.randn(1, 2**i, weight.shape[1], generator=generator).to(weight.dtype)
        if not _is_equal(groups[0], inputs):
            is_faster.append(False)
            continue
        plain_s, packed_s = _time(groups, inputs)
        is_faster.append(packed_s < plain_s)
        if min(plain_s, packed_s) > SLOW_CALL_S:
            break
    return (*is_faster, *[is_faster[-1]] * (NUM_BUCKETS - len(is_faster)))


def _is_equal(group: PackedGroup, inputs: torch.Tensor) -> bool:
    """Whether both products agree; it also pays for what first calls cost."""
    plain, packed = torch.cat(group.multiply_plainly(inputs), -1), torch.cat(group.multiply(inputs), -1)
    return _error(plain, packed) <= MAX_RELATIVE_ERROR[inputs.dtype]


def _error(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """The difference's norm over that of what is wanted."""
    return float((wanted.float() - found.float()).norm() / wanted.float().norm().clamp(min=1e-6))


def _time(groups: Sequence[PackedGroup], inputs: torch.Tensor) -> tuple[float, float]:
    """Seconds of a plain and of a packed product, the least disturbed, in turns, group after group as in a forward."""
    plain_s, packed_s = [], []
    began = time.perf_counter()
    for group in islice(cycle(groups), MAX_CALLS):
        plain_s.append(_seconds(group.multiply_plainly, inputs))
        packed_s.append(_seconds(group.multiply, inputs))
        if len(plain_s) >= MIN_CALLS and time.perf_counter() - began > MEASUREMENT_S:
            break
    return min(plain_s), min(packed_s)


def _seconds(multiply: Product, inputs: torch.Tensor) -> float:
    began = time.perf_counter()
    multiply(inputs)
    return time.perf_counter() - began
