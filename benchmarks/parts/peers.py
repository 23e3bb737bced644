"""W1: generation for several tasks, beside everything a user could serve them with instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.agreement import compare
from benchmarks.parts.ratios import speed
from benchmarks.peers.roster import start_roster
from benchmarks.report import Part, Ratio, Say
from benchmarks.rounds import Contender, Measurement, interleave
from benchmarks.setting import Bench

ONE_BY_ONE, GROUPED = "PEFT one by one", "PEFT grouped by task"
DTYPE_TO_BOUNDS: Mapping[str, Mapping[str, float]] = {
    "float32": {
        ONE_BY_ONE: 16,
        GROUPED: 4,
        "vLLM, prompt_embeds": 1.0,
        "llama.cpp": 1.5,
        "transformers, continuous batching": 3,
    },
    "bfloat16": {
        ONE_BY_ONE: 16,
        GROUPED: 4,
        "vLLM, prompt_embeds": 1.1,
        "llama.cpp": 1.8,
        "transformers, continuous batching": 5,
    },
}


def measure_peers(bench: Bench, say: Say) -> Part:
    """Answers are compared with PEFT's one-by-one answers, which are right, or, where PEFT does not run, with ours."""
    setting, workload = bench.setting, bench.workload
    few = workload.every(setting.one_by_one_stride)
    warm, cold = bench.softswap(len(workload.prompts)), bench.softswap(len(workload.prompts))
    for peer in (warm, cold):
        peer.run(replace(workload, num_new_tokens=1))
    if setting.wants(ONE_BY_ONE):
        bench.peft.one_by_one(replace(workload.every(8), num_new_tokens=2))
    with start_roster(bench, workload, say) as roster:
        contenders = [
            Contender("softswap", workload.rotated, warm.run),
            Contender("softswap, cold tasks", lambda k: workload.rotated(k).with_cold_prompts(f"{k}"), cold.run),
            *(Contender(name, workload.rotated, peer.run) for name, peer in roster.name_to_peer.items()),
            Contender(ONE_BY_ONE, few.rotated, bench.peft.one_by_one),
            Contender(GROUPED, workload.rotated, bench.peft.grouped_by_task),
        ]
        found = interleave([each for each in contenders if setting.wants(each.name)], setting.repetitions, say)
    say("comparing answers")
    right = ONE_BY_ONE if ONE_BY_ONE in found else "softswap"
    name_to_few = {
        name: each.first_tokens[:: 1 if name == ONE_BY_ONE else setting.one_by_one_stride]
        for name, each in found.items()
        if "LoRA" not in name
    }
    return Part(
        name="peers",
        question="how much faster is it than what else serves several tasks?",
        setting={
            "requests": len(workload.requests),
            "tasks": len(workload.prompts),
            "input_tokens": workload.num_input_tokens,
            "PEFT_one_by_one_requests": len(few.requests),
            **bench.kv_cache_setting(warm.config),
            **roster.versions,
        },
        name_to_measurement=found,
        ratios=tuple(_ratios(found, DTYPE_TO_BOUNDS[setting.dtype])),
        name_to_agreement={
            f"{name} = {right}": compare(few, tokens, name_to_few[right], bench.peft)
            for name, tokens in name_to_few.items()
            if name != right
        },
        name_to_reason=roster.name_to_reason,
    )


def _ratios(found: Mapping[str, Measurement], bounds: Mapping[str, float]) -> list[Ratio]:
    """softswap's speed over each peer's; of llama.cpp's numbers of slots the best counts."""
    slots = {name: each.median_tokens_per_s for name, each in found.items() if name.startswith("llama.cpp")}
    best = max(slots, key=slots.__getitem__, default=None)
    ratios = []
    for name in found:
        if not name.startswith("softswap"):
            bound = bounds.get("llama.cpp") if name == best else bounds.get(name)
            ratios.append(speed(f"softswap / {name}", found, "softswap", name, at_least=bound))
    return ratios
