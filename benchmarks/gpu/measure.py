"""gpu: one run on one CUDA device, ten minutes at most, from a cold start.

First that engines on the device choose the tokens that a plain forward on the CPU finds likeliest (a fast engine that
answers something else is not fast), then how fast, by the parts that a CPU has too: random weights of Qwen3-0.6B's and
Llama-3-8B's shape in bfloat16. The product's own self-checks hold every fast path equal to its reference.

It needs torch, transformers and what app's engine imports. A step
that fails, or for which no time is left, says so, and the others follow. `--smoke` rehearses the run on the CPU with
tiny models.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers.generation import ContinuousBatchingConfig

from app.model.attention import ATTENTION_NAME
from app.model.backbone import Backbone
from benchmarks.models import LLAMA_3_8B, QWEN3_0_6B, TINY_LLAMA, TINY_QWEN3, Shape
from benchmarks.part import Part, Say, failed, speed
from benchmarks.parts import decode, prompt_length
from benchmarks.peers.transformers_peer import generate_batch
from benchmarks.rounds import Contender, interleave, whole
from benchmarks.setup import Setting, Setup
from benchmarks.workloads import Dimensions, Outcome, Request, Workload

RESERVE_S = 45.0
"""No step begins with less than this left of the budget."""
MIXED_ON_DEVICE, CONTEXT = Dimensions(num_requests=256), Dimensions(256, min_input_tokens=512, max_input_tokens=512)
BATCH_TO_BOUND = {1: 1.25, 64: 1.4}
"""What a decode step of the large shape may take of its floor."""
SOFTSWAP, BATCHING = "softswap", "transformers, continuous batching"
WAYS: Mapping[str, dict[str, Any]] = {
    "plain": {"decode_graphs": False, "async_scheduling": False},
    "decode graphs": {"decode_graphs": True, "async_scheduling": False},
    "decode graphs, asynchronous": {"decode_graphs": True, "async_scheduling": True},
}
DTYPE_TO_GAP = {torch.float32: 1e-3, torch.bfloat16: 0.15}
"""How much likelier, in logits, another token than the chosen one may be: near ties fall either way."""

Step = tuple[str, Callable[[], Iterable[Part]]]


class Incorrect(Exception):
    """The engine answers something else on this device, so its speed is not worth knowing."""


def measure(setup: Setup, say: Say) -> Iterator[Part]:
    """Raises SystemExit: there is no device, or it answers something else than the reference."""
    setting, began_s = setup.setting, time.perf_counter()
    if not setting.is_smoke and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; `--smoke` rehearses the run on the CPU")
    device = torch.device("cpu" if setting.is_smoke else "cuda")
    for name, step in _steps(setting, device, say):
        if setting.only and name.partition(",")[0] not in setting.only:
            continue
        left_s = max(0.0, setting.budget_s - (time.perf_counter() - began_s))
        try:
            if left_s < RESERVE_S:
                raise TimeoutError(f"no time: {left_s:.0f} s were left")  # noqa: TRY301
            for part in step():
                yield replace(part, name=f"gpu: {name}")
        except Incorrect as error:
            yield failed(f"gpu: {name}", error)
            raise SystemExit(f"the device answers something else than the reference: {error}") from error
        except Exception as error:
            yield failed(f"gpu: {name}", error)
        setup.device.forget()


def _steps(setting: Setting, device: torch.device, say: Say) -> Iterator[Step]:
    yield "answers", lambda: [_check_answers(device, say)]
    small, large = (TINY_QWEN3, TINY_LLAMA) if setting.is_smoke else (QWEN3_0_6B, LLAMA_3_8B)
    for shape in (small, large):
        bounds = BATCH_TO_BOUND if shape is large else {}
        say(f"making {shape.name}")
        setup = Setup(_sized(setting, shape, MIXED_ON_DEVICE), device.type)
        contexts = Setup(_sized(setting, shape, CONTEXT), device.type)
        contexts.backbone = setup.backbone
        yield (
            f"decode, {shape.name}",
            lambda setup=contexts, bounds=bounds: decode.measure(setup, say, WAYS, bounds),  # type: ignore[misc]
        )
        yield f"prompts, {shape.name}", lambda setup=setup: prompt_length.measure(setup, say)  # type: ignore[misc]
        yield f"batching, {shape.name}", lambda setup=setup: [_measure_batching(setup, say)]  # type: ignore[misc]
        if shape is small:
            from benchmarks.gpu.tuning import measure_tuning  # the tuner wants pydantic, and the rest does not

            yield f"tuning, {shape.name}", lambda setup=setup: [measure_tuning(setup)]  # type: ignore[misc]


def _check_answers(device: torch.device, say: Say) -> Part:
    """Raises Incorrect."""
    figures: dict[str, dict[str, float]] = {}
    for shape in (TINY_LLAMA, TINY_QWEN3):
        reference = shape.build_backbone(torch.device("cpu"), torch.float32)
        setup = Setup(replace(Setting.smoke(), shape=shape), device.type)
        for dtype, allowed in DTYPE_TO_GAP.items():
            say(f"answers of {shape.name} in {dtype}")
            setup.backbone = replace(reference, model=copy.deepcopy(reference.model).to(device, dtype))
            load = setup.mixed(replace(setup.setting.dimensions, num_new_tokens=24))
            for way, fields in WAYS.items():
                tokens = setup.softswap(len(load.prompts), **fields).run(load).tokens
                gap = max(_gap(reference, load, *each) for each in zip(load.requests, tokens, strict=True))
                figures[f"{shape.name}, {dtype}, {way}"] = {"largest gap": gap, "allowed": allowed}
    if wrong := {name: row for name, row in figures.items() if row["largest gap"] > row["allowed"]}:
        raise Incorrect(f"{wrong}")
    question = "Are the chosen tokens those that a plain forward on the CPU finds likeliest?"
    return Part(name="answers", question=question, setting={"requests": len(load.requests)}, figures=figures)


@torch.no_grad()
def _gap(reference: Backbone, load: Workload, request: Request, tokens: tuple[int, ...]) -> float:
    """How much likelier, in logits, the reference finds another token than the one chosen, at most."""
    rows = load.prompts[request.task or 0].rows
    assert rows is not None
    embeds = torch.cat([rows, reference.embed(torch.tensor([*request.token_ids, *tokens[:-1]]))])[None]
    mask = torch.ones(embeds.shape[:2], dtype=torch.int64)
    logits = reference.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits[0, -len(tokens) :]
    return float((logits.max(-1).values - logits[torch.arange(len(tokens)), torch.tensor(tokens)]).max())


def _sized(setting: Setting, shape: Shape, dimensions: Dimensions) -> Setting:
    if setting.is_smoke:
        return replace(setting, shape=shape)
    sizes = {"max_num_seqs": 256, "max_num_batched_tokens": 8192, "decode_batches": (1, 8, 64, 256)}
    return replace(setting, shape=shape, dimensions=dimensions, dtype="bfloat16", **sizes)  # type: ignore[arg-type]


def _measure_batching(setup: Setup, say: Say) -> Part:
    """transformers has no soft prompts; it gets as many ordinary ids before each text, which is as much work."""
    load, model, num_rounds = setup.workload, setup.backbone.model, setup.setting.num_rounds
    peer = setup.softswap(len(load.prompts))
    peer.run(load.one_token_each())
    found = interleave([Contender(SOFTSWAP, lambda _: load, peer.begin)], num_rounds, say)
    generator = random.Random(0)
    num_virtual = setup.setting.dimensions.num_virtual_tokens
    fronts = [[generator.randrange(setup.backbone.vocab_size) for _ in range(num_virtual)] for _ in load.prompts]
    # with its own sizes, but a rehearsal has little memory
    small = {"page_size": 32, "num_blocks": 64, "max_batch_tokens": 128} if setup.setting.is_smoke else {}
    batching = ContinuousBatchingConfig(**small)

    def run(given: Workload) -> Outcome:
        inputs = [[*fronts[request.task or 0], *request.token_ids] for request in given.requests]
        tokens, first_token_s = generate_batch(model, batching, inputs, given.num_new_tokens)
        return Outcome.of(tuple(map(tuple, tokens)), tuple(first_token_s))

    model.set_attn_implementation("sdpa")
    try:
        run(load)
        found |= interleave([Contender(BATCHING, lambda _: load, whole(run))], num_rounds, say)
    finally:
        model.set_attn_implementation(ATTENTION_NAME)
    return Part(
        name=BATCHING,
        question="How much faster is it than transformers' continuous batching of as many tokens?",
        setting={"requests": len(load.requests), "tasks": len(load.prompts)},
        contenders=found,
        ratios={f"softswap / {BATCHING}": speed(found, SOFTSWAP, BATCHING, 1.3)},
    )
