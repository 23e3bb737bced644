"""vLLM on a CPU: tasks as `prompt_embeds`, or as LoRA adapters. Runs in the environment `vllm`.

`prompt_embeds`: the tensor of prompt and text goes with every request; vLLM keeps full blocks of it in its prefix
cache. `lora`: rank 8 on queries and values with random values, which is what vLLM's users tune instead.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import numpy as np
import torch
import vllm  # type: ignore[import-not-found]
from safetensors.torch import load_file, save_file
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]

from benchmarks.peers.protocol import CannotError, Load, Peer, Ran, Run, serve

BLOCK_SIZE = 32
"""The least that vLLM takes on a CPU."""
NUM_POSITIONS = 512
"""Or as many as are needed; what is compiled depends on it, and is kept."""
LORA_RANK = 8
WAYS = ("prompt_embeds", "lora")


class VllmPeer(Peer):
    """One engine in this process, stepped by hand, so that first tokens are seen when they are there."""

    version = vllm.__version__

    def load(self, wanted: Load) -> None:
        if wanted.way not in WAYS:
            raise CannotError(f"no such way: {wanted.way}")
        prompts = torch.from_numpy(np.load(wanted.prompts))
        num_tasks, self._num_virtual = prompts.shape[:2]
        self._is_lora = wanted.way == "lora"
        special: dict[str, Any] = {"enable_prompt_embeds": True}
        if self._is_lora:
            special = {"enable_lora": True, "max_loras": num_tasks, "max_lora_rank": LORA_RANK}
        self._engine = LLM(
            model=wanted.model,
            dtype=wanted.dtype,
            max_model_len=max(wanted.num_positions, NUM_POSITIONS),
            max_num_seqs=wanted.max_num_seqs,
            block_size=BLOCK_SIZE,
            enable_prefix_caching=True,
            **special,
        ).llm_engine
        self._num_runs = 0
        dtype = getattr(torch, wanted.dtype)
        self._prompts = prompts.to(dtype)
        self._embeddings = _embeddings(Path(wanted.model)).to(dtype)
        if self._is_lora:
            self._adapters = [_lora(Path(wanted.model), Path(wanted.scratch), index) for index in range(num_tasks)]

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
            name_to_index[f"{self._num_runs}-{index}"] = index
            self._add(f"{self._num_runs}-{index}", task, text, params)
        tokens: list[list[int]] = [[] for _ in wanted.texts]
        first_token_s = [0.0] * len(tokens)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                index = name_to_index[output.request_id]
                first_token_s[index] = first_token_s[index] or time.perf_counter() - began_s
                tokens[index] = list(output.outputs[0].token_ids)
        return Ran(tokens, first_token_s)

    def _add(self, name: str, task: int, text: list[int], params: Any) -> None:
        if self._is_lora:
            self._engine.add_request(name, {"prompt_token_ids": text}, params, lora_request=self._adapters[task])
        else:
            rows = torch.cat([self._prompts[task], self._embeddings[text]])
            self._engine.add_request(name, {"prompt_embeds": rows}, params)


def _embeddings(model: Path) -> torch.Tensor:
    return load_file(model / "model.safetensors")["model.embed_tokens.weight"]


def _lora(model: Path, scratch: Path, index: int) -> Any:
    """An adapter in PEFT's layout."""
    config = json.loads((model / "config.json").read_text())
    hidden, num_kv = config["hidden_size"], config["num_key_value_heads"]
    kv_size = num_kv * hidden // config["num_attention_heads"]
    generator = torch.Generator().manual_seed(index)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, size in (("q_proj", hidden), ("v_proj", kv_size)):
            key = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(LORA_RANK, hidden, generator=generator) * 0.02
            tensors[f"{key}.lora_B.weight"] = torch.randn(size, LORA_RANK, generator=generator) * 0.02
    folder = scratch / f"lora{index}"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": LORA_RANK,
        "lora_alpha": LORA_RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": str(model),
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return LoRARequest(f"task{index}", index + 1, str(folder))


if __name__ == "__main__":
    serve(VllmPeer())
