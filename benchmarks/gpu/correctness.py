"""The five equalities on the device, before anything is timed: a fast engine that answers something else is not fast.

The reference is a plain forward of the same weights in float32 on the CPU. An engine chooses greedily and reports the
log-probability of each token it chose; the reference is asked what it gives to the same token after the same text. In
bfloat16 near ties fall either way, so tokens may differ and log-probabilities by rounding; in float32 they must agree.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.output.output import Delta
from app.model.backbone import Backbone
from app.sampling import SamplingParams
from app.task_prompt import TaskPrompt
from benchmarks.models import TINY_LLAMA, TINY_QWEN3
from benchmarks.part import Part, Say

NUM_NEW = 24
NUM_TIGHT_BLOCKS = 14
"""Of 16 tokens: the longest sequence and its prefix take 11."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15}
PARAMS = SamplingParams(temperature=0.0, max_tokens=NUM_NEW, ignore_eos=True, logprobs=0)
WAYS: Mapping[str, dict[str, Any]] = {
    "plain": {"decode_graphs": False, "async_scheduling": False},
    "decode graphs": {"decode_graphs": True, "async_scheduling": False},
    "decode graphs, asynchronous": {"decode_graphs": True, "async_scheduling": True},
}

Case = tuple[TaskPrompt | None, tuple[int, ...]]


class Incorrect(Exception):
    """The engine answers something else on this device, so its speed is not worth knowing."""


def check_correctness(device: torch.device, say: Say) -> Part:
    """Raises Incorrect."""
    figures: dict[str, dict[str, float]] = {}
    for shape in (TINY_LLAMA, TINY_QWEN3):
        reference = shape.build_backbone(torch.device("cpu"), torch.float32)
        for dtype in (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,):
            word = str(dtype).removeprefix("torch.")
            say(f"correctness of {shape.name} in {word}")
            backbone = replace(reference, model=copy.deepcopy(reference.model).to(device, dtype))
            for name, error in _errors(reference, backbone):
                figures[f"{shape.name}, {word}: {name}"] = {"largest difference": error, "allowed": TOLERANCE[dtype]}
    wrong = [name for name, row in figures.items() if not row["largest difference"] <= row["allowed"]]  # NaN never is
    if wrong:
        raise Incorrect(f"{'; '.join(wrong)}: {figures}")
    return Part(
        name="gpu: correctness",
        question="Are the log-probabilities of chosen tokens those of the reference on the CPU?",
        setting={"new_tokens": NUM_NEW},
        figures=figures,
    )


def _errors(reference: Backbone, backbone: Backbone) -> Iterator[tuple[str, float]]:
    """Every way of computing, and its largest error."""
    cases = _cases(reference)
    for way, fields in WAYS.items():
        engine = _engine(backbone, fields, num_blocks=400)
        yield f"{way}, a mixed batch", _error(reference, cases, run_cases(engine, cases))
        yield f"{way}, prefixes found again", _error(reference, cases, run_cases(engine, cases))
        yield f"{way}, one at a time", _error(reference, cases, [run_cases(engine, [case])[0] for case in cases])
        small = _engine(backbone, fields, num_blocks=NUM_TIGHT_BLOCKS, max_num_batched_tokens=20)
        yield f"{way}, chunked and preempted", _error(reference, cases, run_cases(small, cases))
        if small.config.block_size <= 16:  # a sequence never outgrows a block of 256
            assert small.stats.num_preemptions > 0
        yield f"{way}, a swap meanwhile", _error(reference, cases[:1], [_run_through_swap(engine, cases)])
    yield "the tuner's forward", max(_tuner_error(reference, backbone, case) for case in cases)


def _cases(backbone: Backbone) -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    cases: list[Case] = []
    for length in (0, 1, 7, 20, 50, 100, 20, 50):
        rows = torch.randn(length, backbone.hidden_size, generator=generator) * 0.06
        prompt = TaskPrompt.from_embeddings(rows, backbone.fingerprint) if length else None
        ids = torch.randint(0, backbone.vocab_size, (5 + 3 * length % 40,), generator=generator)
        cases.append((prompt, tuple(ids.tolist())))
    kv_rows = torch.randn(16, backbone.kv_row_size, generator=generator) * 0.5
    return [*cases, (TaskPrompt.from_kv(kv_rows, backbone.fingerprint), cases[0][1])]


def _engine(backbone: Backbone, fields: Any, *, num_blocks: int, max_num_batched_tokens: int = 256) -> Engine:
    config = EngineConfig.sized_for(
        backbone,
        max_model_len=256,
        max_num_seqs=12,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_bytes=2**27,
    )
    return Engine(backbone, replace(config, num_blocks=max(6, num_blocks * 16 // config.block_size), **fields))


def run_cases(engine: Engine, cases: Sequence[Case]) -> list[list[Delta]]:
    """What each case got, step by step."""
    found: dict[int, list[Delta]] = {engine.add(ids, prompt=prompt, params=PARAMS): [] for prompt, ids in cases}
    while engine.has_unfinished:
        for sequence_id, delta in engine.step():
            found[sequence_id].append(delta)
    return list(found.values())


def _run_through_swap(engine: Engine, cases: Sequence[Case]) -> list[Delta]:
    """The first case's answer, while another task's prompt comes in and its own is dropped from the cache."""
    first = engine.add(cases[0][1], prompt=cases[0][0], params=PARAMS)
    found = [delta for _ in range(4) for i, delta in engine.step() if i == first]
    engine.scheduler.prefix_cache.clear()
    engine.add(cases[3][1], prompt=cases[3][0], params=PARAMS)
    while engine.has_unfinished:
        found += [delta for i, delta in engine.step() if i == first]
    return found


def _error(reference: Backbone, cases: Sequence[Case], answers: Sequence[Sequence[Delta]]) -> float:
    """The largest difference between what the engine and what the reference give to the engine's tokens.

    A token counts as an error, too, by as much as the reference finds another one likelier.
    """
    worst = 0.0
    for case, deltas in zip(cases, answers, strict=True):
        chosen = [entry for delta in deltas for entry in delta.logprobs or ()]
        tokens = [entry.token_id for entry in chosen]
        logprobs = _reference_logprobs(reference, case, tokens)
        own = logprobs[torch.arange(NUM_NEW), torch.tensor(tokens)]
        reported = torch.tensor([entry.logprob for entry in chosen])
        gaps = torch.cat([(reported - own).abs(), logprobs.max(-1).values - own])
        worst = max(worst, float(gaps.max())) if bool(torch.isfinite(gaps).all()) else float("nan")
    return worst


@torch.no_grad()
def _reference_logprobs(backbone: Backbone, case: Case, tokens: Sequence[int]) -> torch.Tensor:
    """(len(tokens), vocab_size): after the text and all tokens but the last, in one plain forward."""
    prompt, ids = case
    embeds, cache = backbone.embed(torch.tensor([*ids, *tokens[:-1]])), DynamicCache()
    rows = None if prompt is None else prompt.rows
    if prompt is not None and rows is not None and prompt.kind == "kv":
        shape = backbone.kv_shape
        rows = rows.view(1, -1, shape.num_layers, 2, shape.num_kv_heads, shape.head_dim).permute(2, 3, 0, 4, 1, 5)
        for layer, (keys, values) in enumerate(rows):
            cache.update(keys.contiguous(), values.contiguous(), layer)
    elif rows is not None:
        embeds = torch.cat([rows, embeds])
    start = cache.get_seq_length()
    output = backbone.forward(
        cache,
        inputs_embeds=embeds[None],
        position_ids=torch.arange(start, start + len(embeds))[None],
        attention_mask=torch.ones(1, start + len(embeds), dtype=torch.int64),
    )
    logits: torch.Tensor = output.logits[0, -len(tokens) :]
    return logits.log_softmax(-1)


@torch.no_grad()
def _tuner_error(reference: Backbone, backbone: Backbone, case: Case) -> float:
    """What a plain call on the device gives to the text's last token, against the reference."""
    prompt, ids = case
    if prompt is None or prompt.rows is None or prompt.kind == "kv":
        return 0.0
    rows = prompt.rows.to(backbone.device, backbone.dtype)
    embeds = torch.cat([rows, backbone.embed(torch.tensor(ids, device=backbone.device))])
    mask = torch.ones(1, len(embeds), dtype=torch.int64, device=backbone.device)
    found = backbone.model(inputs_embeds=embeds[None], attention_mask=mask, use_cache=False).logits[0, -1]
    wanted = _reference_logprobs(reference, case, [0])[0]
    likely = wanted.topk(20).indices
    return float((found.float().log_softmax(-1).cpu()[likely] - wanted[likely]).abs().max())
