"""Workloads are what their names say, and the same every time."""

from __future__ import annotations

import torch

from benchmarks.workloads import W1, mixed_tasks, random_prompts

VOCAB_SIZE = 1000


def w1():
    return mixed_tasks(W1, random_prompts(8, 50, 16, "f" * 64, row_norm=1.0), VOCAB_SIZE)


def test_w1_is_64_requests_over_8_tasks_of_50_virtual_tokens():
    workload = w1()
    assert len(workload.requests) == 64
    assert [request.task for request in workload.requests[:9]] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert all(20 <= len(request.token_ids) <= 60 for request in workload.requests)
    assert all(prompt.num_virtual_tokens == 50 for prompt in workload.prompts)
    assert workload.num_generated_tokens == 2048


def test_a_seed_makes_the_same_workload_again():
    assert w1().requests == w1().requests
    assert [prompt.digest for prompt in w1().prompts] == [prompt.digest for prompt in w1().prompts]


def test_private_prompts_have_the_values_of_the_task_and_a_digest_of_their_own():
    workload, private = w1(), w1().with_private_prompts("round 0")
    assert len({prompt.digest for prompt in private.prompts}) == 64
    for shared, alone in zip(workload.requests, private.requests, strict=True):
        assert torch.equal(workload.prompt(shared).rows, private.prompt(alone).rows)
        assert workload.prompt(shared).digest != private.prompt(alone).digest


def test_cold_prompts_are_shared_by_a_task_but_new_to_every_cache():
    cold = w1().with_cold_prompts("round 0")
    assert len({prompt.digest for prompt in cold.prompts}) == 8
    assert not {prompt.digest for prompt in cold.prompts} & {prompt.digest for prompt in w1().prompts}


def test_turns_go_round_and_one_task_keeps_their_texts():
    workload = w1()
    turn = workload.turn(1, 48)
    assert turn.requests == workload.requests[48:] + workload.requests[:32]
    assert [request.token_ids for request in turn.of_one_task().requests] == [r.token_ids for r in turn.requests]
    assert {request.task for request in turn.of_one_task().requests} == {0}
