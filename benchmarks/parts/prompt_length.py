"""W6: what virtual tokens cost a request, by their number."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.parts.ratios import time
from benchmarks.report import Part, Say
from benchmarks.rounds import SteppedContender, interleave_steps
from benchmarks.setting import Bench

BOUNDS = {10: None, 50: 1.05, 200: 1.2}
NONE = "no virtual tokens"


def measure_prompt_length(bench: Bench, say: Say) -> Part:
    """The texts of W1 behind prompts of several lengths, and behind prompts that are computed for every request."""
    w1, dimensions = bench.workload, bench.setting.dimensions
    found_in = {
        f"{length} virtual tokens": bench.mixed(replace(dimensions, num_virtual_tokens=length)) for length in BOUNDS
    }
    none, private = bench.softswap(0), bench.softswap(len(w1.requests))
    none.run(w1.without_prompts().one_token_each())
    private.run(w1.with_private_prompts("warm-up").one_token_each())
    contenders = [SteppedContender(NONE, lambda _: w1.without_prompts(), none.start)]
    for (name, workload), length in zip(found_in.items(), BOUNDS, strict=True):
        peer = bench.softswap(len(workload.prompts), length)
        peer.run(workload.one_token_each())
        contenders.append(SteppedContender(name, lambda _, given=workload: given, peer.start))  # type: ignore[misc]
    computed = f"{dimensions.num_virtual_tokens}, computed for every request"
    contenders.append(
        SteppedContender(computed, lambda number: w1.with_private_prompts(f"private{number}"), private.start)
    )
    found = interleave_steps(contenders, bench.setting.repetitions, say)
    return Part(
        name="prompt-length",
        question="what do virtual tokens cost a request?",
        setting={"requests": len(w1.requests), **bench.kv_cache_setting(private.config)},
        name_to_measurement=found,
        ratios=(
            *(
                time(f"{length} virtual tokens / none", found, f"{length} virtual tokens", NONE, at_most=bound)
                for length, bound in BOUNDS.items()
            ),
            time(f"{computed} / none", found, computed, NONE),
        ),
    )
