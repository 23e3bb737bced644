"""EngineConfig and EngineStats: how large an engine is, and what it is doing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.errors import InvalidInput
from app.model.backbone import Backbone
from app.model.kernels import kernels_for
from app.model.loading.positions import require_positions

PREFIX_STORE_BYTES = 10 * 2**30
MAX_TAIL_COPIES = 2
"""Partly filled blocks copied for one sequence: the last of its task prompt, and the last of the text it shares."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes. `sized_for` chooses what is not given.

    Attributes:
        max_model_len: positions a sequence may fill, virtual tokens included.
        max_num_seqs: sequences computed at a time.
        max_num_batched_tokens: tokens computed in a step.
        block_size: tokens in a block.
        num_blocks: blocks in the cache, the null block included.
        max_waiting_requests, max_waiting_tokens: what may wait before new requests are refused.
        prefix_store: folder that keeps task prompts' keys and values for when memory has dropped them; None for none.
        prefix_store_bytes: of all files in it.
        prefix_caching: whether computed text is kept for texts that begin alike, as long as its room is not needed.
        prompt_lookup: tokens proposed for a sequence in a step, if few run (`Speculation`); 0 proposes none.
        tuning_share: of the device's time that tuning gets while sequences run, 0 to below 1.
        decode_graphs: whether steps in which every sequence adds one token are prepared once (`DecodeGraphs`).
        async_scheduling: whether a step is given to the device before the results of the previous one are looked at.
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    max_waiting_requests: int
    max_waiting_tokens: int
    prefix_caching: bool = True
    prefix_store: Path | None = None
    prefix_store_bytes: int = PREFIX_STORE_BYTES
    prompt_lookup: int = 0
    tuning_share: float = 0.0
    decode_graphs: bool = False
    async_scheduling: bool = False

    @classmethod
    def sized_for(
        cls,
        backbone: Backbone,
        *,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        block_size: int | None = None,
        kv_cache_bytes: int | None = None,
        max_waiting_requests: int = 1024,
        max_waiting_tokens: int | None = None,
        prompt_lookup: int = 0,
        eager: bool = False,
        **others: Any,
    ) -> EngineConfig:
        """Defaults that suit the device. Raises InvalidInput naming the field that does not fit.

        Args:
            eager: without what is done on CUDA only, decode graphs and asynchronous scheduling.
            others: fields that need no sizing, taken as they are.
        """
        is_cuda = backbone.device.type == "cuda"
        multiple = kernels_for(backbone.device).block_multiple(backbone.dtype, backbone.kv_shape.head_dim)
        require_positions(max_model_len, backbone.max_model_len, backbone.name)
        most = 256 if is_cuda else 64
        num_seqs = max_num_seqs or min(most, max_num_batched_tokens or most)
        size = block_size or max(16, multiple)
        length = max_model_len or backbone.max_model_len
        num_bytes = kv_cache_bytes or _default_kv_cache_bytes(backbone)
        num_tokens = num_bytes // backbone.kv_shape.num_bytes_per_token(backbone.dtype)
        if size % multiple:
            raise InvalidInput(f"block_size must be a multiple of {multiple} on CUDA", param="block_size")
        if num_tokens < 2 * size:
            raise InvalidInput("kv_cache_memory is too small for a single block", param="kv_cache_memory")
        return cls(
            max_model_len=length,
            max_num_seqs=num_seqs,
            max_num_batched_tokens=max(num_seqs, max_num_batched_tokens or (8192 if is_cuda else 512)),
            block_size=size,
            num_blocks=min(num_tokens // size, 2 * num_seqs * -(-length // size)) + 1,
            max_waiting_requests=max_waiting_requests,
            max_waiting_tokens=max_waiting_tokens or max_waiting_requests * length,
            prompt_lookup=prompt_lookup,
            decode_graphs=is_cuda and not eager,
            async_scheduling=is_cuda and not eager and not prompt_lookup,  # speculation needs the previous tokens
            **others,
        )

    @property
    def max_positions(self) -> int:
        """Positions that one sequence can fill, whatever it shares: the context, or the cache if that is smaller."""
        num_blocks = max(1, self.num_blocks - 1 - MAX_TAIL_COPIES)  # one is the null block
        return min(self.max_model_len, num_blocks * self.block_size)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A moment's counts."""

    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int
    num_stored_bytes: int
    num_steps: int
    num_preemptions: int


def _default_kv_cache_bytes(backbone: Backbone) -> int:
    """CUDA: 90 % of what is free now. CPU: a quarter of the machine's memory, at most 4 GiB."""
    if backbone.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(backbone.device)
        return int(free * 0.9)
    return min(4 * 2**30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)
