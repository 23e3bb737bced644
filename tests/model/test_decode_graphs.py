"""A decode step from buffers at fixed addresses, padded to a bucket, is the step itself; graphs only replay it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from app.model.attention import AttentionBatch, attend_sdpa, no_mask
from app.model.backbone import Backbone
from app.model.decode_graphs import DecodeGraphs, PackedRows, buckets_up_to
from app.model.kernels import kernels_for
from app.model.kv_cache import KVCache
from tests.support.models import tiny_backbone

BLOCK_SIZE, NUM_BLOCKS, MAX_NUM_TOKENS = 4, 40, 30


@dataclass
class Model:
    """A backbone and a cache in which some sequences are computed already."""

    backbone: Backbone
    num_forwards: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        kv_shape, device = self.backbone.kv_shape, self.backbone.device
        self.cache = KVCache(
            kv_shape, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, dtype=self.backbone.dtype, device=device
        )
        generator = torch.Generator().manual_seed(0)
        self.cache.blocks[:, :, 1:] = torch.randn(self.cache.blocks[:, :, 1:].shape, generator=generator)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
        self.num_forwards.append(len(ids))
        return self.backbone.model(
            inputs_embeds=self.backbone.embed(ids)[None],
            position_ids=positions[None],
            attention_mask=no_mask(self.backbone.device),
            use_cache=False,
            batch=batch,
        ).logits[0]

    def graphs(self, max_num_rows: int = 8) -> DecodeGraphs:
        return DecodeGraphs(
            self.forward,
            self.cache,
            attend_sdpa,
            capture=kernels_for(self.backbone.device).capture,
            vocab_size=self.backbone.vocab_size,
            max_num_rows=max_num_rows,
            max_num_tokens=MAX_NUM_TOKENS,
        )

    def plain(self, rows: PackedRows) -> torch.Tensor:
        """The same rows as any packed batch is computed."""
        batch = AttentionBatch(
            kv_cache=self.cache,
            attend=attend_sdpa,
            slots=torch.tensor(rows.slots),
            query_lens=[1] * len(rows.slots),
            kv_lens=list(rows.kv_lens),
            block_tables=torch.tensor(rows.block_tables, dtype=torch.int32),
            copies=[],
        )
        return self.forward(torch.tensor(rows.token_ids), torch.tensor(rows.positions), batch)


def rows_of(kv_lens: list[int], seed: int = 0) -> PackedRows:
    """Sequences of these numbers of tokens, each in blocks of its own."""
    width = -(-max(kv_lens) // BLOCK_SIZE)
    tables = [[1 + i * width + k if k * BLOCK_SIZE < n else 0 for k in range(width)] for i, n in enumerate(kv_lens)]
    return PackedRows(
        token_ids=[3 + (seed + 17 * i) % 200 for i in range(len(kv_lens))],
        positions=[n - 1 for n in kv_lens],
        slots=[table[(n - 1) // BLOCK_SIZE] * BLOCK_SIZE + (n - 1) % BLOCK_SIZE
               for n, table in zip(kv_lens, tables, strict=True)],
        kv_lens=kv_lens,
        block_tables=tables,
    )  # fmt: skip


def nothing_late(ids: torch.Tensor) -> None:
    pass


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "gpt2"])
@torch.inference_mode()
def test_a_padded_step_is_the_plain_one(architecture: str) -> None:
    model = Model(tiny_backbone(architecture))
    graphs = model.graphs()
    for step, kv_lens in enumerate([[5], [9, 1, 7], [30, 2, 3, 4, 5], [1, 12], [4] * 8]):
        rows = rows_of(kv_lens, seed=step)
        found = graphs.run(rows, nothing_late).clone()
        model.num_forwards.clear()
        torch.testing.assert_close(found, model.plain(rows).float(), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_rows_too_many_write_the_null_block_only() -> None:
    model = Model(tiny_backbone("llama"))
    rows = rows_of([9, 1, 7])
    before = model.cache.blocks.clone()
    model.graphs().run(rows, nothing_late)
    flat, flat_before = (blocks.flatten(2, 3) for blocks in (model.cache.blocks, before))
    changed = [slot for slot in range(flat.shape[2]) if not torch.equal(flat[:, :, slot], flat_before[:, :, slot])]
    assert changed == sorted([0, *rows.slots])
    assert torch.isfinite(model.cache.blocks[:, :, 0]).all()


@torch.inference_mode()
def test_what_an_earlier_step_left_in_the_buffers_changes_no_bit() -> None:
    rows = rows_of([9, 1, 7])
    fresh, used = Model(tiny_backbone("llama")), Model(tiny_backbone("llama"))
    graphs = used.graphs()
    graphs.run(rows_of([3] * 8, seed=5), nothing_late)
    used.cache.blocks.copy_(fresh.cache.blocks)
    used.cache.blocks[:, :, 20:] = torch.nan  # blocks of the earlier step that belong to no sequence of this one
    assert torch.equal(graphs.run(rows, nothing_late), fresh.graphs().run(rows, nothing_late))


@torch.inference_mode()
def test_ids_that_only_the_device_knows_are_put_over_the_others() -> None:
    model, rows = Model(tiny_backbone("llama")), rows_of([9, 1, 7])
    found = model.graphs().run(rows, lambda ids: ids[1].fill_(99)).clone()
    known = PackedRows([rows.token_ids[0], 99, rows.token_ids[2]], rows.positions, rows.slots, rows.kv_lens,
                       rows.block_tables)  # fmt: skip
    assert torch.equal(found, model.graphs().run(known, nothing_late))


@torch.inference_mode()
def test_a_step_is_computed_for_the_next_larger_bucket() -> None:
    model = Model(tiny_backbone("llama"))
    graphs = model.graphs(max_num_rows=6)
    for num_rows in range(1, 7):
        graphs.run(rows_of([2] * num_rows), nothing_late)
    assert model.num_forwards == [1, 2, 4, 4, 6, 6]


@pytest.mark.parametrize("max_num_rows", [1, 3, 8, 16, 40, 256])
def test_buckets_ascend_to_the_largest_step(max_num_rows: int) -> None:
    buckets = buckets_up_to(max_num_rows)
    assert buckets == sorted(set(buckets))
    assert buckets[0] == 1
    assert buckets[-1] == max_num_rows
    # never more than twice as many rows as are needed, and from 16 on at most 15 too many
    for num_rows in range(1, max_num_rows + 1):
        bucket = next(size for size in buckets if size >= num_rows)
        assert bucket < 2 * num_rows or bucket - num_rows < 16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: only there is a graph captured")
@torch.inference_mode()
def test_captured_graphs_replay_the_plain_step() -> None:
    backbone = tiny_backbone("llama")
    plain, rows = Model(backbone), rows_of([9, 1, 7])
    wanted = plain.plain(rows).float()
    moved = Model(Backbone.from_model(backbone.model.cuda(), backbone.tokenizer, name="on the GPU"))
    found = moved.graphs().run(rows, nothing_late)
    torch.testing.assert_close(found.cpu(), wanted, atol=1e-3, rtol=1e-3)
