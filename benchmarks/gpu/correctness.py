"""The five equalities on the device, before anything is timed: a fast engine that answers something else is not fast.

The reference is a plain forward of the same weights in float32 on the CPU. An engine chooses greedily and reports the
log-probability of each token it chose; the reference is asked what it gives to the same token behind the same text. In
bfloat16 near ties fall either way, so tokens may differ and log-probabilities by rounding; in float32 they must agree.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.output.delta import Delta
from app.model.backbone import Backbone
from app.sampling import SamplingParams
from app.task_prompt import TaskPrompt
from benchmarks.gpu.device import Device
from benchmarks.gpu.models import TINY_LLAMA, TINY_QWEN3, Spec
from benchmarks.report import Part, Say

NUM_NEW = 24
NUM_TIGHT_BLOCKS = 14
"""Of 16 tokens: the longest sequence and its prefix take 11."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15}
PARAMS = SamplingParams(temperature=0.0, max_tokens=NUM_NEW, ignore_eos=True, logprobs=0)
WAYS: Mapping[str, dict[str, bool]] = {
    "plain": {"decode_graphs": False, "async_scheduling": False},
    "decode graphs": {"decode_graphs": True, "async_scheduling": False},
    "decode graphs, asynchronous": {"decode_graphs": True, "async_scheduling": True},
}


@dataclass(frozen=True)
class Case:
    """A request."""

    prompt: TaskPrompt | None
    token_ids: tuple[int, ...]


class Incorrect(Exception):
    """The engine answers something else on this device; nothing it takes for that is worth knowing."""


def check_correctness(device: Device, say: Say) -> Part:
    """Raises Incorrect."""
    name_to_figures: dict[str, dict[str, float]] = {}
    dtypes = [torch.float32, torch.bfloat16] if device.place.type == "cuda" else [torch.float32]
    for spec in (TINY_LLAMA, TINY_QWEN3):
        for dtype in dtypes:
            say(f"correctness of {spec.name} in {dtype}")
            for name, error in _errors(spec, device, dtype).items():
                name_to_figures[f"{spec.name}, {str(dtype).removeprefix('torch.')}: {name}"] = {
                    "largest difference of a log-probability": error,
                    "allowed": TOLERANCE[dtype],
                }
    part = Part(
        name="correctness",
        question="does the device answer as the reference does on the CPU?",
        setting={"new_tokens": NUM_NEW},
        name_to_figures=name_to_figures,
    )
    wrong = [name for name, figures in name_to_figures.items() if not _is_within(figures)]
    if wrong:
        raise Incorrect(f"{'; '.join(wrong)}: {name_to_figures}")
    return part


def _is_within(figures: Mapping[str, float]) -> bool:
    error, allowed = figures.values()
    return error <= allowed  # NaN never is


def _errors(spec: Spec, device: Device, dtype: torch.dtype) -> dict[str, float]:
    """Way of computing to its largest error."""
    reference = spec.build(Device.rehearsal())
    moved = copy.deepcopy(reference.model).to(device.place, dtype)
    backbone = replace(reference, model=moved)
    cases = _cases(reference)
    errors = {}
    for way, fields in WAYS.items():
        engine = _engine(backbone, fields, num_blocks=400)
        errors[f"{way}, a mixed batch"] = _error(reference, cases, _run(engine, cases))
        errors[f"{way}, prefixes found again"] = _error(reference, cases, _run(engine, cases))
        alone = [_run(engine, [case])[0] for case in cases]
        errors[f"{way}, one at a time"] = _error(reference, cases, alone)
        small = _engine(backbone, fields, num_blocks=NUM_TIGHT_BLOCKS, max_num_batched_tokens=20)
        errors[f"{way}, chunked and preempted"] = _error(reference, cases, _run(small, cases))
        if small.config.block_size <= 16:  # a sequence never outgrows a block of 256
            assert small.stats.num_preemptions > 0
        errors[f"{way}, a swap meanwhile"] = _error(reference, cases[:1], [_run_through_swap(engine, cases)])
    errors["the tuner's forward"] = _tuner_error(reference, backbone, cases)
    return errors


def _cases(backbone: Backbone) -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    cases = []
    for length in (0, 1, 7, 20, 50, 100, 20, 50):
        prompt = None
        if length:
            rows = torch.randn(length, backbone.hidden_size, generator=generator) * 0.06
            prompt = TaskPrompt.from_embeddings(rows, backbone.fingerprint)
        ids = torch.randint(0, backbone.vocab_size, (5 + 3 * length % 40,), generator=generator)
        cases.append(Case(prompt, tuple(ids.tolist())))
    kv_rows = torch.randn(16, backbone.kv_row_size, generator=generator) * 0.5
    return [*cases, Case(TaskPrompt.from_kv(kv_rows, backbone.fingerprint), cases[0].token_ids)]


def _engine(backbone: Backbone, fields: Mapping[str, Any], *, num_blocks: int, **sizes: int) -> Engine:
    num_tokens = sizes.get("max_num_batched_tokens", 256)
    config = EngineConfig.sized_for(
        backbone, max_model_len=256, max_num_seqs=12, max_num_batched_tokens=num_tokens, kv_cache_bytes=2**27
    )
    return Engine(backbone, replace(config, num_blocks=max(6, num_blocks * 16 // config.block_size), **fields))


def _run(engine: Engine, cases: Sequence[Case]) -> list[list[Delta]]:
    ids = [engine.add(case.token_ids, prompt=case.prompt, params=PARAMS) for case in cases]
    found: dict[int, list[Delta]] = {i: [] for i in ids}
    while engine.has_unfinished:
        for sequence_id, delta in engine.step():
            found[sequence_id].append(delta)
    return [found[i] for i in ids]


def _run_through_swap(engine: Engine, cases: Sequence[Case]) -> list[Delta]:
    """The first case's answer, while another task's prompt comes in and its own is dropped from the cache."""
    first = engine.add(cases[0].token_ids, prompt=cases[0].prompt, params=PARAMS)
    found = [delta for _ in range(4) for i, delta in engine.step() if i == first]
    engine.scheduler.prefix_cache.clear()
    engine.add(cases[3].token_ids, prompt=cases[3].prompt, params=PARAMS)
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
        assert len(chosen) == NUM_NEW
        tokens = [entry.token_id for entry in chosen]
        logprobs = _reference_logprobs(reference, case, tokens)
        own = logprobs[torch.arange(NUM_NEW), torch.tensor(tokens)]
        reported = torch.tensor([entry.logprob for entry in chosen])
        gaps = torch.cat([(reported - own).abs(), logprobs.max(-1).values - own])
        worst = max(worst, float(gaps.max())) if bool(torch.isfinite(gaps).all()) else float("nan")
    return worst


@torch.no_grad()
def _reference_logprobs(backbone: Backbone, case: Case, tokens: Sequence[int]) -> torch.Tensor:
    """(len(tokens), vocab_size): behind the text and all tokens but the last, in one plain forward."""
    embeds = backbone.embed(torch.tensor([*case.token_ids, *tokens[:-1]]))
    cache = None
    if case.prompt is not None and case.prompt.kind == "kv":
        cache = _cache(backbone, case.prompt)
    elif case.prompt is not None:
        assert case.prompt.rows is not None
        embeds = torch.cat([case.prompt.rows, embeds])
    start = 0 if cache is None else cache.get_seq_length()
    output = backbone.model(
        inputs_embeds=embeds[None],
        position_ids=torch.arange(start, start + len(embeds))[None],
        attention_mask=torch.ones(1, start + len(embeds), dtype=torch.int64),
        past_key_values=cache,
        use_cache=cache is not None,
    )
    logits: torch.Tensor = output.logits[0, -len(tokens) :]
    return logits.log_softmax(-1)


def _cache(backbone: Backbone, prompt: TaskPrompt):  # type: ignore[no-untyped-def]  # noqa: ANN202, transformers' own
    from transformers import DynamicCache

    shape, cache = backbone.kv_shape, DynamicCache()
    assert prompt.rows is not None
    rows = prompt.rows.view(1, -1, shape.num_layers * 2, shape.num_kv_heads, shape.head_dim).permute(2, 0, 3, 1, 4)
    for layer in range(shape.num_layers):
        cache.update(rows[2 * layer].contiguous(), rows[2 * layer + 1].contiguous(), layer)
    return cache


@torch.no_grad()
def _tuner_error(reference: Backbone, backbone: Backbone, cases: Sequence[Case]) -> float:
    """What a plain call on the device gives to each text's last token, beside the reference."""
    worst = 0.0
    for case in cases:
        if case.prompt is None or case.prompt.rows is None or case.prompt.kind == "kv":
            continue
        rows = case.prompt.rows.to(backbone.device, backbone.dtype)
        embeds = torch.cat([rows, backbone.embed(torch.tensor(case.token_ids, device=backbone.device))])
        mask = torch.ones(1, len(embeds), dtype=torch.int64, device=backbone.device)
        found = backbone.model(inputs_embeds=embeds[None], attention_mask=mask, use_cache=False).logits[0, -1]
        wanted = _reference_logprobs(reference, case, [0])[0]
        likely = wanted.topk(20).indices
        worst = max(worst, float((found.float().log_softmax(-1).cpu()[likely] - wanted[likely]).abs().max()))
    return worst
