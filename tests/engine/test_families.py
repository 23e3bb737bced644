"""Every decoder family of transformers is served as transformers computes it, at near and far positions, or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.errors import UnsupportedModel
from app.model.attention import Attend, attend_sdpa
from app.model.backbone import Backbone
from app.model.cpu.compiled_layer import compile_layers
from app.model.cpu.compiled_linear import compile_linears
from app.model.kernels import Replacements, kernels_for
from app.sampling import SamplingParams
from tests.support import naive
from tests.support.compiled import needs_compiler
from tests.support.families import FAMILIES, build_family
from tests.support.models import byte_tokenizer

LENGTHS = (100, 40, 7)
NUM_NEW = 3
TOLERANCE = 1e-3


def load(family: str, variant: str) -> Backbone | None:
    """None if it is refused."""
    model = build_family(family, variant)
    if model is None:
        pytest.skip("this transformers builds no tiny model of it")
    try:
        return Backbone.from_model(model, byte_tokenizer(), name=family)
    except UnsupportedModel:
        return None


def compiled(backbone: Backbone) -> tuple[Attend, Replacements]:
    """All that the C code takes on, whether or not it is faster here."""
    layers = compile_layers(backbone.model, backbone.kv_shape)
    inside = {module for each in layers for module in each.layer.modules()}
    linears = compile_linears(backbone.model).items()
    forwards = {each.layer: each.forward for each in layers} | {m: f for m, f in linears if m not in inside}
    attend, _ = kernels_for(backbone.device).choose_attend(backbone.dtype, backbone.kv_shape.head_dim)
    return attend, Replacements(forwards)


def largest_error(backbone: Backbone, truth: PreTrainedModel, attend: Attend, replacements: Replacements) -> float:
    """Of the log-probabilities of all tokens of three texts in one engine, against plain forwards of the whole texts.

    The longest is computed in chunks next to the others, and decode steps follow.
    """
    config = EngineConfig(
        max_model_len=backbone.max_model_len,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        block_size=16,
        num_blocks=40,
        max_waiting_requests=9,
        max_waiting_tokens=999,
    )
    engine = Engine(backbone, config, attend=attend, replacements=replacements)
    params = SamplingParams(max_tokens=NUM_NEW, temperature=0, ignore_eos=True, prompt_logprobs=0, logprobs=0)
    texts = {}
    for seed, length in enumerate(LENGTHS):
        room = min(length, backbone.max_model_len - NUM_NEW)
        ids = [0, *torch.randint(3, 250, (room - 1,), generator=torch.Generator().manual_seed(seed)).tolist()]
        texts[engine.add(ids, params=params)] = ids
    errors = []
    for sequence_id, deltas in naive.run(engine).items():
        whole = [*texts[sequence_id], *naive.tokens(deltas)]
        found = [entry for delta in deltas for entry in (delta.prompt_logprobs or ()) if entry is not None]
        found += [entry for delta in deltas for entry in (delta.logprobs or ())]
        with torch.no_grad():
            logits = truth(input_ids=torch.tensor([whole]), use_cache=False).logits[0, :-1].float()
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(whole[1:])[:, None])[:, 0]
        errors.append((torch.tensor([entry.logprob for entry in found]) - wanted).abs().max())
    return float(torch.stack(errors).max())


def check(family: str, variant: str, *, with_c: bool) -> bool:
    """Whether it is served; then it is served right."""
    backbone = load(family, variant)
    if backbone is None:
        return False
    truth = build_family(family, variant)
    assert truth is not None
    attend, replacements = compiled(backbone) if with_c else (attend_sdpa, Replacements())
    assert largest_error(backbone, truth, attend, replacements) < TOLERANCE
    return True


@needs_compiler
@pytest.mark.parametrize("with_c", [True, False])
@pytest.mark.parametrize(
    ("family", "variant", "is_served"),
    [
        ("ministral3", "plain", True),
        ("ministral3", "scaled", True),  # queries grow with the position
        ("afmoe", "alternating", True),  # gates what attention gives, and wants it in one piece
        ("smollm3", "alternating", True),  # some layers know no positions
        ("olmo3", "alternating", True),
        ("gemma2", "window", True),
        ("olmoe", "window", False),  # tells attention of a window that its mask has not
        ("phimoe", "window", False),  # has a window in its mask, and does not tell
        ("llama4_text", "scaled", False),  # counts tokens itself
        ("gpt_oss", "plain", False),  # attention sinks
        ("dory", "plain", False),
    ],
)
def test_a_family_is_served_right_or_refused(family: str, variant: str, is_served: bool, with_c: bool) -> None:
    assert check(family, variant, with_c=with_c) == is_served


@needs_compiler
@pytest.mark.parametrize(("dtype", "beta"), [("float32", 0.1), ("bfloat16", 0.1), ("bfloat16", 0.5)])
@pytest.mark.parametrize(("variant", "num_compiled"), [("plain", 3), ("scaled", 0)])
def test_queries_that_grow_with_the_position_keep_their_own_layers(
    variant: str, num_compiled: int, dtype: str, beta: float
) -> None:
    model = build_family("ministral3", variant)
    assert model is not None
    backbone = Backbone.from_model(model, byte_tokenizer(), name="scaled")
    copied = copy.deepcopy(backbone.model).to(getattr(torch, dtype))
    copied.config.rope_parameters["llama_4_scaling_beta"] = beta
    assert len(compile_layers(copied, backbone.kv_shape)) == num_compiled


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_served_right_or_refused(family: str) -> None:
    if build_family(family) is None:
        pytest.skip("this transformers builds no tiny model of it")
    windows = "window" if build_family(family, "alternating") is None else "alternating"
    if check(family, "plain", with_c=True):
        for variant in (windows, "scaled"):
            if build_family(family, variant) is not None:
                check(family, variant, with_c=True)
