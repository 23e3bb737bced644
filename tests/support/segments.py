"""Sequences and task prompts for the bookkeeping's tests, which look at counts and need no model."""

from __future__ import annotations

from itertools import count

import torch

from app.engine.scheduler import Scheduler
from app.engine.sequence import Sequence
from app.sampling import SamplingParams
from app.task_prompt import TaskPrompt

_ids = count()


def make_sequence(
    num_text_tokens: int = 10,
    *,
    prompt: TaskPrompt | None = None,
    max_tokens: int = 8,
    num_shared_tokens: int = 0,
    flow: str = "",
    prompt_logprobs: int | None = None,
) -> Sequence:
    return Sequence(
        sequence_id=next(_ids),
        token_ids=list(range(num_text_tokens)),
        num_prompt_tokens=num_text_tokens,
        params=SamplingParams(max_tokens=max_tokens, prompt_logprobs=prompt_logprobs),
        seed=0,
        prompt=prompt,
        num_shared_tokens=num_shared_tokens,
        flow=flow,
    )


def make_prompt(num_virtual_tokens: int, seed: int = 0, kind: str = "embeddings") -> TaskPrompt:
    rows = torch.full((num_virtual_tokens, 2), float(seed))
    return TaskPrompt.from_kv(rows, "f") if kind == "kv" else TaskPrompt.from_embeddings(rows, "f")


def step(scheduler: Scheduler, finished: list[Sequence] | None = None) -> int:
    """One step of an engine whose model always says token 1: tokens computed."""
    batch = scheduler.schedule()
    scheduler.audit()
    scheduler.advance(batch)
    scheduler.keep(batch)
    for item in batch.items:
        sequence = item.segment
        if isinstance(sequence, Sequence) and sequence.is_computed:
            sequence.token_ids.append(1)
            if sequence.num_generated_tokens >= sequence.params.max_tokens:
                scheduler.finish(sequence)
                if finished is not None:
                    finished.append(sequence)
    scheduler.audit()
    return batch.num_tokens
