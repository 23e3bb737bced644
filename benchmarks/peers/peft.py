"""PEFT: what its documentation shows, and the fastest way it offers."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from inspect import signature
from typing import Any

import torch
from peft import PeftModel, PromptTuningConfig, TaskType, get_peft_model

from app.task_prompt import TaskPrompt
from benchmarks.workloads import Outcome, Request, Workload

PAD_ID = 0


class PeftPeer:
    """A `PeftModel` with one PROMPT_TUNING adapter for each task, switched with `set_adapter`.

    It generates by forward calls with a cache: PEFT 0.21's `generate` chooses wrong tokens with transformers 5.24.
    """

    def __init__(self, model: Any, prompts: Iterable[TaskPrompt]) -> None:
        """Args: model: PEFT's own copy, with transformers' SDPA attention."""
        self.model = model
        # transformers 5.24 renamed it
        self._cache = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
        self._peft: PeftModel | None = None
        for index, prompt in enumerate(prompts):
            self._add_adapter(f"task{index}", prompt)

    def one_by_one(self, workload: Workload) -> Outcome:
        """One request after the other, unpadded: right, and what PEFT's documentation shows."""
        return self._run(workload, [[index] for index in range(len(workload.requests))])

    def grouped_by_task(self, workload: Workload, batch_size: int = 8) -> Outcome:
        """Requests of one task in left-padded batches: faster, but the padding changes the answers.

        PEFT puts the prompt before the padding, so the distance from prompt to text depends on the batch.
        """
        return self._run(workload, _batches(workload.requests, batch_size))

    def logits(self, request: Request, generated: tuple[int, ...]) -> torch.Tensor:
        """Logits (vocab_size,) of the token after `generated`, from one plain forward without a cache."""
        assert self._peft is not None
        self._switch(request)
        with torch.inference_mode():
            return self._peft(input_ids=torch.tensor([request.token_ids + generated])).logits[0, -1]

    def _run(self, workload: Workload, batches: list[list[int]]) -> Outcome:
        tokens: dict[int, tuple[int, ...]] = {}
        first_token_s: dict[int, float] = {}
        began_s = time.perf_counter()
        for indices in batches:
            requests = [workload.requests[index] for index in indices]
            rows, first_s = self._generate(requests, workload.num_new_tokens)
            tokens.update(zip(indices, rows, strict=True))
            first_token_s.update(dict.fromkeys(indices, first_s - began_s))
        order = range(len(workload.requests))
        return Outcome.of(tuple(tokens[index] for index in order), tuple(first_token_s[index] for index in order))

    def _add_adapter(self, name: str, prompt: TaskPrompt) -> None:
        assert prompt.rows is not None
        config = PromptTuningConfig(
            task_type=TaskType.CAUSAL_LM, num_virtual_tokens=prompt.num_virtual_tokens, inference_mode=True
        )
        if self._peft is None:
            self._peft = get_peft_model(self.model, config, adapter_name=name)
        else:
            self._peft.add_adapter(name, config)
        self._peft.prompt_encoder[name].embedding.weight.data.copy_(prompt.rows)
        self._peft.eval()

    def _switch(self, request: Request) -> None:
        assert self._peft is not None
        assert request.task is not None
        self._peft.set_adapter(f"task{request.task}", inference_mode=True)

    def _generate(self, requests: list[Request], num_new_tokens: int) -> tuple[list[tuple[int, ...]], float]:
        """(tokens of each, when the first ones were there). The requests share a task; shorter rows are left-padded."""
        assert self._peft is not None
        self._switch(requests[0])
        width = max(len(request.token_ids) for request in requests)
        pads = [width - len(request.token_ids) for request in requests]
        rows = [[PAD_ID] * pad + list(request.token_ids) for pad, request in zip(pads, requests, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in pads]
        found: list[torch.Tensor] = []
        with torch.inference_mode():
            ids, attended = torch.tensor(rows), torch.tensor(mask)
            output = self._peft(input_ids=ids, attention_mask=attended, use_cache=True)
            found.append(output.logits[:, -1:].argmax(-1))
            first_s = time.perf_counter()
            attended = torch.cat([torch.ones(len(ids), output.logits.shape[1] - width, dtype=torch.int64), attended], 1)
            for _ in range(num_new_tokens - 1):
                attended = torch.cat([attended, attended.new_ones(len(ids), 1)], 1)
                # the rows of the prompt are in the cache, and PEFT's own forward would put them in once more
                output = self.model(found[-1], attention_mask=attended, **{self._cache: output[self._cache]})
                found.append(output.logits[:, -1:].argmax(-1))
        return [tuple(row) for row in torch.cat(found, 1).tolist()], first_s


def _batches(requests: tuple[Request, ...], batch_size: int) -> list[list[int]]:
    """Indices of the requests, at most `batch_size` of one task together."""
    task_to_indices: defaultdict[int | None, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        task_to_indices[request.task].append(index)
    return [
        indices[start : start + batch_size]
        for indices in task_to_indices.values()
        for start in range(0, len(indices), batch_size)
    ]
