"""CUDA graphs: work launched again and again as one, with the sizes and addresses that it was captured with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


@torch.inference_mode()
def capture(compute: Callable[[int], None], sizes: Sequence[int]) -> Callable[[int], None]:
    """A graph of every size, the largest first, whose memory the others share. Raises RuntimeError."""
    size_to_graph: dict[int, torch.cuda.CUDAGraph] = {}
    pool = torch.cuda.graph_pool_handle()
    for size in sorted(sizes, reverse=True):
        compute(size)  # libraries prepare themselves, kernels are compiled
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            compute(size)
        size_to_graph[size] = graph
    return lambda num_rows: size_to_graph[num_rows].replay()
