"""The three questions of the serving benchmark. Each function builds its contenders, measures and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from benchmarks.agreement import compare
from benchmarks.report import Part, Ratio
from benchmarks.rounds import Contender, Measurement, SteppedContender, interleave, interleave_steps
from benchmarks.setting import Bench

Say = Callable[[str], None]


def measure_peers(bench: Bench, say: Say) -> Part:
    """W1: the engine beside what a PEFT user would write."""
    setting, workload = bench.setting, bench.workload
    few = workload.every(setting.one_by_one_stride)
    warm, cold = bench.softswap(len(workload.prompts)), bench.softswap(len(workload.prompts))
    for peer in (warm, cold):
        peer.run(replace(workload, num_new_tokens=1))
    bench.peft.one_by_one(replace(workload.every(8), num_new_tokens=2))
    found = interleave(
        [
            Contender("softswap", lambda _: workload, warm.run),
            Contender("softswap, cold tasks", lambda number: workload.with_cold_prompts(f"cold{number}"), cold.run),
            Contender("PEFT one by one", lambda _: few, bench.peft.one_by_one),
            Contender("PEFT grouped by task", lambda _: workload, bench.peft.grouped_by_task),
        ],
        setting.repetitions,
        say,
    )
    say("comparing answers")
    truth = found["PEFT one by one"].first_tokens
    agreements = {
        f"{name} = PEFT one by one": compare(
            few, found[name].first_tokens[:: setting.one_by_one_stride], truth, bench.peft
        )
        for name in ("softswap", "softswap, cold tasks", "PEFT grouped by task")
    }
    return Part(
        name="peers",
        question="how much faster is it than PEFT?",
        setting={
            "requests": len(workload.requests),
            "tasks": len(workload.prompts),
            "input_tokens": workload.num_input_tokens,
            "PEFT_one_by_one_requests": len(few.requests),
            **bench.kv_cache_setting(warm.config),
        },
        name_to_measurement=found,
        ratios=(
            _speed("softswap / PEFT one by one", found, "softswap", "PEFT one by one", at_least=8.0),
            _speed("softswap / PEFT grouped by task", found, "softswap", "PEFT grouped by task", at_least=2.0),
            _speed("softswap with cold tasks / PEFT one by one", found, "softswap, cold tasks", "PEFT one by one"),
            _speed("softswap with cold tasks / PEFT grouped", found, "softswap, cold tasks", "PEFT grouped by task"),
        ),
        name_to_agreement=agreements,
    )


def measure_prompt_cost(bench: Bench, say: Say) -> Part:
    """W1 with its prompts, with nothing in front, and with prompts that must be computed for every request."""
    workload = bench.workload
    shared, none = bench.softswap(len(workload.prompts)), bench.softswap(len(workload.prompts))
    private = bench.softswap(len(workload.requests))
    for peer in (shared, none, private):
        peer.run(replace(workload, num_new_tokens=1))
    found = interleave_steps(
        [
            SteppedContender("with prompts", lambda _: workload, shared.start),
            SteppedContender("without prompts", lambda _: workload.without_prompts(), none.start),
            SteppedContender(
                "prompt computed per request",
                lambda number: workload.with_private_prompts(f"private{number}"),
                private.start,
            ),
        ],
        bench.setting.repetitions,
        say,
    )
    return Part(
        name="prompt-cost",
        question=f"what do {bench.setting.dimensions.num_virtual_tokens} virtual tokens cost a request?",
        setting={"requests": len(workload.requests), **bench.kv_cache_setting(private.config)},
        name_to_measurement=found,
        ratios=(
            _time("with prompts / without", found, "with prompts", "without prompts", at_most=1.10),
            _time("computed per request / without", found, "prompt computed per request", "without prompts"),
            _time("computed per request / shared", found, "prompt computed per request", "with prompts"),
        ),
    )


def measure_many_tasks(bench: Bench, say: Say) -> Part:
    """Many tasks in turn, with all their prefixes in memory and with room for few of them, beside one task."""
    setting, count = bench.setting, bench.setting.num_many_requests
    tasks = bench.mixed(
        replace(setting.dimensions, num_requests=setting.num_many_tasks, num_tasks=setting.num_many_tasks)
    )
    large, small = bench.softswap(setting.num_many_tasks), bench.softswap(setting.dimensions.num_tasks)
    one = bench.softswap(1)
    say(f"computing {setting.num_many_tasks} prefixes")
    large.run(tasks.one_token_each())
    small.run(tasks.turn(0, count).one_token_each())
    one.run(tasks.turn(0, count).of_one_task().one_token_each())
    found = interleave_steps(
        [
            SteppedContender("one task", lambda number: tasks.turn(number, count).of_one_task(), one.start),
            SteppedContender("many tasks, all in memory", lambda number: tasks.turn(number, count), large.start),
            SteppedContender("many tasks, few in memory", lambda number: tasks.turn(number + 1, count), small.start),
        ],
        setting.repetitions,
        say,
    )
    return Part(
        name="many-tasks",
        question=f"are {setting.num_many_tasks} tasks that take turns as fast as one task?",
        setting={
            "tasks": setting.num_many_tasks,
            **{f"large_{name}": value for name, value in bench.kv_cache_setting(large.config).items()},
            **{f"small_{name}": value for name, value in bench.kv_cache_setting(small.config).items()},
        },
        name_to_measurement=found,
        ratios=(
            _speed("all in memory / one task", found, "many tasks, all in memory", "one task", at_least=0.95),
            _speed("few in memory / one task", found, "many tasks, few in memory", "one task"),
        ),
    )


def _speed(name: str, found: Mapping[str, Measurement], ours: str, theirs: str, at_least: float | None = None) -> Ratio:
    """Tokens per second of `ours` over those of `theirs`: more is better."""
    one, other = found[ours], found[theirs]
    return Ratio(
        name,
        one.median_tokens_per_s / other.median_tokens_per_s,
        other.median_cpu_s_per_token / one.median_cpu_s_per_token,
        at_least=at_least,
    )


def _time(name: str, found: Mapping[str, Measurement], ours: str, theirs: str, at_most: float | None = None) -> Ratio:
    """Seconds of `ours` over those of `theirs` for the same requests: less is better."""
    one, other = found[ours], found[theirs]
    return Ratio(
        name,
        one.median_wall_s / other.median_wall_s,
        one.median_cpu_s_per_token / other.median_cpu_s_per_token,
        at_most=at_most,
    )


NAME_TO_PART: Mapping[str, Callable[[Bench, Say], Part]] = {
    "peers": measure_peers,
    "prompt-cost": measure_prompt_cost,
    "many-tasks": measure_many_tasks,
}
