"""Decisions: one of four labels for each text, over many tasks."""

from __future__ import annotations

from collections.abc import Iterator
from operator import eq

from benchmarks.part import Part, Say, speed
from benchmarks.peers.remote import start_peers
from benchmarks.rounds import Contender, interleave, whole
from benchmarks.setup import Setup

BOUND = 3.0


def measure(setup: Setup, say: Say) -> Iterator[Part]:
    """A decision is one label id of four; peers that can are told to generate one token out of these."""
    setting = setup.setting
    workload = setup.decisions(4 * setting.num_decision_tasks)
    engine = setup.softswap(len(workload.prompts))
    engine.run(workload.rotated(-1))
    with start_peers(setup, workload, say) as peers:
        runs = {"softswap": engine.run} | {name: peer.run for name, peer in peers.name_to_peer.items()}
        contenders = [Contender(name, workload.rotated, whole(run)) for name, run in runs.items()]
        found = interleave(contenders, setting.num_rounds, say)
    ours = found["softswap"].first_tokens
    speeds = {name: each.median_tokens_per_s for name, each in found.items() if name != "softswap"}
    best = max(speeds, key=speeds.__getitem__, default=None)
    yield Part(
        name="decisions",
        question="How many decisions a second, over many tasks?",
        setting={
            "requests": len(workload.requests),
            "tasks": len(workload.prompts),
            "labels": len(workload.labels),
            "input_tokens": workload.num_input_tokens,
            **peers.versions,
        },
        contenders=found,
        figures={
            f"{name}: decisions equal to softswap's": {"requests": sum(map(eq, ours, found[name].first_tokens))}
            for name in speeds
        },
        ratios={
            f"softswap / {name}": speed(found, "softswap", name, BOUND if name == best else None) for name in speeds
        },
        cannot=peers.name_to_reason,
    )
