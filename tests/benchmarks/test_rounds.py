"""Rounds interleave contenders, and answers are compared as the report claims."""

from __future__ import annotations

import torch

from benchmarks.models import TINY
from benchmarks.part import Ratio
from benchmarks.parts.peers import compare
from benchmarks.peers.peft import PeftPeer
from benchmarks.rounds import Contender, interleave, whole
from benchmarks.workloads import Dimensions, Outcome, mixed_tasks, random_prompts

SMALL = Dimensions(num_requests=4, num_tasks=2, num_virtual_tokens=3, num_new_tokens=3)


def small_workload():
    backbone = TINY.build_backbone(torch.device("cpu"), torch.float32)
    return mixed_tasks(SMALL, random_prompts(backbone, SMALL), TINY.vocab_size)


def test_each_round_begins_with_another_contender():
    order = []
    workload = small_workload()

    def contender(name):
        def run(given):
            order.append(name)
            return Outcome.of(tokens=((1, 2, 3),) * 4, first_token_s=(0.0,) * 4)

        return Contender(name, lambda number: workload, whole(run))

    found = interleave([contender("a"), contender("b"), contender("c")], 3, lambda line: None)
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert all(len(measurement.wall_s) == 3 for measurement in found.values())


class FakeRun:
    """As a `SoftswapRun`, for as many steps as given."""

    def __init__(self, name, num_steps, order):
        self.wall_s, self.cpu_s = float(num_steps), 0.0
        self.outcome = Outcome.of(tokens=((1, 2, 3),) * 4, first_token_s=(0.0,) * 4)
        self._name, self._num_left, self._order = name, num_steps, order

    @property
    def is_finished(self):
        return self._num_left == 0

    def step(self):
        self._num_left -= 1
        self._order.append(self._name)


def test_engines_take_turns_after_every_step_and_each_counts_its_own_seconds():
    order = []
    workload = small_workload()

    def contender(name, num_steps):
        return Contender(name, lambda number: workload, lambda given: FakeRun(name, num_steps, order))

    found = interleave([contender("a", 2), contender("b", 4)], 1, lambda line: None)
    assert order == ["a", "b", "b", "a", "b", "b"]
    assert {name: measurement.wall_s for name, measurement in found.items()} == {"a": [2.0], "b": [4.0]}


def test_a_foreign_answer_is_neither_equal_nor_a_tie():
    workload = small_workload()
    peft = PeftPeer(TINY.build_model(), workload.prompts)
    truth = peft.one_by_one(workload).tokens
    wrong = tuple(((row[0] + 7) % TINY.vocab_size, *row[1:]) for row in truth)
    same, other = compare(workload, truth, truth, peft), compare(workload, wrong, truth, peft)
    assert (same.num_compared, same.num_equal) == (4, 4)
    assert (other.num_compared, other.num_equal, other.num_ties) == (4, 0, 0)


def test_peft_adapters_are_really_switched():
    workload = small_workload()
    peft = PeftPeer(TINY.build_model(), workload.prompts)
    first, second = workload.with_task(0).requests[0], workload.requests[1]
    one = peft.logits(first, ())
    other = peft.logits(type(first)(task=second.task, token_ids=first.token_ids), ())
    assert (one - other).abs().max() > 1e-3


def test_a_ratio_is_reached_on_its_bound():
    assert Ratio(8.0, 8.0, at_least=8.0).is_reached
    assert not Ratio(1.11, 1.0, at_most=1.10).is_reached
    assert Ratio(0.1, 0.1).is_reached
