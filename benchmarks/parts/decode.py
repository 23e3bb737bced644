"""Decode: how close a step comes to what the machine allows, generating or reading texts."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from app.model.backbone import Backbone
from benchmarks.machine import Device, Stopwatch
from benchmarks.models import num_flops_per_token, num_weight_bytes
from benchmarks.part import Part, Ratio, Say
from benchmarks.peers.softswap import SoftswapPeer
from benchmarks.setup import Setup
from benchmarks.workloads import Workload

MIN_NEW_TOKENS = 16
"""So that the first sequences are not done before the last ones begin."""
PREFILL = "reading texts"
ONE_WAY: Mapping[str, dict[str, Any]] = {"step": {}}


def measure(
    setup: Setup, say: Say, ways: Mapping[str, dict[str, Any]] = ONE_WAY, bounds: Mapping[int, float] | None = None
) -> Iterator[Part]:
    """The mixed load's first requests in batches that all generate, and all its texts in as few steps as they take.

    Args:
        ways: names to what engines' configurations differ in; one engine after the other, since each has a KV cache.
        bounds: a step of that many sequences, by the last way, may take that multiple of its floor.
    """
    setting, workload, device, backbone = setup.setting, setup.workload, setup.device, setup.backbone
    loads = {
        f"batch {batch}": replace(workload, requests=workload.requests[:batch]) for batch in setting.decode_batches
    }
    texts = replace(workload, num_new_tokens=1)
    floors_s = {name: decode_floor_s(backbone, device, load) for name, load in loads.items()}
    floors_s[PREFILL] = texts.num_input_tokens * num_flops_per_token(backbone) / device.flops_per_s
    figures = {name: {"floor, ms": 1000 * floor_s} for name, floor_s in floors_s.items()}
    with Stopwatch() as stopwatch:
        for way, fields in ways.items():
            say(f"{way}: decode steps of {', '.join(map(str, setting.decode_batches))}, and steps that read texts")
            peer = setup.softswap(len(workload.prompts), **fields)
            for name, load in loads.items():
                step_s = _decode_steps(peer, load, setting.num_rounds)
                figures[name][f"{way}, ms"] = 1000 * statistics.median(step_s)
            read_s = device.seconds(partial(peer.run, texts), setting.num_rounds)
            figures[PREFILL][f"{way}, ms"] = 1000 * read_s
            del peer
            device.forget()
    batch_bounds = {f"batch {batch}": bound for batch, bound in (bounds or {}).items()}
    yield Part(
        name="decode",
        question="How close does a step come to what the machine allows?",
        setting={
            "memory_gb_per_s": round(device.bytes_per_s / 1e9, 1),
            "gflop_per_s": round(device.flops_per_s / 1e9, 1),
            "tokens_of_the_texts": texts.num_input_tokens,
        },
        figures=figures,
        ratios={
            f"{name}: {[*ways][-1]} / floor": Ratio(
                [*row.values()][-1] / row["floor, ms"], at_most=batch_bounds.get(name)
            )
            for name, row in figures.items()
        },
        foreign_cores=stopwatch.foreign_cores,
    )


def _decode_steps(peer: SoftswapPeer, workload: Workload, num_rounds: int) -> list[float]:
    """Seconds of the steps in which every sequence adds a token."""
    load = replace(workload, num_new_tokens=max(MIN_NEW_TOKENS, workload.num_new_tokens))
    step_s: list[float] = []
    for _ in range(num_rounds):
        run = peer.begin(load)
        while not run.is_finished:
            began_s = run.wall_s
            if run.step() == len(load.requests):
                step_s.append(run.wall_s - began_s)
    return step_s


def decode_floor_s(backbone: Backbone, device: Device, load: Workload) -> float:
    """The longer of two times: weights, keys and values read once, and all products."""
    num_virtual = sum(load.prompts[request.task or 0].num_virtual_tokens for request in load.requests)
    num_kv_tokens = num_virtual + load.num_input_tokens + load.num_generated_tokens / 2
    num_weights = num_weight_bytes(backbone)
    num_bytes = num_weights + num_kv_tokens * backbone.kv_shape.num_bytes_per_token(backbone.dtype)
    num_flops = 2 * len(load.requests) * num_weights / backbone.dtype.itemsize
    return max(num_bytes / device.bytes_per_s, num_flops / device.flops_per_s)
