"""transformers' continuous batching, with a task's rows as rows of the embedding table under ids of their own.

Its requests are token ids, so the virtual tokens of all tasks come after the vocabulary; the output layer keeps the
vocabulary's size, so none of them is ever generated. Runs in the benchmark's own environment.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import ContinuousBatchingConfig

from benchmarks.peers.protocol import CannotError, Load, Ran, Run, serve

BLOCK_SIZE = 32


class TransformersPeer:
    """`generate_batch`, its manager kept between runs."""

    version = transformers.__version__

    def load(self, wanted: Load) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(
            wanted.model, dtype=getattr(torch, wanted.dtype), attn_implementation="sdpa"
        ).eval()
        prompts = torch.from_numpy(np.load(wanted.prompts)).to(self._model.dtype)
        self._num_virtual = prompts.shape[1]
        table = self._model.get_input_embeddings().weight.detach()
        self._num_vocab = table.shape[0]
        head = torch.nn.Linear(table.shape[1], table.shape[0], bias=False, dtype=table.dtype)
        head.weight = torch.nn.Parameter(table, requires_grad=False)
        self._model.set_output_embeddings(head)
        rows = torch.cat([table, prompts.flatten(0, 1)])
        self._model.set_input_embeddings(torch.nn.Embedding.from_pretrained(rows, freeze=True))
        num_blocks = -(-wanted.num_positions // BLOCK_SIZE) * wanted.max_num_seqs + len(prompts) * 2
        self._batching = ContinuousBatchingConfig(page_size=BLOCK_SIZE, num_blocks=num_blocks, max_batch_tokens=512)

    def run(self, wanted: Run) -> Ran:
        if wanted.labels:
            raise CannotError("continuous batching has no way to allow some ids only")
        length, starts = self._num_virtual, [self._num_vocab + task * self._num_virtual for task in wanted.tasks]
        inputs = [[*range(start, start + length), *text] for start, text in zip(starts, wanted.texts, strict=True)]
        return Ran(*generate_batch(self._model, self._batching, inputs, wanted.num_new_tokens))


def generate_batch(
    model: Any, batching: ContinuousBatchingConfig, inputs: list[list[int]], num_new_tokens: int
) -> tuple[list[list[int]], list[float]]:
    """(generated ids, seconds to the first token) of each input; greedy, and the manager is kept between calls."""
    began_s = time.perf_counter()
    found = model.generate_batch(
        inputs,
        GenerationConfig(max_new_tokens=num_new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0),
        batching,
        record_timestamps=True,
        persistent_manager=True,
    )
    outputs = sorted(found.values(), key=lambda output: int(output.request_id.rpartition("_")[2]))
    return [list(output.generated_tokens) for output in outputs], [output.timestamps[0] - began_s for output in outputs]


if __name__ == "__main__":
    serve(TransformersPeer())
