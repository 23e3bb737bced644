"""`python -m benchmarks.cascade`: the most that attention over a shared prefix could gain by being computed once.

Attention of sequences behind one prefix as it is, beside that of their own tokens alone and the prefix's part as one
dense product (cascade inference, Ye et al. 2024) without merging the two: a bound, and no way to compute an answer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table

from app.model.attention import AttentionBatch
from app.model.cpu.compiled_attention import compile_attention
from app.model.kv_cache import KVCache, KVShape
from benchmarks.machine import Machine, Stopwatch
from benchmarks.shapes import SMOLLM2_135M

NUM_SEQUENCES = 32
NUM_OWN_TOKENS = 60
NUM_PREFIX_TOKENS = (48, 208, 512, 1008)
BLOCK_SIZE = 16
SCALE = 0.125


@torch.inference_mode()
def measure(num_prefix_tokens: int, repetitions: int) -> tuple[float, float]:
    """Median seconds of a step's attention in all layers: (as it is, with a cascade and without merging)."""
    shape = SMOLLM2_135M
    head_dim, num_kv_heads = shape.hidden_size // shape.num_attention_heads, shape.num_key_value_heads
    attend = compile_attention(torch.float32, head_dim)
    num_shared, num_own = num_prefix_tokens // BLOCK_SIZE, -(-NUM_OWN_TOKENS // BLOCK_SIZE)
    cache = KVCache(
        KVShape(shape.num_hidden_layers, num_kv_heads, head_dim),
        num_blocks=1 + num_shared + NUM_SEQUENCES * num_own,
        block_size=BLOCK_SIZE,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    cache.blocks.normal_()
    shared = torch.arange(1, 1 + num_shared, dtype=torch.int32).repeat(NUM_SEQUENCES, 1)
    own = 1 + num_shared + torch.arange(NUM_SEQUENCES * num_own, dtype=torch.int32).view(NUM_SEQUENCES, num_own)

    def batch(tables: torch.Tensor, num_tokens: int) -> AttentionBatch:
        lens = [num_tokens] * NUM_SEQUENCES
        return AttentionBatch(cache, attend, torch.empty(0), [1] * NUM_SEQUENCES, lens, tables, [])

    whole = batch(torch.cat([shared, own], 1), num_prefix_tokens + NUM_OWN_TOKENS)
    alone = batch(own.contiguous(), NUM_OWN_TOKENS)
    query = torch.randn(NUM_SEQUENCES, shape.num_attention_heads, head_dim)
    grouped = query.view(NUM_SEQUENCES, num_kv_heads, -1, head_dim).transpose(0, 1).reshape(num_kv_heads, -1, head_dim)
    dense = [torch.randn(2, num_kv_heads, num_prefix_tokens, head_dim) for _ in cache.layers]

    def as_it_is() -> None:
        for keys, values in cache.layers:
            attend(query, keys, values, whole, SCALE, None)

    def cascade() -> None:
        for (keys, values), (prefix_keys, prefix_values) in zip(cache.layers, dense, strict=True):
            attend(query, keys, values, alone, SCALE, None)
            scores = torch.bmm(grouped, prefix_keys.mT)
            weights = (scores - scores.amax(-1, keepdim=True)).exp_()
            weights.sum(-1)
            torch.bmm(weights, prefix_values)

    first, second = _medians([as_it_is, cascade], repetitions)
    return first, second


def _medians(calls: Sequence[Callable[[], None]], repetitions: int) -> list[float]:
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(1 + repetitions):
        for call, seconds in zip(calls, taken, strict=True):
            began_s = time.perf_counter()
            call()
            if number:
                seconds.append(time.perf_counter() - began_s)
    return [statistics.median(seconds) for seconds in taken]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cascade", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args(arguments)
    console = Console()
    table = Table("prefix, tokens", "attention of a step, ms", "with a cascade, at least", "ratio")
    with Stopwatch() as stopwatch:
        for num_prefix_tokens in NUM_PREFIX_TOKENS:
            plain_s, cascade_s = measure(num_prefix_tokens, options.repetitions)
            ratio = f"{cascade_s / plain_s:.2f}"
            table.add_row(str(num_prefix_tokens), f"{1e3 * plain_s:.1f}", f"{1e3 * cascade_s:.1f}", ratio)
    console.print(str(Machine.here()))
    console.print(table)
    console.print(f"other programs used {stopwatch.foreign_cores or 0:.2f} cores")


if __name__ == "__main__":
    main()
