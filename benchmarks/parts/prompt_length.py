"""Prompt length: what virtual tokens cost a request, by their number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.part import Part, Say, duration
from benchmarks.rounds import Contender, interleave
from benchmarks.setup import Setup

NO_PROMPT = "no virtual tokens"
BOUNDS = {10: None, 50: 1.05, 200: 1.2}


def measure(setup: Setup, say: Say) -> Iterator[Part]:
    """The mixed load's texts after prompts of several lengths, and with prompts that are computed for every request."""
    setting = setup.setting
    load, dimensions = setup.workload, setting.dimensions
    found_in = {
        f"{length} virtual tokens": setup.mixed(replace(dimensions, num_virtual_tokens=length)) for length in BOUNDS
    }
    none, private = setup.softswap(0), setup.softswap(len(load.requests))
    none.run(load.with_task(None).one_token_each())
    private.run(load.with_private_prompts("warm-up").one_token_each())
    contenders = [Contender(NO_PROMPT, lambda _: load.with_task(None), none.begin)]
    for (name, workload), length in zip(found_in.items(), BOUNDS, strict=True):
        peer = setup.softswap(len(workload.prompts), length)
        peer.run(workload.one_token_each())
        contenders.append(Contender(name, lambda _, given=workload: given, peer.begin))  # type: ignore[misc]
    computed = f"{dimensions.num_virtual_tokens}, computed for every request"
    contenders.append(Contender(computed, lambda number: load.with_private_prompts(f"private{number}"), private.begin))
    found = interleave(contenders, setting.num_rounds, say)
    yield Part(
        name="prompt-length",
        question="What do virtual tokens cost a request?",
        setting={"requests": len(load.requests), **setup.kv_cache_setting(private.config)},
        contenders=found,
        ratios={
            **{
                f"{length} virtual tokens / none": duration(found, f"{length} virtual tokens", NO_PROMPT, bound)
                for length, bound in BOUNDS.items()
            },
            f"{computed} / none": duration(found, computed, NO_PROMPT),
        },
    )
