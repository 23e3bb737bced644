"""Prompts in memory, bounded in bytes."""

from __future__ import annotations

from app.registry.prompts import PromptCache
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt


def test_the_least_recently_used_prompt_goes_first() -> None:
    prompts = [random_prompt(tiny_backbone(), 4, seed=seed) for seed in range(3)]
    cache = PromptCache(max_bytes=2 * (4 * 4 * 32 + 2_048))
    cache.put(prompts[0])
    cache.put(prompts[1])
    assert cache.get(prompts[0].digest) is prompts[0]
    cache.put(prompts[2])
    assert cache.get(prompts[1].digest) is None
    assert cache.get(prompts[0].digest) is prompts[0]
    assert cache.get(prompts[2].digest) is prompts[2]


def test_the_bytes_it_counts_are_those_of_the_prompts_it_holds() -> None:
    cache = PromptCache(max_bytes=50_000)
    prompts = [random_prompt(tiny_backbone(), 1 + turn % 37, seed=turn % 11) for turn in range(200)]
    for prompt in prompts:
        cache.put(prompt)
        assert cache.num_bytes <= 50_000
    held = [prompt for digest in {prompt.digest for prompt in prompts} if (prompt := cache.get(digest))]
    assert len(held) > 1
    assert cache.num_bytes == sum(prompt.num_bytes + 2_048 for prompt in held)


def test_a_prompt_larger_than_the_memory_passes_through_and_the_others_stay() -> None:
    small, large = (random_prompt(tiny_backbone(), num_rows) for num_rows in (1, 50))
    cache = PromptCache(max_bytes=large.num_bytes)
    cache.put(small)
    cache.put(large)
    assert cache.get(large.digest) is None
    assert cache.get(small.digest) is small
    assert cache.num_bytes == small.num_bytes + 2_048


def test_the_same_values_are_held_once() -> None:
    cache = PromptCache(max_bytes=50_000)
    for _ in range(3):
        cache.put(random_prompt(tiny_backbone(), seed=1))
    assert cache.num_bytes == random_prompt(tiny_backbone(), seed=1).num_bytes + 2_048
