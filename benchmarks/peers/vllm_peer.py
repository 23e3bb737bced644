"""vLLM on a CPU, with tasks as `prompt_embeds`. Runs in the environment `vllm`.

The tensor of prompt and text goes with every request; vLLM keeps full blocks of it in its prefix cache.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import numpy as np
import torch
import vllm  # type: ignore[import-not-found]
from safetensors.torch import load_file
from vllm import LLM, SamplingParams

from benchmarks.peers.protocol import Load, Ran, Run, serve

BLOCK_SIZE = 32
"""The least that vLLM takes on a CPU."""
NUM_POSITIONS = 512
"""Or as many as are needed; what is compiled depends on it, and is kept."""


class VllmPeer:
    """One engine in this process, stepped by hand, so that first tokens are seen when they are there."""

    version = vllm.__version__

    def load(self, wanted: Load) -> None:
        self._engine = LLM(
            model=wanted.model,
            dtype=wanted.dtype,
            max_model_len=max(wanted.num_positions, NUM_POSITIONS),
            max_num_seqs=wanted.max_num_seqs,
            block_size=BLOCK_SIZE,
            enable_prefix_caching=True,
            enable_prompt_embeds=True,
        ).llm_engine
        self._num_runs = 0
        dtype = getattr(torch, wanted.dtype)
        self._prompts = torch.from_numpy(np.load(wanted.prompts)).to(dtype)
        table = load_file(Path(wanted.model) / "model.safetensors")["model.embed_tokens.weight"]
        self._embeddings = table.to(dtype)

    def run(self, wanted: Run) -> Ran:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=wanted.num_new_tokens,
            ignore_eos=True,
            detokenize=False,
            allowed_token_ids=wanted.labels or None,
        )
        self._num_runs += 1
        began_s = time.perf_counter()
        name_to_index = {}
        for index, (task, text) in enumerate(zip(wanted.tasks, wanted.texts, strict=True)):
            name = f"{self._num_runs}-{index}"
            name_to_index[name] = index
            rows = torch.cat([self._prompts[task], self._embeddings[text]])
            self._engine.add_request(name, {"prompt_embeds": rows}, params)
        tokens: list[list[int]] = [[] for _ in wanted.texts]
        first_token_s = [0.0] * len(tokens)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                index = name_to_index[output.request_id]
                first_token_s[index] = first_token_s[index] or time.perf_counter() - began_s
                tokens[index] = list(output.outputs[0].token_ids)
        return Ran(tokens, first_token_s)


if __name__ == "__main__":
    serve(VllmPeer())
