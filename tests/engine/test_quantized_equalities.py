"""The five equalities of the design on a quantised backbone: one model, whose dequantised weights everyone sees."""

from __future__ import annotations

import pytest
import torch

from app.engine.engine import Engine
from app.model.backbone import Backbone
from app.model.cpu.compiled_layer import compile_layers
from app.model.cpu.compiled_linear import compile_linears
from app.model.kernels import Replacements
from app.sampling import SamplingParams
from app.task_prompt import PromptKind
from tests.engine.test_equalities import (
    GREEDY,
    NUM_NEW,
    PROMPT_LENGTHS,
    assert_a_mixed_batch_equals_generate,
    assert_same,
    make_engine,
    random_ids,
    random_prompt,
    rows_of,
)
from tests.support import naive
from tests.support.compiled import needs_compiler
from tests.support.models import ARCHITECTURE_TO_CONFIG, tiny_backbone


def quantized(architecture: str = "llama") -> Backbone:
    return tiny_backbone(architecture, quantize="int8")


def engine_of(backbone: Backbone, *, is_compiled: bool, **sizes: int) -> Engine:
    """Args: is_compiled: whether all that the C code can compute is computed by it; else nothing is."""
    if not is_compiled:
        return make_engine(backbone, replacements=Replacements(), **sizes)
    layers = {each.layer: each.forward for each in compile_layers(backbone.model, backbone.kv_shape)}
    return make_engine(backbone, replacements=Replacements(layers or compile_linears(backbone.model)), **sizes)


ways = pytest.mark.parametrize("is_compiled", [pytest.param(True, marks=needs_compiler), False])


# 1. Engine = naive loop = transformers' generate


@ways
@pytest.mark.parametrize("architecture", ARCHITECTURE_TO_CONFIG)
def test_a_mixed_batch_equals_generate_on_each_request_alone(architecture: str, *, is_compiled: bool) -> None:
    assert_a_mixed_batch_equals_generate(engine_of(quantized(architecture), is_compiled=is_compiled))


# 2. Batched = alone


@ways
def test_a_request_does_not_depend_on_its_neighbors_or_on_preemption(*, is_compiled: bool) -> None:
    backbone = quantized()
    prompts = [random_prompt(backbone, n, kind) for n, kind in ((20, "embeddings"), (7, "kv"), (20, "text"))]
    engine = engine_of(backbone, is_compiled=is_compiled, block_size=4, num_blocks=30, max_num_batched_tokens=16)
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    wanted = {}
    for k in range(8):
        prompt, ids = prompts[k % 3], random_ids(3 + 2 * k, seed=k)
        wanted[engine.add(ids, prompt=prompt, params=params)] = naive.greedy(backbone, prompt, ids, 30)[0]
    found = naive.run(engine)
    assert {sequence_id: naive.tokens(deltas) for sequence_id, deltas in found.items()} == wanted
    assert engine.stats.num_preemptions > 5


# 3. Prompt as cached prefix = prompt as embeddings prefilled with the text


@ways
@pytest.mark.parametrize("kind", list(PromptKind))
def test_a_cached_prefix_gives_what_a_prompt_prefilled_with_the_text_gives(kind: str, *, is_compiled: bool) -> None:
    backbone = quantized()
    engine = engine_of(backbone, is_compiled=is_compiled)
    for length in PROMPT_LENGTHS:
        prompt, ids = random_prompt(backbone, length, kind, seed=5), random_ids(30, seed=length)
        wanted = naive.greedy(backbone, prompt, ids, NUM_NEW)
        for num_cached in (0, length):
            sequence_id = engine.add(ids, prompt=prompt, params=GREEDY)
            deltas = naive.run(engine)[sequence_id]
            assert deltas[0].num_cached_tokens >= num_cached  # of the text too, the second time
            assert_same(deltas, *wanted)


# 4. The tuner's logits = the engine's


@ways
def test_a_forward_that_is_differentiated_through_gives_the_engines_logits(*, is_compiled: bool) -> None:
    backbone = quantized()
    prompt, ids = random_prompt(backbone, 20), random_ids(12, seed=1)
    rows = rows_of(prompt).clone().requires_grad_()
    embeds = torch.cat([rows, backbone.embed(torch.tensor(ids))])[None]
    logits = backbone.model(inputs_embeds=embeds, use_cache=False).logits[0, -1].log_softmax(-1)
    engine = engine_of(backbone, is_compiled=is_compiled)
    engine.add(ids, prompt=prompt, params=SamplingParams(temperature=0, max_tokens=1, logprobs=20, ignore_eos=True))
    (deltas,) = naive.run(engine).values()
    assert_same(deltas, [int(logits.argmax())], logits.detach()[None])
    logits.max().backward()
    assert rows.grad is not None
    assert rows.grad.abs().sum() > 0


# 5. A swap never touches a running sequence


@ways
def test_a_sequence_ends_on_the_prompt_it_began_with(*, is_compiled: bool) -> None:
    backbone = quantized()
    old, new = random_prompt(backbone, 20, seed=1), random_prompt(backbone, 20, seed=2)
    engine = engine_of(backbone, is_compiled=is_compiled, block_size=4, num_blocks=60)
    ids, params = random_ids(10, seed=0), SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    first, found = engine.add(ids, prompt=old, params=params), {}
    for _ in range(8):
        for sequence_id, delta in engine.step():
            found.setdefault(sequence_id, []).append(delta)
    second = engine.add(ids, prompt=new, params=params)
    for sequence_id, deltas in naive.run(engine).items():
        found.setdefault(sequence_id, []).extend(deltas)
    wanted_old, wanted_new = (naive.greedy(backbone, prompt, ids, 24)[0] for prompt in (old, new))
    assert wanted_old != wanted_new
    assert naive.tokens(found[first]) == wanted_old
    assert naive.tokens(found[second]) == wanted_new


def test_keys_and_values_on_disk_are_not_those_of_the_backbone_before_it_was_quantised() -> None:
    computed_by = [
        engine_of(each, is_compiled=False).model_runner.computed_by for each in (tiny_backbone(), quantized())
    ]
    assert computed_by[0] != computed_by[1]
