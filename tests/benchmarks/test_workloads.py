"""Workloads are what their names say, and the same every time."""

from __future__ import annotations

import torch

from benchmarks.models import TINY
from benchmarks.workloads import MIXED, mixed_tasks, random_prompts

VOCAB_SIZE = 1000


def mixed():
    backbone = TINY.build_backbone(torch.device("cpu"), torch.float32)
    return mixed_tasks(MIXED, random_prompts(backbone, MIXED), VOCAB_SIZE)


def test_the_mixed_load_is_64_requests_over_8_tasks_of_50_virtual_tokens():
    workload = mixed()
    assert len(workload.requests) == 64
    assert [request.task for request in workload.requests[:9]] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert all(20 <= len(request.token_ids) <= 60 for request in workload.requests)
    assert all(prompt.num_virtual_tokens == 50 for prompt in workload.prompts)
    assert workload.num_generated_tokens == 2048


def test_a_seed_makes_the_same_workload_again():
    assert mixed().requests == mixed().requests
    assert [prompt.digest for prompt in mixed().prompts] == [prompt.digest for prompt in mixed().prompts]


def test_private_prompts_have_the_values_of_the_task_and_a_digest_of_their_own():
    workload, private = mixed(), mixed().with_private_prompts("round 0")
    assert len({prompt.digest for prompt in private.prompts}) == 64
    for shared, alone in zip(workload.requests, private.requests, strict=True):
        assert torch.equal(workload.prompt(shared).rows, private.prompt(alone).rows)
        assert workload.prompt(shared).digest != private.prompt(alone).digest


def test_cold_prompts_are_shared_by_a_task_but_new_to_every_cache():
    cold = mixed().with_cold_prompts("round 0")
    assert len({prompt.digest for prompt in cold.prompts}) == 8
    assert not {prompt.digest for prompt in cold.prompts} & {prompt.digest for prompt in mixed().prompts}


def test_one_task_keeps_the_texts():
    workload = mixed()
    assert [request.token_ids for request in workload.with_task(0).requests] == [r.token_ids for r in workload.requests]
    assert {request.task for request in workload.with_task(0).requests} == {0}
