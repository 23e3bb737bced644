from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from app.model.kv_cache import KVCache, KVShape

SHAPE = KVShape(num_layers=3, num_kv_heads=2, head_dim=4)


def make_cache(dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(SHAPE, num_blocks=5, block_size=4, dtype=dtype, device=torch.device("cpu"))


def test_a_token_takes_the_bytes_it_is_said_to_take() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        cache = make_cache(dtype)
        assert cache.blocks.numel() * dtype.itemsize == 5 * 4 * SHAPE.num_bytes_per_token(dtype)


def test_layers_are_views_of_keys_and_values() -> None:
    cache = make_cache()
    keys, values = cache.layers[1]
    keys[2, 3] = 7.0
    assert keys.shape == values.shape == (5, 4, 2, 4)
    assert float(cache.blocks.sum()) == 7.0 * 8
    assert float(values.sum()) == 0.0


def test_rows_of_a_prefix_stand_in_pefts_order_in_any_slots() -> None:
    cache = make_cache()
    rows = torch.randn(6, 3 * 2 * 2 * 4)
    slots = [8, 9, 10, 11, 4, 5]
    cache.load_rows(slots, rows)
    for i, slot in enumerate(slots):
        for layer in range(3):
            for which in range(2):
                wanted = rows[i].view(6, 2, 4)[2 * layer + which]
                assert torch.equal(cache.layers[layer][which][slot // 4, slot % 4], wanted)
    assert torch.equal(cache.blocks[:, :, [0, 3, 4]], torch.zeros(3, 2, 3, 4, 2, 4))
    assert torch.equal(cache.copy_rows(slots), rows)
    assert torch.equal(cache.copy_rows([5, 8]), rows[[5, 0]])


def test_rows_are_cast_to_the_caches_dtype() -> None:
    cache = make_cache(torch.bfloat16)
    rows = torch.randn(1, 48)
    cache.load_rows([4], rows)
    assert torch.equal(cache.layers[0][0][1, 0].flatten(), rows[0, :8].bfloat16())


def test_clearing_touches_only_the_blocks_named() -> None:
    cache = make_cache()
    cache.blocks.fill_(float("nan"))
    cache.clear([1, 3])
    is_nan = cache.blocks.isnan().all(dim=5).all(dim=4).all(dim=3).all(dim=1).all(dim=0)
    assert is_nan.tolist() == [True, False, True, False, True]


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no transparent huge pages"
)
def test_the_cache_is_private_memory_that_may_lie_on_huge_pages() -> None:
    """Flags of proc(5): `hg` is what was asked for; `sh` would be shared memory, which gets none by default."""
    cache = KVCache(KVShape(4, 2, 64), num_blocks=300, block_size=16, dtype=torch.float32, device=torch.device("cpu"))
    flags = _vm_flags(cache.blocks.data_ptr())
    assert "hg" in flags
    assert "sh" not in flags


def _vm_flags(address: int) -> list[str]:
    is_inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif is_inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("the address is mapped nowhere")
