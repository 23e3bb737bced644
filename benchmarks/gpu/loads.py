"""Loads of many tasks on the device: what prompts cost, and cold ones, and transformers' own batching beside it."""

from __future__ import annotations

import random
import time
from dataclasses import fields, replace

import torch
from transformers import GenerationConfig
from transformers.generation import ContinuousBatchingConfig

from app.model.attention import ATTENTION_NAME
from app.model.backbone import Backbone
from app.task_prompt import TaskPrompt
from benchmarks.gpu.device import Device
from benchmarks.gpu.sizes import Sizes
from benchmarks.parts.ratios import speed
from benchmarks.parts.ratios import time as time_ratio
from benchmarks.peers.outcome import Outcome
from benchmarks.peers.softswap import SoftswapPeer
from benchmarks.report import Part, Ratio, Say
from benchmarks.rounds import Contender, interleave
from benchmarks.workloads import Workload, mixed_tasks, random_prompts

PROMPTS, NONE, CB = "soft prompts", "no prompts", "transformers, continuous batching"


def measure_loads(backbone: Backbone, device: Device, sizes: Sizes, say: Say) -> Part:
    """Requests of several tasks, all there at once: with prompts, without, and by transformers.

    transformers has no soft prompts; it gets as many ordinary ids in front of each text, which is as much work.
    """
    load = mixed_tasks(sizes.dimensions, _prompts(backbone, sizes), backbone.vocab_size)
    peer = SoftswapPeer(backbone, sizes.config(backbone))
    contenders = [
        Contender(PROMPTS, lambda _: load, peer.run),
        Contender(NONE, lambda _: load.without_prompts(), peer.run),
        Contender("prompts computed for every request", lambda k: load.with_private_prompts(f"round {k}"), peer.run),
    ]
    for contender in contenders:
        contender.run(contender.workload(-1))
    found = interleave(contenders, sizes.num_rounds, say)
    del peer, contenders
    device.forget()
    cannot = {}
    try:
        batching = _ContinuousBatching(backbone, sizes)
        batching.run(load)
        found |= interleave([Contender(CB, lambda _: load, batching.run)], sizes.num_rounds, say)
    except Exception as error:  # somebody else's program; the reason stands in the report
        cannot[CB] = f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        backbone.model.set_attn_implementation(ATTENTION_NAME)
        device.forget()
    ratios = [time_ratio("prompts / none", found, PROMPTS, NONE, at_most=1.1)]
    if CB in found:
        ratios.append(speed(f"softswap / {CB}", found, PROMPTS, CB, at_least=1.3))
    return Part(
        name=f"loads, {backbone.name}",
        question="what do soft prompts cost a load, and what does another program take for as many tokens?",
        setting={"requests": len(load.requests), "tasks": len(load.prompts)},
        name_to_measurement=found,
        ratios=tuple(ratios),
        name_to_reason=cannot,
    )


def measure_cold_prompts(backbone: Backbone, device: Device, sizes: Sizes, say: Say) -> Part:
    """Milliseconds to the one token of a request alone, its prompt known to the engine or never seen."""
    load = mixed_tasks(
        replace(sizes.dimensions, num_requests=1, num_new_tokens=1), _prompts(backbone, sizes)[:1], backbone.vocab_size
    )
    peer = SoftswapPeer(backbone, sizes.config(backbone))
    salts = iter(range(10**6))
    warm_s = device.seconds(lambda: peer.run(load), sizes.num_cold)
    cold_s = device.seconds(lambda: peer.run(load.with_cold_prompts(str(next(salts)))), sizes.num_cold)
    say(f"{backbone.name}, a warm request {1000 * warm_s:.2f} ms, a cold one {1000 * cold_s:.2f} ms")
    return Part(
        name=f"cold prompts, {backbone.name}",
        question="how much longer does the first request of a task wait?",
        setting={"virtual_tokens": sizes.dimensions.num_virtual_tokens},
        name_to_figures={"one token": {"warm, ms": 1000 * warm_s, "cold, ms": 1000 * cold_s}},
        ratios=(Ratio("cold / warm", cold_s / warm_s, at_most=1.5),),
    )


def measure_many_tasks(backbone: Backbone, device: Device, sizes: Sizes, say: Say) -> Part:
    """The same texts, of one task and of tasks drawn at random from all; a prefix that is not there is computed."""
    say(f"making {sizes.num_tasks} prompts")
    prompts = _prompts(backbone, sizes, sizes.num_tasks)
    load = mixed_tasks(sizes.dimensions, prompts, backbone.vocab_size)
    peer = SoftswapPeer(backbone, sizes.config(backbone))
    one, many = "one task", f"{sizes.num_tasks} tasks"
    contenders = [
        Contender(one, lambda _: load.of_one_task(), peer.run),
        Contender(many, lambda number: _drawn(load, number), peer.run),
    ]
    for contender in contenders:
        contender.run(contender.workload(-1))
    found = interleave(contenders, sizes.num_rounds, say)
    return Part(
        name=f"many tasks, {backbone.name}",
        question="are many tasks as fast as one?",
        setting={"tasks": sizes.num_tasks, "requests": len(load.requests)},
        name_to_measurement=found,
        ratios=(speed("many tasks / one task", found, many, one, at_least=0.9),),
    )


class _ContinuousBatching:
    """`generate_batch` on the same weights; its own sizes, except where a rehearsal has little memory."""

    def __init__(self, backbone: Backbone, sizes: Sizes) -> None:
        self._model = backbone.model
        self._model.set_attn_implementation("sdpa")
        self._num_virtual = sizes.dimensions.num_virtual_tokens
        settings: dict[str, int] = {}
        if backbone.device.type != "cuda":
            names = {field.name for field in fields(ContinuousBatchingConfig)}
            page = "page_size" if "page_size" in names else "block_size"
            settings = {page: 32, "num_blocks": 64, "max_batch_tokens": 128}
        self._batching = ContinuousBatchingConfig(**settings)

    def run(self, load: Workload) -> Outcome:
        generator = random.Random(0)
        fronts = [
            [generator.randrange(self._model.config.vocab_size) for _ in range(self._num_virtual)] for _ in load.prompts
        ]
        began_s = time.perf_counter()
        found = self._model.generate_batch(
            [[*fronts[request.task or 0], *request.token_ids] for request in load.requests],
            GenerationConfig(max_new_tokens=load.num_new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0),
            self._batching,
            record_timestamps=True,
            persistent_manager=True,
        )
        outputs = sorted(found.values(), key=lambda output: int(output.request_id.rpartition("_")[2]))
        tokens = tuple(tuple(output.generated_tokens) for output in outputs)
        return Outcome.of(tokens, tuple(output.timestamps[0] - began_s for output in outputs))


def _prompts(backbone: Backbone, sizes: Sizes, num_tasks: int | None = None) -> tuple[TaskPrompt, ...]:
    some = backbone.embed(torch.arange(min(1024, backbone.vocab_size), device=backbone.device))
    return random_prompts(
        num_tasks or sizes.dimensions.num_tasks,
        sizes.dimensions.num_virtual_tokens,
        backbone.hidden_size,
        backbone.fingerprint,
        row_norm=float(some.float().norm(dim=-1).mean()),
    )


def _drawn(load: Workload, seed: int) -> Workload:
    generator = random.Random(seed)
    tasks = range(len(load.prompts))
    return replace(load, requests=tuple(replace(each, task=generator.choice(tasks)) for each in load.requests))
